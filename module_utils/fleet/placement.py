"""The decision: which replica of which model stands on which GPUs.

It knows nothing of memory, precision or documents: a model comes as a ``Wish`` with the shapes that fit and what each
carries, a host as a ``HostRoom`` with the GPUs that may be used. What runs and may stay, stays. What is still needed is
chosen by an integer program (``placement_sizing``) and put on the best hosts. A model that still lacks something takes
the GPUs of replicas of strictly lower priority, the lowest first; these look for another place. In the end, what is not
needed any more goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .placement_board import Board, Tally
from .placement_classes import Ask, FreeRoom
from .placement_finder import Finder, fulfils
from .placement_problem import Decision, Placed
from .placement_sizing import choose
from .placement_state import State, identity_order, last_first, urgency

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .placement_finder import Found
    from .placement_problem import Cause, HostRoom, Standing, Wish
    from .placement_sizing import Chosen


def decide(
    wishes: Sequence[Wish],
    hosts: Sequence[HostRoom],
    standing: Sequence[Standing],
    *,
    optimize: bool = False,
    draft: bool = False,
) -> Decision:
    """Place every replica.

    Args:
        wishes: one for each model; the order does not matter.
        hosts: the hosts that may be changed; the order does not matter.
        standing: what runs on them, of the wished models only.
        optimize: run for the best packing; what runs may be moved for it.
        draft: when there is no room for all, do not look for the best way to carry a part: the caller asks again with
            more shapes.
    """
    placing = _Placing(wishes, hosts, standing, optimize=optimize)
    for state in placing.order:
        placing.keep(state)
    for state in placing.order:
        placing.fill_pins(state)
    placing.add_chosen(all_or_nothing=draft)
    placing.settle()
    return placing.decision()


class _Placing:
    """One run of the decision."""

    def __init__(
        self, wishes: Sequence[Wish], hosts: Sequence[HostRoom], standing: Sequence[Standing], *, optimize: bool
    ) -> None:
        self._board = Board(hosts)
        self._optimize = optimize
        self._priorities = {wish.model: wish.priority for wish in wishes}
        by_model: dict[str, list[Standing]] = {wish.model: [] for wish in wishes}
        for one in standing:
            by_model[one.model].append(one)
        self.order = [
            State(wish, Tally(wish), sorted(by_model[wish.model], key=identity_order))
            for wish in sorted(wishes, key=urgency)
        ]
        self._by_model = {state.wish.model: state for state in self.order}
        self._reserved = frozenset((pin.host, uuid) for wish in wishes for pin in wish.pins for uuid in pin.gpus)
        if optimize:
            # What has to move goes where nothing runs, if it can.
            self._reserved |= {(one.host, uuid) for one in standing if one.cause is None for uuid in one.gpus}

    # -- steps ----------------------------------------------------------------------------------------------------

    def keep(self, state: State) -> None:
        """Let stay what may stay and is needed."""
        wish = state.wish
        pins = wish.pins[: wish.count]
        stayable: list[Standing] = []
        claimed: set[tuple[str, str]] = set()
        for one in state.standing:
            cells = {(one.host, uuid) for uuid in one.gpus}
            if one.cause is not None:
                state.leaving.append((one, one.cause))
            elif claimed & cells or not self._board.are_free(one.host, one.gpus):
                state.leaving.append((one, "conflict"))
            else:
                claimed |= cells
                stayable.append(one)
        matched: dict[int, Standing] = {}
        for position, pin in enumerate(pins):
            found = next((one for one in stayable if one not in matched.values() and fulfils(one, pin)), None)
            if found is not None:
                matched[position] = found
        most = wish.count if wish.demand is None else wish.most
        unpinned = [one for one in stayable if one not in matched.values()]
        staying = unpinned if most is None else unpinned[: max(0, most - len(pins))]
        state.leaving += [(one, "constraint") for one in unpinned[len(staying) :]]
        together = {*wish.elsewhere, *(one.host for one in [*matched.values(), *staying])}
        if wish.min_hosts > len(together) and staying and most is not None and len(matched) + len(staying) == most:
            state.leaving.insert(0, (staying.pop(), "availability"))
        if self._optimize:
            optimized: list[tuple[Standing, Cause]] = [(one, "optimize") for one in [*matched.values(), *staying]]
            state.leaving = [*optimized, *state.leaving]
            matched, staying = {}, []
        state.pins = [position for position in range(len(pins)) if position not in matched]
        for pinned_at, one in [*matched.items(), *((None, one) for one in staying)]:
            self._take(state, Placed(wish.model, one.host, one.gpus, one.shape, standing=one, pin=pinned_at))
        self.drop_spare(state)

    def fill_pins(self, state: State) -> None:
        """Fulfil the pins, with GPUs of lower priority where they are not free."""
        for position in list(state.pins):
            pin = state.wish.pins[position]
            finder = self._finder(state)
            found = finder.same_place(state.leaving, state.wish.shapes, pin) or finder.on_pin(pin)
            if found is not None:
                state.pins.remove(position)
                self._put(state, found, pin=position)

    def add_chosen(self, *, all_or_nothing: bool) -> None:
        """Add what the integer program chooses for what is still needed, where there is room."""
        asks = [
            Ask(
                state.wish,
                placed=len(state.tally.placed) + len(state.pins),
                amount=state.tally.amount + (0.0 if state.wish.demand is not None else len(state.pins)),
                loads=dict(state.tally.loads),
                shapes=state.wish.shapes,
            )
            for state in self.order
            if state.wants_more
        ]
        if not asks:
            return
        rank = {state.wish.model: position for position, state in enumerate(self.order)}
        chosen = sorted(
            choose(asks, self._free_rooms(), all_or_nothing=all_or_nothing),
            key=lambda one: (-one.shape.gpus, -one.shape.tensor_parallel, rank[one.model], str(one.shape), one.host),
        )
        if not self._add_where_best(chosen):
            self._add_where_chosen(chosen)

    def fill(self, state: State) -> None:
        """Place what is still missing one by one, with GPUs of lower priority where none are free."""
        if state.pins:
            self.fill_pins(state)
        finder = self._finder(state)
        while state.wants_more:
            crowded = state.crowded
            found = finder.anywhere(state.shapes_by_use, crowded=crowded)
            if found is None and crowded is not None and state.wish.demand is not None and state.tally.carried < 1.0:
                found = finder.anywhere(state.shapes_by_use, crowded=None)
            if found is None:
                state.lonely = state.lonely or finder.lonely
                break
            self._put(state, found)
            finder.sort_hosts()

    def drop_spare(self, state: State) -> bool:
        """Let go what is not needed: the largest first, then the last. Returns whether anything was."""
        dropped = False
        for place in sorted(state.tally.placed, key=last_first):
            if state.tally.is_spare(place):
                dropped = True
                self._release(state, place)
        return dropped

    def settle(self) -> None:
        """Fill up and let go until nothing changes: what goes may leave room for what is missing."""
        unsettled = True
        while unsettled:
            for state in self.order:
                self.fill(state)
            unsettled = sum(self.drop_spare(state) for state in self.order) > 0

    def decision(self) -> Decision:
        """What has come of it."""
        for state in self.order:
            self._bring_back(state)
        shortages = [shortage for state in self.order if (shortage := state.shortage()) is not None]
        return Decision(
            placed=tuple(sorted(self._board.placed(), key=lambda one: (one.model, one.host, one.gpus))),
            shortages=tuple(sorted(shortages, key=lambda one: one.model)),
            free={name: tuple(gpu.uuid for gpu in self._board.free(name)) for name in self._board.rooms},
        )

    # -- pieces ---------------------------------------------------------------------------------------------------

    def _add_where_best(self, chosen: Sequence[Chosen]) -> bool:
        """Put each replica on the host that suits its model best. When one finds no room, all are taken back."""
        finders: dict[str, Finder] = {}
        leaving = {state.wish.model: list(state.leaving) for state in self.order}
        added: list[tuple[State, Placed]] = []
        for one in chosen:
            state = self._by_model[one.model]
            finder = finders.get(one.model)
            if finder is None or not state.wish.spread:
                finder = finders[one.model] = self._finder(state)
            crowded = state.crowded
            shapes = (one.shape,)
            found = finder.same_place(state.leaving, shapes) or finder.free_place(shapes, crowded=crowded)
            if found is None and crowded is not None:
                if state.wish.demand is None:
                    continue
                found = finder.free_place(shapes)
            if found is None:
                for owner, place in added:
                    owner.tally.remove(place)
                    self._board.release(place)
                for owner in self.order:
                    owner.leaving = leaving[owner.wish.model]
                return False
            added.append((state, self._put(state, found)))
            finder.took(found[0])
        return True

    def _add_where_chosen(self, chosen: Sequence[Chosen]) -> None:
        """Put each replica on the host that the integer program gave it."""
        for one in chosen:
            state = self._by_model[one.model]
            if state.wish.demand is None and state.crowded == one.host:
                continue
            found = self._finder(state).on_host(one.host, (one.shape,))
            if found is not None:
                self._put(state, found)

    def _free_rooms(self) -> list[FreeRoom]:
        rooms = []
        for name, room in self._board.rooms.items():
            free = tuple(self._board.free(name))
            if not free:
                continue
            indices = {gpu.uuid: gpu.index for gpu in free}
            failed = [sorted(indices[uuid] for uuid in pair) for pair in room.failed_pairs if pair <= indices.keys()]
            rooms.append(FreeRoom(name, free, frozenset((low, high) for low, high in failed)))
        return rooms

    def _finder(self, state: State) -> Finder:
        return Finder(self._board, state.tally, self._reserved, self._priorities)

    def _put(self, state: State, found: Found, *, pin: int | None = None) -> Placed:
        """Give a replica its place, and what held it none."""
        host, shape, uuids = found
        victims = {holder for uuid in uuids if (holder := self._board.holder(host, uuid)) is not None}
        for victim in sorted(victims, key=lambda holder: (holder.model, holder.gpus)):
            owner = self._by_model[victim.model]
            self._release(owner, victim, cause="priority")
            if victim.pin is not None:
                owner.pins.append(victim.pin)
        standing, cause = state.name_for(host, uuids)
        place = Placed(state.wish.model, host, uuids, shape, standing=standing, cause=cause, pin=pin)
        self._take(state, place)
        return place

    def _take(self, state: State, place: Placed) -> None:
        self._board.take(place)
        state.tally.add(place)

    def _release(self, state: State, place: Placed, cause: Cause | None = None) -> None:
        self._board.release(place)
        state.tally.remove(place)
        if place.standing is not None and (cause or place.cause):
            state.leaving.append((place.standing, cause or place.cause or "demand"))

    def _bring_back(self, state: State) -> None:
        """Two replicas on one host are better than one."""
        for entry in list(state.leaving):
            now, cause = entry
            if cause == "availability" and not state.tally.complete and self._board.are_free(now.host, now.gpus):
                state.leaving.remove(entry)
                self._take(state, Placed(now.model, now.host, now.gpus, now.shape, standing=now))
