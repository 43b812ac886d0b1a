"""What the replicas of a model add up to, on each host."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from .placement_problem import TOLERANCE

if TYPE_CHECKING:
    from .placement_problem import Placed, Shape, Wish


class Tally:
    """What the replicas of one model add up to, on each host."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.placed: list[Placed] = []
        self.replicas: dict[str, int] = {}
        self.loads: dict[str, float] = {}
        self._shapes: Counter[Shape] = Counter()
        amounts = wish.carried_elsewhere if wish.demand is not None else (1.0,) * len(wish.elsewhere)
        for host, amount in zip(wish.elsewhere, amounts, strict=True):
            self._count(host, 1, amount)
        self._elsewhere = sum(amounts)

    @property
    def amount(self) -> float:
        """What all replicas add up to."""
        # Counted by shape, so that it does not depend on the order in which replicas came and went.
        counts = (
            sorted(self._shapes.items(), key=lambda item: str(item[0]))
            if len(self._shapes) > 1
            else self._shapes.items()
        )
        return self._elsewhere + sum(count * self.wish.amount(shape) for shape, count in counts)

    @property
    def heaviest(self) -> str | None:
        """The host that carries most."""
        return max(sorted(self.replicas), key=lambda host: self.loads[host], default=None)

    def add(self, place: Placed) -> None:
        """Count a replica."""
        self.placed.append(place)
        self._shapes[place.shape] += 1
        self._count_all(place, 1)

    def remove(self, place: Placed) -> None:
        """Count a replica no longer."""
        self.placed = [one for one in self.placed if one is not place]
        self._shapes[place.shape] -= 1
        self._count_all(place, -1)

    @property
    def missing(self) -> int:
        """Replicas below what is wanted whatever the demand."""
        return max(0, self.wish.count - len(self.placed))

    @property
    def carried(self) -> float:
        """Share of what is required."""
        required = self.wish.required
        share = self.amount / required if required > 0 else 1.0
        return 1.0 if share >= 1.0 - TOLERANCE else share

    @property
    def carried_without_a_host(self) -> float:
        """Share that is left of it when the heaviest host is lost; 1 when that is not asked for."""
        required = self.wish.required_without_a_host
        if required <= 0.0:
            return 1.0
        heaviest = self.heaviest
        left = self.amount - self.loads[heaviest] if heaviest is not None else 0.0
        share = left / required
        return 1.0 if share >= 1.0 - TOLERANCE else share

    @property
    def complete(self) -> bool:
        """Whether all that is wanted stands."""
        return not self.missing and self.carried >= 1.0 and self.carried_without_a_host >= 1.0

    def is_spare(self, place: Placed) -> bool:
        """Whether nothing would be missed without this replica."""
        if place.pin is not None:
            return False
        if self.wish.demand is None and len(self.placed) <= self.wish.count:
            return False
        before = self._score()
        self._shapes[place.shape] -= 1
        self._count_all(place, -1)
        spare = self._score(one_less=1) == before
        self._shapes[place.shape] += 1
        self._count_all(place, 1)
        return spare

    def _score(self, one_less: int = 0) -> tuple[int, float, float]:
        missing = max(0, self.wish.count - len(self.placed) + one_less)
        return missing, round(self.carried, 9), round(self.carried_without_a_host, 9)

    def _count_all(self, place: Placed, sign: int) -> None:
        # Every host of a replica takes all of it away when it is lost.
        for host in place.hosts:
            self._count(host, sign, sign * self.wish.amount(place.shape))

    def _count(self, host: str, replicas: int, amount: float) -> None:
        self.replicas[host] = self.replicas.get(host, 0) + replicas
        self.loads[host] = self.loads.get(host, 0.0) + amount
        if not self.replicas[host]:
            del self.replicas[host], self.loads[host]
