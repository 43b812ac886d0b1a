"""Capacity of one instance: the largest request rate at which its objectives hold.

Requests arrive at random (Poisson) with the given prompt and output tokens. The engine batches continuously: every step
gives each running sequence one token and fills the rest of ``max_num_batched_tokens`` with prompts, first come first
served. The closed forms, with ``n`` running sequences, ``d(n)`` a decode step, ``S(n, x)`` a step with ``x`` prompt
tokens beside, and rate ``r``:

- Mean step: ``t = d / (1 - r w)``, where ``w`` is what a prompt adds to the steps that carry it. Short prompts share
  steps: their number in a step is taken as Poisson with mean ``r t``. Little's law closes it: ``n = r (N - 1) t``.
- Spread of a request's own mean step (TPOT). Arrivals vary as a Poisson process; more of them means more prompts in a
  request's steps, and more sequences beside it. Running sequences relax to their mean at ``q = (1 - e)(1 - r w)`` a
  life, with ``e`` the elasticity ``n d'(n) / d(n)``; averages over a life follow from that linear response. The
  quantile is that of a gamma distribution to second order and cannot exceed a step full of prompt tokens.
- TTFT of prompts that fit into a step: the rest of the step under way, then a step with all that arrived in the
  meantime (steps form a Markov chain in the number of prompts waiting). Of longer prompts: the M/D/1 queue of prompts
  (Crommelin's formula), the rest of a step, and the prompt's own chunks.
- Room: at most ``max_num_seqs`` sequences, and as many as the KV cache holds on average plus two standard deviations of
  their phases. Sequences in excess wait; their number is that of a processor-sharing queue with rate ``n / ((N - 1) d
  + n w)`` (product form, insensitive to the length distribution).
- Lengths are the given ones. A wide distribution of prompts lengthens the TTFT tail: give the tail's prompt.

A pipeline counts with its slowest stage for work and with the whole way for latency.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import exp, factorial, inf, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

from .errors import FleetError
from .speed import PromptChunk, SpeedModel

if TYPE_CHECKING:
    from collections.abc import Sequence

_GRID = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024)
_MOST_PROMPTS_IN_A_STEP = 24
_ITERATIONS = 40
_RATE_STEPS = 18
# The linear response leaves out what is not linear in it; simulations of 20 configurations spread this much wider.
_SPREAD_FACTOR = 1.35
# Prompts meet more running sequences than the mean when they wait longest: as many standard deviations.
_BUSY_DEVIATIONS = 1.0


@dataclass(frozen=True, slots=True)
class Objectives:
    """Limits in milliseconds that ``percentile`` percent of requests keep. None: no limit."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    percentile: float = 95.0

    @property
    def any_limit(self) -> bool:
        """Whether there is anything to keep."""
        return self.ttft_ms is not None or self.tpot_ms is not None


@dataclass(frozen=True, slots=True)
class Load:
    """What an instance does at a request rate. Times are at the objectives' percentile unless named mean."""

    requests_per_second: float
    running_sequences: float
    mean_tpot_s: float
    tpot_s: float
    ttft_s: float
    stable: bool


@dataclass(frozen=True, slots=True)
class Capacity:
    """The largest sustainable rate, and what limits it.

    ``limit`` is ``tpot``, ``ttft`` or ``throughput`` (no objective is met earlier than the instance saturates), or
    ``nothing fits`` when not even one request at a time keeps the objectives. ``peak_batch`` is the number of running
    sequences at which output tokens a second are highest, within KV room and ``max_num_seqs``.
    """

    requests_per_second: float
    limit: str
    at_capacity: Load
    max_running_sequences: int
    kv_limited: bool
    peak_batch: int
    peak_tokens_per_s: float
    saturation_requests_per_second: float


class _Row(NamedTuple):
    """Times at one number of running sequences."""

    sequences: float
    decode_s: float
    prompt_s: float
    chunks: int
    full_step_s: float
    full_interval_s: float
    full_step_prompts: float
    shared: tuple[float, ...]


