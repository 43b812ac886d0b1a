"""From the decision to the instances of the plan: ids, ports, arguments, reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .configurations import Configuration
from .engine_arguments import instance_engine_args
from .plan_document import Instance, Shard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .configurations import Configurations
    from .fleet_view import FleetView
    from .placement_problem import Cause, Decision, Placed
    from .wishes import Prepared

MODELS_DIRECTORY = "/var/lib/l40s-fleet/models"
_DIGEST_CHARACTERS = 12
_CAUSE_WORDS: Mapping[Cause, str] = {
    "lost": "its host or GPU is gone",
    "unhealthy": "a health check blocks its GPU",
    "excluded": "its GPU is excluded",
    "constraint": "placement asks for another place",
    "configuration": "it needs other GPUs",
    "conflict": "its GPU was given to another instance",
    "priority": "a model of higher priority needed the GPUs",
    "availability": "all replicas stood on one host",
    "optimize": "fleet_optimize was set and this packs better",
}


def plan_instances(
    decision: Decision,
    prepared: Mapping[str, Prepared],
    view: FleetView,
    configurations: Configurations,
    *,
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
        current: what runs and may be touched, by id.
        untouchable: what runs on frozen hosts.
        why_leaving: in words, why an instance could not stay, by id.
        port_base: the first port.
    """
    ids = {one.id for one in untouchable} | {one.standing.id for one in decision.placed if one.standing}
    ports: dict[str, set[int]] = {}
    for one in untouchable:
        for host in one.hosts:
            ports.setdefault(host, set()).add(one.port)
    result = list(untouchable)
    # What stays takes its port before anything new is given one.
    for placed in sorted(decision.placed, key=lambda one: (not one.stays, one.model, one.host, one.gpus)):
        identity = placed.standing.id if placed.standing else _free_id(placed.model, ids)
        ids.add(identity)
        taken = ports.setdefault(placed.host, set())
        port = current[identity].port if placed.stays else 0
        if not port or port in taken:
            port = next(number for number in range(port_base, 65536) if number not in taken)
        taken.add(port)
        before = current.get(identity)
        ready = prepared[placed.model]
        if placed.stays and before is not None and before.reasons:
            place = before.reasons[0]
        else:
            place = _why_there(placed, ready, view, why_leaving.get(identity))
        result.append(
            _instance(placed, identity, port, place=place, prepared=ready, view=view, configurations=configurations)
        )
    return result


def _instance(
    placed: Placed,
    identity: str,
    port: int,
    *,
    place: str,
    prepared: Prepared,
    view: FleetView,
    configurations: Configurations,
) -> Instance:
    model, request = prepared.model, prepared.model.request
    gpu = view.gpu(placed.host, placed.gpus[0])
    found = configurations.of_shape(model, gpu.model, placed.shape) if gpu and gpu.model else None
    if not isinstance(found, Configuration):
        msg = f"{identity} was placed in a shape that does not fit"
        raise TypeError(msg)
    if model.checkpoint is not None:
        path = f"{MODELS_DIRECTORY}/{request.name}-{model.checkpoint.digest[:_DIGEST_CHARACTERS]}"
    else:
        path = request.repository or request.source_path or request.source
    memory: dict[str, Any] = found.estimate.to_document()
    del memory["ranks"]
    memory["unknown"] = list(found.estimate.unknown)
    return Instance(
        id=identity,
        model=request.name,
        engine=request.engine,
        task=request.task,
        aliases=request.aliases,
        shards=(Shard(placed.host, placed.gpus),),
        engine_args=instance_engine_args(request, found.options, path),
        env={**request.env, "CUDA_VISIBLE_DEVICES": ",".join(placed.gpus)},
        port=port,
        memory=memory,
        speed={},
        reasons=(place, *found.reasons, *_why_so_many_gpus(placed, prepared), *_why_so_many_replicas(prepared)),
        checkpoint=model.checkpoint,
        provisional=view.hosts[placed.host].provisional,
    )


def _why_there(placed: Placed, prepared: Prepared, view: FleetView, why_leaving: str | None) -> str:
    where = view.place_words(placed.host, placed.gpus)
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
    if wish is not None and not wish.spread:
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


def _why_so_many_replicas(prepared: Prepared) -> list[str]:
    request = prepared.model.request
    if request.availability.hosts_lost:
        lines = [f"{prepared.target} replicas on at least two hosts, because availability.hosts_lost is 1."]
    elif prepared.target > request.replicas.min:
        lines = [f"{prepared.target} replicas, one for each pin."]
    else:
        lines = [f"{prepared.target} {'replica' if prepared.target == 1 else 'replicas'}, from replicas.min."]
    if request.demand is not None:
        rate = request.demand.requests_per_second
        lines.append(f"The demand of {rate:g} requests/s does not change the number yet: there is no speed model.")
    if request.speculative == "auto":
        lines.append("No speculative decoding: whether it pays is not known without a speed model.")
    return lines


def _free_id(model: str, taken: set[str]) -> str:
    number = 1
    while f"{model}-{number}" in taken:
        number += 1
    return f"{model}-{number}"
