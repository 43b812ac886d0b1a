"""What the placement decides about: wishes, rooms, what runs now, and the decision.

This is the interface between the plan stage, which knows documents and memory, and the algorithm in ``placement``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Cause = Literal[
    "lost", "unhealthy", "excluded", "constraint", "configuration", "conflict", "priority", "availability", "optimize"
]


@dataclass(frozen=True, slots=True)
class GpuRoom:
    """A GPU that may be used. ``kind`` is its name in the hardware table, ``group`` its PCIe switch, NUMA node."""

    uuid: str
    index: int
    kind: str
    switch: int = 0
    numa_node: int = 0


@dataclass(frozen=True, slots=True)
class HostRoom:
    """A host that may get instances. ``failed_pairs`` holds UUID pairs between which a peer-to-peer test failed."""

    name: str
    gpus: tuple[GpuRoom, ...]
    failed_pairs: frozenset[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Shape:
    """GPUs that one instance takes."""

    kind: str
    tensor_parallel: int = 1
    pipeline_parallel: int = 1

    @property
    def gpus(self) -> int:
        """How many."""
        return self.tensor_parallel * self.pipeline_parallel


@dataclass(frozen=True, slots=True)
class PinnedPlace:
    """Where one replica must stand. ``gpus`` is empty when any GPUs of the host will do."""

    host: str
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wish:
    """Replicas of one model.

    Args:
        count: how many replicas, beside those on frozen hosts.
        shapes: those that fit, the preferred first. Larger ones of the same kind come after smaller ones.
        hosts: names of the hosts that may be used.
        pins: places for the first replicas.
        spread: different hosts; otherwise one host is filled after another.
        min_hosts: replicas stand on at least so many hosts.
        elsewhere: hosts of replicas that cannot be touched, one entry a replica.
    """

    model: str
    priority: int
    count: int
    shapes: tuple[Shape, ...]
    hosts: frozenset[str]
    pins: tuple[PinnedPlace, ...] = ()
    spread: bool = True
    min_hosts: int = 1
    elsewhere: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Standing:
    """An instance that runs now. With a ``cause`` it cannot stay where it is."""

    id: str
    model: str
    host: str
    gpus: tuple[str, ...]
    shape: Shape
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """A replica and its place.

    Args:
        standing: the running instance that it is, if any.
        cause: why that instance left its place; None when it stays or is new.
        pin: position of the pin that it fulfils.
    """

    model: str
    host: str
    gpus: tuple[str, ...]
    shape: Shape
    standing: Standing | None = None
    cause: Cause | None = None
    pin: int | None = None

    @property
    def stays(self) -> bool:
        """Whether the instance runs on these GPUs already."""
        return self.standing is not None and self.cause is None


@dataclass(frozen=True, slots=True)
class Shortage:
    """Replicas of a model that found no place.

    Args:
        pin: the pin that could not be fulfilled, if that is why.
        min_hosts: true when there was room, but not on a further host.
        left: running instances that lost their place and found no other, with the cause.
    """

    model: str
    missing: int
    pin: int | None = None
    min_hosts: bool = False
    left: tuple[tuple[Standing, Cause], ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """Where everything stands. ``free`` are the GPUs that are left, by host."""

    placed: tuple[Placed, ...]
    shortages: tuple[Shortage, ...]
    free: Mapping[str, tuple[str, ...]]

    @property
    def gpus_used(self) -> int:
        """GPUs of all placed replicas."""
        return sum(len(one.gpus) for one in self.placed)

    @property
    def missing(self) -> int:
        """Replicas without a place."""
        return sum(one.missing for one in self.shortages)