class CapacityModel:
    """Capacity of one instance for one kind of request.

    Args:
        speed: step times of the instance.
        prompt_tokens: of each request.
        output_tokens: of each request, 1 or more.
        kv_cache_tokens: tokens that the KV cache holds, ``kv_cache_tokens_planned`` of the memory estimate.

    Raises:
        FleetError: no request fits, or a number is not positive.
    """

    def __init__(self, speed: SpeedModel, *, prompt_tokens: int, output_tokens: int, kv_cache_tokens: int) -> None:
        for name, value in (("prompt_tokens", prompt_tokens), ("output_tokens", output_tokens)):
            if value < 1:
                raise FleetError(name, f"must be 1 or more, got {value}")
        if prompt_tokens + output_tokens > kv_cache_tokens:
            raise FleetError(
                "kv_cache_tokens",
                f"{kv_cache_tokens} hold no request of {prompt_tokens} + {output_tokens} tokens",
            )
        self._speed = speed
        self._prompt = prompt_tokens
        self._output = output_tokens
        self._budget = speed.options.max_num_batched_tokens
        room = _sequences_that_fit(prompt_tokens, output_tokens, kv_cache_tokens)
        self.kv_limited = room < speed.options.max_num_seqs
        self.max_running_sequences = min(room, speed.options.max_num_seqs, max(1, self._budget - 1))
        # Very short prompts are counted in bundles, so that a full step holds a bounded number of them.
        self._bundle = max(1, -(-self._budget // (prompt_tokens * _MOST_PROMPTS_IN_A_STEP)))
        most = self.max_running_sequences
        self._sequences = sorted({*(n for n in _GRID if n < most), most})
        self._known_rows: dict[int, _Row] = {}

    def capacity(self, objectives: Objectives) -> Capacity:
        """The largest request rate that keeps the objectives."""
        saturation = self.saturation_requests_per_second()
        low, high, limit = 0.0, saturation, "throughput"
        light = self.load(saturation * 1e-3, objectives)
        if self._violated(light, objectives) is not None:
            return self._answer(0.0, "nothing fits", light, saturation)
        best = light
        for _ in range(_RATE_STEPS):
            middle = 0.5 * (low + high)
            load = self.load(middle, objectives)
            violated = self._violated(load, objectives)
            if violated is None:
                low, best = middle, load
            else:
                high, limit = middle, violated
        return self._answer(low, limit, best, saturation)

    def load(self, requests_per_second: float, objectives: Objectives) -> Load:
        """Running sequences and times at a rate."""
        rate = requests_per_second
        sequences, mean_tpot_s, added_s, stable = self._fixed_point(rate)
        if not stable:
            return Load(rate, sequences, mean_tpot_s, inf, inf, stable=False)
        share = objectives.percentile / 100.0
        z = NormalDist().inv_cdf(min(max(share, 0.5), 0.9999))
        row = self._at(sequences)
        tpot_s = min(self._tpot_quantile(rate, sequences, mean_tpot_s, added_s, z), max(row.full_step_s, mean_tpot_s))
        if self._output == 1:
            tpot_s = mean_tpot_s = 0.0
        waiting_s = self._slot_wait_quantile(rate, sequences, mean_tpot_s, added_s, share)
        relaxed = (1.0 - self._elasticity(max(sequences, 1.0))) * (1.0 - min(rate * added_s, 0.97))
        busy_row = self._at(sequences + _BUSY_DEVIATIONS * sqrt(sequences / relaxed))
        ttft_s = waiting_s + self._ttft_quantile(rate, busy_row, share)
        return Load(rate, sequences, mean_tpot_s, tpot_s, ttft_s, ttft_s < inf)

    def saturation_requests_per_second(self) -> float:
        """Rate at which work arrives as fast as it can be done, all sequences running."""
        best = 0.0
        for row in self._rows:
            per_prompt = row.full_interval_s / row.full_step_prompts
            decode = (self._output - 1) * row.decode_s / row.sequences
            added = max(row.full_step_s - row.decode_s, 0.0) / row.full_step_prompts
            best = max(best, min(1.0 / max(decode + added, 1e-12), 1.0 / per_prompt))
        return best

    def lonely_request_s(self) -> float:
        """Seconds that a request takes that has the instance to itself."""
        row = self._row_at(0)
        return row.prompt_s + (self._output - 1) * row.decode_s

    def throughput_peak(self) -> tuple[int, float]:
        """Running sequences at which decode yields most tokens a second, and that rate.

        Where the curve flattens, the smallest batch within 2 % of the best: more only makes each request slower.
        """
        rates = [(row.sequences / row.decode_s, row.sequences) for row in self._rows]
        best = max(rate for rate, _ in rates)
        sequences, rate = min((sequences, rate) for rate, sequences in rates if rate >= 0.98 * best)
        return int(sequences), rate

    # -- pieces ---------------------------------------------------------------------------------------------------

    def _answer(self, rate: float, limit: str, load: Load, saturation: float) -> Capacity:
        peak_batch, peak_tokens = self.throughput_peak()
        return Capacity(
            requests_per_second=rate,
            limit=limit,
            at_capacity=load,
            max_running_sequences=self.max_running_sequences,
            kv_limited=self.kv_limited,
            peak_batch=peak_batch,
            peak_tokens_per_s=peak_tokens,
            saturation_requests_per_second=saturation,
        )

    @staticmethod
    def _violated(load: Load, objectives: Objectives) -> str | None:
        if not load.stable:
            return "throughput"
        if objectives.tpot_ms is not None and load.tpot_s * 1e3 > objectives.tpot_ms:
            return "tpot"
        if objectives.ttft_ms is not None and load.ttft_s * 1e3 > objectives.ttft_ms:
            return "ttft"
        return None

    @property
    def _rows(self) -> list[_Row]:
        return [self._row_at(index) for index in range(len(self._sequences))]

    def _row_at(self, index: int) -> _Row:
        """A row of the table, made when it is asked for."""
        if index not in self._known_rows:
            self._known_rows[index] = self._row(self._sequences[index])
        return self._known_rows[index]

    def _row(self, sequences: int) -> _Row:
        speed, prompt = self._speed, self._prompt
        context = prompt + 0.5 * self._output
        decode_s = speed.decode_step(sequences, context).seconds
        # In a pipeline the sequences are spread over the batches in flight. Prompts join one of them, and what they add
        # to its pass through the slowest stage is what they add to the way from one token to the next.
        each = sequences / speed.batches_in_flight(sequences)
        alone_s = speed.aggregate_step(each, context).interval_s
        room = max(1, self._budget - int(each))
        prompt_s, past, chunks = 0.0, 0, 0
        while past < prompt:
            tokens = min(room, prompt - past)
            with_chunk_s = speed.step(each, context, [PromptChunk(tokens, past)]).interval_s
            prompt_s += decode_s + with_chunk_s - alone_s
            past += tokens
            chunks += 1
        shared = [decode_s]
        count = 1
        while count * prompt * self._bundle < room:
            with_prompts_s = self._step_with(each, context, count * prompt * self._bundle)
            shared.append(decode_s + with_prompts_s - alone_s)
            count += 1
        full_interval_s = self._step_with(each, context, room)
        full_step_s = decode_s + full_interval_s - alone_s
        return _Row(
            float(sequences),
            decode_s,
            prompt_s,
            chunks,
            full_step_s,
            full_interval_s,
            room / prompt,
            (*shared, full_step_s),
        )

    def _step_with(self, sequences: float, context: float, tokens: int) -> float:
        """A step with ``tokens`` prompt tokens: whole prompts, or a chunk from the middle of one."""
        prompts = tokens / self._prompt
        inside = prompts < 1.0
        pairs = tokens * (self._prompt + 1) / 2.0
        return self._speed.aggregate_step(
            sequences,
            context,
            prefill_tokens=tokens,
            prefill_pairs=pairs,
            prefill_past_tokens=self._prompt / 2.0 if inside else 0.0,
            prefill_sequences=max(1.0, prompts),
        ).interval_s

    def _at(self, sequences: float) -> _Row:
        """The table between its rows. Fewer than one sequence count as one: a step is never free."""
        index = bisect_right(self._sequences, sequences)
        if index == 0:
            return self._row_at(0)
        if index == len(self._sequences):
            return self._row_at(index - 1)
        low, high = self._row_at(index - 1), self._row_at(index)
        share = (sequences - low.sequences) / (high.sequences - low.sequences)

        def between(a: float, b: float) -> float:
            return a + share * (b - a)

        return _Row(
            sequences,
            between(low.decode_s, high.decode_s),
            between(low.prompt_s, high.prompt_s),
            low.chunks,
            between(low.full_step_s, high.full_step_s),
            between(low.full_interval_s, high.full_interval_s),
            between(low.full_step_prompts, high.full_step_prompts),
            tuple(map(between, low.shared, high.shared)),
        )

    def _added_s(self, row: _Row, prompts_per_step: float) -> float:
        """Mean time that a prompt adds to the steps that carry it."""
        if row.full_step_prompts < 2.0:
            return max(row.prompt_s - row.chunks * row.decode_s, 0.0)
        prompts_per_step /= self._bundle
        room = row.full_step_prompts / self._bundle
        added = carried = 0.0
        probability = exp(-prompts_per_step)
        for count in range(1, 4 * _MOST_PROMPTS_IN_A_STEP):
            probability *= prompts_per_step / count
            step = row.shared[min(count, len(row.shared) - 1)]
            added += probability * (step - row.decode_s)
            carried += probability * min(count, room)
            if count > prompts_per_step and probability < 1e-6:
                break
        if carried <= 0.0:
            return (row.shared[1] - row.decode_s) / self._bundle
        return max(added / carried, 0.0) / self._bundle

    def _fixed_point(self, rate: float) -> tuple[float, float, float, bool]:
        """Running sequences, mean step, time a prompt adds, and whether the queue is stable."""
        most = float(self.max_running_sequences)
        sequences = min(1.0, most)
        step_s = added_s = 0.0
        needed = 0.0
        for _ in range(_ITERATIONS):
            row = self._at(sequences)
            added_s = self._added_s(row, rate * max(step_s, row.decode_s))
            busy = min(rate * added_s, 0.999)
            step_s = row.decode_s / (1.0 - busy)
            needed = rate * max(self._output - 1, 1) * step_s
            following = 0.5 * (sequences + min(needed, most))
            if abs(following - sequences) < 1e-3 * sequences:
                sequences = following
                break
            sequences = following
        row = self._at(sequences)
        backlog = rate * row.full_interval_s / row.full_step_prompts
        return sequences, step_s, added_s, needed <= most and backlog < 1.0 and rate * added_s < 0.999

    def _elasticity(self, sequences: float) -> float:
        """Relative change of a decode step for a relative change of the running sequences."""
        low, high = self._at(0.85 * sequences), self._at(1.15 * sequences)
        if high.sequences <= low.sequences:
            return 0.0
        slope = (high.decode_s - low.decode_s) / (high.sequences - low.sequences)
        return min(slope * sequences / self._at(sequences).decode_s, 0.95)

    def _tpot_quantile(self, rate: float, sequences: float, mean_tpot_s: float, added_s: float, z: float) -> float:
        sequences = max(sequences, 0.3)
        busy = min(rate * added_s, 0.97)
        elasticity = self._elasticity(max(sequences, 1.0))
        relaxed = (1.0 - elasticity) * (1.0 - busy)
        decayed = 1.0 - exp(-relaxed)
        of_average = 2.0 * (relaxed - decayed) / (relaxed * relaxed)
        together = (1.0 - decayed / relaxed) / relaxed
        prompts = busy / (1.0 - busy)
        variance = elasticity * (elasticity * of_average / relaxed + 2.0 * prompts * together) + prompts * prompts
        spread = _SPREAD_FACTOR * sqrt(variance / sequences)
        # Half the variance comes on top of the mean, since steps lengthen faster than sequences grow.
        return mean_tpot_s * (1.0 + 0.5 * spread**2) * (1.0 + z * spread + (z * z - 1.0) * spread**2 / 3.0)

    def _ttft_quantile(self, rate: float, row: _Row, share: float) -> float:
        first_token_s = self._speed.first_token_s
        if row.full_step_prompts >= 1.0:
            return first_token_s + self._shared_step_wait(rate, row, share)
        service_s = row.full_interval_s / row.full_step_prompts
        queue_s = _deterministic_queue_wait(rate, service_s, share)
        # The step under way is a decode step when nobody waits, a chunk otherwise; the latter is part of the queue.
        rest_s = row.decode_s * (share if queue_s == 0.0 else 0.5)
        return first_token_s + queue_s + rest_s + row.prompt_s

    def _shared_step_wait(self, rate: float, row: _Row, share: float) -> float:
        """Quantile of the rest of the step under way and of the steps until the prompt's own has ended."""
        last = len(row.shared) - 1
        room = row.full_step_prompts / self._bundle
        rate /= self._bundle
        states = 4 * _MOST_PROMPTS_IN_A_STEP
        step_s = [row.shared[min(count, last)] for count in range(states)]
        waiting = {0: 1.0}
        for _ in range(6):
            waiting = _next_waiting(waiting, step_s, room, rate)
        pieces: list[tuple[float, float, float]] = []
        whole = sum(weight * step_s[count] for count, weight in waiting.items())
        for count, weight in waiting.items():
            met = weight * step_s[count] / whole
            if met < 1e-3:
                continue
            left = max(0.0, count - room)
            for others, chance in _poisson(rate * step_s[count]):
                places = range(0, others + 1, 1 + others // 4)
                for place in places:
                    # A prompt ends in the step whose budget reaches its last token; those behind it fill that step.
                    steps_before = int((left + place + 1.0 - 1e-9) / room) if left + place + 1.0 > room else 0
                    in_last = min(left + others + 1.0 - steps_before * room, room)
                    own_s = _between(step_s, in_last) + steps_before * row.full_step_s
                    pieces.append((met * chance / len(places), own_s, step_s[count]))
        return _mixture_quantile(pieces, share) if pieces else inf

    def _slot_wait_quantile(
        self, rate: float, sequences: float, mean_tpot_s: float, added_s: float, share: float
    ) -> float:
        """Wait for a free slot when the room for sequences is nearly used up."""
        most = self.max_running_sequences
        if sequences + 5.0 * sqrt(sequences) < most or self._output == 1:
            return 0.0
        weights = [1.0]
        decode_tokens = max(self._output - 1, 1)
        speeds: list[float] = [inf]
        speed = 0.0
        for count in range(1, 4 * most + 64):
            if count <= most:
                speed = count / (decode_tokens * self._at(count).decode_s + count * added_s)
            speeds.append(speed)
            weights.append(weights[-1] * rate / speeds[-1])
            if count > most and weights[-1] < 1e-7 * max(weights):
                break
        else:
            return inf
        total = sum(weights)
        reached = 0.0
        for count, weight in enumerate(weights):
            reached += weight / total
            if reached >= share:
                return max(0, count + 1 - most) / speeds[-1]
        return inf


def _sequences_that_fit(prompt_tokens: int, output_tokens: int, kv_cache_tokens: int) -> int:
    """Sequences of evenly spread phases whose tokens, two standard deviations up, fill the cache."""
    mean = prompt_tokens + 0.5 * output_tokens
    deviation = 2.0 * output_tokens / sqrt(12.0)
    root = (-deviation + sqrt(deviation * deviation + 4.0 * mean * kv_cache_tokens)) / (2.0 * mean)
    return max(1, int(root * root))


def _deterministic_queue_wait(rate: float, service_s: float, share: float) -> float:
    """Quantile of the wait in an M/D/1 queue (Crommelin 1932); inf when it is not stable."""
    load = rate * service_s
    if load >= 1.0:
        return inf
    if 1.0 - load >= share:
        return 0.0
    low, high = 0.0, service_s
    while _waits_at_most(rate, service_s, high) < share:
        low, high = high, 2.0 * high
        if high > 400.0 * service_s:
            return inf
    for _ in range(20):
        middle = 0.5 * (low + high)
        if _waits_at_most(rate, service_s, middle) < share:
            low = middle
        else:
            high = middle
    return high


def _waits_at_most(rate: float, service_s: float, wait_s: float) -> float:
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
    """Counts and probabilities that matter, at most ``4 * _MOST_PROMPTS_IN_A_STEP`` of them."""
    chances: list[tuple[int, float]] = []
    probability = exp(-mean)
    for count in range(4 * _MOST_PROMPTS_IN_A_STEP):
        if probability > 1e-3:
            chances.append((count, probability))
        elif count > mean:
            break
        probability *= mean / (count + 1)
    return chances or [(int(mean), 1.0)]


def _next_waiting(waiting: dict[int, float], step_s: Sequence[float], room: float, rate: float) -> dict[int, float]:
    """Prompts waiting at the next step, from those at this one. A fraction left over goes to both neighbours."""
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
    for _ in range(24):
        middle = 0.5 * (low + high)
        below = 0.0
        for weight, offset, width in pieces:
            below += weight * min(max((middle - offset) / width, 0.0), 1.0)
        if below < share * total:
            low = middle
        else:
            high = middle
    return high
