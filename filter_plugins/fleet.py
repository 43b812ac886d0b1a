"""Filters over the plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DOCUMENTATION = r"""
name: fleet
short_description: Reshape the plan for roles
description: Pure functions from the plan to what a role's template prints.
"""


def fleet_routes(plan: Mapping[str, Any], addresses: Mapping[str, str]) -> list[dict[str, Any]]:
    """Where each model is served, for the gateway.

    Args:
        plan: PLAN.json.
        addresses: address of each host as the gateway reaches it; a host that is not in it goes by its name.

    Returns:
        One entry a model and engine, by name: ``model``, ``engine``, ``aliases``, ``adapters``, ``task``, ``servers``
        (``id``, ``host``, ``address``, ``port``, and ``weight`` where instances differ in what they carry), and where
        they are known ``takes`` and ``embedding_size``. A model that is wanted but has no instance has no servers. An
        alias or an adapter is listed when every instance of the model answers to it; where two models claim one, the
        wanted one has it. An ensemble on Triton has an entry of its own, with ``ensemble`` saying what it takes:
        ``chat``.
    """
    # Imported here, since every Ansible worker loads this file in every task.
    from fleet.gateway_weights import weights_of_instances  # noqa: PLC0415

    wanted = plan["summary"]["carried"]
    by_model: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for instance in plan["instances"]:
        by_model.setdefault((instance["model"], instance.get("engine", "vllm")), []).append(instance)
    placed = {model for model, _ in by_model}
    by_model |= {(name, "vllm"): [] for name in wanted if name not in placed}
    taken = {model for model, _ in by_model}
    routes = []
    for model, engine in sorted(by_model, key=lambda key: (key[0] not in wanted, key)):
        instances = sorted(by_model[model, engine], key=lambda instance: instance["id"])
        known = [set(instance.get("aliases") or ()) for instance in instances]
        aliases = sorted(set.intersection(*known) - taken) if known else []
        taken.update(aliases)
        adapters = _adapters(instances, taken)
        taken.update(adapters)
        first = instances[0] if instances else {}
        weights = weights_of_instances(instances)
        routes.append(
            {
                "model": model,
                "engine": engine,
                "aliases": aliases,
                **({"adapters": adapters} if adapters else {}),
                "task": first.get("task", "generate"),
                **{key: first[key] for key in ("takes", "embedding_size") if first.get(key)},
                "servers": [_server(instance, addresses, weights) for instance in instances],
            }
        )
        wrapped = [one for one in instances if one.get("ensemble")]
        if engine == "triton" and wrapped:
            servers = [_server(one, addresses, weights) for one in wrapped]
            ensemble = {"model": wrapped[0]["ensemble"], "engine": engine, "aliases": [], "ensemble": "chat"}
            routes.append({**ensemble, "task": "generate", "servers": servers})
    return sorted(routes, key=lambda route: (route["model"], route["engine"]))


def fleet_on_triton(instances: Iterable[Mapping[str, Any]]) -> bool:
    """Whether any of the instances, planned ones or records that may be damaged, runs on Triton."""
    return any(one.get("engine") == "triton" for one in instances)


def _adapters(instances: Iterable[Mapping[str, Any]], taken: set[str]) -> list[str]:
    from fleet.verification import adapter_names  # noqa: PLC0415 (as above)

    known = [set(adapter_names(instance["engine_args"])) for instance in instances]
    return sorted(set.intersection(*known) - taken) if known else []


def _server(instance: Mapping[str, Any], addresses: Mapping[str, str], weights: Mapping[str, int]) -> dict[str, Any]:
    # Rank 0 listens; the other ranks are headless.
    host = min(instance["shards"], key=lambda shard: shard["rank"])["host"]
    return {
        "id": instance["id"],
        "host": host,
        "address": addresses.get(host, host),
        "port": instance["port"],
        **({"weight": weights[instance["id"]]} if weights else {}),
    }


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Filters by name."""
        return {"fleet_on_triton": fleet_on_triton, "fleet_routes": fleet_routes}
