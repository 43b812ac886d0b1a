"""The plan in figures: candidates, what is carried, the lower bound."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .placement_bound import Need, fewest_gpus_in_all
from .placement_problem import TOLERANCE
from .plan_document import Candidate, Summary
from .wishes import capacity_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .configurations import Configuration
    from .placement_problem import Shape, Wish
    from .plan_document import Instance
    from .planning_answer import Answer
    from .wishes import Prepared


def candidates_of(answer: Answer) -> tuple[Candidate, ...]:
    """The configurations that were chosen among, and those that run."""
    result = []
    for name, ready in answer.prepared.items():
        found = answer.candidates[name]
        restricted = restricted_shapes(ready.wish, (one.shape for one in found)) if ready.wish else frozenset()
        result += [_candidate(name, one, restricted=one.shape in restricted) for one in found]
    return tuple(result)


def _candidate(model: str, one: Configuration, *, restricted: bool) -> Candidate:
    return Candidate(
        model=model,
        config={
            "gpu": one.shape.kind,
            "tensor_parallel_size": one.shape.tensor_parallel,
            "pipeline_parallel_size": one.shape.pipeline_parallel,
            "quantization": one.quantization,
            "kv_cache_dtype": one.options.kv_cache_dtype,
            "max_num_batched_tokens": one.options.max_num_batched_tokens,
            "max_model_len": one.estimate.max_model_len,
            **({"gpu_ways": one.shape.ways} if one.shape.ways > 1 else {}),
            **({"nodes": one.shape.nodes} if one.shape.nodes > 1 else {}),
            # No more GPUs than the plan has are used in this way, whatever that would save.
            **({"restricted": True} if restricted else {}),
        },
        gpus=one.shape.gpus,
        capacity_requests_per_s=one.capacity_requests_per_s,
    )


def candidate_order(one: Configuration) -> tuple[object, ...]:
    """Sort key of candidates."""
    shape = one.shape
    own = (shape.nodes, shape.ways, shape.gpus, shape.precision, -shape.tensor_parallel, shape.max_num_batched_tokens)
    return (shape.kind, *own)


def summary_of(
    instances: Sequence[Instance], answer: Answer, untouchable: Sequence[Instance], notes: tuple[str, ...]
) -> Summary:
    """The plan in figures."""
    used = len({cell for one in instances for cell in one.gpus})
    carried: dict[str, float] = {}
    needs = []
    for name, ready in answer.prepared.items():
        mine = [one for one in instances if one.model == name]
        carried[name] = round(_carried(ready, mine), 6)
        needs += _need(ready, mine, untouchable, answer.capacity[name])
    restricted = {need.wish.model: need.restricted for need in needs}
    parts = sum(one.shape.parts for one in answer.decision.placed if one.shape in restricted[one.model])
    frozen = len({cell for one in untouchable for cell in one.gpus})
    bound = frozen + fewest_gpus_in_all(needs, restricted_parts=parts)
    return Summary(
        gpus_used=used,
        gpus_lower_bound=min(bound, used),
        gap_fraction=round(max(0, used - bound) / used, 6) if used else 0.0,
        carried=carried,
        improvement_available=answer.improvement,
        notes=notes,
        carried_without_host=_carried_without_host(instances, answer.prepared),
    )


def _carried(ready: Prepared, mine: Sequence[Instance]) -> float:
    wish = ready.wish
    if wish is None or wish.demand is None:
        if ready.refusal is not None and ready.refusal.constraint == "objectives":
            return 0.0
        return min(1.0, len(mine) / ready.target)
    share = sum(capacity_of(one) for one in mine) / wish.demand
    return 1.0 if share >= 1.0 - TOLERANCE else share


def _need(
    ready: Prepared, mine: Sequence[Instance], untouchable: Sequence[Instance], capacity: Mapping[Shape, float]
) -> list[Need]:
    """What the plan carries of a model beside its frozen instances, and the candidates that may carry it."""
    wish = ready.wish
    if wish is None:
        return []
    frozen = {one.id for one in untouchable}
    free = [one for one in mine if one.id not in frozen]
    demand = None if wish.demand is None else _carried(ready, mine) * wish.demand
    carried = replace(wish, count=min(wish.count, len(free)), demand=demand, capacity=capacity)
    return [Need(carried, tuple(capacity), restricted_shapes(wish, capacity))]


def restricted_shapes(wish: Wish, shapes: Iterable[Shape]) -> frozenset[Shape]:
    """Shapes that are used only where demand would be left otherwise."""
    return frozenset(shape for shape in shapes if shape in wish.sacrifices or shape.ways > 1)


def _carried_without_host(
    instances: Sequence[Instance], prepared: Mapping[str, Prepared]
) -> dict[str, dict[str, float]]:
    """For each host, what is carried of the models that may lose one, when it is lost."""
    shares: dict[str, dict[str, float]] = {}
    for name, ready in prepared.items():
        wish = ready.wish
        if wish is None or wish.demand is None or wish.min_hosts < 2:
            continue
        mine = [one for one in instances if one.model == name]
        for host in sorted({host for one in mine for host in one.hosts}):
            left = sum(capacity_of(one) for one in mine if host not in one.hosts) / wish.demand
            shares.setdefault(host, {})[name] = 1.0 if left >= 1.0 - TOLERANCE else round(left, 6)
    return shares
