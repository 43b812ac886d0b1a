"""One run of the decision: what stays, what is added, what makes room, and what goes in the end."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .placement_board import Board
from .placement_classes import Ask, FreeRoom
from .placement_finder import Finder, fulfils
from .placement_problem import Decision, Placed, as_placed
from .placement_sizing import choose
from .placement_state import State, identity_order, last_first, urgency
from .placement_tally import Tally

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .placement_finder import Found
    from .placement_problem import Cause, HostRoom, Standing, Wish
    from .placement_sizing import Chosen


class Placing:
    """One run of the decision: a board, the models in the order in which they choose, and the steps."""

    def __init__(
        self, wishes: Sequence[Wish], hosts: Sequence[HostRoom], standing: Sequence[Standing], *, optimize: bool
    ) -> None:
        self.board = Board(hosts, wishes)
        self._optimize = optimize
        self._priorities = {wish.model: wish.priority for wish in wishes}
        by_model: dict[str, list[Standing]] = {wish.model: [] for wish in wishes}
        for one in standing:
            by_model[one.model].append(one)
        self.order = [
            State(wish, Tally(wish), sorted(by_model[wish.model], key=identity_order))
            for wish in sorted(wishes, key=urgency)
        ]
        self.by_model = {state.wish.model: state for state in self.order}
        self._reserved = frozenset((pin.host, uuid) for wish in wishes for pin in wish.pins for uuid in pin.gpus)
        if optimize:
            # What has to move goes where nothing runs, if it can.
            self._reserved |= {(one.host, uuid) for one in standing if one.cause is None for uuid in one.gpus}

    def state(self, model: str) -> State:
        """The state of one model."""
        return self.by_model[model]

    def priority(self, model: str) -> int:
        """The priority of one model."""
        return self._priorities[model]

    # -- steps ----------------------------------------------------------------------------------------------------

    def keep(self, state: State) -> None:
        """Let stay what may stay and is needed."""
        wish = state.wish
        pins = wish.pins[: wish.count]
        stayable: list[Standing] = []
        claimed: set[tuple[str, str]] = set()
        for one in state.standing:
            cells = {(host, uuid) for host, uuids in ((one.host, one.gpus), *one.further) for uuid in uuids}
            if one.shape.ways > 1:
                cells = {(one.host, f"{uuid} seat {one.seat}") for uuid in one.gpus}
            if one.cause is not None:
                state.leaving.append((one, one.cause))
            elif claimed & cells or not self.board.may_take(one):
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
            self._take(state, as_placed(one, pin=pinned_at))
        self.drop_spare(state)

    def fill_pins(self, state: State) -> None:
        """Fulfil the pins, with GPUs of lower priority where they are not free."""
        for position in list(state.pins):
            pin = state.wish.pins[position]
            finder = self._finder(state)
            found = finder.same_place(state.leaving, state.wish.shapes, pin) or finder.on_pin(pin)
            if found is not None:
                state.pins.remove(position)
                self.put(state, found, pin=position)

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
            self.put(state, found)
            finder.sort_hosts()

    def drop_spare(self, state: State) -> bool:
        """Let go what is not needed: the largest first, then the last. Returns whether anything was."""
        dropped = False
        for place in sorted(state.tally.placed, key=last_first):
            if state.tally.is_spare(place):
                dropped = True
                self.release(state, place)
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
        found = ((state, state.shortage()) for state in self.order)
        shortages = [replace(one, lacking=self._lacking(state)) for state, one in found if one is not None]
        return Decision(
            placed=tuple(sorted(self.board.placed(), key=lambda one: (one.model, one.host, one.gpus, one.seat))),
            shortages=tuple(sorted(shortages, key=lambda one: one.model)),
            free={name: tuple(gpu.uuid for gpu in self.board.free(name)) for name in self.board.rooms},
        )

    def carried(self) -> tuple[float, ...]:
        """What is carried, the highest priority first; larger is better."""
        sums: dict[int, float] = {}
        for state in self.order:
            tally = state.tally
            share = tally.carried + tally.carried_without_a_host - 1e-3 * (tally.missing + len(state.pins))
            sums[state.wish.priority] = sums.get(state.wish.priority, 0.0) + share
        return tuple(round(sums[priority], 6) for priority in sorted(sums, reverse=True))

    def snapshot(self) -> list[tuple[list[Placed], list[tuple[Standing, Cause]], list[int]]]:
        """What stands, what left, which pins are open, by model in the order of ``order``."""
        return [(list(state.tally.placed), list(state.leaving), list(state.pins)) for state in self.order]

    def restore(self, snapshot: Sequence[tuple[list[Placed], list[tuple[Standing, Cause]], list[int]]]) -> None:
        """Go back to a snapshot."""
        for state in self.order:
            for place in list(state.tally.placed):
                self.board.release(place)
                state.tally.remove(place)
        for state, (placed, leaving, pins) in zip(self.order, snapshot, strict=True):
            state.leaving, state.pins = list(leaving), list(pins)
            for place in placed:
                self._take(state, place)

    # -- pieces ---------------------------------------------------------------------------------------------------

    def _add_where_best(self, chosen: Sequence[Chosen]) -> bool:
        """Put each replica on the host that suits its model best. When one finds no room, all are taken back."""
        finders: dict[str, Finder] = {}
        leaving = {state.wish.model: list(state.leaving) for state in self.order}
        added: list[tuple[State, Placed]] = []
        for one in chosen:
            state = self.by_model[one.model]
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
                    self.board.release(place)
                for owner in self.order:
                    owner.leaving = leaving[owner.wish.model]
                return False
            added.append((state, self.put(state, found)))
            finder.took(found[0])
        return True

    def _add_where_chosen(self, chosen: Sequence[Chosen]) -> None:
        """Put each replica on the host that the integer program gave it."""
        for one in chosen:
            state = self.by_model[one.model]
            if state.wish.demand is None and state.crowded == one.host:
                continue
            found = self._finder(state).on_host(one.host, (one.shape,))
            if found is not None:
                self.put(state, found)

    def _free_rooms(self) -> list[FreeRoom]:
        rooms = []
        for name, room in self.board.rooms.items():
            free = tuple(self.board.free(name))
            if not free:
                continue
            memory, disk = self.board.means(name)
            models = frozenset(one.model for one in self.board.on_host(name)) if disk is not None else frozenset()
            indices = {gpu.uuid: gpu.index for gpu in free}
            failed = [sorted(indices[uuid] for uuid in pair) for pair in room.failed_pairs if pair <= indices.keys()]
            pairs = frozenset((low, high) for low, high in failed)
            rooms.append(FreeRoom(name, free, pairs, memory, disk, models))
        return rooms

    def _finder(self, state: State) -> Finder:
        return Finder(self.board, state.tally, self._reserved, self._priorities)

    def put(self, state: State, found: Found, *, pin: int | None = None) -> Placed:
        """Give a replica its place, and what held it none."""
        host, shape, uuids = found
        joins = shape.ways > 1 and self.board.may_stand(host, uuids[0], shape)
        victims = set() if joins else {one for uuid in uuids for one in self.board.holders(host, uuid)}
        for victim in sorted(victims, key=lambda holder: (holder.model, holder.gpus, holder.seat)):
            owner = self.by_model[victim.model]
            self.release(owner, victim, cause="priority")
            if victim.pin is not None:
                owner.pins.append(victim.pin)
        standing, cause = state.name_for(host, uuids)
        seat = self.board.seat(host, uuids[0]) if joins else 0
        place = Placed(state.wish.model, host, uuids, shape, standing=standing, cause=cause, pin=pin, seat=seat)
        self._take(state, place)
        return place

    def _lacking(self, state: State) -> tuple[tuple[str, str, int], ...]:
        """Hosts with enough free GPUs for one more replica of a model that lack memory or disk for it."""
        shapes = sorted(state.wish.shapes, key=lambda shape: shape.gpus)[:1]
        names = [name for name in self.board.rooms if name in state.wish.hosts]
        found = []
        for shape in shapes:
            for name in names:
                lack = self.board.lack(name, state.wish, shape) if self.board.free_count(name) >= shape.gpus else None
                if lack is not None:
                    found.append((name, *lack))
        return tuple(found)

    def offer(self, wishes: Sequence[Wish]) -> None:
        """Go on with more shapes to choose from."""
        self.board.offer(wishes)
        for wish in wishes:
            state = self.by_model[wish.model]
            state.wish = state.tally.wish = wish

    def take_new(self, state: State, place: Placed) -> None:
        """Put a replica on free GPUs that were chosen for it."""
        standing, cause = state.name_for(place.host, place.gpus)
        self._take(state, replace(place, standing=standing, cause=cause))

    def _take(self, state: State, place: Placed) -> None:
        self.board.take(place)
        state.tally.add(place)

    def release(self, state: State, place: Placed, cause: Cause | None = None) -> None:
        """Take a replica off its place. Without a cause it is not needed any more."""
        self.board.release(place)
        state.tally.remove(place)
        if place.standing is not None and (cause or place.cause):
            state.leaving.append((place.standing, cause or place.cause or "demand"))

    def _bring_back(self, state: State) -> None:
        """Two replicas on one host are better than one."""
        for entry in list(state.leaving):
            now, cause = entry
            if cause == "availability" and not state.tally.complete and self.board.may_take(now):
                state.leaving.remove(entry)
                self._take(state, as_placed(now))
