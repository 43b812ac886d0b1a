"""Places for instances over several hosts, the last that is tried: as many GPUs on each of some hosts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .placement_gpus import choose_gpus
from .placement_problem import Placed

if TYPE_CHECKING:
    from .placement_problem import Shape
    from .placement_run import Placing
    from .placement_state import State


def add_wide(placing: Placing) -> None:
    """Give models that lack something instances over several hosts, of free GPUs."""
    for state in placing.order:
        shapes = sorted(state.wish.wide_shapes, key=lambda shape: (-state.wish.amount(shape) / shape.gpus, shape.gpus))
        while shapes and state.wants_more:
            place = next((found for shape in shapes if (found := _place(placing, state, shape)) is not None), None)
            if place is None:
                break
            placing.take_new(state, place)


def _place(placing: Placing, state: State, shape: Shape) -> Placed | None:
    board, wish = placing.board, state.wish
    each = replace(shape, pipeline_parallel=shape.pipeline_parallel // shape.nodes, nodes=1)
    found: list[tuple[str, tuple[str, ...]]] = []
    # The hosts with the least room that suffices, so that whole hosts stay whole.
    for name in sorted(board.rooms, key=lambda name: (board.rooms[name].degraded, board.free_count(name), name)):
        if name not in wish.hosts or board.free_count(name) < each.gpus or board.lack(name, wish, shape):
            continue
        uuids = choose_gpus(board.rooms[name], board.free(name), each)
        if uuids is not None:
            found.append((name, uuids))
        if len(found) == shape.nodes:
            break
    if len(found) < shape.nodes:
        return None
    (host, uuids), *further = found
    return Placed(wish.model, host, uuids, shape, further=tuple(further))
