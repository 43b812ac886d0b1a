"""The hosts of a plan as the report shows them: GPUs by NUMA node and PCIe switch, equal hosts together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from .plan_document import id_order
from .plan_table import short_uuids
from .report_memory import Bar, free_bar, gpu_bar
from .report_words import configuration_namer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from .host_document import Gpu, HostDocument
    from .memory import RankMemory
    from .plan_document import Instance, Plan

State = Literal["used", "free", "excluded", "blocked", "unsuitable"]
_SWITCH_PATHS = ("PIX", "PXB")


@dataclass(frozen=True, slots=True)
class Tenant:
    """An instance on a GPU. ``name`` is its id, or its model where several equal hosts are shown together."""

    name: str
    model: str
    configuration: str
    rank: int
    ranks: int


@dataclass(frozen=True, slots=True)
class GpuView:
    """One GPU. ``label`` is its index, or the start of its UUID; ``note`` says why it is not used."""

    label: str
    state: State
    note: str
    tenants: tuple[Tenant, ...]
    bar: Bar | None


@dataclass(frozen=True, slots=True)
class SwitchView:
    """GPUs below one PCIe switch. ``name`` is empty where the switches are not known."""

    name: str
    gpus: tuple[GpuView, ...]


@dataclass(frozen=True, slots=True)
class NumaView:
    """GPUs of one NUMA node. ``name`` is empty where the nodes are not known."""

    name: str
    switches: tuple[SwitchView, ...]


@dataclass(frozen=True, slots=True)
class HostView:
    """One host, or several that are equal. ``complete`` tells whether GPUs that the plan does not use are known."""

    names: tuple[str, ...]
    nodes: tuple[NumaView, ...]
    notes: tuple[str, ...]
    complete: bool

    @property
    def gpus(self) -> tuple[GpuView, ...]:
        """All its GPUs."""
        return tuple(gpu for node in self.nodes for switch in node.switches for gpu in switch.gpus)

    @property
    def used(self) -> int:
        """How many GPUs something runs on."""
        return sum(1 for gpu in self.gpus if gpu.tenants)


def host_views(
    plan: Plan,
    hosts: Sequence[HostDocument] | None,
    ranks: Mapping[str, Sequence[RankMemory]],
    *,
    where: str,
) -> tuple[HostView, ...]:
    """All hosts, equal ones together, by their first names.

    Args:
        plan: the plan.
        hosts: host documents; None shows what the plan alone knows.
        ranks: memory of every rank by instance id, as far as it is known.
        where: the plan, for errors.

    Raises:
        FleetError: a figure of the plan is no number of bytes.
    """
    known = {host.name: host for host in hosts or ()}
    tenants = _tenants(plan)
    seating = _Seating(configuration_namer(plan), ranks, where)
    views = []
    for name in sorted({*known, *tenants}):
        host = known.get(name)
        mine = tenants.get(name, {})
        nodes = _known_nodes(host, mine, seating) if host else _planned_nodes(mine, seating)
        views.append(HostView((name,), nodes, _notes(host, plan), complete=host is not None))
    return _together(views)


_Seat = list[tuple["Instance", int]]
"""The instances on a GPU, and which of their ranks."""
_Seats = dict[str, _Seat]
"""The same by UUID."""


@dataclass(frozen=True, slots=True)
class _Seating:
    """What is told of the instances on a GPU."""

    words: Callable[[Instance], str]
    ranks: Mapping[str, Sequence[RankMemory]]
    where: str

    def who(self, seats: _Seat) -> tuple[Tenant, ...]:
        return tuple(Tenant(one.id, one.model, self.words(one), rank, len(one.gpus)) for one, rank in seats)

    def bar(self, seats: _Seat, total_bytes: int | None) -> Bar | None:
        tenants = [(one, self.ranks[one.id][rank] if one.id in self.ranks else None) for one, rank in seats]
        return gpu_bar(tenants, total_bytes, where=self.where)


def _tenants(plan: Plan) -> dict[str, _Seats]:
    found: dict[str, _Seats] = {}
    for one in sorted(plan.instances, key=lambda one: id_order(one.id)):
        for rank, (host, uuid) in enumerate(one.gpus):
            found.setdefault(host, {}).setdefault(uuid, []).append((one, rank))
    return found


def _known_nodes(host: HostDocument, mine: _Seats, seating: _Seating) -> tuple[NumaView, ...]:
    excluded = host.excluded_uuids()
    switches = _switches(host)
    by_node: dict[int | None, dict[int, list[GpuView]]] = {}
    for gpu in host.gpus:
        view = _gpu_view(gpu, mine.get(gpu.uuid, []), seating, excluded=gpu.uuid in excluded)
        by_node.setdefault(gpu.numa_node, {}).setdefault(switches[gpu.uuid], []).append(view)
    gone = [uuid for uuid in mine if uuid not in switches]
    letters = {switch: _letter(at) for at, switch in enumerate(sorted(set(switches.values())))}
    several = len(letters) > 1 and bool(host.links)
    nodes = [
        NumaView(
            "" if node is None else f"NUMA node {node}",
            tuple(
                SwitchView(f"PCIe switch {letters[at]}" if several else "", tuple(gpus))
                for at, gpus in sorted(by_node[node].items())
            ),
        )
        for node in sorted(by_node, key=lambda node: -1 if node is None else node)
    ]
    lost = [node for node in _planned_nodes({uuid: mine[uuid] for uuid in gone}, seating) if gone]
    return (*nodes, *(replace(node, name="no longer on the host") for node in lost))


def _planned_nodes(mine: _Seats, seating: _Seating) -> tuple[NumaView, ...]:
    names = short_uuids(mine)
    gpus = tuple(
        GpuView(names[uuid], "used", "", seating.who(seats), seating.bar(seats, None)) for uuid, seats in mine.items()
    )
    return (NumaView("", (SwitchView("", gpus),)),)


def _gpu_view(gpu: Gpu, seats: _Seat, seating: _Seating, *, excluded: bool) -> GpuView:
    total = gpu.model.torch_visible_bytes if gpu.model else None
    bar = seating.bar(seats, total) if seats else free_bar(total) if total else None
    state: State = "used" if seats else "free"
    note = ""
    if gpu.blocked is not None:
        state, note = "blocked", gpu.blocked
    elif excluded:
        state, note = "excluded", "in fleet_exclude_gpus"
    elif gpu.model is None:
        state, note = "unsuitable", f"the hardware table does not know {gpu.name!r}"
    return GpuView(str(gpu.index), state, note, seating.who(seats), bar)


def _switches(host: HostDocument) -> dict[str, int]:
    """For each GPU by UUID, the first index below its PCIe switch."""
    first = {gpu.uuid: gpu.index for gpu in host.gpus}
    for link in host.links:
        if link.path in _SWITCH_PATHS:
            low, high = sorted((first[link.a], first[link.b]))
            first = {uuid: low if at == high else at for uuid, at in first.items()}
    return first


def _letter(position: int) -> str:
    return chr(ord("A") + position) if position < 26 else str(position + 1)


def _notes(host: HostDocument | None, plan: Plan) -> tuple[str, ...]:
    if host is None:
        return ()
    notes = [f"labels: {', '.join(host.policy.labels)}"] if host.policy.labels else []
    if host.closed is not None:
        notes.append(f"gets nothing new: {host.closed}")
    if host.provisional or any(one.provisional and host.name in one.hosts for one in plan.instances):
        notes.append("planned from a PCI scan, before its driver confirmed the GPUs")
    return tuple(notes)


def _together(views: Iterable[HostView]) -> tuple[HostView, ...]:
    """Put hosts together that differ in their names and the numbers of their instances only."""
    equal: dict[HostView, list[HostView]] = {}
    for view in views:
        equal.setdefault(_nameless(view), []).append(view)
    return tuple(
        members[0] if len(members) == 1 else replace(kind, names=tuple(view.names[0] for view in members))
        for kind, members in equal.items()
    )


def _nameless(view: HostView) -> HostView:
    def switch(one: SwitchView) -> SwitchView:
        return replace(one, gpus=tuple(map(gpu, one.gpus)))

    def gpu(one: GpuView) -> GpuView:
        # Indices come from a document; without one, the names of GPUs differ from host to host.
        label = one.label if view.complete else ""
        return replace(one, label=label, tenants=tuple(replace(who, name=who.model) for who in one.tenants))

    nodes = tuple(replace(node, switches=tuple(map(switch, node.switches))) for node in view.nodes)
    return replace(view, names=(), nodes=nodes)
