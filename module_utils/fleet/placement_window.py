"""The integer program that arranges some hosts anew, so that demand is carried that would be left otherwise.

Each replica there may stay or go, and each model that stands there or lacks something may get replicas of any of its
shapes. The goals, each fixed before the next is looked at: demand carried, the highest priority first; fewest replicas
that leave their place; least in a less faithful precision; fewest instances on shared GPUs; fewest GPUs, then replicas
on different hosts and tensor groups inside one switch. No model loses anything for one of its own or of a lower
priority.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from .placement_integer import IntegerProgram
from .placement_program import UNITS, units

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from .placement_board import Board
    from .placement_problem import GpuRoom, HostRoom, Placed, Shape, Wish
    from .placement_state import State

# What has to be gained before anything is moved: a hundredth of one model's demand, or a replica that has to be there.
LEAST_GAIN = UNITS // 100
_DETERMINISTIC_TIME = 0.1
_GPU_COST = 10**5
# Of a host's tensor groups of one size no more than this many are looked at; those inside a switch come first.
_MOST_GROUPS = 300


@dataclass(frozen=True, slots=True)
class Addition:
    """A replica to be put on a host. ``gpus`` are given where it matters which."""

    model: str
    shape: Shape
    host: str
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rearrangement:
    """What goes, and what comes in its stead."""

    going: tuple[Placed, ...]
    coming: tuple[Addition, ...]


class WindowProgram:
    """The integer program of some hosts.

    Args:
        board: who holds which GPU.
        states: of all models that may be touched, in a fixed order.
        hosts: names of the hosts.
        sharing: whether GPUs may be shared beyond what is shared already.
        reshape: whether replicas of models that lack nothing may take another shape to make room.
    """

    def __init__(
        self, board: Board, states: Sequence[State], hosts: Sequence[str], *, sharing: bool, reshape: bool
    ) -> None:
        self._program = IntegerProgram(deterministic_time=_DETERMINISTIC_TIME)
        self._board = board
        self._states = states
        self._sharing = sharing
        self._fixed_shapes = {} if reshape else _shapes_of_satisfied(board, states, hosts)
        self._keeps: list[tuple[Placed, int]] = []
        self._new: dict[tuple[str, Shape, str], int] = {}
        self._groups: dict[tuple[str, int], list[tuple[tuple[str, ...], int]]] = {}
        self._shared: list[tuple[int, int]] = []
        self._spread: list[tuple[int, int]] = []
        self._far: list[tuple[int, int]] = []
        self._wishes = {state.wish.model: state.wish for state in states}
        for name in hosts:
            self._add_host(board.rooms[name])
        # By model: (variable, the most it may be, what it is now).
        self._carried: dict[str, list[tuple[int, int, int]]] = {}
        for state in states:
            self._add_model(state, frozenset(hosts))

    def solve(self) -> Rearrangement | None:
        """The rearrangement, or None when nothing is gained by one."""
        program = self._program
        program.hint([*((keep, 1) for _, keep in self._keeps), *((variable, 0) for variable in self._new.values())])
        improved = False
        for priority in sorted({state.wish.priority for state in self._states}, reverse=True):
            mine = [state.wish.model for state in self._states if state.wish.priority == priority]
            terms = [term for model in mine for term in self._carried[model]]
            if not improved:
                for variable, _, now in terms:
                    program.constrain([(variable, 1)], least=now)
            if not improved and all(now == most for _, most, now in terms):
                continue
            if not program.minimize([(variable, -1) for variable, _, _ in terms], close=LEAST_GAIN / 2):
                return None
            gained = program.total((variable, 1) for variable, _, _ in terms) - sum(now for _, _, now in terms)
            if not improved and gained < LEAST_GAIN:
                for variable, _, now in terms:
                    program.constrain([(variable, 1)], most=now)
                continue
            improved = True
            program.fix([(variable, -1) for variable, _, _ in terms])
        if not improved:
            return None
        for goal in (self._moves(), self._less_faithful(), self._shared):
            if goal and program.minimize(goal):
                program.fix(goal)
        program.minimize(self._cost())
        return self._rearrangement()

    # -- goals ----------------------------------------------------------------------------------------------------

    def _moves(self) -> list[tuple[int, int]]:
        return [(keep, -1) for place, keep in self._keeps if place.stays]

    def _less_faithful(self) -> list[tuple[int, int]]:
        counts = [(model, shape, variable) for (model, shape, _), variable in self._new.items()]
        counts += [(place.model, place.shape, keep) for place, keep in self._keeps]
        return [(variable, shape.parts) for model, shape, variable in counts if shape in self._wishes[model].sacrifices]

    def _cost(self) -> list[tuple[int, int]]:
        """GPUs, then replicas, then how they are spread, then how far down the list of preferences."""
        terms = [(keep, _own_gpus(place.shape) * _GPU_COST + 900) for place, keep in self._keeps]
        for (model, shape, _), variable in self._new.items():
            offered = [*self._wishes[model].shapes, *self._wishes[model].shared_shapes]
            preference = offered.index(shape) if shape in offered else len(offered)
            terms.append((variable, _own_gpus(shape) * _GPU_COST + 1000 + min(preference, 90)))
        return [*terms, *self._spread, *self._far]

    def _rearrangement(self) -> Rearrangement:
        value = self._program.value
        going = tuple(place for place, keep in self._keeps if not value(keep))
        coming = []
        pools = {key: [group for group, chosen in groups if value(chosen)] for key, groups in self._groups.items()}
        for (model, shape, host), variable in self._new.items():
            for _ in range(value(variable)):
                pool = pools.get((host, shape.tensor_parallel), [])
                groups, pools[host, shape.tensor_parallel] = (
                    pool[: shape.pipeline_parallel],
                    pool[shape.pipeline_parallel :],
                )
                coming.append(Addition(model, shape, host, tuple(uuid for group in groups for uuid in group)))
        return Rearrangement(going, tuple(coming))

    # -- the program ----------------------------------------------------------------------------------------------

    def _add_host(self, room: HostRoom) -> None:
        program = self._program
        keeps = []
        for place in self._board.on_host(room.name):
            fixed = place.pin is not None or bool(place.further) or place.model not in self._wishes
            keeps.append((place, program.integer(1, int(fixed))))
        self._keeps += [(place, keep) for place, keep in keeps if not place.further]
        counts: dict[Shape, list[int]] = {}
        for wish in self._wishes.values():
            if room.name not in wish.hosts:
                continue
            mine = [keep for place, keep in keeps if place.model == wish.model]
            for shape in self._shapes(wish):
                room_for = sum(gpu.kind == shape.kind for gpu in room.gpus) // shape.gpus * shape.ways
                if room_for:
                    variable = program.integer(room_for)
                    self._new[wish.model, shape, room.name] = variable
                    counts.setdefault(shape, []).append(variable)
                    mine.append(variable)
            if len(mine) > 1 and wish.spread:
                beyond = program.integer(len(room.gpus))
                program.constrain([(beyond, 1), *((one, -1) for one in mine)], least=-1)
                self._spread.append((beyond, 100))
        for kind in sorted({gpu.kind for gpu in room.gpus}):
            gpus = [gpu for gpu in room.gpus if gpu.kind == kind]
            self._fit_gpus(room, gpus, keeps, {shape: many for shape, many in counts.items() if shape.kind == kind})
        self._fit_means(room, keeps)

    def _shapes(self, wish: Wish) -> Iterator[Shape]:
        """The shapes worth looking at: of those that take the same of a host, the one that carries most."""
        best: dict[tuple[object, ...], Shape] = {}
        offered = [*wish.shapes, *(wish.shared_shapes if self._sharing else ())]
        for shape in offered:
            if wish.demand is not None and wish.amount(shape) <= 0.0 and wish.count <= 0:
                continue
            key = (shape.kind, shape.gpus, shape.tensor_parallel, shape.ways, shape in wish.sacrifices)
            if key not in best or wish.amount(shape) > wish.amount(best[key]) * 1.001:
                best[key] = shape
        only = self._fixed_shapes.get(wish.model)
        yield from best.values() if only is None else only

    def _fit_gpus(
        self,
        room: HostRoom,
        gpus: Sequence[GpuRoom],
        keeps: Sequence[tuple[Placed, int]],
        counts: Mapping[Shape, Sequence[int]],
    ) -> None:
        """No GPU is given twice, and tensor groups have no failed pair inside."""
        of_kind = {gpu.uuid for gpu in gpus}
        taken: list[tuple[int, int]] = []
        on_gpu: dict[str, int] = {}
        for place, keep in keeps:
            if place.shape.ways == 1:
                mine = [uuid for host, uuid in place.cells if host == room.name and uuid in of_kind]
                taken.append((keep, len(mine)))
                on_gpu |= dict.fromkeys(mine, keep)
        for shape, many in counts.items():
            if shape.ways == 1:
                taken += [(count, shape.gpus) for count in many]
        kind = gpus[0].kind
        sharers = [(place, keep) for place, keep in keeps if place.shape.ways > 1 and place.gpus[0] in of_kind]
        # Nobody joins parts of another size.
        apart = {place.gpus[0] for place, _ in sharers if place.shape.kind != kind}
        for uuid in sorted(apart):
            on_gpu[uuid] = self._program.integer(1)
            for place, keep in sharers:
                if place.gpus[0] == uuid:
                    self._program.constrain([(on_gpu[uuid], 1), (keep, -1)], least=0)
            taken.append((on_gpu[uuid], 1))
        sharers = [(place, keep) for place, keep in sharers if place.gpus[0] not in apart]
        ways = {place.shape.ways for place, _ in sharers} | {shape.ways for shape in counts if shape.ways > 1}
        for number in sorted(ways):
            taken.append((self._fit_shared(room, gpus, number, sharers, on_gpu), 1))
        self._program.constrain(taken, most=len(gpus))
        if any(pair <= of_kind for pair in room.failed_pairs):
            self._fit_groups(room, gpus, on_gpu, counts)

    def _fit_shared(
        self,
        room: HostRoom,
        gpus: Sequence[GpuRoom],
        ways: int,
        sharers: Sequence[tuple[Placed, int]],
        on_gpu: dict[str, int],
    ) -> int:
        """A variable for the GPUs that are shared in one way: no more instances on them than they have parts."""
        program = self._program
        shared_gpus, kind = program.integer(len(gpus)), gpus[0].kind
        by_model: dict[str, list[tuple[int, int]]] = {}
        held: list[tuple[int, int]] = []
        for place, keep in sharers:
            if place.shape.ways != ways:
                continue
            (uuid,) = place.gpus
            by_model.setdefault(place.model, []).append((keep, 1))
            if uuid not in on_gpu:
                on_gpu[uuid] = program.integer(1)
                held.append((on_gpu[uuid], -1))
            program.constrain([(on_gpu[uuid], 1), (keep, -1)], least=0)
        for (model, shape, host), count in self._new.items():
            if host == room.name and shape.ways == ways and shape.kind == kind:
                by_model.setdefault(model, []).append((count, 1))
                self._shared.append((count, 1))
        program.constrain([(shared_gpus, 1), *held], least=0)
        program.constrain([(shared_gpus, -ways), *(one for mine in by_model.values() for one in mine)], most=0)
        for mine in by_model.values():
            # Two replicas of one model on one GPU carry no more than one.
            program.constrain([(shared_gpus, -1), *mine], most=0)
        self._far.append((shared_gpus, _GPU_COST))
        return shared_gpus

    def _fit_groups(
        self,
        room: HostRoom,
        gpus: Sequence[GpuRoom],
        on_gpu: Mapping[str, int],
        counts: Mapping[Shape, Sequence[int]],
    ) -> None:
        program = self._program
        uses: dict[str, list[tuple[int, int]]] = {uuid: [(keep, 1)] for uuid, keep in on_gpu.items()}
        for size in sorted({shape.tensor_parallel for shape in counts if shape.tensor_parallel > 1}):
            groups = []
            for group in _tensor_groups(room, gpus, size):
                chosen = program.integer(1)
                groups.append((tuple(gpu.uuid for gpu in group), chosen))
                for gpu in group:
                    uses.setdefault(gpu.uuid, []).append((chosen, 1))
                distance = len({gpu.switch for gpu in group}) + 2 * len({gpu.numa_node for gpu in group}) - 3
                self._far.append((chosen, distance + sum(gpu.degraded for gpu in group)))
            needed = [
                (count, -shape.pipeline_parallel)
                for shape, many in counts.items()
                if shape.tensor_parallel == size
                for count in many
            ]
            program.constrain([*((chosen, 1) for _, chosen in groups), *needed], least=0, most=0)
            self._groups[room.name, size] = groups
        for terms in uses.values():
            program.constrain(terms, most=1)

    def _fit_means(self, room: HostRoom, keeps: Sequence[tuple[Placed, int]]) -> None:
        """Host memory for every replica, disk for every model."""
        program = self._program
        here = {key: variable for key, variable in self._new.items() if key[2] == room.name}
        memory, disk = self._board.means(room.name)
        if memory is not None:
            used = [
                (keep, self._wishes[place.model].host_memory.get(place.shape, 0) >> 20)
                for place, keep in keeps
                if place.model in self._wishes
            ]
            # What runs may have more than there should be, as long as it stays.
            most = (memory >> 20) + sum(size for _, size in used)
            used += [
                (variable, -(-self._wishes[model].host_memory.get(shape, 0) >> 20))
                for (model, shape, _), variable in here.items()
            ]
            program.constrain(used, most=most)
        if disk is None:
            return
        stored = []
        for wish in self._wishes.values():
            if not wish.checkpoint_bytes or room.name in wish.stored_on:
                continue
            mine = [keep for place, keep in keeps if place.model == wish.model]
            mine += [variable for (model, _, _), variable in here.items() if model == wish.model]
            if mine:
                needed = program.integer(1)
                program.constrain([(needed, 8 * len(room.gpus)), *((one, -1) for one in mine)], least=0)
                stored.append((needed, wish.checkpoint_bytes >> 20))
                there = any(place.model == wish.model for place, _ in keeps)
                disk += wish.checkpoint_bytes if there else 0
        program.constrain(stored, most=disk >> 20)

    def _add_model(self, state: State, hosts: frozenset[str]) -> None:
        """What is carried of one model: its demand, its replicas, and what is left without any one host."""
        program, wish, tally = self._program, state.wish, state.tally
        here = [(place, keep) for place, keep in self._keeps if place.model == wish.model]
        replicas = [(keep, 1) for _, keep in here]
        amounts = [(keep, units(wish.amount(place.shape), wish.required)) for place, keep in here]
        by_host: dict[str, list[tuple[int, int]]] = {host: [] for host in sorted(hosts)}
        for place, keep in here:
            by_host[place.host].append((keep, units(wish.amount(place.shape), wish.required)))
        for (model, shape, host), variable in self._new.items():
            if model == wish.model:
                replicas.append((variable, 1))
                amounts.append((variable, units(wish.amount(shape), wish.required)))
                by_host[host].append(amounts[-1])
        # What stands outside of the window is as it is.
        elsewhere = len(tally.placed) - len(here)
        rest = tally.amount - sum(wish.amount(place.shape) for place, _ in here)
        there = units(max(0.0, rest), wish.required)
        most = wish.count if wish.demand is None else wish.most
        if most is not None:
            program.constrain(replicas, most=max(len(here), most - elsewhere - len(state.pins)))
        now = sum(amount for _, amount in amounts[: len(here)])
        terms = [self._capped(amounts, there, UNITS, now)]
        if wish.demand is not None and wish.count > elsewhere:
            counted = program.integer(wish.count - elsewhere)
            program.constrain([(counted, 1), *((one, -1) for one, _ in replicas)], most=0)
            weighted = program.integer((wish.count - elsewhere) * LEAST_GAIN)
            program.constrain([(weighted, 1), (counted, -LEAST_GAIN)], most=0)
            terms.append(
                (weighted, (wish.count - elsewhere) * LEAST_GAIN, min(len(here), wish.count - elsewhere) * LEAST_GAIN)
            )
        if wish.required_without_a_host > 0:
            terms.append(self._without_a_host(state, amounts, by_host, there, {keep for _, keep in here}))
            if wish.demand is None:
                # More replicas on one host alone are not what was asked for.
                left, target, _ = terms[-1]
                program.constrain(
                    [*((one, target) for one, _ in replicas), (left, -max(1, wish.count))], most=len(here) * target
                )
        self._carried[wish.model] = terms

    def _capped(self, amounts: Sequence[tuple[int, int]], there: int, most: int, now: int) -> tuple[int, int, int]:
        """A variable for what is carried, at most all of it."""
        carried = self._program.integer(most)
        self._program.constrain([(carried, 1), *((one, -amount) for one, amount in amounts)], most=there)
        return carried, most, min(most, there + now)

    def _without_a_host(
        self,
        state: State,
        amounts: Sequence[tuple[int, int]],
        by_host: Mapping[str, Sequence[tuple[int, int]]],
        there: int,
        kept: Collection[int],
    ) -> tuple[int, int, int]:
        program, wish, tally = self._program, state.wish, state.tally
        target = units(wish.required_without_a_host, wish.required)
        heaviest = program.integer(10 * UNITS + there)
        for host, load in sorted(tally.loads.items()):
            if host not in by_host:
                program.constrain([(heaviest, 1)], least=units(load, wish.required))
        for on_one in by_host.values():
            program.constrain([(heaviest, 1), *((one, -amount) for one, amount in on_one)], least=0)
        left = program.integer(target)
        program.constrain([(left, 1), (heaviest, 1), *((one, -amount) for one, amount in amounts)], most=there)
        on_hosts = [sum(amount for one, amount in on_one if one in kept) for on_one in by_host.values()]
        outside = [units(load, wish.required) for host, load in tally.loads.items() if host not in by_host]
        now = there + sum(on_hosts) - max([0, *on_hosts, *outside])
        return left, target, max(0, min(target, now))


def _shapes_of_satisfied(board: Board, states: Sequence[State], hosts: Sequence[str]) -> dict[str, list[Shape]]:
    """By model that lacks nothing, the shapes in which it stands on these hosts."""
    shapes: dict[str, dict[Shape, None]] = {state.wish.model: {} for state in states if state.tally.complete}
    for host in hosts:
        for place in board.on_host(host):
            if place.model in shapes:
                shapes[place.model][place.shape] = None
    return {model: list(found) for model, found in shapes.items()}


def _own_gpus(shape: Shape) -> int:
    """GPUs that are not counted as shared ones."""
    return shape.gpus if shape.ways == 1 else 0


def _tensor_groups(room: HostRoom, gpus: Sequence[GpuRoom], size: int) -> list[tuple[GpuRoom, ...]]:
    """Groups without a failed pair, those inside one switch first, then those inside one NUMA node."""
    found = []
    for group in combinations(gpus, size):
        if not any(frozenset((a.uuid, b.uuid)) in room.failed_pairs for a, b in combinations(group, 2)):
            distance = len({gpu.switch for gpu in group}) + 2 * len({gpu.numa_node for gpu in group})
            found.append((distance, tuple(gpu.index for gpu in group), group))
    found.sort(key=lambda entry: entry[:2])
    return [group for _, _, group in found[:_MOST_GROUPS]]
