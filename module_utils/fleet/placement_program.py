"""The integer program that counts replicas by model, shape and class of equal hosts.

The goals, each fixed before the next is looked at: demand carried, the highest priority first; as little as possible in
a less faithful precision; fewest GPUs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .placement_bound import fewest_gpus
from .placement_classes import part_of, patterns
from .placement_cliques import maximal_groups
from .placement_integer import IntegerProgram

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .placement_classes import Ask, HostClass
    from .placement_problem import Shape

# A model's need in units that the integer program counts in.
UNITS = 10**6
_DETERMINISTIC_TIME = 2.0
# Where not all is carried, so much of that time is given to what comes after carrying as much as possible.
_REFINING = 0.25
# Programs with fewer counts than this are solved to the end, larger ones until they are this close.
_SMALL = 100
_RELATIVE_GAP = 0.002


@dataclass(frozen=True, slots=True)
class Solution:
    """Replicas by model, shape and class, and how many hosts of each class are cut up in which way."""

    counts: Counter[tuple[str, Shape, int]]
    ways: Mapping[int, Sequence[tuple[Mapping[Any, int], int]]]


class SizingProgram:
    """The integer program of some asks on some classes of hosts."""

    def __init__(self, asks: Sequence[Ask], classes: Sequence[HostClass], *, faithful: bool) -> None:
        self._program = IntegerProgram(deterministic_time=_DETERMINISTIC_TIME)
        self._classes = classes
        self._asks = asks
        self._counts: dict[tuple[str, Shape, int], int] = {}
        self._ways: dict[int, list[tuple[Mapping[Any, int], int]]] = {}
        self._shapes = {
            ask.wish.model: tuple(s for s in ask.shapes if not (faithful and s in ask.wish.sacrifices)) for ask in asks
        }
        for position, one in enumerate(classes):
            self._add_class(position, one)
        self._carried: dict[str, list[tuple[int, int]]] = {}
        self._shares: dict[str, tuple[int, int]] = {}
        for ask in asks:
            self._add_ask(ask)
        self._program.relative_gap = _RELATIVE_GAP if len(self._counts) > _SMALL else 0.0

    # -- goals ----------------------------------------------------------------------------------------------------

    def carry_all(self) -> Solution | None:
        """The cheapest counts that carry everything, or None when there is no room for that."""
        if self._plainly_too_much():
            return None
        for terms in self._carried.values():
            for variable, most in terms:
                self._program.constrain([(variable, 1)], least=most)
        return self._cheapest()

    def carry_most(self) -> Solution:
        """As much as fits, the highest priority first; then the cheapest way to carry as much.

        Among models of one priority the sum of the shares counts, then the smallest share.
        """
        found = Solution(Counter(), {})
        for priority in sorted({ask.wish.priority for ask in self._asks}, reverse=True):
            asks = [ask for ask in self._asks if ask.wish.priority == priority]
            terms = [(variable, -1) for ask in asks for variable, _ in self._carried[ask.wish.model]]
            if not terms or not self._program.minimize(terms):
                continue
            self._program.fix(terms)
            found = self._solution()
            least = self._smallest_share(asks)
            if least is not None and self._program.minimize([(least, -1)], share_of_time=_REFINING):
                self._program.fix([(least, -1)])
                found = self._solution()
        return self._cheapest(share_of_time=_REFINING) or found

    def _smallest_share(self, asks: Sequence[Ask]) -> int | None:
        """A variable that is at most every share; None when there are no two that could be balanced."""
        shares = [self._shares[ask.wish.model] for ask in asks if ask.wish.model in self._shares]
        if len(shares) < 2 or all(self._program.value(variable) >= most for variable, most in shares):
            return None
        least = self._program.integer(UNITS)
        for variable, most in shares:
            # What stands already is a part of the share.
            self._program.constrain([(least, 1), (variable, -1)], most=UNITS - most)
        return least

    def _cheapest(self, share_of_time: float = 1.0) -> Solution | None:
        """Least in a less faithful precision, then fewest GPUs."""
        sacrifices = {ask.wish.model: ask.wish.sacrifices for ask in self._asks}
        less_faithful = [
            (count, shape.gpus) for (model, shape, _), count in self._counts.items() if shape in sacrifices[model]
        ]
        if less_faithful:
            if not self._program.minimize(less_faithful, share_of_time=share_of_time):
                return None
            self._program.fix(less_faithful)
        return self._solution() if self._program.minimize(self._cost(), share_of_time=share_of_time) else None

    # -- the program ----------------------------------------------------------------------------------------------

    def _add_class(self, position: int, one: HostClass) -> None:
        """Counts of each shape in a class, and that they fit on its hosts."""
        hosts = len(one.hosts)
        mine: dict[Shape, list[int]] = {}
        for ask in self._asks:
            if ask.wish.model not in one.models:
                continue
            for shape in self._shapes[ask.wish.model]:
                if shape.kind != one.kind or shape.gpus > len(one.free):
                    continue
                most = min(hosts * (len(one.free) // shape.gpus), _most_useful(ask, shape))
                variable = self._program.integer(most)
                self._counts[ask.wish.model, shape, position] = variable
                mine.setdefault(shape, []).append(variable)
        if not mine:
            return
        taken = [(count, shape.gpus) for shape, counts in mine.items() for count in counts]
        self._program.constrain(taken, most=hosts * len(one.free))
        self._fit_means(position, one)
        used: dict[Any, list[tuple[int, int]]] = {}
        if hosts == 1:
            # On one host only the tensor groups have to be looked at.
            sizes = {shape.tensor_parallel for shape in mine if shape.tensor_parallel > 1} if one.failed else set()
            ways = [dict(way) for way in maximal_groups(one.free, one.failed, sorted(sizes))] if sizes else []
            for shape, counts in mine.items():
                if shape.tensor_parallel in sizes:
                    part = used.setdefault(shape.tensor_parallel, [])
                    part += [(count, shape.pipeline_parallel) for count in counts]
            self._pick(position, 1, ways, used)
            return
        for shape, counts in mine.items():
            used.setdefault(part_of(shape, one), []).extend((count, 1) for count in counts)
        self._pick(position, hosts, patterns(one, sorted(used, reverse=True)), used)

    def _fit_means(self, position: int, one: HostClass) -> None:
        """Host memory and disk: exact on one host; of more hosts together, each is looked at where it is dealt to."""
        here = [(model, shape, count) for (model, shape, at), count in self._counts.items() if at == position]
        wishes = {ask.wish.model: ask.wish for ask in self._asks}
        if one.memory_bytes is not None:
            used = [(count, wishes[model].host_memory.get(shape, 0) >> 20) for model, shape, count in here]
            self._program.constrain(used, most=len(one.hosts) * one.memory_bytes >> 20)
        if one.disk_bytes is None or len(one.hosts) > 1:
            return
        stored = []
        for name, size in one.to_store:
            mine = [(count, -1) for model, _, count in here if model == name]
            if mine:
                needed = self._program.integer(1)
                self._program.constrain([(needed, len(one.free)), *mine], least=0)
                stored.append((needed, size >> 20))
        self._program.constrain(stored, most=one.disk_bytes >> 20)

    def _pick(
        self,
        position: int,
        hosts: int,
        ways: Sequence[Mapping[Any, int]],
        used: Mapping[Any, Sequence[tuple[int, int]]],
    ) -> None:
        """Cut up each host in one of the ways; no more may be used of anything than that makes."""
        if not used:
            return
        chosen = [self._program.integer(hosts) for _ in ways]
        self._program.constrain([(variable, 1) for variable in chosen], most=hosts)
        for part, amount in used.items():
            made = [(variable, -way.get(part, 0)) for way, variable in zip(ways, chosen, strict=True)]
            self._program.constrain([*amount, *made], most=0)
        self._ways[position] = list(zip(ways, chosen, strict=True))

    def _add_ask(self, ask: Ask) -> None:
        """What is carried of one model: its demand, its replicas, and what is left without any one host."""
        program, wish = self._program, ask.wish
        mine = {key: variable for key, variable in self._counts.items() if key[0] == wish.model}
        each = {shape: units(wish.amount(shape), wish.required) for shape in self._shapes[wish.model]}
        new_units = [(variable, -each[shape]) for (_, shape, _), variable in mine.items()]
        there = units(ask.amount, wish.required)
        terms: list[tuple[int, int]] = []
        if wish.demand is None or wish.most is not None:
            most = wish.count if wish.demand is None else wish.most or 0
            program.constrain([(variable, 1) for variable in mine.values()], most=max(0, most - ask.placed))
        missing = max(0, UNITS - there)
        if missing and wish.required > 0:
            carried = program.integer(missing)
            program.constrain([(carried, 1), *new_units], most=0)
            terms.append((carried, missing))
            self._shares[wish.model] = (carried, missing)
        least = max(0, wish.count - ask.placed)
        if wish.demand is not None and least:
            counted = program.integer(least)
            program.constrain([(counted, 1), *((variable, -1) for variable in mine.values())], most=0)
            terms.append((counted, least))
        if wish.required_without_a_host > 0:
            target = units(wish.required_without_a_host, wish.required)
            heaviest = self._heaviest(ask, mine, most=10 * UNITS + there)
            left = program.integer(target)
            program.constrain([(left, 1), (heaviest, 1), *new_units], most=there)
            terms.append((left, target))
        self._carried[wish.model] = terms

    def _heaviest(self, ask: Ask, mine: Mapping[tuple[str, Shape, int], int], *, most: int) -> int:
        """A variable that is at least what any one host carries of a model."""
        program, wish = self._program, ask.wish
        heaviest = program.integer(most)
        for host, load in sorted(ask.loads.items()):
            if all(host not in one.hosts for one in self._classes):
                program.constrain([(heaviest, 1)], least=units(load, wish.required))
        for position, one in enumerate(self._classes):
            load = max(ask.loads.get(host, 0.0) for host in one.hosts)
            on_one = []
            for (_, shape, at), variable in mine.items():
                if at != position:
                    continue
                each = variable
                if len(one.hosts) > 1:
                    each = program.integer(len(one.free))
                    program.constrain([(each, len(one.hosts)), (variable, -1)], least=0)
                on_one.append((each, -units(wish.amount(shape), wish.required)))
            program.constrain([(heaviest, 1), *on_one], least=units(load, wish.required))
        return heaviest

    def _plainly_too_much(self) -> bool:
        """Whether even without any packing there are too few GPUs."""
        room = sum(len(one.hosts) * len(one.free) for one in self._classes)
        needed = sum(
            fewest_gpus(self._shapes[ask.wish.model], ask.wish, placed=ask.placed, amount=ask.amount)
            for ask in self._asks
        )
        return needed > room

    def _cost(self) -> list[tuple[int, int]]:
        """GPUs, then replicas, then how far down the list of preferences."""
        return [
            (variable, shape.gpus * 10**4 + 100 + self._shapes[model].index(shape))
            for (model, shape, _), variable in self._counts.items()
        ]

    def _solution(self) -> Solution:
        value = self._program.value
        return Solution(
            Counter({key: value(variable) for key, variable in self._counts.items() if value(variable)}),
            {at: [(way, value(variable)) for way, variable in ways] for at, ways in self._ways.items()},
        )


def units(amount: float, required: float) -> int:
    """An amount in units of what is required, rounded down."""
    return int(amount / required * UNITS * (1.0 + 1e-12) + 1e-9) if required > 0 else UNITS


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
