"""From the decision to the instances of the plan: ids, ports, arguments, reasons."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from .attention_words import ENGINE_ENVIRONMENT, why_this_backend
from .configurations import Configuration, gives_up_precision, path_on_hosts
from .encoder_memory import modalities
from .engine_arguments import instance_engine_args
from .plan_document import Instance, Shard, Sharing, id_order
from .ranks import free_master_port, ports_of, shared_arguments
from .sources import DRAFT, Source
from .speculation_choice import Drafting
from .triton_ensemble import ensemble_names
from .triton_ports import ServerPorts, is_alone

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .configurations import Configurations
    from .fleet_view import FleetView
    from .placement_problem import Cause, Decision, Placed, Shape
    from .wishes import Prepared

_CAUSE_WORDS: Mapping[Cause, str] = {
    "lost": "its host or GPU is gone",
    "unhealthy": "a health check blocks its GPU",
    "excluded": "its GPU is excluded",
    "constraint": "placement asks for another place",
    "configuration": "it needs other GPUs",
    "conflict": "its GPU was given to another instance",
    "priority": "a model of higher priority needed the GPUs",
    "availability": "all replicas stood on one host",
    "demand": "it made room for demand that would have been left",
    "optimize": "fleet_optimize was set and this packs better",
}


def plan_instances(
    decision: Decision,
    prepared: Mapping[str, Prepared],
    view: FleetView,
    configurations: Configurations,
    *,
    capacity: Mapping[str, Mapping[Shape, float]],
    current: Mapping[str, Instance],
    untouchable: Sequence[Instance],
    why_leaving: Mapping[str, str],
    port_base: int,
) -> list[Instance]:
    """Write down every instance.

    Args:
        decision: where the replicas stand.
        prepared: the requests by model.
        view: the hosts.
        configurations: what was found to fit.
        capacity: requests/s that an instance carries, by model and shape.
        current: what runs and may be touched, by id.
        untouchable: what runs on frozen hosts.
        why_leaving: in words, why an instance could not stay, by id.
        port_base: the first port of engines that are servers of their own.
    """
    ids = {one.id for one in untouchable} | {one.standing.id for one in decision.placed if one.standing}
    ports: dict[str, set[int]] = {}
    servers = ServerPorts(ports)
    for one in untouchable:
        if one.engine == "triton":
            servers.keep(one)
        for host in one.hosts:
            ports.setdefault(host, set()).update((one.port, *ports_of(one.engine_args)))
    result = list(untouchable)
    memories: dict[int, dict[str, Any]] = {}
    drafting = Drafting()
    totals = {name: sum(ready.wish.carried_elsewhere) for name, ready in prepared.items() if ready.wish}
    for placed in decision.placed:
        totals[placed.model] += capacity[placed.model].get(placed.shape, 0.0)
    # What stays takes its port before anything new is given one.
    for placed in sorted(decision.placed, key=lambda one: (not one.stays, one.model, one.host, one.gpus)):
        identity = placed.standing.id if placed.standing else _free_id(placed.model, ids)
        ids.add(identity)
        before = current.get(identity)
        ready = prepared[placed.model]
        request = ready.model.request
        kept = before.port if placed.stays and before is not None and before.engine == request.engine else 0
        master_port = None
        if request.engine == "triton":
            alone = is_alone(len(placed.gpus), request.env)
            port = servers.port(placed.host, placed.model, alone=alone, before=kept)
        else:
            taken = set().union(*(ports.setdefault(host, set()) for host in placed.hosts))
            port = kept
            if not port or port in taken:
                port = next(number for number in range(port_base, 65536) if number not in taken)
            master_port = _master_port(placed, before if placed.stays else None, taken | {port})
            for host in placed.hosts:
                ports[host].update((port, *ports_of({"master_port": master_port})))
        if placed.stays and before is not None and before.reasons:
            place = before.reasons[0]
        else:
            place = _why_there(placed, ready, view, why_leaving.get(identity))
        result.append(
            _instance(
                placed,
                identity,
                port,
                master_port,
                place=place,
                prepared=ready,
                capacity=capacity[placed.model].get(placed.shape, 0.0),
                total=totals[placed.model],
                view=view,
                configurations=configurations,
                drafting=drafting,
                before=before if placed.stays else None,
                memories=memories,
            )
        )
    return _with_start_order(result)


def _master_port(placed: Placed, before: Instance | None, taken: set[int]) -> int | None:
    """The first of the ports on which ranks meet: that of before where it is free; None for an instance of one host."""
    if not placed.further:
        return None
    kept = ports_of(before.engine_args) if before is not None else ()
    return kept[0] if kept and taken.isdisjoint(kept) else free_master_port(taken)


def _with_start_order(instances: Sequence[Instance]) -> list[Instance]:
    """Of instances on one GPU, each starts after those in the seats before it."""
    on_gpu: dict[tuple[str, str], list[Instance]] = {}
    for one in instances:
        if one.sharing is not None:
            on_gpu.setdefault(one.gpus[0], []).append(one)
    result = []
    for one in instances:
        if one.sharing is not None:
            before = [other for other in on_gpu[one.gpus[0]] if other.sharing and other.sharing.seat < one.sharing.seat]
            ids = tuple(sorted((other.id for other in before), key=id_order))
            one = replace(one, sharing=replace(one.sharing, starts_after=ids))  # noqa: PLW2901
        result.append(one)
    return result


def _instance(
    placed: Placed,
    identity: str,
    port: int,
    master_port: int | None,
    *,
    place: str,
    prepared: Prepared,
    capacity: float,
    total: float,
    view: FleetView,
    configurations: Configurations,
    drafting: Drafting,
    before: Instance | None,
    memories: dict[int, dict[str, Any]],
) -> Instance:
    model, request = prepared.model, prepared.model.request
    gpu = view.model_of(placed.host, placed.gpus[0], placed.shape.kind, before)
    found = configurations.of_shape(model, gpu, placed.shape) if gpu is not None else None
    if gpu is None or not isinstance(found, Configuration):
        msg = f"{identity} was placed in a shape that does not fit"
        raise TypeError(msg)
    path = path_on_hosts(Source(request.source), model.checkpoint)
    # Requests are shared out by capacity, as the gateway weighs the instances.
    demand = prepared.wish.demand if prepared.wish else None
    share = min(1.0, demand / total) * capacity if demand is not None and total > 0.0 else 0.0
    speed = configurations.speed(model, gpu, found, share) if share > 0.0 else {}
    running = before.engine_args.get("speculative_config") if before is not None else None
    found, why_drafted = drafting.decide(model, gpu, found, speed, running)
    # Instances of one configuration are alike, and there may be thousands.
    if id(found) not in memories:
        memories[id(found)] = found.estimate.to_document()
        del memories[id(found)]["ranks"]
        memories[id(found)]["unknown"] = list(found.estimate.unknown)
    return Instance(
        id=identity,
        model=request.name,
        engine=request.engine,
        task=request.task,
        aliases=request.aliases,
        shards=(
            Shard(placed.host, placed.gpus),
            *(Shard(host, gpus, rank) for rank, (host, gpus) in enumerate(placed.further, start=1)),
        ),
        engine_args=_engine_args(instance_engine_args(request, found.options, path), len(placed.hosts), master_port),
        env={
            # Models on Triton share a server, whose environment is its own.
            **(ENGINE_ENVIRONMENT if request.engine == "vllm" else {}),
            **request.env,
            **({"CUDA_VISIBLE_DEVICES": ",".join(placed.gpus)} if not placed.further else {}),
        },
        port=port,
        memory=dict(memories[id(found)]),
        speed=speed,
        reasons=(
            place,
            *model.notes,
            *found.reasons,
            why_this_backend(model.facts, gpu, found.options, request.engine_args),
            *_why_this_precision(found, prepared),
            *_why_so_many_gpus(placed, prepared),
            *_why_untested(placed, view),
            *_why_so_many_replicas(prepared, speed),
            *why_drafted,
        ),
        checkpoint=model.checkpoint,
        provisional=any(view.hosts[host].provisional for host in placed.hosts),
        sharing=Sharing(placed.shape.ways, placed.seat) if placed.shape.ways > 1 else None,
        ensemble=ensemble_names(request.name)[0] if request.triton.chat_ensemble else "",
        further_checkpoints=tuple(
            one.checkpoint
            for one in model.further
            if one.checkpoint is not None and (one.source.label != DRAFT or found.options.speculative is not None)
        ),
        takes=modalities(model.facts, found.options),
        embedding_size=model.embedding_size,
    )


def _engine_args(of_one_host: dict[str, object], nodes: int, master_port: int | None) -> dict[str, object]:
    shared = shared_arguments(nodes, master_port) if master_port is not None else {}
    return dict(sorted((of_one_host | shared).items()))


def _why_there(placed: Placed, prepared: Prepared, view: FleetView, why_leaving: str | None) -> str:
    where = " and ".join(view.place_words(host, gpus) for host, gpus in ((placed.host, placed.gpus), *placed.further))
    if placed.stays:
        return f"Stays on {where}, where it runs."
    choice = _choice(placed, prepared, view)
    if placed.standing is None:
        return f"On {where}: {choice}."
    origin = view.place_words(placed.standing.host, placed.standing.gpus)
    why = why_leaving or _CAUSE_WORDS[placed.cause or "optimize"]
    return f"Moved from {origin} to {where}, because {why}; {choice}."


def _choice(placed: Placed, prepared: Prepared, view: FleetView) -> str:
    wish = prepared.wish
    allowed = len(wish.hosts) if wish is not None else 0
    if placed.pin is not None:
        return f"placement.pins[{prepared.pins[placed.pin]}] asks for it"
    if allowed == 1:
        return "the only host that may be used"
    if placed.further:
        choice = "the hosts with the fewest free GPUs that suffice"
    elif placed.shape.ways > 1:
        choice = "a GPU that is shared"
    elif wish is not None and not wish.spread:
        choice = "the fullest host that has room, because spread_over_hosts is false"
    elif prepared.target > 1:
        choice = "the host with the fewest replicas of the model, then the largest share of free GPUs"
    else:
        choice = "the host with the largest share of free GPUs"
    return choice if allowed == len(view.rooms) else f"{choice}, among the {allowed} that may be used"


def _why_so_many_gpus(placed: Placed, prepared: Prepared) -> list[str]:
    fewer = [one for one in prepared.misfits if one.shape.gpus < placed.shape.gpus]
    if not fewer:
        return []
    # The most GPUs that did not do, in the way that came closest.
    most = max(one.shape.gpus for one in fewer)
    closest = min((one for one in fewer if one.shape.gpus == most), key=lambda one: one.missing_bytes)
    return [f"{most} GPU{'s do' if most > 1 else ' does'} not do: {closest.explanation}."]


def _why_this_precision(found: Configuration, prepared: Prepared) -> list[str]:
    if not gives_up_precision(found, prepared.configurations):
        return []
    words = {"fp8": "FP8 weights", "kv_fp8": "FP8 KV cache", "fp8+kv_fp8": "FP8 weights and KV cache"}
    return [f"{words[found.shape.precision]}, because demand would have been left without."]


def _why_untested(placed: Placed, view: FleetView) -> list[str]:
    """A tensor group over a pair that no link test has seen."""
    size = placed.shape.tensor_parallel
    for host, gpus in ((placed.host, placed.gpus), *placed.further):
        verified = view.rooms[host].verified_pairs
        for start in range(0, len(gpus), size):
            group = gpus[start : start + size]
            if any(frozenset(pair) not in verified for pair in combinations(group, 2)):
                return [
                    "Peer-to-peer transfers between its GPUs were not tested; the link test of the probe does that."
                ]
    return []


def _why_so_many_replicas(prepared: Prepared, speed: Mapping[str, Any]) -> list[str]:
    request, wish = prepared.model.request, prepared.wish
    demand = wish.demand if wish is not None else None
    lines: list[str] = []
    if demand is not None and speed:
        limits = {"ttft": "the time to first token", "tpot": "the time per output token"}
        limit = limits.get(str(speed["limit"]), "its throughput")
        lines.append(
            f"One instance carries {speed['capacity_requests_per_s']:.3g} requests/s, limited by {limit}; the demand is"
            f" {demand:g} requests/s."
        )
        if request.availability.hosts_lost:
            lines.append("It is to be carried without any one host as well, because availability.hosts_lost is 1.")
    elif request.demand is not None:
        lines.append("The number of replicas does not follow the demand: no capacity within the objectives is known.")
    if demand is None:
        if request.availability.hosts_lost:
            lines.append(f"{prepared.target} replicas on at least two hosts, because availability.hosts_lost is 1.")
        elif prepared.target > request.replicas.min:
            lines.append(f"{prepared.target} replicas, one for each pin.")
        else:
            replicas = "replica" if prepared.target == 1 else "replicas"
            lines.append(f"{prepared.target} {replicas}, from replicas.min.")
    return lines


def _free_id(model: str, taken: set[str]) -> str:
    number = 1
    while f"{model}-{number}" in taken:
        number += 1
    return f"{model}-{number}"
