"""How many replicas of which shape on which hosts: an integer program over classes of equal hosts.

Hosts with the same free GPUs, the same failed pairs and the same models allowed are one class, so that a thousand equal
hosts cost no more than one. Inside a class, a variable counts the hosts that are cut up in the same way (a pattern, as
in cutting stock): what the counts say can be dealt to hosts exactly.

The goals, each fixed before the next is looked at: demand carried, the highest priority first; as little as possible in
a less faithful precision; fewest GPUs. The solver is deterministic: one worker, a fixed seed, limits in its own
deterministic time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ortools.sat.python import cp_model

from .placement_cliques import groups_fit, maximal_groups
from .placement_problem import TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .placement_problem import GpuRoom, Shape, Wish

# A model's need in units that the integer program counts in.
_UNITS = 10**6
_DETERMINISTIC_TIME = 2.0
# Programs with fewer variables than this are solved to the end, larger ones until they are this close.
_SMALL = 200
_RELATIVE_GAP = 0.002
# Above so many ways to cut up one host only the plainest are offered.
_MOST_PATTERNS = 400


@dataclass(frozen=True, slots=True)
class Ask:
    """What one model still needs.

    Args:
        placed: replicas that stand already.
        amount: what they add up to, those on frozen hosts included.
        loads: the same by host, frozen hosts included.
        shapes: that may be added, the preferred first.
    """

    wish: Wish
    placed: int
    amount: float
    loads: Mapping[str, float]
    shapes: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class FreeRoom:
    """Free GPUs of one host. ``failed`` are index pairs, the smaller first."""

    host: str
    gpus: tuple[GpuRoom, ...]
    failed: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Chosen:
    """A replica to be put on a host."""

    model: str
    shape: Shape
    host: str


# What a replica takes of a host: GPUs, and the size of its tensor groups where some pairs have failed.
_Part = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Class:
    """Equal hosts, and the GPUs of one kind on each of them."""

    kind: str
    hosts: tuple[str, ...]
    free: tuple[int, ...]
    failed: frozenset[tuple[int, int]]
    models: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Solution:
    """Replicas by model, shape and class, and how many hosts of each class are cut up in which way."""

    counts: Counter[tuple[str, Shape, int]]
    ways: Mapping[int, Sequence[tuple[Mapping[Any, int], int]]]


def choose(asks: Sequence[Ask], rooms: Sequence[FreeRoom], *, all_or_nothing: bool = False) -> tuple[Chosen, ...]:
    """Choose shapes and hosts for what is still needed, as far as there is room.

    Args:
        asks: what is needed.
        rooms: what is free.
        all_or_nothing: choose nothing when there is no room for all; the caller asks again with more shapes.
    """
    open_asks = [ask for ask in sorted(asks, key=lambda ask: ask.wish.model) if ask.shapes]
    classes = list(_classes(open_asks, rooms))
    if not classes:
        return ()
    solution = _Program(open_asks, classes, faithful=True).carry_all()
    any_precision = any(shape in ask.wish.sacrifices for ask in open_asks for shape in ask.shapes)
    if solution is None and any_precision:
        solution = _Program(open_asks, classes, faithful=False).carry_all()
    if solution is None and all_or_nothing:
        return ()
    if solution is None:
        solution = _Program(open_asks, classes, faithful=not any_precision).carry_most()
    return tuple(_deal(solution, classes))


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


def _classes(asks: Sequence[Ask], rooms: Sequence[FreeRoom]) -> Iterator[_Class]:
    kinds = sorted({shape.kind for ask in asks for shape in ask.shapes})
    lossy = [ask for ask in asks if ask.wish.required_without_a_host > 0]
    groups: dict[tuple[_Class, tuple[float, ...]], list[str]] = {}
    for room in sorted(rooms, key=lambda room: room.host):
        models = frozenset(ask.wish.model for ask in asks if room.host in ask.wish.hosts)
        loads = tuple(round(ask.loads.get(room.host, 0.0), 9) for ask in lossy)
        for kind in kinds if models else ():
            free = tuple(gpu.index for gpu in room.gpus if gpu.kind == kind)
            failed = frozenset(pair for pair in room.failed if pair[0] in free and pair[1] in free)
            # Without failed pairs it does not matter which GPUs are free.
            shown = free if failed else tuple(range(len(free)))
            if free:
                groups.setdefault((_Class(kind, (), shown, failed, models), loads), []).append(room.host)
    for (one, _), hosts in groups.items():
        yield replace(one, hosts=tuple(hosts))


class _Program:
    """The integer program of some asks on some classes of hosts."""

    def __init__(self, asks: Sequence[Ask], classes: Sequence[_Class], *, faithful: bool) -> None:
        self._model = cp_model.CpModel()
        self._classes = classes
        self._asks = asks
        self._solver = cp_model.CpSolver()
        self._counts: dict[tuple[str, Shape, int], cp_model.IntVar] = {}
        self._ways: dict[int, list[tuple[Mapping[Any, int], cp_model.IntVar]]] = {}
        self._shapes = {
            ask.wish.model: tuple(s for s in ask.shapes if not (faithful and s in ask.wish.sacrifices)) for ask in asks
        }
        for position, one in enumerate(classes):
            self._add_class(position, one)
        self._carried: dict[str, list[tuple[cp_model.IntVar, int]]] = {}
        for ask in asks:
            self._add_ask(ask)

    # -- goals ----------------------------------------------------------------------------------------------------

    def carry_all(self) -> _Solution | None:
        """The cheapest counts that carry everything, or None when there is no room for that."""
        if self._plainly_too_much():
            return None
        for terms in self._carried.values():
            for variable, most in terms:
                self._model.add(variable >= most)
        return self._cheapest()

    def carry_most(self) -> _Solution:
        """As much as fits, the highest priority first; then the cheapest way to carry as much."""
        found = _Solution(Counter(), {})
        for priority in sorted({ask.wish.priority for ask in self._asks}, reverse=True):
            asks = [ask for ask in self._asks if ask.wish.priority == priority]
            terms = [variable for ask in asks for variable, _ in self._carried[ask.wish.model]]
            best = self._solve(-sum(terms)) if terms else None
            if best is not None:
                found = best
                self._fix(sum(terms))
        return self._cheapest() or found

    def _cheapest(self) -> _Solution | None:
        """Least in a less faithful precision, then fewest GPUs."""
        sacrifices = {ask.wish.model: ask.wish.sacrifices for ask in self._asks}
        less_faithful = [
            shape.gpus * count for (model, shape, _), count in self._counts.items() if shape in sacrifices[model]
        ]
        if less_faithful:
            if self._solve(sum(less_faithful)) is None:
                return None
            self._fix(sum(less_faithful))
        return self._solve(self._cost())

    def _fix(self, expression: cp_model.LinearExprT) -> None:
        """Keep what the last solution reached, and start from it."""
        self._model.add(expression == int(self._solver.value(expression)))
        self._model.clear_hints()  # type: ignore[no-untyped-call]
        for variable in self._counts.values():
            self._model.add_hint(variable, int(self._solver.value(variable)))

    # -- the program ----------------------------------------------------------------------------------------------

    def _add_class(self, position: int, one: _Class) -> None:
        """Counts of each shape in a class, and that they fit on its hosts."""
        model, hosts = self._model, len(one.hosts)
        mine: dict[Shape, list[cp_model.IntVar]] = {}
        for ask in self._asks:
            if ask.wish.model not in one.models:
                continue
            for shape in self._shapes[ask.wish.model]:
                if shape.kind != one.kind or shape.gpus > len(one.free):
                    continue
                most = min(hosts * (len(one.free) // shape.gpus), _most_useful(ask, shape))
                variable = model.new_int_var(0, most, f"{ask.wish.model}/{shape}/{position}")
                self._counts[ask.wish.model, shape, position] = variable
                mine.setdefault(shape, []).append(variable)
        if not mine:
            return
        model.add(sum(shape.gpus * sum(counts) for shape, counts in mine.items()) <= hosts * len(one.free))
        groups = {shape.tensor_parallel for shape in mine if shape.tensor_parallel > 1} if one.failed else set()
        if hosts == 1:
            # On one host only the tensor groups have to be looked at.
            ways = maximal_groups(one.free, one.failed, sorted(groups)) if groups else ()
            self._pick(
                position,
                1,
                [dict(way) for way in ways],
                {
                    size: sum(
                        shape.pipeline_parallel * sum(counts)
                        for shape, counts in mine.items()
                        if shape.tensor_parallel == size
                    )
                    for size in groups
                },
            )
            return
        parts: dict[_Part, list[cp_model.IntVar]] = {}
        for shape, counts in mine.items():
            parts.setdefault(_part(shape, one), []).extend(counts)
        ways_of_parts = _patterns(one, sorted(parts, reverse=True))
        self._pick(position, hosts, ways_of_parts, {part: sum(counts) for part, counts in parts.items()})

    def _pick(
        self, position: int, hosts: int, ways: Sequence[Mapping[Any, int]], used: Mapping[Any, cp_model.LinearExprT]
    ) -> None:
        """Cut up each host in one of the ways; no more may be used of anything than that makes."""
        if not used:
            return
        chosen = [self._model.new_int_var(0, hosts, "") for _ in ways]
        self._model.add(sum(chosen) <= hosts)
        for part, amount in used.items():
            made = sum(way.get(part, 0) * variable for way, variable in zip(ways, chosen, strict=True))
            self._model.add(amount <= made)
        self._ways[position] = list(zip(ways, chosen, strict=True))

    def _add_ask(self, ask: Ask) -> None:
        """What is carried of one model: its demand, its replicas, and what is left without any one host."""
        model, wish = self._model, ask.wish
        mine = {key: variable for key, variable in self._counts.items() if key[0] == wish.model}
        units = {shape: _units(wish.amount(shape), wish.required) for shape in self._shapes[wish.model]}
        new_units = sum(units[shape] * variable for (_, shape, _), variable in mine.items())
        there = _units(ask.amount, wish.required)
        terms: list[tuple[cp_model.IntVar, int]] = []
        count = sum(mine.values())
        if wish.demand is None or wish.most is not None:
            most = wish.count if wish.demand is None else wish.most or 0
            model.add(count <= max(0, most - ask.placed))
        missing = max(0, _UNITS - there)
        if missing and wish.required > 0:
            carried = model.new_int_var(0, missing, f"{wish.model}/carried")
            model.add(carried <= new_units)
            terms.append((carried, missing))
        least = max(0, wish.count - ask.placed)
        if wish.demand is not None and least:
            counted = model.new_int_var(0, least, f"{wish.model}/counted")
            model.add(counted <= count)
            terms.append((counted, least))
        if wish.required_without_a_host > 0:
            target = _units(wish.required_without_a_host, wish.required)
            heaviest = model.new_int_var(0, 10 * _UNITS + there, f"{wish.model}/heaviest")
            for host, load in sorted(ask.loads.items()):
                if all(host not in one.hosts for one in self._classes):
                    model.add(heaviest >= _units_up(load, wish.required))
            for position, one in enumerate(self._classes):
                load = max(ask.loads.get(host, 0.0) for host in one.hosts)
                new = {shape: variable for (_, shape, at), variable in mine.items() if at == position}
                if len(one.hosts) > 1:
                    each = {}
                    for shape, variable in new.items():
                        each[shape] = model.new_int_var(0, len(one.free), f"{wish.model}/{shape}/{position}/each")
                        model.add(each[shape] * len(one.hosts) >= variable)
                    new = each
                on_one = sum(_units_up(wish.amount(shape), wish.required) * variable for shape, variable in new.items())
                model.add(heaviest >= _units_up(load, wish.required) + on_one)
            left = model.new_int_var(0, target, f"{wish.model}/left")
            model.add(left <= there + new_units - heaviest)
            terms.append((left, target))
        self._carried[wish.model] = terms

    def _plainly_too_much(self) -> bool:
        """Whether even without any packing there are too few GPUs."""
        room = sum(len(one.hosts) * len(one.free) for one in self._classes)
        needed = sum(
            fewest_gpus(self._shapes[ask.wish.model], ask.wish, placed=ask.placed, amount=ask.amount)
            for ask in self._asks
        )
        return needed > room

    def _cost(self) -> cp_model.LinearExprT:
        """GPUs, then replicas, then how far down the list of preferences."""
        terms = []
        for (model, shape, _), variable in self._counts.items():
            preference = self._shapes[model].index(shape)
            terms.append((shape.gpus * 10**4 + 100 + preference) * variable)
        return sum(terms)

    def _solve(self, objective: cp_model.LinearExprT) -> _Solution | None:
        self._solver = cp_model.CpSolver()
        parameters = self._solver.parameters
        parameters.num_workers = 1
        parameters.random_seed = 1
        parameters.interleave_search = False
        parameters.max_deterministic_time = _DETERMINISTIC_TIME
        parameters.relative_gap_limit = _RELATIVE_GAP if len(self._counts) > _SMALL else 0.0
        self._model.minimize(objective)
        if self._solver.solve(self._model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return None
        value = self._solver.value
        return _Solution(
            Counter({key: int(value(variable)) for key, variable in self._counts.items() if value(variable)}),
            {at: [(way, int(value(variable))) for way, variable in ways] for at, ways in self._ways.items()},
        )


def _units(amount: float, required: float) -> int:
    return int(amount / required * _UNITS * (1.0 + 1e-12) + 1e-9) if required > 0 else _UNITS


def _units_up(amount: float, required: float) -> int:
    return _units(amount, required)


def _most_useful(ask: Ask, shape: Shape) -> int:
    """More replicas of a shape than this never help."""
    wish = ask.wish
    missing = max(0, wish.count - ask.placed)
    if wish.demand is None:
        return missing
    amount = wish.amount(shape)
    if amount <= 0:
        return missing
    factor = 2 if wish.required_without_a_host > 0 else 1
    return max(missing, factor * (int(wish.required / amount) + 2))


def _part(shape: Shape, one: _Class) -> _Part:
    return (shape.gpus, shape.tensor_parallel if one.failed else 1)


def _patterns(one: _Class, parts: Sequence[_Part]) -> list[Mapping[object, int]]:
    """Ways to cut up one host, none of which leaves room for a further part."""
    free = len(one.free)
    found: list[Mapping[object, int]] = []

    def fits(chosen: tuple[_Part, ...]) -> bool:
        if sum(gpus for gpus, _ in chosen) > free:
            return False
        groups = sorted((t for gpus, t in chosen for _ in range(gpus // t) if t > 1), reverse=True)
        return groups_fit(one.free, one.failed, tuple(groups))

    def extend(position: int, chosen: tuple[_Part, ...]) -> None:
        if len(found) >= _MOST_PATTERNS:
            return
        if position == len(parts):
            if not any(fits((*chosen, part)) for part in parts):
                found.append(Counter(chosen))
            return
        ways = [chosen]
        while fits((*ways[-1], parts[position])):
            ways.append((*ways[-1], parts[position]))
        for way in reversed(ways):
            extend(position + 1, way)

    extend(0, ())
    return found


def _deal(solution: _Solution, classes: Sequence[_Class]) -> Iterator[Chosen]:
    """Give every replica a host. Replicas of one model go round the hosts, so that they stand on different ones."""
    for position, one in enumerate(classes):
        mine = {(model, shape): count for (model, shape, at), count in solution.counts.items() if at == position}
        ordered = sorted(mine.items(), key=lambda item: (-item[1], item[0][0], str(item[0][1])))
        slots = _slots(one, solution.ways[position]) if len(one.hosts) > 1 and mine else {}
        for (model, shape), count in ordered:
            for _ in range(count):
                host = slots[_part(shape, one)].pop() if slots else one.hosts[0]
                yield Chosen(model, shape, host)


def _slots(one: _Class, ways: Sequence[tuple[Mapping[Any, int], int]]) -> dict[_Part, list[str]]:
    """Hosts for each part, to be taken from the end: one of each host, then a second of each, and so on."""
    hosts = iter(one.hosts)
    slots: dict[_Part, list[tuple[int, str]]] = {}
    for way, count in ways:
        for host in (next(hosts) for _ in range(count)):
            for part, parts in way.items():
                slots.setdefault(part, []).extend((number, host) for number in range(parts))
    return {part: [host for _, host in sorted(places, reverse=True)] for part, places in slots.items()}
