"""Who holds which GPU, and what is left of each host."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .placement_problem import GpuRoom, HostRoom, Placed, Shape, Standing, Wish


class Board:
    """Who holds which GPU, and what is left of each host's memory and disk."""

    def __init__(self, hosts: Sequence[HostRoom], wishes: Sequence[Wish]) -> None:
        self._wishes = {wish.model: wish for wish in wishes}
        self.rooms = {host.name: host for host in sorted(hosts, key=lambda host: host.name)}
        self._holders: dict[tuple[str, str], tuple[Placed, ...]] = {}
        self._known = {(host.name, gpu.uuid) for host in hosts for gpu in host.gpus}
        self._free_counts = {host.name: len(host.gpus) for host in hosts}
        self._with_degraded = {host.name for host in hosts if any(gpu.degraded for gpu in host.gpus)}
        self._on_host: dict[str, list[Placed]] = {host.name: [] for host in hosts}

    def offer(self, wishes: Sequence[Wish]) -> None:
        """Know the same models with more shapes."""
        self._wishes = {wish.model: wish for wish in wishes}

    def placed(self) -> set[Placed]:
        """Everything that stands."""
        return {place for holders in self._holders.values() for place in holders}

    def on_host(self, host: str) -> tuple[Placed, ...]:
        """What stands on a host, in a fixed order."""
        return tuple(sorted(self._on_host[host], key=lambda place: (place.gpus, place.model, str(place.shape))))

    def free(self, host: str) -> list[GpuRoom]:
        """The free GPUs of a host."""
        return [gpu for gpu in self.rooms[host].gpus if (host, gpu.uuid) not in self._holders]

    def free_count(self, host: str) -> int:
        """How many GPUs of a host are free."""
        return self._free_counts[host]

    def sound_count(self, host: str) -> int:
        """How many GPUs of a host are free and not degraded."""
        if host not in self._with_degraded:
            return self._free_counts[host]
        return sum(not gpu.degraded for gpu in self.free(host))

    def are_free(self, host: str, uuids: Iterable[str]) -> bool:
        """Whether GPUs are there and nobody holds them."""
        return all((host, uuid) in self._known and (host, uuid) not in self._holders for uuid in uuids)

    def holders(self, host: str, uuid: str) -> tuple[Placed, ...]:
        """Who holds a GPU."""
        return self._holders.get((host, uuid), ())

    def joinable(self, host: str, model: str, shape: Shape) -> str | None:
        """A GPU on which there is room beside instances that share it in the same way; the fullest, then the first.

        Two replicas of one model on one GPU carry no more than one.
        """
        found = []
        for gpu in self.rooms[host].gpus:
            holders = self.holders(host, gpu.uuid)
            # Parts of a GPU that was planned with more or less of its memory free are of another size.
            other = holders and all(one.model != model and one.shape.kind == shape.kind for one in holders)
            if other and gpu.kind == shape.kind and self.may_stand(host, gpu.uuid, shape):
                found.append((-len(holders), gpu.index, gpu.uuid))
        return min(found)[2] if found else None

    def may_stand(self, host: str, uuid: str, shape: Shape) -> bool:
        """Whether a GPU is there, and free or shared in this shape's way with room left."""
        holders = self.holders(host, uuid)
        if not holders:
            return (host, uuid) in self._known
        return shape.ways > 1 and len(holders) < shape.ways and all(one.shape.ways == shape.ways for one in holders)

    def may_take(self, one: Standing) -> bool:
        """Whether a running instance may have the place where it runs."""
        if one.shape.ways > 1:
            taken = {holder.seat for holder in self.holders(one.host, one.gpus[0])}
            return one.seat not in taken and self.may_stand(one.host, one.gpus[0], one.shape)
        return all(self.are_free(host, uuids) for host, uuids in ((one.host, one.gpus), *one.further))

    def seat(self, host: str, uuid: str) -> int:
        """The first free seat on a shared GPU."""
        taken = {one.seat for one in self.holders(host, uuid)}
        return next(number for number in range(len(taken) + 1) if number not in taken)

    def means(self, host: str, *, without: Iterable[Placed] = ()) -> tuple[int | None, int | None]:
        """Memory and disk that are left on a host, below 0 where what stands has too much; None where it is not known.

        Args:
            host: the host.
            without: what would go first.
        """
        room = self.rooms[host]
        if room.memory_bytes is None and room.disk_bytes is None:
            return None, None
        going = set(map(id, without))
        staying = [one for one in self._on_host[host] if id(one) not in going]
        memory, disk = room.memory_bytes, room.disk_bytes
        if memory is not None:
            memory -= sum(self._wishes[one.model].host_memory.get(one.shape, 0) for one in staying)
        if disk is not None:
            models = (self._wishes[model] for model in {one.model for one in staying})
            disk -= sum(wish.checkpoint_bytes for wish in models if host not in wish.stored_on)
        return memory, disk

    def lack(self, host: str, wish: Wish, shape: Shape, *, without: Iterable[Placed] = ()) -> tuple[str, int] | None:
        """What a host lacks for one more replica, ``memory`` or ``disk``, and how many bytes; None when nothing."""
        going = tuple(without)
        memory, disk = self.means(host, without=going)
        needed = wish.host_memory.get(shape, 0)
        if memory is not None and needed > memory:
            return "memory", needed - memory
        there = any(one.model == wish.model and one not in going for one in self._on_host[host])
        if disk is not None and not there and host not in wish.stored_on and wish.checkpoint_bytes > disk:
            return "disk", wish.checkpoint_bytes - disk
        return None

    def take(self, place: Placed) -> None:
        """Give a replica its GPUs."""
        for host, uuid in place.cells:
            before = self._holders.get((host, uuid), ())
            self._free_counts[host] -= not before
            self._holders[host, uuid] = (*before, place)
        for host in place.hosts:
            self._on_host[host].append(place)

    def release(self, place: Placed) -> None:
        """Take a replica's GPUs back."""
        for host, uuid in place.cells:
            # By identity: sharers of one model look alike.
            left = tuple(one for one in self._holders[host, uuid] if one is not place)
            if left:
                self._holders[host, uuid] = left
            else:
                del self._holders[host, uuid]
                self._free_counts[host] += 1
        for host in place.hosts:
            self._on_host[host] = [one for one in self._on_host[host] if one is not place]
