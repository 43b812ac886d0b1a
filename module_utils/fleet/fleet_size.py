"""How many equal hosts carry a set of models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .carrying import Carrying
from .host_document import Gpu, HostDocument, Link
from .host_policy import HostPolicy
from .planning import make_plan
from .requests import Availability, Placement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .configurations import ResolvedModel
    from .hardware import GpuModel
    from .plan_document import Plan

MOST_HOSTS = 4096
_GPUS_PER_SWITCH = 2


@dataclass(frozen=True, slots=True)
class Size:
    """The fewest hosts, and the plan on them. ``hosts`` is None when even ``MOST_HOSTS`` do not carry it."""

    hosts: int | None
    plan: Plan


def fewest_hosts(
    models: Sequence[ResolvedModel], gpu: GpuModel, gpus: int, *, engine_version: str, one_lost: bool
) -> Size:
    """Find the fewest hosts on which nothing is refused, and no GPU is shared to save one.

    Where models may run by name or label does not count: the hosts do not exist yet. Transfers between GPUs are taken
    to work, as a link test would have to show.

    Args:
        models: what is to run.
        gpu: the kind of every GPU.
        gpus: on one host.
        engine_version: vLLM's version.
        one_lost: every model's demand has to be carried when any one host is lost.
    """
    wanted = [_anywhere(model, one_lost=one_lost) for model in models]
    carrying = Carrying()

    def plan_on(hosts: int) -> Plan:
        documents = [_host(f"host-{number:04d}", gpu, gpus) for number in range(1, hosts + 1)]
        return make_plan(documents, wanted, [], engine_version=engine_version, carrying=carrying)

    enough = 1
    plan = plan_on(enough)
    too_few = 0
    while plan.refused:
        if enough == MOST_HOSTS or (enough > 1 and not _depends_on_room(plan)):
            return Size(None, plan)
        too_few, enough = enough, 2 * enough
        plan = plan_on(enough)
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        tried = plan_on(middle)
        if tried.refused:
            too_few = middle
        else:
            enough, plan = middle, tried
    return Size(enough, plan)


def _depends_on_room(plan: Plan) -> bool:
    """Whether more hosts of the same kind can lift every refusal."""
    return all(one.constraint in ("gpus", "availability.hosts_lost") for one in plan.refused)


def _anywhere(model: ResolvedModel, *, one_lost: bool) -> ResolvedModel:
    asked = model.request.placement
    placement = Placement(
        spread_over_hosts=asked.spread_over_hosts,
        allow_multi_node=asked.allow_multi_node,
        share_gpus="never",
    )
    lost = max(model.request.availability.hosts_lost, int(one_lost))
    changes = {"placement": placement, "availability": Availability(hosts_lost=lost)}
    return replace(model, request=model.request.model_copy(update=changes))


def _host(name: str, gpu: GpuModel, gpus: int) -> HostDocument:
    def uuid(index: int) -> str:
        return f"{name}-gpu-{index}"

    return HostDocument(
        name=name,
        gpus=tuple(
            Gpu(index, uuid(index), gpu.name, numa_node=int(index >= (gpus + 1) // 2), model=gpu, blocked=None)
            for index in range(gpus)
        ),
        links=tuple(
            Link(uuid(a), uuid(b), "PIX" if a // _GPUS_PER_SWITCH == b // _GPUS_PER_SWITCH else None, "verified")
            for a in range(gpus)
            for b in range(a + 1, gpus)
        ),
        policy=HostPolicy(),
        instances=(),
        provisional=True,
    )
