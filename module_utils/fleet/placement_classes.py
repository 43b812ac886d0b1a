"""Hosts that are alike, and the ways to cut one up.

Hosts with the same free GPUs, the same failed pairs and the same models allowed are one class, so that a thousand equal
hosts cost no more than one. Inside a class, a variable counts the hosts that are cut up in the same way (a pattern, as
in cutting stock): what the counts say can be dealt to hosts exactly.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .placement_cliques import groups_fit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .placement_problem import GpuRoom, Shape, Wish

# Above so many ways to cut up one host only the plainest are offered.
_MOST_PATTERNS = 400
_MEMORY_BUCKET_BYTES = 4 << 30
_DISK_BUCKET_BYTES = 8 << 30


@dataclass(frozen=True, slots=True)
class Ask:
    """What one model still needs.

    Args:
        placed: replicas that stand already.
        amount: what they add up to, those on frozen hosts included.
        loads: the same by host, frozen hosts included.
        shapes: that may be added, the preferred first.
    """

    wish: Wish
    placed: int
    amount: float
    loads: Mapping[str, float]
    shapes: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class FreeRoom:
    """Free GPUs of one host, and what is left beside them.

    Args:
        failed: index pairs, the smaller first.
        memory_bytes: of the host; None when it is not known.
        disk_bytes: for checkpoints; None when it is not known.
        models: that stand there, and so have their checkpoint there.
    """

    host: str
    gpus: tuple[GpuRoom, ...]
    failed: frozenset[tuple[int, int]] = frozenset()
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    models: frozenset[str] = frozenset()


# What a replica takes of a host: GPUs, and the size of its tensor groups where some pairs have failed.
Part = tuple[int, int]


@dataclass(frozen=True, slots=True)
class HostClass:
    """Equal hosts, and the GPUs of one kind on each of them.

    ``memory_bytes`` and ``disk_bytes`` are None where any instances on these GPUs have enough; ``to_store`` are the
    checkpoints that are not there yet, and only given where the disk may not hold them all.
    """

    kind: str
    hosts: tuple[str, ...]
    free: tuple[int, ...]
    failed: frozenset[tuple[int, int]]
    models: frozenset[str]
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    to_store: tuple[tuple[str, int], ...] = ()


def host_classes(asks: Sequence[Ask], rooms: Sequence[FreeRoom]) -> Iterator[HostClass]:
    """Sort the hosts with free GPUs into classes, one for each kind of GPU."""
    kinds = sorted({shape.kind for ask in asks for shape in ask.shapes})
    lossy = [ask for ask in asks if ask.wish.required_without_a_host > 0]
    takes = {
        kind: max(
            (ask.wish.host_memory.get(s, 0) / s.gpus for ask in asks for s in ask.shapes if s.kind == kind), default=0
        )
        for kind in kinds
    }
    groups: dict[tuple[HostClass, tuple[float, ...]], list[str]] = {}
    for room in sorted(rooms, key=lambda room: room.host):
        models = frozenset(ask.wish.model for ask in asks if room.host in ask.wish.hosts)
        to_store = tuple(
            (ask.wish.model, ask.wish.checkpoint_bytes)
            for ask in asks
            if ask.wish.model in models and room.host not in ask.wish.stored_on and ask.wish.model not in room.models
        )
        disk = room.disk_bytes
        if disk is None or sum(size for _, size in to_store) <= disk:
            disk, to_store = None, ()
        else:
            disk = _bucket(disk, _DISK_BUCKET_BYTES)
            models -= {model for model, size in to_store if size > disk}
        loads = tuple(round(ask.loads.get(room.host, 0.0), 9) for ask in lossy)
        for kind in kinds if models else ():
            free = tuple(gpu.index for gpu in room.gpus if gpu.kind == kind)
            failed = frozenset(pair for pair in room.failed if pair[0] in free and pair[1] in free)
            # Without failed pairs it does not matter which GPUs are free.
            shown = free if failed else tuple(range(len(free)))
            memory = room.memory_bytes
            if memory is not None:
                memory = None if takes[kind] * len(free) <= memory else _bucket(memory, _MEMORY_BUCKET_BYTES)
            if free:
                one = HostClass(kind, (), shown, failed, models, memory, disk, to_store)
                groups.setdefault((one, loads), []).append(room.host)
    for (one, _), hosts in groups.items():
        yield replace(one, hosts=tuple(hosts))


def _bucket(size: int, bucket: int) -> int:
    """Rounded down, so that hosts that differ by little are equal."""
    return size if size < bucket else size // bucket * bucket


def part_of(shape: Shape, one: HostClass) -> Part:
    """What a replica of this shape takes of a host of this class."""
    return (shape.gpus, shape.tensor_parallel if one.failed else 1)


def patterns(one: HostClass, parts: Sequence[Part]) -> list[Mapping[object, int]]:
    """Ways to cut up one host, none of which leaves room for a further part."""
    free = len(one.free)
    found: list[Mapping[object, int]] = []

    def fits(chosen: tuple[Part, ...]) -> bool:
        if sum(gpus for gpus, _ in chosen) > free:
            return False
        groups = sorted((t for gpus, t in chosen for _ in range(gpus // t) if t > 1), reverse=True)
        return groups_fit(one.free, one.failed, tuple(groups))

    def extend(position: int, chosen: tuple[Part, ...]) -> None:
        if len(found) >= _MOST_PATTERNS:
            return
        if position == len(parts):
            if not any(fits((*chosen, part)) for part in parts):
                found.append(Counter(chosen))
            return
        ways = [chosen]
        while fits((*ways[-1], parts[position])):
            ways.append((*ways[-1], parts[position]))
        for way in reversed(ways):
            extend(position + 1, way)

    extend(0, ())
    return found
