"""The plan stage as a pure function: hosts, requests and what runs now in, the plan out."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from .configurations import Configurations
from .fleet_view import FleetView
from .placement import decide
from .plan_document import Candidate, Move, Place, Plan, Summary, id_order
from .plan_instances import plan_instances
from .refusals import short_of_room
from .running import split_current, standing_of, why_stranded
from .wishes import prepare

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .configurations import Configuration, ResolvedModel
    from .host_document import HostDocument
    from .placement_problem import Decision, HostRoom, Standing, Wish
    from .plan_document import Instance, Refusal
    from .wishes import Prepared

DEFAULT_PORT_BASE = 8100


def make_plan(
    hosts: Sequence[HostDocument],
    models: Sequence[ResolvedModel],
    current: Sequence[Instance],
    *,
    frozen: Iterable[str] = (),
    engine_version: str,
    port_base: int = DEFAULT_PORT_BASE,
    optimize: bool = False,
) -> Plan:
    """Make the plan. The order of the arguments' elements does not matter.

    Args:
        hosts: every host that may be used, and frozen ones as far as their documents are known. Hosts that are gone
            are left out: what ran there is lost.
        models: the requests with what their checkpoints say.
        current: what runs now, on frozen hosts according to the applied plan.
        frozen: hosts that were not reached: what runs there stays as it is, nothing new is put there.
        engine_version: vLLM's version, for its memory constants.
        port_base: the first port that an engine may listen on.
        optimize: move what runs if that places more, or the same on fewer GPUs.

    Raises:
        FleetError: a host variable excludes a GPU that does not exist, or an engine argument has a wrong value.
    """
    view = FleetView(hosts, frozenset(frozen))
    configurations = Configurations(engine_version)
    by_name = {model.request.name: model for model in sorted(models, key=lambda model: model.request.name)}
    untouchable, touchable = split_current(current, view.frozen, by_name.keys())
    prepared = {
        name: prepare(
            model,
            view,
            configurations,
            [one.shards[0].host for one in untouchable if one.model == name],
            engine_version,
        )
        for name, model in by_name.items()
    }
    standing: list[Standing] = []
    why_leaving: dict[str, str] = {}
    for one in sorted(touchable.values(), key=lambda one: id_order(one.id)):
        if one.model in prepared and prepared[one.model].wish is not None:
            now, why = standing_of(one, by_name[one.model], view, configurations)
            standing.append(now)
            if why:
                why_leaving[one.id] = why
    decision, improvement = _decide(prepared, list(view.rooms.values()), standing, optimize=optimize)
    instances = plan_instances(
        decision,
        prepared,
        view,
        configurations,
        current=touchable,
        untouchable=untouchable,
        why_leaving=why_leaving,
        port_base=port_base,
    )
    return Plan(
        instances=tuple(sorted(instances, key=lambda one: id_order(one.id))),
        refused=_refused(decision, prepared, view, optimizing_helps=improvement is not None),
        moves=_moves(decision, prepared, touchable, view),
        candidates=tuple(_candidate(name, one) for name in prepared for one in prepared[name].configurations),
        summary=_summary(instances, prepared, improvement, view.notes()),
    )


def _decide(
    prepared: Mapping[str, Prepared], rooms: Sequence[HostRoom], standing: Sequence[Standing], *, optimize: bool
) -> tuple[Decision, dict[str, Any] | None]:
    """The decision, and what moving more would bring, if anything."""
    wishes: list[Wish] = [one.wish for one in prepared.values() if one.wish is not None]
    decision = decide(wishes, rooms, standing)
    larger_than_needed = any(
        one.shape.gpus > min(fitting.shape.gpus for fitting in prepared[one.model].configurations)
        for one in decision.placed
    )
    if not (decision.missing or larger_than_needed):
        return decision, None
    best = decide(wishes, rooms, standing, optimize=True)
    if (best.missing, best.gpus_used) >= (decision.missing, decision.gpus_used):
        return decision, None
    if optimize:
        return best, None
    return decision, {
        "replicas_more": decision.missing - best.missing,
        "gpus_fewer": decision.gpus_used - best.gpus_used,
        "moves": sum(1 for one in best.placed if one.standing is not None and one.cause is not None),
    }


def _refused(
    decision: Decision, prepared: Mapping[str, Prepared], view: FleetView, *, optimizing_helps: bool
) -> tuple[Refusal, ...]:
    refused = [one.refusal for one in prepared.values() if one.refusal is not None]
    for shortage in decision.shortages:
        one = prepared[shortage.model]
        if one.wish is not None:
            refused.append(
                short_of_room(
                    one.model,
                    one.wish,
                    shortage,
                    target=one.target,
                    decision=decision,
                    hosts=view.hosts,
                    optimizing_helps=optimizing_helps,
                )
            )
    return tuple(sorted(refused, key=lambda refusal: (refusal.model, refusal.constraint)))


def _moves(
    decision: Decision, prepared: Mapping[str, Prepared], current: Mapping[str, Instance], view: FleetView
) -> tuple[Move, ...]:
    moves = [
        Move(one.standing.id, one.model, _places(current[one.standing.id]), (Place(one.host, one.gpus),), one.cause)
        for one in decision.placed
        if one.standing is not None and one.cause is not None
    ]
    moves += [
        Move(one.id, one.model, _places(current[one.id]), (), cause)
        for shortage in decision.shortages
        for one, cause in shortage.left
    ]
    # What runs of a model that is wanted but can no longer be placed at all.
    moves += [
        Move(one.id, one.model, _places(one), (), why_stranded(one, view))
        for one in current.values()
        if one.model in prepared and prepared[one.model].wish is None
    ]
    return tuple(sorted(moves, key=lambda move: id_order(move.id)))


def _places(one: Instance) -> tuple[Place, ...]:
    return tuple(Place(shard.host, shard.gpus) for shard in one.shards)


def _candidate(model: str, one: Configuration) -> Candidate:
    return Candidate(
        model=model,
        config={
            "gpu": one.shape.kind,
            "tensor_parallel_size": one.shape.tensor_parallel,
            "pipeline_parallel_size": one.shape.pipeline_parallel,
            "quantization": one.quantization,
            "kv_cache_dtype": one.options.kv_cache_dtype,
            "max_model_len": one.estimate.max_model_len,
        },
        gpus=one.shape.gpus,
    )


def _summary(
    instances: Sequence[Instance],
    prepared: Mapping[str, Prepared],
    improvement: dict[str, Any] | None,
    notes: tuple[str, ...],
) -> Summary:
    counts = Counter(one.model for one in instances)
    used = sum(len(one.gpus) for one in instances)
    smallest = {
        name: min((fitting.shape.gpus for fitting in one.configurations), default=None)
        for name, one in prepared.items()
    }
    bound = sum(min(len(one.gpus), smallest.get(one.model) or len(one.gpus)) for one in instances)
    return Summary(
        gpus_used=used,
        gpus_lower_bound=bound,
        gap_fraction=round((used - bound) / used, 6) if used else 0.0,
        carried={name: round(min(1.0, counts[name] / one.target), 6) for name, one in prepared.items()},
        improvement_available=improvement,
        notes=notes,
    )
