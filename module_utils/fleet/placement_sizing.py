"""How many replicas of which shape on which hosts: what the integer program chooses, dealt to hosts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .placement_classes import host_classes, part_of
from .placement_program import SizingProgram

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .placement_classes import Ask, FreeRoom, HostClass, Part
    from .placement_problem import Shape
    from .placement_program import Solution


@dataclass(frozen=True, slots=True)
class Chosen:
    """A replica to be put on a host."""

    model: str
    shape: Shape
    host: str


def choose(asks: Sequence[Ask], rooms: Sequence[FreeRoom], *, all_or_nothing: bool = False) -> tuple[Chosen, ...]:
    """Choose shapes and hosts for what is still needed, as far as there is room.

    Args:
        asks: what is needed.
        rooms: what is free.
        all_or_nothing: choose nothing when there is no room for all; the caller asks again with more shapes.
    """
    open_asks = [ask for ask in sorted(asks, key=lambda ask: ask.wish.model) if ask.shapes]
    classes = list(host_classes(open_asks, rooms))
    if not classes:
        return ()
    solution = SizingProgram(open_asks, classes, faithful=True).carry_all()
    any_precision = any(shape in ask.wish.sacrifices for ask in open_asks for shape in ask.shapes)
    if solution is None and any_precision:
        solution = SizingProgram(open_asks, classes, faithful=False).carry_all()
    if solution is None and all_or_nothing:
        return ()
    if solution is None:
        solution = SizingProgram(open_asks, classes, faithful=not any_precision).carry_most()
    return tuple(_deal(solution, classes))


def _deal(solution: Solution, classes: Sequence[HostClass]) -> Iterator[Chosen]:
    """Give every replica a host. Replicas of one model go round the hosts, so that they stand on different ones."""
    for position, one in enumerate(classes):
        mine = {(model, shape): count for (model, shape, at), count in solution.counts.items() if at == position}
        ordered = sorted(mine.items(), key=lambda item: (-item[1], item[0][0], str(item[0][1])))
        slots = _slots(one, solution.ways[position]) if len(one.hosts) > 1 and mine else {}
        for (model, shape), count in ordered:
            for _ in range(count):
                host = slots[part_of(shape, one)].pop() if slots else one.hosts[0]
                yield Chosen(model, shape, host)


def _slots(one: HostClass, ways: Sequence[tuple[Mapping[Any, int], int]]) -> dict[Part, list[str]]:
    """Hosts for each part, to be taken from the end: one of each host, then a second of each, and so on."""
    hosts = iter(one.hosts)
    slots: dict[Part, list[tuple[int, str]]] = {}
    for way, count in ways:
        for host in (next(hosts) for _ in range(count)):
            for part, parts in way.items():
                slots.setdefault(part, []).extend((number, host) for number in range(parts))
    return {part: [host for _, host in sorted(places, reverse=True)] for part, places in slots.items()}
