"""Moves for unmet demand: what runs makes room for what would be left otherwise.

A model that lacks something may lack it only because of where others stand, or because its own replicas run in a shape
that carries less than another would. Hosts are then arranged anew by an integer program (``placement_window``): the
whole of a small fleet at once, of a large one some hosts at a time, those first where most can be gained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .placement_gpus import choose_gpus
from .placement_window import WindowProgram

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .placement_run import Placing
    from .placement_state import State
    from .placement_window import Addition, Rearrangement

# Fleets up to this size are looked at as a whole, larger ones through windows.
_WHOLE_FLEET_GPUS = 24
_WINDOW_GPUS = 24
# So many windows without a gain end the search, and so many rearrangements.
_MOST_FRUITLESS = 3
_MOST_GAINS = 8


def repair(placing: Placing, *, sharing: bool = False) -> bool:
    """Rearrange hosts as long as that carries more. Returns whether anything was."""
    changed = False
    for _ in range(_MOST_GAINS):
        if not _improve(placing, sharing=sharing):
            break
        changed = True
        placing.settle()
    return changed


def _improve(placing: Placing, *, sharing: bool) -> bool:
    short = [state for state in placing.order if not state.tally.complete and state.wish.hosts]
    if not short:
        return False
    for tried, hosts in enumerate(_windows(placing, short), start=1):
        states = _involved(placing, short, hosts)
        small = len(states) * len(hosts) <= _WHOLE_FLEET_GPUS
        found = WindowProgram(placing.board, states, hosts, sharing=sharing, reshape=small).solve()
        if found is not None and _apply(placing, found):
            return True
        if tried >= _MOST_FRUITLESS:
            break
    return False


def _windows(placing: Placing, short: Sequence[State]) -> Iterator[list[str]]:
    """Groups of hosts that a model in need may use, those first where most GPUs are free or of use to it."""
    rooms = placing.board.rooms
    allowed = [name for name in rooms if any(name in state.wish.hosts for state in short) and rooms[name].gpus]
    if sum(len(rooms[name].gpus) for name in allowed) <= _WHOLE_FLEET_GPUS:
        if allowed:
            yield allowed
        return
    lacking = {state.wish.model: state.wish.priority for state in short}
    highest = max(lacking.values())

    def promise(name: str) -> tuple[int, int, str]:
        yielding = sum(
            len(place.gpus)
            for place in placing.board.on_host(name)
            if place.model in lacking or placing.priority(place.model) < highest
        )
        return (-placing.board.free_count(name), -yielding, name)

    window: list[str] = []
    gpus = 0
    for name in sorted(allowed, key=promise):
        if window and gpus + len(rooms[name].gpus) > _WINDOW_GPUS:
            yield window
            window, gpus = [], 0
        window.append(name)
        gpus += len(rooms[name].gpus)
    if window:
        yield window


def _involved(placing: Placing, short: Sequence[State], hosts: Sequence[str]) -> list[State]:
    """The models that stand on these hosts or lack something and may use them, in a fixed order."""
    names = {place.model for host in hosts for place in placing.board.on_host(host)}
    names |= {state.wish.model for state in short if not state.wish.hosts.isdisjoint(hosts)}
    return sorted((state for state in placing.order if state.wish.model in names), key=lambda state: state.wish.model)


def _apply(placing: Placing, found: Rearrangement) -> bool:
    """Rearrange; go back when a place that was counted on could not be found and nothing is gained."""
    before, carried = placing.snapshot(), placing.carried()
    for place in found.going:
        placing.release(placing.state(place.model), place, cause=place.cause or "demand")
    # Where the places of tensor groups are given they come first, then the largest.
    order = sorted(found.coming, key=lambda one: (not one.gpus, -one.shape.gpus, one.shape.ways > 1, str(one)))
    for one in order:
        state = placing.state(one.model)
        gpus = _gpus_for(placing, state, one)
        if gpus is not None:
            placing.put(state, (one.host, one.shape, gpus))
    if placing.carried() > carried:
        return True
    placing.restore(before)
    return False


def _gpus_for(placing: Placing, state: State, one: Addition) -> tuple[str, ...] | None:
    board = placing.board
    if one.gpus and len(one.gpus) == one.shape.gpus:
        return one.gpus
    if one.shape.ways > 1:
        beside = board.joinable(one.host, one.model, one.shape)
        if beside is not None:
            return (beside,)
    room = board.rooms[one.host]
    for now, _ in state.leaving:
        # Another shape on the same GPUs is no move.
        if now.host == one.host and len(now.gpus) == one.shape.gpus and board.are_free(now.host, now.gpus):
            same = choose_gpus(room, [gpu for gpu in room.gpus if gpu.uuid in now.gpus], one.shape)
            if same is not None and set(same) == set(now.gpus):
                return now.gpus if one.shape.tensor_parallel == 1 else same
    return choose_gpus(room, board.free(one.host), one.shape)
