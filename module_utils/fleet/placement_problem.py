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
# Into how many instances a GPU may be shared out, and a unit in which all such parts are whole numbers.
SHARED_WAYS = (2, 3, 4, 6, 8)
GPU_PARTS = 24


@dataclass(frozen=True, slots=True)
class GpuRoom:
    """A GPU that may be used. ``kind`` is what the planner takes to be equal; degraded ones come last among equals."""

    uuid: str
    index: int
    kind: str
    switch: int = 0
    numa_node: int = 0
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class HostRoom:
    """A host that may get instances.

    Args:
        failed_pairs: UUID pairs between which a peer-to-peer test failed: never in one tensor group.
        verified_pairs: UUID pairs between which it passed: preferred for a tensor group.
        memory_bytes: of the host, for engines; None when it is not known.
        disk_bytes: free for checkpoints beside those that are there; None when it is not known.
        degraded: it comes last among equals.
    """

    name: str
    gpus: tuple[GpuRoom, ...]
    failed_pairs: frozenset[frozenset[str]] = frozenset()
    verified_pairs: frozenset[frozenset[str]] = frozenset()
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """GPUs that one instance takes, and how it uses them.

    ``precision`` is empty for the most faithful one that fits and meets the objectives; otherwise it names what is less
    faithful: ``fp8`` weights, ``kv_fp8`` for the cache, ``fp8+kv_fp8`` for both. ``max_num_batched_tokens`` is 0 where
    it is not chosen to suit the traffic. Of ``ways`` instances that share one GPU each has that part of its memory; all
    on that GPU have the same number. A shape over several ``nodes`` takes as many GPUs on each.
    """

    kind: str
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    precision: str = ""
    max_num_batched_tokens: int = 0
    ways: int = 1
    nodes: int = 1

    @property
    def gpus(self) -> int:
        """How many."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def parts(self) -> int:
        """How much that is, in ``GPU_PARTS`` of a GPU."""
        return self.gpus * GPU_PARTS // self.ways


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
        shared_shapes: parts of a GPU, used only where demand would be left otherwise.
        wide_shapes: shapes over several hosts, used only where no other is left.
        host_memory: bytes of host memory that one replica takes on each of its hosts, by shape.
        checkpoint_bytes: disk that a host needs for the model, whatever the number of its replicas there.
        stored_on: hosts that have the checkpoint already.
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
    shared_shapes: tuple[Shape, ...] = ()
    wide_shapes: tuple[Shape, ...] = ()
    host_memory: Mapping[Shape, int] = field(default_factory=dict)
    checkpoint_bytes: int = 0
    stored_on: frozenset[str] = frozenset()

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


# GPUs of one instance on hosts beyond its first: (host, UUIDs).
Further = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """An instance that runs now. With a ``cause`` it cannot stay where it is. ``seat`` is that on a shared GPU."""

    id: str
    model: str
    host: str
    gpus: tuple[str, ...]
    shape: Shape
    cause: Cause | None = None
    seat: int = 0
    further: Further = ()


@dataclass(frozen=True, slots=True)
class Placed:
    """A replica and its place.

    Args:
        standing: the running instance that it is, if any.
        cause: why that instance left its place; None when it stays or is new.
        pin: position of the pin that it fulfils.
        seat: of instances that share a GPU, the first has 0; they start in this order.
        further: its GPUs on hosts beyond the first.
    """

    model: str
    host: str
    gpus: tuple[str, ...]
    shape: Shape
    standing: Standing | None = None
    cause: Cause | None = None
    pin: int | None = None
    seat: int = 0
    further: Further = ()

    @property
    def stays(self) -> bool:
        """Whether the instance runs on these GPUs already."""
        return self.standing is not None and self.cause is None

    @property
    def hosts(self) -> tuple[str, ...]:
        """Its hosts, in the order of the ranks."""
        return (self.host, *(host for host, _ in self.further)) if self.further else (self.host,)

    @property
    def cells(self) -> list[tuple[str, str]]:
        """(host, UUID) of every GPU, in the order of the ranks."""
        own = [(self.host, uuid) for uuid in self.gpus]
        return own + [(host, uuid) for host, uuids in self.further for uuid in uuids] if self.further else own


def as_placed(one: Standing, *, pin: int | None = None) -> Placed:
    """A running instance that stays where it is."""
    return Placed(one.model, one.host, one.gpus, one.shape, standing=one, pin=pin, seat=one.seat, further=one.further)


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
        lacking: hosts with free GPUs that lack something else: (host, ``memory`` or ``disk``, bytes).
    """

    model: str
    missing: int
    pin: int | None = None
    min_hosts: bool = False
    left: tuple[tuple[Standing, Cause], ...] = ()
    carried: float = 0.0
    at_most: bool = False
    lacking: tuple[tuple[str, str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """Where everything stands. ``free`` are the GPUs that are left, by host."""

    placed: tuple[Placed, ...]
    shortages: tuple[Shortage, ...]
    free: Mapping[str, tuple[str, ...]]

    @property
    def gpus_used(self) -> int:
        """GPUs of all placed replicas."""
        return len({cell for one in self.placed for cell in one.cells})

    @property
    def missing(self) -> int:
        """Replicas without a place, below what is wanted whatever the demand."""
        return sum(one.missing for one in self.shortages)
