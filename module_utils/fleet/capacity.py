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

from dataclasses import dataclass
from math import exp, inf, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

from .capacity_steps import StepTable
from .capacity_waits import deterministic_queue_wait, shared_step_wait
from .errors import FleetError

if TYPE_CHECKING:
    from .capacity_steps import StepRow
    from .engine_options import EngineOptions
    from .model_facts import ModelFacts
    from .speed import SpeedModel

_ITERATIONS = 40
_RATE_STEPS = 14
# A rate this small a share of what saturates an instance shows what a lonely request gets.
_LIGHT = 1e-3
# The linear response leaves out what is not linear in it; simulations of 20 configurations (tests/bench) spread this
# much wider, and have so many times the prompts behind.
_SPREAD_FACTOR = 1.12
_BEHIND_FACTOR = 1.5
# More prompts than this in a full step are many.
_MANY_PROMPTS = 4.0
# Prompts meet more running sequences than the mean when they wait longest: as many standard deviations.
_BUSY_DEVIATIONS = 0.5


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


class _State(NamedTuple):
    """Means at a rate. ``added_s`` is what a prompt adds to the steps beside it."""

    rate: float
    sequences: float
    step_s: float
    added_s: float
    stable: bool


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
        self._steps = StepTable(speed, prompt_tokens, output_tokens, self.max_running_sequences)
        self._decode_s: list[float] = []

    def capacity(self, objectives: Objectives) -> Capacity:
        """The largest request rate that keeps the objectives."""
        saturation = self.saturation_requests_per_second()
        low, high, limit = 0.0, saturation, "throughput"
        if self.violated(_LIGHT * saturation, objectives) is not None:
            return self._answer(0.0, "nothing fits", self.load(_LIGHT * saturation, objectives), saturation)
        for _ in range(_RATE_STEPS):
            middle = 0.5 * (low + high)
            violated = self.violated(middle, objectives)
            if violated is None:
                low = middle
            else:
                high, limit = middle, violated
        return self._answer(low, limit, self.load(low or _LIGHT * saturation, objectives), saturation)

    def load(self, requests_per_second: float, objectives: Objectives) -> Load:
        """Running sequences and times at a rate."""
        state = self._state(requests_per_second)
        if not state.stable:
            return Load(state.rate, state.sequences, state.step_s, inf, inf, stable=False)
        share = objectives.percentile / 100.0
        ttft_s = self._ttft_quantile(state, share)
        mean_tpot_s = state.step_s if self._output > 1 else 0.0
        tpot_s = self._tpot_quantile(state, share)
        return Load(state.rate, state.sequences, mean_tpot_s, tpot_s, ttft_s, ttft_s < inf)

    def violated(self, requests_per_second: float, objectives: Objectives) -> str | None:
        """What does not hold at a rate, ``throughput``, ``tpot`` or ``ttft``; computes no more than that takes."""
        state = self._state(requests_per_second)
        share = objectives.percentile / 100.0
        if not state.stable:
            return "throughput"
        if objectives.tpot_ms is not None and self._tpot_quantile(state, share) * 1e3 > objectives.tpot_ms:
            return "tpot"
        if objectives.ttft_ms is None:
            return None if self._slot_wait_quantile(state, share) < inf else "throughput"
        limit_s = objectives.ttft_ms * 1e-3
        if self._ttft_bound(state, share) <= limit_s:
            return None
        ttft_s = self._ttft_quantile(state, share)
        if ttft_s == inf:
            return "throughput"
        return "ttft" if ttft_s > limit_s else None

    def saturation_requests_per_second(self) -> float:
        """Rate at which work arrives as fast as it can be done, all sequences running."""
        best = 0.0
        for row in self._steps.rows:
            per_prompt = row.full_interval_s / row.full_step_prompts
            decode = (self._output - 1) * row.decode_s / row.sequences
            added = row.added_s[-1] / row.full_step_prompts
            best = max(best, min(1.0 / max(decode + added, 1e-12), 1.0 / per_prompt))
        return best

    def lonely_request_s(self) -> float:
        """Seconds that a request takes that has the instance to itself."""
        row = self._steps.row(0)
        return self._prompt_s(row) + (self._output - 1) * row.decode_s

    def throughput_peak(self) -> tuple[int, float]:
        """Running sequences at which decode yields most tokens a second, and that rate.

        Where the curve flattens, the smallest batch within 2 % of the best: more only makes each request slower.
        """
        rates = [(row.sequences / row.decode_s, row.sequences) for row in self._steps.rows]
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

    def _met(self, sequences: float) -> float:
        """Sequences that a request finds beside itself, and itself: arrivals at random meet the mean."""
        return min(sequences + 1.0, float(self.max_running_sequences)) if self._output > 1 else 1.0

    def _state(self, rate: float) -> _State:
        """Running sequences and mean times at a rate: Little's law, solved by iteration."""
        most = float(self.max_running_sequences)
        sequences = min(1.0, most)
        step_s = added_s = 0.0
        needed = 0.0
        for _ in range(_ITERATIONS):
            row = self._steps.at(self._met(sequences))
            added_s = self._steps.prompt_added_s(row, max(step_s, row.decode_s), rate)
            busy = min(rate * added_s, 0.999)
            behind = _behind(row, rate, added_s)
            step_s = (row.decode_s + added_s * behind / max(self._output - 1, 1)) / (1.0 - busy)
            needed = rate * max(self._output - 1, 1) * step_s
            following = 0.5 * (sequences + min(needed, most))
            if abs(following - sequences) < 1e-3 * sequences:
                sequences = following
                break
            sequences = following
        row = self._steps.at(self._met(sequences))
        backlog = rate * row.full_interval_s / row.full_step_prompts
        stable = needed <= most and backlog < 1.0 and rate * added_s < 0.999
        return _State(rate, sequences, step_s, added_s, stable)

    def _elasticity(self, sequences: float, reach: float) -> float:
        """Relative change of a decode step over that of the running sequences, for a change of ``reach``."""
        low, high = self._steps.at((1.0 - min(reach, 0.15)) * sequences), self._steps.at((1.0 + reach) * sequences)
        if high.sequences <= low.sequences:
            return 0.0
        slope = (high.decode_s - low.decode_s) / (high.sequences - low.sequences)
        return min(slope * sequences / self._steps.at(sequences).decode_s, 0.95)

    def _tpot_quantile(self, state: _State, share: float) -> float:
        if self._output == 1:
            return 0.0
        rate, mean_tpot_s, added_s = state.rate, state.step_s, state.added_s
        z = NormalDist().inv_cdf(min(max(share, 0.5), 0.9999))
        met = self._met(state.sequences)
        busy = min(rate * added_s, 0.97)
        elasticity = self._elasticity(met, 0.15)
        # Excursions reach where a decode step may grow less than it does at the mean.
        reach = z / sqrt(max(1.0 - elasticity, 0.05) * (1.0 - busy) * met)
        elasticity = self._elasticity(met, min(max(reach, 0.15), 2.0))
        relaxed = (1.0 - elasticity) * (1.0 - busy)
        decayed = 1.0 - exp(-relaxed)
        of_average = 2.0 * (relaxed - decayed) / (relaxed * relaxed)
        together = (1.0 - decayed / relaxed) / relaxed
        prompts = busy / (1.0 - busy)
        variance = elasticity * (elasticity * of_average / relaxed + 2.0 * prompts * together) + prompts * prompts
        row = self._steps.at(met)
        waited = added_s / (max(self._output - 1, 1) * mean_tpot_s)
        behind = _behind(row, rate, added_s)
        if exp(-rate * (self._output - 1) * mean_tpot_s - behind) >= share:
            # So many requests live without any prompt being computed beside them.
            return row.decode_s
        spread = _SPREAD_FACTOR * sqrt(variance / met + behind * waited * waited)
        # Half the variance comes on top of the mean, since steps lengthen faster than sequences grow.
        quantile_s = mean_tpot_s * (1.0 + 0.5 * spread**2) * (1.0 + z * spread + (z * z - 1.0) * spread**2 / 3.0)
        # No step is longer than one full of prompts.
        busy_row = self._steps.at(met + z * sqrt(met / relaxed))
        return min(quantile_s, max(busy_row.decode_s + self._steps.stages * busy_row.added_s[-1], mean_tpot_s))

    def _decode_by_sequences(self) -> list[float]:
        """Decode steps of 1, 2, ... sequences."""
        if not self._decode_s:
            self._decode_s = [self._steps.at(count).decode_s for count in range(1, self.max_running_sequences + 1)]
        return self._decode_s

    def _prompt_s(self, row: StepRow) -> float:
        """From the start of a prompt's first batch to its token: all chunks pass one stage, the last passes all."""
        others = self._steps.stages - 1
        return (row.chunks + others) * row.interval_s + row.chunk_added_s + others * row.most_added_s

    def _busy_row(self, state: _State) -> StepRow:
        """What prompts meet that wait long: more running sequences than the mean."""
        relaxed = (1.0 - self._elasticity(self._met(state.sequences), 0.15)) * (
            1.0 - min(state.rate * state.added_s, 0.97)
        )
        return self._steps.at(state.sequences + _BUSY_DEVIATIONS * sqrt(state.sequences / relaxed))

    def _ttft_bound(self, state: _State, share: float) -> float:
        """No less than the TTFT, and cheaper: one prompt after another, and every other batch full of prompts."""
        row = self._busy_row(state)
        service_s = row.full_interval_s / row.full_step_prompts
        queue_s = deterministic_queue_wait(state.rate, service_s, share)
        full_s = row.full_interval_s + (self._steps.stages - 1) * row.added_s[-1]
        prompt_s = self._prompt_s(row) + self._steps.stages * row.added_s[-1]
        return self._speed.first_token_s + self._slot_wait_quantile(state, share) + queue_s + 2.0 * full_s + prompt_s

    def _ttft_quantile(self, state: _State, share: float) -> float:
        rate, row = state.rate, self._busy_row(state)
        waiting_s = self._slot_wait_quantile(state, share)
        if waiting_s == inf:
            return inf
        first_token_s = self._speed.first_token_s
        stages = self._steps.stages
        if row.full_step_prompts >= 1.0:
            bundle = self._steps.bundle
            # A batch with prompts holds up a whole pipeline, unless it follows another one directly.
            alone = 1.0 + (stages - 1) * exp(-rate * state.step_s * (stages - 1) / stages)
            return (
                waiting_s
                + first_token_s
                + shared_step_wait(
                    rate / bundle,
                    [row.interval_s, *((row.interval_s + added_s) * alone for added_s in row.added_s[1:])],
                    [row.decode_s + stages * added_s for added_s in row.added_s],
                    row.full_step_prompts / bundle,
                    share,
                )
            )
        service_s = row.full_interval_s / row.full_step_prompts
        # Prompts that come before the batch of the last chunk is made fill it.
        before_last_s = 1.5 * row.interval_s + max(row.chunks - 2, 0) * row.full_interval_s
        filled_s = row.added_s[-1] - row.last_added_s if row.chunks > 1 else 0.0
        queue_s = deterministic_queue_wait(rate, service_s, share, before_last_s=before_last_s, filled_s=filled_s)
        # The batch under way carries no prompts when nobody waits; the next was made when it began. Whoever comes while
        # prompts are computed waits for those, which began as late.
        rest_s = row.interval_s * (1.0 + (share if queue_s == 0.0 else 0.5))
        return waiting_s + first_token_s + queue_s + rest_s + self._prompt_s(row)

    def _slot_wait_quantile(self, state: _State, share: float) -> float:
        """Wait for a free slot when the room for sequences is nearly used up."""
        most, sequences, rate, added_s = self.max_running_sequences, state.sequences, state.rate, state.added_s
        if sequences + 5.0 * sqrt(sequences) < most or self._output == 1:
            return 0.0
        weights = [1.0]
        decode_tokens = max(self._output - 1, 1)
        speeds: list[float] = [inf]
        decode_s = self._decode_by_sequences()
        speed = 0.0
        for count in range(1, 4 * most + 64):
            if count <= most:
                speed = count / (decode_tokens * decode_s[count - 1] + count * added_s)
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


