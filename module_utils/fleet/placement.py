"""The decision: which replica of which model stands on which GPUs.

It knows nothing of memory, precision or documents: a model comes as a ``Wish`` with the shapes that fit, a host as a
``HostRoom`` with the GPUs that may be used. What runs and may stay, stays. Models are served by priority; a replica
that finds no free GPUs takes those of replicas of strictly lower priority, the lowest first. The cost is linear in
hosts for each model, plus a logarithm for each replica.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .placement_problem import Decision, Placed, Shortage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .placement_problem import Cause, GpuRoom, HostRoom, PinnedPlace, Shape, Standing, Wish


def decide(
    wishes: Sequence[Wish], hosts: Sequence[HostRoom], standing: Sequence[Standing], *, optimize: bool = False
) -> Decision:
    """Place every replica.

    Args:
        wishes: one for each model; the order does not matter.
        hosts: the hosts that may be changed; the order does not matter.
        standing: what runs on them, of the wished models only.
        optimize: run for the best packing; what runs may be moved for it.
    """
    board = _Board(hosts)
    order = sorted(wishes, key=_urgency)
    by_model: dict[str, list[Standing]] = {wish.model: [] for wish in wishes}
    for one in standing:
        by_model[one.model].append(one)
    reserved = frozenset((pin.host, uuid) for wish in wishes for pin in wish.pins for uuid in pin.gpus)
    if optimize:
        # What has to move goes where nothing runs, if it can.
        reserved |= {(one.host, uuid) for one in standing if one.cause is None for uuid in one.gpus}
    opened: dict[str, list[_Open]] = {}
    for wish in order:
        opened[wish.model] = _keep(board, wish, by_model[wish.model], optimize=optimize)
    shortages: list[Shortage] = []
    priorities = {wish.model: wish.priority for wish in wishes}
    for wish in order:
        # Replicas with a pin come first, so that a free one does not take a pinned place.
        queue = sorted(opened[wish.model], key=lambda one: (one.pin is None, one.pin or 0))
        finder = _Finder(board, wish, reserved, priorities)
        shortage, evicted = _fill(board, finder, queue)
        for victim in evicted:
            cause: Cause | None = "priority" if victim.standing else None
            opened[victim.model].append(_Open(victim.pin, victim.standing, cause))
        if shortage is not None:
            shortages.append(shortage)
    return Decision(
        placed=tuple(sorted(board.placed(), key=lambda one: (one.model, one.host, one.gpus))),
        shortages=tuple(sorted(shortages, key=lambda one: one.model)),
        free={name: tuple(gpu.uuid for gpu in board.free(name)) for name in board.rooms},
    )


@dataclass(slots=True)
class _Open:
    """A replica that needs a place, and the running instance that it was, with the cause for leaving."""

    pin: int | None
    standing: Standing | None = None
    cause: Cause | None = None


class _Board:
    """Who holds which GPU."""

    def __init__(self, hosts: Sequence[HostRoom]) -> None:
        self.rooms = {host.name: host for host in sorted(hosts, key=lambda host: host.name)}
        self._holders: dict[tuple[str, str], Placed] = {}
        self._known = {(host.name, gpu.uuid) for host in hosts for gpu in host.gpus}
        self._free_counts = {host.name: len(host.gpus) for host in hosts}

    def placed(self) -> set[Placed]:
        return set(self._holders.values())

    def of_model(self, model: str) -> list[Placed]:
        return [one for one in self.placed() if one.model == model]

    def free(self, host: str) -> list[GpuRoom]:
        return [gpu for gpu in self.rooms[host].gpus if (host, gpu.uuid) not in self._holders]

    def free_count(self, host: str) -> int:
        return self._free_counts[host]

    def are_free(self, host: str, uuids: Iterable[str]) -> bool:
        return all((host, uuid) in self._known and (host, uuid) not in self._holders for uuid in uuids)

    def are_known(self, host: str, uuids: Iterable[str]) -> bool:
        return all((host, uuid) in self._known for uuid in uuids)

    def holder(self, host: str, uuid: str) -> Placed | None:
        return self._holders.get((host, uuid))

    def take(self, place: Placed) -> None:
        for uuid in place.gpus:
            self._holders[place.host, uuid] = place
        self._free_counts[place.host] -= len(place.gpus)

    def release(self, place: Placed) -> None:
        for uuid in place.gpus:
            del self._holders[place.host, uuid]
        self._free_counts[place.host] += len(place.gpus)


def _urgency(wish: Wish) -> tuple[object, ...]:
    """Who chooses first: priority, then those with the least choice, then the largest."""
    pins_gpus = any(pin.gpus for pin in wish.pins)
    largest = max((shape.gpus for shape in wish.shapes), default=0)
    return (-wish.priority, not pins_gpus, not wish.pins, len(wish.hosts), -largest, wish.model)


def _keep(board: _Board, wish: Wish, standing: Sequence[Standing], *, optimize: bool) -> list[_Open]:
    """Let stay what may stay, and return the replicas that are wished beyond it."""
    pins = wish.pins[: wish.count]
    stayable: list[Standing] = []
    leaving: list[tuple[Standing, Cause]] = []
    claimed: set[tuple[str, str]] = set()
    for one in standing:
        cells = {(one.host, uuid) for uuid in one.gpus}
        if one.cause is not None:
            leaving.append((one, one.cause))
        elif claimed & cells or not board.are_free(one.host, one.gpus):
            leaving.append((one, "conflict"))
        else:
            claimed |= cells
            stayable.append(one)
    matched: dict[int, Standing] = {}
    for position, pin in enumerate(pins):
        found = next((one for one in stayable if one not in matched.values() and _fulfils(one, pin)), None)
        if found is not None:
            matched[position] = found
    unpinned = [one for one in stayable if one not in matched.values()]
    staying = unpinned[: wish.count - len(pins)]
    leaving += [(one, "constraint") for one in unpinned[wish.count - len(pins) :]]
    together = {*wish.elsewhere, *(one.host for one in [*matched.values(), *staying])}
    if wish.min_hosts > len(together) and staying and len(matched) + len(staying) == wish.count:
        leaving.insert(0, (staying.pop(), "availability"))
    if optimize:
        leaving = [*((one, "optimize") for one in [*matched.values(), *staying]), *leaving]
        matched, staying = {}, []
    for pinned_at, one in [*matched.items(), *((None, one) for one in staying)]:
        board.take(Placed(wish.model, one.host, one.gpus, one.shape, standing=one, pin=pinned_at))
    missing = [position for position in range(len(pins)) if position not in matched]
    free_replicas = wish.count - len(pins) - len(staying)
    queue = iter(leaving)
    return [_Open(position, *next(queue, (None, None))) for position in [*missing, *[None] * free_replicas]]


def _fulfils(one: Standing, pin: PinnedPlace) -> bool:
    return one.host == pin.host and (not pin.gpus or set(pin.gpus) == set(one.gpus))


def _fill(board: _Board, finder: _Finder, queue: Sequence[_Open]) -> tuple[Shortage | None, list[Placed]]:
    """Find a place for each open replica of a model. Also returns what lost its place to them."""
    failed: list[_Open] = []
    evicted: list[Placed] = []
    moving = []
    for one in queue:
        place = finder.same_place(one)
        if place is None:
            moving.append(one)
        else:
            board.take(place)
            finder.took(place.host, evicted=False)
    for one in moving:
        place = finder.find(one)
        if place is None:
            failed.append(one)
            continue
        victims = {holder for uuid in place.gpus if (holder := board.holder(place.host, uuid)) is not None}
        for victim in sorted(victims, key=lambda holder: (holder.model, holder.gpus)):
            board.release(victim)
            evicted.append(victim)
        board.take(place)
        finder.took(place.host, evicted=bool(victims))
    if not failed:
        return None, evicted
    left: list[tuple[Standing, Cause]] = []
    for one in failed:
        if one.standing is None or one.cause is None:
            continue
        if one.cause == "availability" and board.are_free(one.standing.host, one.standing.gpus):
            # Two replicas on one host are better than one.
            back = one.standing
            board.take(Placed(back.model, back.host, back.gpus, back.shape, standing=back))
        else:
            left.append((one.standing, one.cause))
    shortage = Shortage(
        model=finder.wish.model,
        missing=len(failed),
        pin=next((one.pin for one in failed if one.pin is not None), None),
        min_hosts=finder.lonely,
        left=tuple(left),
    )
    return shortage, evicted


class _Finder:
    """Finds places for the replicas of one model, the best host first."""

    def __init__(
        self,
        board: _Board,
        wish: Wish,
        reserved: frozenset[tuple[str, str]],
        priorities: Mapping[str, int],
    ) -> None:
        self.lonely = False
        self._board = board
        self.wish = wish
        self._foreign = reserved - {(pin.host, uuid) for pin in wish.pins for uuid in pin.gpus}
        self._priorities = priorities
        lower = {priority for priority in priorities.values() if priority < wish.priority}
        self._thresholds: tuple[int | None, ...] = (None, *sorted(lower))
        self._exhausted = False
        self._replicas: dict[str, int] = {}
        for host in [*wish.elsewhere, *(one.host for one in board.of_model(wish.model))]:
            self._replicas[host] = self._replicas.get(host, 0) + 1
        self._kinds = {shape.kind: shape.gpus for shape in reversed(wish.shapes)}
        self._heap: list[tuple[int, int, float, str]] = []
        self._sort_hosts()

    def took(self, host: str, *, evicted: bool) -> None:
        """Note that a replica was put there."""
        self._replicas[host] = self._replicas.get(host, 0) + 1
        if evicted:
            self._sort_hosts()

    def _sort_hosts(self) -> None:
        self._heap = [self._key(name) for name in self._board.rooms if name in self.wish.hosts]
        heapq.heapify(self._heap)

    def find(self, one: _Open) -> Placed | None:
        """A place for this replica, or None. GPUs of lower priority replicas may be in it."""
        pin = self.wish.pins[one.pin] if one.pin is not None else None
        found = self._on_pin(pin) if pin is not None else self._anywhere()
        if found is None:
            return None
        host, shape, uuids = found
        return Placed(self.wish.model, host, uuids, shape, standing=one.standing, cause=one.cause, pin=one.pin)

    def same_place(self, one: _Open) -> Placed | None:
        """The place where it runs, when it was released for a better packing only and the place is still free."""
        now = one.standing
        if now is None or one.cause != "optimize" or now.host not in self.wish.hosts:
            return None
        pin = self.wish.pins[one.pin] if one.pin is not None else None
        as_pinned = pin is None or _fulfils(now, pin)
        if as_pinned and now.shape in self.wish.shapes and self._board.are_free(now.host, now.gpus):
            return Placed(self.wish.model, now.host, now.gpus, now.shape, standing=now, pin=one.pin)
        return None

    def _on_pin(self, pin: PinnedPlace) -> tuple[str, Shape, tuple[str, ...]] | None:
        if pin.host not in self._board.rooms or pin.host not in self.wish.hosts:
            return None
        for threshold in self._thresholds:
            gpus = self._available(pin.host, threshold)
            if pin.gpus:
                gpus = [gpu for gpu in gpus if gpu.uuid in pin.gpus]
            for shape in self.wish.shapes:
                if pin.gpus and shape.gpus != len(pin.gpus):
                    continue
                uuids = choose_gpus(self._board.rooms[pin.host], gpus, shape)
                if uuids is not None:
                    return pin.host, shape, uuids
        return None

    def _anywhere(self) -> tuple[str, Shape, tuple[str, ...]] | None:
        if self._exhausted:
            return None
        crowded = self._must_leave()
        found = self._scan(crowded, None, avoid_foreign=True) if self._foreign else None
        for threshold in self._thresholds:
            found = found or self._scan(crowded, threshold)
        if found is None:
            self._exhausted = True
            self.lonely = crowded is not None
        return found

    def _must_leave(self) -> str | None:
        """The host that holds all replicas so far, when there have to be more hosts."""
        if self.wish.min_hosts > 1 and len(self._replicas) == 1:
            return next(iter(self._replicas))
        return None

    def _scan(
        self, crowded: str | None, threshold: int | None, *, avoid_foreign: bool = False
    ) -> tuple[str, Shape, tuple[str, ...]] | None:
        passed = []
        found = None
        while self._heap and found is None:
            key = heapq.heappop(self._heap)
            host = key[-1]
            current = self._key(host)
            if current != key:
                heapq.heappush(self._heap, current)
                continue
            passed.append(current)
            if current[0] and threshold is None:
                break  # hosts without room come last
            if host != crowded:
                found = self._on_host(host, threshold, avoid_foreign=avoid_foreign)
        for key in passed:
            heapq.heappush(self._heap, key)
        return found

    def _on_host(
        self, host: str, threshold: int | None, *, avoid_foreign: bool
    ) -> tuple[str, Shape, tuple[str, ...]] | None:
        gpus = self._available(host, threshold)
        if avoid_foreign:
            gpus = [gpu for gpu in gpus if (host, gpu.uuid) not in self._foreign]
        for shape in self.wish.shapes:
            uuids = choose_gpus(self._board.rooms[host], gpus, shape)
            if uuids is not None:
                return host, shape, uuids
        return None

    def _available(self, host: str, threshold: int | None) -> list[GpuRoom]:
        """Free GPUs and, with a threshold, those held by replicas of at most that priority."""
        if threshold is None:
            return self._board.free(host)
        result = []
        for gpu in self._board.rooms[host].gpus:
            holder = self._board.holder(host, gpu.uuid)
            if holder is None or self._priorities[holder.model] <= threshold:
                result.append(gpu)
        return result

    def _key(self, host: str) -> tuple[int, int, float, str]:
        """Sort key of a host: those without room last, then few replicas of this model, then a large share free."""
        replicas = self._replicas.get(host, 0)
        free = self._board.free_count(host)
        full = int(free < min(self._kinds.values(), default=1))
        share = free / max(1, len(self._board.rooms[host].gpus))
        return (full, replicas, -share, host) if self.wish.spread else (full, -replicas, share, host)


def choose_gpus(host: HostRoom, available: Sequence[GpuRoom], shape: Shape) -> tuple[str, ...] | None:
    """Choose GPUs of one host: inside one PCIe switch if possible, else inside one NUMA node, else any.

    Args:
        host: the host.
        available: GPUs that may be taken.
        shape: what is needed.

    Returns:
        UUIDs in the order of the ranks (tensor ranks of a stage beside one another), or None.
    """
    usable = [gpu for gpu in available if gpu.kind == shape.kind]
    if len(usable) < shape.gpus:
        return None
    for level in ("switch", "numa_node", None):
        groups: dict[int, list[GpuRoom]] = {}
        for gpu in usable:
            groups.setdefault(getattr(gpu, level) if level else 0, []).append(gpu)
        # The group with the least room that suffices, so that whole groups stay whole.
        for _, group in sorted(groups.items(), key=lambda item: (len(item[1]), item[0])):
            if len(group) >= shape.gpus:
                chosen = _ranks(host, sorted(group, key=lambda gpu: (gpu.switch, gpu.index)), shape)
                if chosen is not None:
                    return chosen
    return None


def _ranks(host: HostRoom, group: Sequence[GpuRoom], shape: Shape) -> tuple[str, ...] | None:
    """Fill the stages one by one; GPUs of one tensor group must not include a pair whose peer-to-peer test failed."""
    left = [gpu.uuid for gpu in group]
    chosen: list[str] = []
    for _ in range(shape.pipeline_parallel):
        stage = next((found for seed in left if (found := _stage(host, seed, left, shape.tensor_parallel))), None)
        if stage is None:
            return None
        chosen += stage
        left = [uuid for uuid in left if uuid not in stage]
    return tuple(chosen)


def _stage(host: HostRoom, seed: str, left: Sequence[str], size: int) -> list[str] | None:
    stage = [seed]
    for uuid in left:
        if len(stage) == size:
            break
        if uuid not in stage and all(frozenset((uuid, other)) not in host.failed_pairs for other in stage):
            stage.append(uuid)
    return stage if len(stage) == size else None
