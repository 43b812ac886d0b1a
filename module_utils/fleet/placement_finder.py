"""Finds places for the replicas of one model, the best host first."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from .placement_gpus import choose_gpus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .placement_board import Board
    from .placement_problem import Cause, GpuRoom, PinnedPlace, Shape, Standing
    from .placement_tally import Tally

_MANY = 1 << 30

Found = tuple[str, "Shape", tuple[str, ...]]
_Key = tuple[int, int, int, float, str]


def fulfils(one: Standing, pin: PinnedPlace) -> bool:
    """Whether a running instance stands where a pin asks for one."""
    return one.host == pin.host and (not pin.gpus or set(pin.gpus) == set(one.gpus))


class Finder:
    """Finds places for the replicas of one model.

    The cost is linear in hosts when it is made, and a logarithm for each place.

    Args:
        board: who holds which GPU.
        tally: the replicas so far; changes of it are reported with ``took``.
        reserved: GPUs that pins ask for, and with ``optimize`` those where something runs.
        priorities: by model.
    """

    def __init__(
        self, board: Board, tally: Tally, reserved: frozenset[tuple[str, str]], priorities: Mapping[str, int]
    ) -> None:
        self.wish = tally.wish
        self.lonely = False
        self._board = board
        self._tally = tally
        self._foreign = reserved - {(pin.host, uuid) for pin in self.wish.pins for uuid in pin.gpus}
        self._priorities = priorities
        lower = {priority for priority in priorities.values() if priority < self.wish.priority}
        self._thresholds: tuple[int | None, ...] = (None, *sorted(lower))
        shapes = self.wish.shapes
        # A part of a GPU may find room where no GPU is free.
        self._least = 0 if any(shape.ways > 1 for shape in shapes) else min((s.gpus for s in shapes), default=1)
        self._heap: list[_Key] = []
        self.sort_hosts()

    def took(self, host: str) -> None:
        """Note that a replica of the model was put there."""
        heapq.heappush(self._heap, self._key(host))

    def sort_hosts(self) -> None:
        """Start anew, after GPUs became free."""
        # So many GPUs and more are no longer found beside the reserved ones.
        self._only_foreign = _MANY
        self._heap = [self._key(name) for name in self._board.rooms if name in self.wish.hosts]
        heapq.heapify(self._heap)

    def on_pin(self, pin: PinnedPlace) -> Found | None:
        """A place that fulfils a pin. GPUs of lower priority replicas may be in it."""
        if pin.host not in self._board.rooms or pin.host not in self.wish.hosts:
            return None
        shapes = [shape for shape in self.wish.shapes if not pin.gpus or shape.gpus == len(pin.gpus)]
        for threshold in self._thresholds:
            gpus = self._available(pin.host, threshold)
            if pin.gpus:
                gpus = [gpu for gpu in gpus if gpu.uuid in pin.gpus]
            found = self._among(pin.host, gpus, shapes)
            if found is not None:
                return found
        return None

    def free_place(self, shapes: Sequence[Shape], *, crowded: str | None = None) -> Found | None:
        """A place of free GPUs, away from reserved ones if possible, and not on the crowded host."""
        found = None
        smallest = min((shape.gpus for shape in shapes), default=0)
        if self._foreign and smallest < self._only_foreign:
            found = self._scan(shapes, crowded, None, avoid_foreign=True)
            if found is None and crowded is None:
                self._only_foreign = smallest
        return found or self._scan(shapes, crowded, None)

    def anywhere(self, shapes: Sequence[Shape], *, crowded: str | None) -> Found | None:
        """A place of free GPUs, or of GPUs of lower priority, the lowest first."""
        found = self.free_place(shapes, crowded=crowded)
        for threshold in self._thresholds[1:]:
            found = found or self._scan(shapes, crowded, threshold)
        if found is None:
            self.lonely = crowded is not None
        return found

    def on_host(
        self, host: str, shapes: Sequence[Shape], threshold: int | None = None, *, avoid_foreign: bool = False
    ) -> Found | None:
        """A place on one host."""
        gpus = self._available(host, threshold)
        if avoid_foreign:
            gpus = [gpu for gpu in gpus if (host, gpu.uuid) not in self._foreign]
        return self._among(host, gpus, shapes)

    def same_place(
        self, leaving: Sequence[tuple[Standing, Cause]], shapes: Sequence[Shape], pin: PinnedPlace | None = None
    ) -> Found | None:
        """The place of an instance that left it for a better packing only, when the place is still free."""
        for now, cause in leaving:
            if cause != "optimize" or now.host not in self.wish.hosts or now.shape not in shapes:
                continue
            free = self._board.are_free(now.host, now.gpus) and now.shape.ways == 1 and not now.further
            if (pin is None or fulfils(now, pin)) and free and self._board.lack(now.host, self.wish, now.shape) is None:
                return now.host, now.shape, now.gpus
        return None

    def _scan(
        self, shapes: Sequence[Shape], crowded: str | None, threshold: int | None, *, avoid_foreign: bool = False
    ) -> Found | None:
        passed: list[_Key] = []
        found = None
        while self._heap and found is None:
            key = heapq.heappop(self._heap)
            host = key[-1]
            current = self._key(host)
            if current != key:
                heapq.heappush(self._heap, current)
                continue
            if passed and passed[-1] == current:
                continue
            passed.append(current)
            if current[0] and threshold is None:
                break  # hosts without room come last
            if host != crowded:
                found = self.on_host(host, shapes, threshold, avoid_foreign=avoid_foreign)
        for key in passed:
            heapq.heappush(self._heap, key)
        return found

    def _among(self, host: str, gpus: Sequence[GpuRoom], shapes: Sequence[Shape]) -> Found | None:
        """A place on some GPUs of one host; those of its holders that lose them give their memory and disk back."""
        going = [holder for gpu in gpus for holder in self._board.holders(host, gpu.uuid)]
        for shape in shapes:
            if self._board.lack(host, self.wish, shape, without=going) is not None:
                continue
            beside = self._board.joinable(host, self.wish.model, shape) if shape.ways > 1 else None
            uuids = (beside,) if beside is not None else choose_gpus(self._board.rooms[host], gpus, shape)
            if uuids is None:
                continue
            if going:
                victims = [holder for uuid in uuids for holder in self._board.holders(host, uuid)]
                if beside is None and self._board.lack(host, self.wish, shape, without=victims):
                    continue
            return host, shape, uuids
        return None

    def _available(self, host: str, threshold: int | None) -> list[GpuRoom]:
        """Free GPUs and, with a threshold, those held by replicas of at most that priority."""
        if threshold is None:
            return self._board.free(host)
        result = []
        for gpu in self._board.rooms[host].gpus:
            holders = self._board.holders(host, gpu.uuid)
            if all(self._priorities[holder.model] <= threshold and not holder.further for holder in holders):
                result.append(gpu)
        return result

    def _key(self, host: str) -> _Key:
        """Sort key of a host: those without room last, then few replicas of this model, then a large share free.

        Where there is nothing but degraded GPUs left, or the whole host is degraded, comes after hosts with as many
        replicas.
        """
        room, free = self._board.rooms[host], self._board.free_count(host)
        replicas = self._tally.replicas.get(host, 0)
        full = int(free < self._least)
        worn = int(room.degraded) + int(self._board.sound_count(host) < self._least)
        share = free / max(1, len(room.gpus))
        return (full, replicas, worn, -share, host) if self.wish.spread else (full, -replicas, worn, share, host)
