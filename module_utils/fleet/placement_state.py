"""One model while its replicas are placed: what stands, what left, what is still wanted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .placement_problem import TOLERANCE, Shortage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .placement_problem import Cause, Placed, Shape, Standing, Wish
    from .placement_tally import Tally

# What left for these reasons may have its place back.
_FOR_GAIN = ("optimize", "demand")


@dataclass(slots=True)
class State:
    """One model while its replicas are placed.

    Args:
        leaving: running instances that left their place, with the cause; new replicas take over their names.
        pins: positions of pins that no replica fulfils.
        lonely: a replica found room only on the host that all others stand on.
    """

    wish: Wish
    tally: Tally
    standing: list[Standing]
    leaving: list[tuple[Standing, Cause]] = field(default_factory=list)
    pins: list[int] = field(default_factory=list)
    lonely: bool = False

    @property
    def wants_more(self) -> bool:
        """Whether a replica without a pin is still needed and allowed."""
        wish, tally = self.wish, self.tally
        if wish.most is not None and len(tally.placed) + len(self.pins) >= max(wish.most, wish.count):
            return False
        if tally.missing > len(self.pins):
            return True
        return wish.demand is not None and (tally.carried < 1.0 or tally.carried_without_a_host < 1.0)

    @property
    def crowded(self) -> str | None:
        """The host that carries most, when more has to be left without it."""
        return self.tally.heaviest if self.tally.carried_without_a_host < 1.0 else None

    @property
    def shapes_by_use(self) -> tuple[Shape, ...]:
        """The shapes, the most useful for what is still missing first.

        These are the smallest that suffices, else those that carry most a GPU.
        """
        wish, tally = self.wish, self.tally
        if wish.demand is None:
            return wish.shapes
        missing = max(wish.required * (1.0 - tally.carried), wish.demand * (1.0 - tally.carried_without_a_host))
        if missing <= 0.0:
            return tuple(sorted(wish.shapes, key=lambda shape: shape.gpus))
        useful = [shape for shape in wish.shapes if wish.amount(shape) > 0.0]
        enough = [shape for shape in useful if wish.amount(shape) >= missing * (1.0 - TOLERANCE)]
        rest = [shape for shape in useful if shape not in enough]
        rest.sort(key=lambda shape: -wish.amount(shape) / shape.gpus)
        return (*sorted(enough, key=lambda shape: shape.gpus), *rest)

    def name_for(self, host: str, uuids: Sequence[str]) -> tuple[Standing | None, Cause | None]:
        """The running instance that a new replica is: one that stood just there, else the first that left."""
        for entry in self.leaving:
            now, cause = entry
            if cause in _FOR_GAIN and (now.host, now.gpus) == (host, uuids):
                self.leaving.remove(entry)
                return now, None
        return self.leaving.pop(0) if self.leaving else (None, None)

    def shortage(self) -> Shortage | None:
        """What is missing in the end."""
        tally = self.tally
        if tally.complete and not self.pins:
            return None
        missing = max(tally.missing, len(self.pins))
        left = self.leaving if self.wish.demand is not None else self.leaving[: max(missing, 0)]
        lonely = tally.carried_without_a_host < 1.0 and (self.lonely or (not missing and tally.carried >= 1.0))
        return Shortage(
            model=self.wish.model,
            missing=missing or int(self.wish.demand is None),
            pin=self.pins[0] if self.pins else None,
            min_hosts=lonely,
            left=tuple(left),
            carried=tally.carried,
            at_most=self.wish.most is not None and not missing and len(tally.placed) >= self.wish.most,
        )


def identity_order(one: Standing) -> tuple[object, ...]:
    """Sort key of running instances that counts."""
    model, _, number = one.id.rpartition("-")
    return (model, int(number)) if number.isdigit() else (one.id, 0)


def last_first(place: Placed) -> tuple[object, ...]:
    """Sort key of replicas: the largest first, new ones before those that run, then the last."""
    digits = place.standing.id.rpartition("-")[2] if place.standing is not None else ""
    number = int(digits) if digits.isdigit() else 0
    return (-len(place.gpus), place.standing is not None, -number, place.host, place.gpus)


def urgency(wish: Wish) -> tuple[object, ...]:
    """Who chooses first: priority, then those with the least choice, then the largest."""
    pins_gpus = any(pin.gpus for pin in wish.pins)
    largest = max((shape.gpus for shape in wish.shapes), default=0)
    return (-wish.priority, not pins_gpus, not wish.pins, len(wish.hosts), -largest, wish.model)
