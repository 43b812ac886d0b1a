"""Several instances on one GPU: the engine's start conditions for each, in the order in which they start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .memory import MemoryEstimate

_GIB = 1024**3


@dataclass(frozen=True, slots=True)
class StartConflict:
    """The first instance that would not start, and why. ``missing_bytes`` is by how much."""

    position: int
    reason: str
    missing_bytes: int


def resident_bytes(estimate: MemoryEstimate, kv_cache_memory_bytes: int | None = None) -> int:
    """What an instance holds on its card once it runs, its CUDA context included.

    Args:
        estimate: its memory.
        kv_cache_memory_bytes: the KV cache given by hand; None when the engine fills its budget.
    """
    rank = max(estimate.ranks, key=lambda rank: rank.weights_bytes)
    if kv_cache_memory_bytes is None:
        return estimate.budget_bytes + rank.outside_bytes
    inside = rank.weights_bytes + rank.activation_bytes + rank.non_torch_bytes + rank.cudagraph_bytes
    return inside + rank.runner_buffers_bytes + rank.outside_bytes + rank.margin_bytes + kv_cache_memory_bytes


def start_conflict(
    total_bytes: int, instances: Sequence[tuple[MemoryEstimate, int | None]], *, foreign_bytes: int = 0
) -> StartConflict | None:
    """Whether all instances of one GPU start, one at a time in this order.

    The engine demands at start that its whole budget (``gpu_memory_utilization`` of the card) is free, also where
    ``kv_cache_memory_bytes`` is given, and then that the KV cache holds one request.

    Args:
        total_bytes: the card's torch-visible total.
        instances: each one's estimate and its ``kv_cache_memory_bytes``, in the order of start.
        foreign_bytes: what other processes hold.
    """
    used = foreign_bytes
    for position, (estimate, given) in enumerate(instances):
        if not estimate.fits:
            return StartConflict(position, estimate.reason, estimate.missing_bytes)
        context = estimate.ranks[0].outside_bytes
        short = used + context + estimate.budget_bytes - total_bytes
        if short > 0:
            reason = f"its budget of {estimate.budget_bytes / _GIB:.2f} GiB is not free at start"
            return StartConflict(position, f"{reason}, {short / _GIB:.2f} GiB are missing", short)
        used += resident_bytes(estimate, given)
        if used > total_bytes:
            over = used - total_bytes
            return StartConflict(position, f"the card would hold {over / _GIB:.2f} GiB too much", over)
    return None