def _behind(row: StepRow, rate: float, added_s: float) -> float:
    """Prompts that have come while one's own waited and was computed: they are computed beside its first tokens.

    As many as an M/D/1 queue leaves behind, and those that came in the steps before it began. That queue is busy as
    long as steps are full where a prompt takes whole steps, and as long as prompts add to them where many share one.
    """
    busy = rate * added_s
    full = rate * row.full_interval_s / row.full_step_prompts
    busy += (full - busy) / max(1.0, row.full_step_prompts / _MANY_PROMPTS)
    busy = min(max(busy, 0.0), 0.95)
    return _BEHIND_FACTOR * (busy + busy * busy / (2.0 * (1.0 - busy)))


def tokens_held(facts: ModelFacts, options: EngineOptions, kv_cache_tokens: int) -> int:
    """Tokens that may be in flight: the KV cache's, and where a model keeps none, more than a batch can hold."""
    if facts.has_kv_cache:
        return kv_cache_tokens
    return 4 * options.max_num_seqs * facts.max_position_embeddings


def _sequences_that_fit(prompt_tokens: int, output_tokens: int, kv_cache_tokens: int) -> int:
    """Sequences of evenly spread phases whose tokens, two standard deviations up, fill the cache."""
    mean = prompt_tokens + 0.5 * output_tokens
    deviation = 2.0 * output_tokens / sqrt(12.0)
    root = (-deviation + sqrt(deviation * deviation + 4.0 * mean * kv_cache_tokens)) / (2.0 * mean)
    return max(1, int(root * root))
