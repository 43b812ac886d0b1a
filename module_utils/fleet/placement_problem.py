"""What the placement decides about: wishes, rooms, what runs now, and the decision.

This is the interface between the plan stage, which knows documents and memory, and the algorithm in ``placement``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Cause = Literal[
    "lost",
    "unhealthy",
    "excluded",
    "constraint",
    "configuration",
    "conflict",
    "priority",
    "availability",
    "demand",
    "optimize",
]

# Shares of a demand that differ by less than this are equal.
TOLERANCE = 1e-6


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
    """A host that may get instances.

    Args:
        failed_pairs: UUID pairs between which a peer-to-peer test failed: never in one tensor group.
        verified_pairs: UUID pairs between which it passed: preferred for a tensor group.
    """

    name: str
    gpus: tuple[GpuRoom, ...]
    failed_pairs: frozenset[frozenset[str]] = frozenset()
    verified_pairs: frozenset[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Shape:
    """GPUs that one instance takes, and how it uses them.

    ``precision`` is empty for the most faithful one that fits and meets the objectives; otherwise it names what is less
    faithful: ``fp8`` weights, ``kv_fp8`` for the cache, ``fp8+kv_fp8`` for both. ``max_num_batched_tokens`` is 0 where
    it is not chosen to suit the traffic.
    """

    kind: str
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    precision: str = ""
    max_num_batched_tokens: int = 0

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
        count: at least so many replicas, beside those on frozen hosts; without a demand so many exactly.
        shapes: those that fit, the preferred first. Larger ones of the same kind come after smaller ones.
        hosts: names of the hosts that may be used.
        pins: places for the first replicas.
        spread: different hosts; otherwise one host is filled after another.
        min_hosts: replicas stand on at least so many hosts.
        elsewhere: hosts of replicas that cannot be touched, one entry a replica.
        demand: requests/s that all replicas together have to carry; with ``min_hosts`` of two, also without any one
            host. None: ``count`` is all that is wanted.
        capacity: requests/s of one replica, by shape; also of shapes that only run.
        most: at most so many replicas, beside those on frozen hosts.
        sacrifices: shapes whose precision is used only where demand would be left otherwise.
        carried_elsewhere: requests/s of each replica in ``elsewhere``.
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
    demand: float | None = None
    capacity: Mapping[Shape, float] = field(default_factory=dict)
    most: int | None = None
    sacrifices: frozenset[Shape] = frozenset()
    carried_elsewhere: tuple[float, ...] = ()

    @property
    def required(self) -> float:
        """What replicas have to add up to: requests/s, or replicas where there is no demand."""
        return self.demand if self.demand is not None else float(self.count + len(self.elsewhere))

    @property
    def required_without_a_host(self) -> float:
        """What has to be left when the host that carries most is lost."""
        if self.min_hosts < 2:
            return 0.0
        return self.demand if self.demand is not None else 1.0

    def amount(self, shape: Shape) -> float:
        """What one replica of this shape adds to it."""
        return self.capacity.get(shape, 0.0) if self.demand is not None else 1.0


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
    """Replicas of a model that found no place, or demand that is not carried.

    Args:
        missing: replicas below ``count``.
        carried: share of the demand that is carried; of the replicas where there is no demand.
        pin: the pin that could not be fulfilled, if that is why.
        min_hosts: true when there was room, but not on a further host.
        at_most: true when no more replicas are allowed.
        left: running instances that lost their place and found no other, with the cause.
    """

    model: str
    missing: int
    pin: int | None = None
    min_hosts: bool = False
    left: tuple[tuple[Standing, Cause], ...] = ()
    carried: float = 0.0
    at_most: bool = False


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
        """Replicas without a place, below what is wanted whatever the demand."""
        return sum(one.missing for one in self.shortages)
