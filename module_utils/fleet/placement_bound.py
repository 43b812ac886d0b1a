"""How few GPUs may do: a lower bound that an outsider can recompute from the plan's candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .placement_problem import TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .placement_problem import Shape, Wish


def fewest_gpus(shapes: Sequence[Shape], wish: Wish, *, placed: int = 0, amount: float | None = None) -> int:
    """A lower bound on the GPUs that replicas beyond those placed take: no packing, no choice of host.

    An unbounded knapsack over the shapes: the fewest GPUs whose replicas add up to what is missing. When any one host
    may be lost, they have to add up to it without the largest replica as well.

    Args:
        shapes: that may be used.
        wish: what is needed.
        placed: replicas that stand already.
        amount: what they add up to, those on frozen hosts included; None for frozen hosts only.
    """
    if amount is None:
        amount = sum(wish.carried_elsewhere) if wish.demand is not None else float(len(wish.elsewhere))
    amounts = {shape: wish.amount(shape) for shape in shapes if wish.amount(shape) > 0}
    missing_count = max(0, wish.count - placed)
    fewest_by_count = missing_count * min((shape.gpus for shape in shapes), default=0)
    missing = wish.required - amount
    if wish.demand is None or not amounts or missing <= TOLERANCE * wish.required:
        return fewest_by_count
    needed = _cover(amounts, missing)
    if wish.min_hosts > 1 and not (placed or wish.elsewhere):
        needed = min(
            largest.gpus + _cover({shape: one for shape, one in amounts.items() if one <= most}, missing)
            for largest, most in amounts.items()
        )
    return max(fewest_by_count, needed)


def _cover(amounts: Mapping[Shape, float], missing: float) -> int:
    """The fewest GPUs whose replicas add up to what is missing."""
    best = [0.0]
    needed = missing * (1.0 - TOLERANCE)
    while best[-1] < needed:
        size = len(best)
        options = [best[size - shape.gpus] + one for shape, one in amounts.items() if shape.gpus <= size]
        best.append(max([best[-1], *options]))
    return len(best) - 1
