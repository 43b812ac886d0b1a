"""The plan stage as a pure function: hosts, requests and what runs now in, the plan out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .fleet_configurations import FleetConfigurations
from .fleet_view import FleetView
from .foreign_memory import with_foreign_memory
from .link_classes import with_link_classes
from .model_document import model_section
from .plan_document import Move, Place, Plan, id_order
from .plan_gpus import links_document
from .plan_instances import plan_instances
from .planning_answer import Question, less_precise
from .planning_summary import candidates_of, summary_of
from .refusals import short_of_room
from .running import split_current, why_stranded
from .triton_releases import DEFAULT_RELEASE, vllm_of_release

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .carrying import Carrying
    from .configurations import ResolvedModel
    from .hardware import GpuModel
    from .host_document import HostDocument
    from .placement_problem import Decision, Placed
    from .plan_document import Instance, Refusal
    from .planning_answer import Answer
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
    carrying: Carrying | None = None,
    triton_engine_version: str = vllm_of_release(DEFAULT_RELEASE),
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
        carrying: keeps capacities between plans, for a caller that makes several; they never change an answer.
        triton_engine_version: vLLM's version in Triton's container, for models with ``engine: triton``.

    Raises:
        FleetError: a host variable excludes a GPU that does not exist, or an engine argument has a wrong value.
    """
    described = with_foreign_memory(with_link_classes(hosts), [model.request for model in models])
    view = FleetView(described, frozenset(frozen))
    configurations = FleetConfigurations(engine_version, carrying, triton_engine_version)
    by_name = {model.request.name: model for model in sorted(models, key=lambda model: model.request.name)}
    untouchable, touchable = split_current(current, view.frozen, by_name.keys())
    question = Question(view, configurations, by_name, untouchable, touchable)
    answer = question.answer({}, optimize=optimize)
    if answer.decision.shortages and question.may_be_less_precise:
        answer = less_precise(question, optimize=optimize)
    instances = plan_instances(
        answer.decision,
        answer.prepared,
        view,
        configurations,
        capacity=answer.capacity,
        current=touchable,
        untouchable=untouchable,
        why_leaving=answer.why_leaving,
        port_base=port_base,
    )
    return Plan(
        instances=tuple(sorted(instances, key=lambda one: id_order(one.id))),
        refused=_refused(answer, view),
        moves=_moves(answer.decision, answer.prepared, touchable, view),
        candidates=candidates_of(answer),
        summary=summary_of(instances, answer, untouchable, view.notes()),
        models={name: model_section(model) for name, model in by_name.items()},
        **_gpus_of(instances, view),
    )


def _gpus_of(instances: Sequence[Instance], view: FleetView) -> dict[str, Any]:
    """The instances on each kind of GPU as far as it is known, and the links of those kinds."""
    kinds: dict[str, list[str]] = {}
    models: dict[str, GpuModel] = {}
    for one in sorted(instances, key=lambda one: id_order(one.id)):
        gpu = view.model_as_run(one)
        if gpu is not None:
            models[gpu.kind] = gpu
            kinds.setdefault(gpu.kind, []).append(one.id)
    return {
        "instance_gpus": {kind: tuple(ids) for kind, ids in sorted(kinds.items())},
        "gpu_links": links_document(models.values()),
    }


def _refused(answer: Answer, view: FleetView) -> tuple[Refusal, ...]:
    refused = [one.refusal for one in answer.prepared.values() if one.refusal is not None]
    for shortage in answer.decision.shortages:
        one = answer.prepared[shortage.model]
        if one.wish is not None:
            refused.append(
                short_of_room(
                    one.model,
                    one.wish,
                    shortage,
                    target=one.target,
                    decision=answer.decision,
                    hosts=view.hosts,
                    optimizing_helps=answer.improvement is not None,
                )
            )
    return tuple(sorted(refused, key=lambda refusal: (refusal.model, refusal.constraint)))


def _moves(
    decision: Decision, prepared: Mapping[str, Prepared], current: Mapping[str, Instance], view: FleetView
) -> tuple[Move, ...]:
    moves = [
        Move(one.standing.id, one.model, _places(current[one.standing.id]), _new_places(one), one.cause)
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


def _new_places(one: Placed) -> tuple[Place, ...]:
    return (Place(one.host, one.gpus), *(Place(host, gpus) for host, gpus in one.further))


def _places(one: Instance) -> tuple[Place, ...]:
    return tuple(Place(shard.host, shard.gpus) for shard in one.shards)
