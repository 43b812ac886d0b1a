"""What runs now, and what of it may stay where it is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .configurations import Misfit
from .fleet_view import why_ineligible
from .placement_problem import Shape, Standing
from .plan_document import id_order

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from .configurations import Configurations, ResolvedModel
    from .fleet_view import FleetView
    from .placement_problem import Cause
    from .plan_document import Instance
    from .requests import ModelRequest


def split_current(
    current: Sequence[Instance], frozen: frozenset[str], models: Collection[str]
) -> tuple[list[Instance], dict[str, Instance]]:
    """Part what runs into what cannot be touched and the rest, by id.

    Args:
        current: what runs. Where two claim one id, the one on a frozen host has it.
        frozen: hosts that were not reached.
        models: names of the models that are wanted.
    """
    ordered = sorted(current, key=lambda one: (id_order(one.id), one.hosts))
    untouchable: dict[str, Instance] = {}
    for one in ordered:
        if not frozen.isdisjoint(one.hosts):
            untouchable.setdefault(one.id, _unreached(one, frozen, models))
    rest: dict[str, Instance] = {}
    for one in ordered:
        if frozen.isdisjoint(one.hosts) and one.id not in untouchable:
            rest.setdefault(one.id, one)
    return list(untouchable.values()), rest


def standing_of(
    one: Instance, model: ResolvedModel, view: FleetView, configurations: Configurations
) -> tuple[Standing, str]:
    """A running instance as the decision takes it, and in words why it cannot stay, if it cannot."""
    tensor = one.engine_args.get("tensor_parallel_size", 1)
    pipeline = one.engine_args.get("pipeline_parallel_size", 1)
    gpu = view.model_as_run(one)
    shape = Shape(
        gpu.kind if gpu is not None else "",
        tensor if isinstance(tensor, int) else 0,
        pipeline if isinstance(pipeline, int) else 0,
        ways=one.sharing.ways if one.sharing is not None else 1,
        nodes=len(one.shards),
    )
    if gpu is not None and shape.gpus == len(one.gpus):
        shape = configurations.shape_as_run(model, gpu, shape, one.engine_args)
    cause, why = _why_leaving(one, model, shape, view, configurations)
    standing = Standing(
        id=one.id,
        model=one.model,
        host=one.shards[0].host,
        gpus=one.shards[0].gpus,
        shape=shape,
        cause=cause,
        seat=one.sharing.seat if one.sharing is not None else 0,
        further=tuple((shard.host, shard.gpus) for shard in one.shards[1:]),
    )
    return standing, why


def why_stranded(one: Instance, view: FleetView) -> Cause:
    """Why an instance of a wanted model can stand nowhere any more."""
    causes = [cause for host, uuid in one.gpus if (cause := view.why_unusable(host, uuid)[0]) is not None]
    return causes[0] if causes else "configuration"


def _unreached(one: Instance, frozen: frozenset[str], models: Collection[str]) -> Instance:
    if one.model in models:
        return one
    hosts = ", ".join(host for host in one.hosts if host in frozen)
    reason = f"Stays listed although {one.model} is no longer in the models file: {hosts} was not reached."
    return one if reason in one.reasons else replace(one, reasons=(*one.reasons, reason))


def _why_leaving(
    one: Instance, model: ResolvedModel, shape: Shape, view: FleetView, configurations: Configurations
) -> tuple[Cause | None, str]:
    for host, uuid in one.gpus:
        cause, why = view.why_unusable(host, uuid)
        if cause is not None:
            return cause, why
    for host in one.hosts:
        reason = why_ineligible(model.request, view.hosts[host])
        if reason is not None:
            return "constraint", reason
    problem = _shape_problem(one, model, shape, view, configurations)
    if problem is not None:
        return "configuration", problem
    for shard in one.shards:
        for start in range(0, len(shard.gpus), shape.tensor_parallel):
            group = frozenset(shard.gpus[start : start + shape.tensor_parallel])
            if any(pair <= group for pair in view.rooms[shard.host].failed_pairs):
                return "unhealthy", "the peer-to-peer test between its GPUs failed"
    return None, ""


def _shape_problem(
    one: Instance, model: ResolvedModel, shape: Shape, view: FleetView, configurations: Configurations
) -> str | None:
    gpu = view.model_as_run(one)
    even = len({len(shard.gpus) for shard in one.shards}) == 1 and len(set(one.hosts)) == len(one.shards)
    if not even or gpu is None or shape.gpus != len(one.gpus) or shape.pipeline_parallel % shape.nodes:
        return "its GPUs do not match its parallel sizes"
    if shape.nodes > 1 and not model.request.placement.allow_multi_node:
        return "placement.allow_multi_node is false, and it spans hosts"
    if shape.ways > 1 and model.request.placement.share_gpus == "never":
        return "placement.share_gpus is never, and it shares its GPU"
    if model.request.engine == "triton" and (shape.ways > 1 or shape.nodes > 1):
        return "engine: triton neither shares a GPU nor spans hosts"
    forced = _forced_otherwise(model.request, shape)
    if forced is not None:
        return forced
    found = configurations.of_shape(model, gpu, shape)
    return f"it no longer fits: {found.explanation}" if isinstance(found, Misfit) else None


def _forced_otherwise(request: ModelRequest, shape: Shape) -> str | None:
    for forced, size, name in (
        (request.forced_tensor_parallel, shape.tensor_parallel, "tensor_parallel"),
        (request.forced_pipeline_parallel, shape.pipeline_parallel, "pipeline_parallel"),
    ):
        if forced is not None and forced != size:
            return f"{name}: {forced} is asked for, it had {size}"
    return None
