"""Which tensor groups fit beside one another on a host where some peer-to-peer tests failed."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Pair = tuple[int, int]


@lru_cache(maxsize=65536)
def groups_fit(free: tuple[int, ...], failed: frozenset[Pair], sizes: tuple[int, ...]) -> bool:
    """Whether disjoint groups of these sizes can be formed of the free GPUs, none with a failed pair inside.

    Args:
        free: indices of the free GPUs, in order.
        failed: index pairs, the smaller first.
        sizes: of the groups, largest first; groups of one need not be given.
    """
    if sum(sizes) > len(free):
        return False
    if not sizes or not failed:
        return True
    size = sizes[0]
    for group in combinations(free, size):
        if any(pair in failed for pair in combinations(group, 2)):
            continue
        left = tuple(index for index in free if index not in group)
        if groups_fit(left, failed, sizes[1:]):
            return True
    return False


def maximal_groups(
    free: tuple[int, ...], failed: frozenset[Pair], sizes: Sequence[int]
) -> tuple[tuple[tuple[int, int], ...], ...]:
    """All ways to form as many groups as fit: for each way, (size, how many) for each of ``sizes``.

    Only ways to which no further group can be added are given. Sizes of one are left out by the caller.
    """
    ordered = sorted(set(sizes), reverse=True)
    found: list[tuple[int, ...]] = []

    def extend(position: int, chosen: tuple[int, ...]) -> None:
        if position == len(ordered):
            counts = tuple(chosen.count(size) for size in ordered)
            if not any(groups_fit(free, failed, tuple(sorted((*chosen, size), reverse=True))) for size in ordered):
                found.append(counts)
            return
        groups = chosen
        while groups_fit(free, failed, groups):
            extend(position + 1, groups)
            groups = (*groups, ordered[position])

    extend(0, ())
    return tuple(tuple(zip(ordered, counts, strict=True)) for counts in found)
