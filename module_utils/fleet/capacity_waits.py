"""Queues of prompts: M/D/1, and prompts that share steps with others that arrive meanwhile."""

from __future__ import annotations

from math import exp, factorial, inf
from typing import TYPE_CHECKING

from .capacity_steps import MOST_PROMPTS_IN_A_STEP

if TYPE_CHECKING:
    from collections.abc import Sequence

_STATES = 4 * MOST_PROMPTS_IN_A_STEP
# Cases less likely than this are left out, and so many counts stand for a distribution that matters little.
_NEGLIGIBLE = 1e-3
_FEW = 3


def deterministic_queue_wait(
    rate: float, service_s: float, share: float, *, before_last_s: float = 0.0, filled_s: float = 0.0
) -> float:
    """Quantile of the wait in an M/D/1 queue (Crommelin 1932); inf when it is not stable.

    Args:
        rate: prompts a second.
        service_s: of each.
        share: of the quantile.
        before_last_s: beside the wait, how long others may come that share a prompt's last batch.
        filled_s: what they add to it.
    """
    if rate * service_s >= 1.0:
        return inf

    def at_most(wait_s: float) -> float:
        alone = exp(-rate * (wait_s + before_last_s)) if filled_s > 0.0 else 1.0
        reached = alone * _waits_at_most(rate, service_s, wait_s)
        return reached + (1.0 - alone) * _waits_at_most(rate, service_s, wait_s - filled_s) if alone < 1.0 else reached

    if at_most(0.0) >= share:
        return 0.0
    low, high = 0.0, service_s
    while at_most(high) < share:
        low, high = high, 2.0 * high
        if high > 400.0 * service_s:
            return inf
    for _ in range(20):
        middle = 0.5 * (low + high)
        if at_most(middle) < share:
            low = middle
        else:
            high = middle
    return high


def shared_step_wait(
    rate: float, interval_s: Sequence[float], latency_s: Sequence[float], room: float, share: float
) -> float:
    """Quantile of the time until a prompt's own batch has ended.

    A prompt that arrives during a batch is in the next but one, since the next was made when that batch began. Batches
    are a Markov chain in the number of prompts that they find waiting.

    Args:
        rate: prompts a second.
        interval_s: from a batch with so many prompts to the next; the last element is a full one.
        latency_s: from the start of such a batch to its tokens.
        room: prompts that fit into a batch.
        share: of the quantile.
    """
    last = len(interval_s) - 1
    step_s = [interval_s[min(count, last)] for count in range(_STATES)]
    own_s = [latency_s[min(count, last)] for count in range(_STATES)]
    waiting = {0: 1.0}
    for _ in range(6):
        waiting = _next_waiting(waiting, step_s, room, rate)
    pieces: list[tuple[float, float, float]] = []
    whole = sum(weight * step_s[count] for count, weight in waiting.items())
    # The next batch has what came during the batch before the one under way.
    before = _few(_poisson(rate * whole / sum(waiting.values())))
    for count, weight in waiting.items():
        met = weight * step_s[count] / whole
        if met < _NEGLIGIBLE:
            continue
        for earlier, part in before:
            in_next = max(0.0, count - room) + earlier
            left = max(0.0, in_next - room)
            next_s = _between(step_s, min(in_next, room))
            for others, chance in _poisson(rate * step_s[count]):
                if met * part * chance < _NEGLIGIBLE:
                    continue
                places = range(0, others + 1, 1 + others // 4)
                for place in places:
                    # A prompt ends in the batch whose budget reaches its last token; those behind it fill that batch.
                    full = int((left + place + 1.0 - 1e-9) / room) if left + place + 1.0 > room else 0
                    in_last = min(left + others + 1.0 - full * room, room)
                    ends_s = next_s + full * step_s[-1] + _between(own_s, in_last)
                    pieces.append((met * part * chance / len(places), ends_s, step_s[count]))
    return _mixture_quantile(pieces, share) if pieces else inf


def _few(chances: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """A distribution of counts by its most likely ones; the rest goes to a count in between."""
    if len(chances) <= _FEW:
        return [(float(count), chance) for count, chance in chances]
    ranked = sorted(chances, key=lambda one: -one[1])
    kept, rest = ranked[: _FEW - 1], ranked[_FEW - 1 :]
    weight = sum(chance for _, chance in rest)
    mean = sum(count * chance for count, chance in rest) / weight
    return [*((float(count), chance) for count, chance in kept), (mean, weight)]


def _waits_at_most(rate: float, service_s: float, wait_s: float) -> float:
    if wait_s < 0.0:
        return 0.0
    load = rate * service_s
    whole = int(wait_s / service_s)
    if whole > 12:
        # The alternating sum loses its digits here; the tail is exponential long before.
        step = _waits_at_most(rate, service_s, 12.0 * service_s), _waits_at_most(rate, service_s, 11.0 * service_s)
        ratio = max((1.0 - step[0]) / max(1.0 - step[1], 1e-300), 1e-12)
        return float(1.0 - (1.0 - step[0]) * ratio ** (wait_s / service_s - 12.0))
    total = 0.0
    for count in range(whole + 1):
        left = rate * (wait_s - count * service_s)
        total += float((-left) ** count) / factorial(count) * exp(left)
    return (1.0 - load) * total


def _between(values: Sequence[float], position: float) -> float:
    """The value at a position that need not be whole."""
    index = int(position)
    if index + 1 >= len(values):
        return values[-1]
    return values[index] + (position - index) * (values[index + 1] - values[index])


def _poisson(mean: float) -> list[tuple[int, float]]:
    """Counts and probabilities that matter, at most ``_STATES`` of them."""
    chances: list[tuple[int, float]] = []
    probability = exp(-mean)
    for count in range(_STATES):
        if probability > 1e-3:
            chances.append((count, probability))
        elif count > mean:
            break
        probability *= mean / (count + 1)
    return chances or [(int(mean), 1.0)]


def _next_waiting(waiting: dict[int, float], step_s: Sequence[float], room: float, rate: float) -> dict[int, float]:
    """Prompts waiting at the next batch, from those at this one. A fraction left over goes to both neighbours."""
    following: dict[int, float] = {}
    most = len(step_s) - 1
    for count, weight in waiting.items():
        if weight < 1e-4:
            continue
        left = max(0.0, count - room)
        fraction = left - int(left)
        for others, chance in _poisson(rate * step_s[count]):
            target = min(int(left) + others, most)
            following[target] = following.get(target, 0.0) + weight * chance * (1.0 - fraction)
            if fraction:
                target = min(target + 1, most)
                following[target] = following.get(target, 0.0) + weight * chance * fraction
    return following


def _mixture_quantile(pieces: Sequence[tuple[float, float, float]], share: float) -> float:
    """Quantile of a mixture of ``offset + uniform(0, width)``, given as (weight, offset, width)."""
    low = 0.0
    high = max(offset + width for _, offset, width in pieces)
    total = sum(weight for weight, _, _ in pieces)
    for _ in range(16):
        middle = 0.5 * (low + high)
        below = 0.0
        for weight, offset, width in pieces:
            below += weight * min(max((middle - offset) / width, 0.0), 1.0)
        if below < share * total:
            low = middle
        else:
            high = middle
    return high
