"""How few GPUs may do: a lower bound that an outsider can recompute from the plan's candidates."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, gcd
from typing import TYPE_CHECKING

from .placement_problem import GPU_PARTS, TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .placement_problem import Shape, Wish


@dataclass(frozen=True, slots=True)
class Need:
    """What has to be carried of one model beside its replicas on frozen hosts.

    Args:
        wish: its demand is what the plan carries of it.
        shapes: all that may be used.
        restricted: those that are used as little as possible: a less faithful precision, a shared GPU.
    """

    wish: Wish
    shapes: tuple[Shape, ...]
    restricted: frozenset[Shape] = frozenset()


def fewest_gpus_in_all(needs: Sequence[Need], *, restricted_parts: int) -> int:
    """The fewest GPUs on which all needs are met.

    The larger of two bounds. One takes every model for itself, with all its shapes. The other knows that no more of the
    GPUs (in ``GPU_PARTS``) may be used in a restricted way, and gives these to the models that save most by it; it
    counts fractions of replicas.
    """
    if restricted_parts == 0:
        each = (
            fewest_parts([shape for shape in need.shapes if shape not in need.restricted], need.wish) for need in needs
        )
        return -(-sum(each) // GPU_PARTS)
    alone = sum(fewest_parts(need.shapes, need.wish) for need in needs)
    return -(-max(alone, ceil(_relaxed(needs, restricted_parts) - 1e-6)) // GPU_PARTS)


def _relaxed(needs: Sequence[Need], restricted_parts: int) -> float:
    total = 0.0
    savings: list[tuple[float, float]] = []
    for need in needs:
        amount = _there(need.wish)
        missing = max(0.0, need.wish.required * (1.0 - TOLERANCE) - amount)
        costs = {shape: shape.parts / need.wish.amount(shape) for shape in need.shapes if need.wish.amount(shape) > 0.0}
        faithful = min((cost for shape, cost in costs.items() if shape not in need.restricted), default=None)
        restricted = min((cost for shape, cost in costs.items() if shape in need.restricted), default=None)
        if faithful is None:
            total += missing * (restricted or 0.0)
            continue
        total += missing * faithful
        if restricted is not None and restricted < faithful:
            savings.append((faithful / restricted - 1.0, missing * restricted))
    left = float(restricted_parts)
    for saving, most in sorted(savings, reverse=True):
        used = min(left, most)
        total -= used * saving
        left -= used
    return total


def fewest_gpus(shapes: Sequence[Shape], wish: Wish, *, placed: int = 0, amount: float | None = None) -> int:
    """``fewest_parts`` in whole GPUs."""
    return -(-fewest_parts(shapes, wish, placed=placed, amount=amount) // GPU_PARTS)


def fewest_parts(shapes: Sequence[Shape], wish: Wish, *, placed: int = 0, amount: float | None = None) -> int:
    """A lower bound on the GPUs that replicas beyond those placed take: no packing, no choice of host.

    An unbounded knapsack over the shapes: the fewest GPUs whose replicas add up to what is missing. When any one host
    may be lost, they have to add up to it without the largest replica as well.

    Args:
        shapes: that may be used.
        wish: what is needed.
        placed: replicas that stand already.
        amount: what they add up to, those on frozen hosts included; None for frozen hosts only.

    Returns:
        In ``GPU_PARTS`` of a GPU.
    """
    if amount is None:
        amount = _there(wish)
    amounts = {shape: wish.amount(shape) for shape in shapes if wish.amount(shape) > 0}
    missing_count = max(0, wish.count - placed)
    fewest_by_count = missing_count * min((shape.parts for shape in shapes), default=0)
    missing = wish.required - amount
    if wish.demand is None or not amounts or missing <= TOLERANCE * wish.required:
        return fewest_by_count
    unit = gcd(*(shape.parts for shape in amounts))
    needed = _cover(amounts, missing, unit)
    if wish.min_hosts > 1 and not (placed or wish.elsewhere):
        needed = min(
            largest.parts + _cover({shape: one for shape, one in amounts.items() if one <= most}, missing, unit)
            for largest, most in amounts.items()
        )
    return max(fewest_by_count, needed)


def _there(wish: Wish) -> float:
    """What replicas on frozen hosts add up to."""
    return sum(wish.carried_elsewhere) if wish.demand is not None else float(len(wish.elsewhere))


def _cover(amounts: Mapping[Shape, float], missing: float, unit: int) -> int:
    """The fewest parts of GPUs whose replicas add up to what is missing."""
    best = [0.0]
    needed = missing * (1.0 - TOLERANCE)
    sizes = [(shape.parts // unit, one) for shape, one in amounts.items()]
    while best[-1] < needed:
        at = len(best)
        best.append(max([best[-1], *(best[at - size] + one for size, one in sizes if size <= at)]))
    return (len(best) - 1) * unit
