"""Discrete-event simulation of a fleet: what each model's requests see, and the load at which objectives break.

Independent of the closed forms in ``capacity``: only the step times are shared. Models do not meet, so that each is
simulated alone: Poisson arrivals, routed as the gateway does it, served by engines that schedule as vLLM does.
Instances that share a GPU are slowed down as if all of them were always busy.

A run warms up first, then requests that arrive within ``seconds`` are measured while the load goes on until all of
them are done. What is not done after a further while is counted as missing every objective.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

from .capacity import Objectives
from .errors import FleetError
from .simulation_engine import SimulatedEngine, SimulatedRequest, StepTimes
from .simulation_workload import Arrivals, LeastConnections, Lengths
from .speed import SpeedModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .engine_options import EngineOptions
    from .hardware import GpuModel
    from .model_facts import ModelFacts

PERCENTILES = (50.0, 95.0, 99.0)
# A queue that grows by more than this share of what arrived, and by more than a few requests, is not sustained.
_GROWTH = 0.01
_GROWTH_REQUESTS = 10
_SMALLEST_FACTOR = 1e-3
_LONGEST_WARM_UP_S = 300.0
# Arrivals of one model in one run: more take minutes.
_MOST_REQUESTS = 5_000_000
# Sequences beside which a request's life is estimated, for the length of the warm-up.
_LIFE_SEQUENCES = 32


@dataclass(frozen=True, slots=True)
class SimulatedInstance:
    """One instance, whoever planned it.

    Args:
        model: name of the model that it serves.
        kv_cache_tokens: that its cache holds.
        weight: of the server at the gateway.
        async_scheduling: vLLM's argument; off for pooling models.
        slowdown: how many times longer its steps take because others share its GPU.
    """

    model: str
    facts: ModelFacts
    gpu: GpuModel
    options: EngineOptions
    kv_cache_tokens: int
    weight: float = 1.0
    async_scheduling: bool = True
    slowdown: float = 1.0


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """The traffic of one model and what it has to meet. ``max_model_len`` cuts lengths that are drawn longer."""

    name: str
    requests_per_second: float
    prompt_tokens: int
    output_tokens: int
    objectives: Objectives = field(default_factory=Objectives)
    max_model_len: int | None = None


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """How to simulate.

    Args:
        seconds: of arrivals that are measured.
        seed: equal seeds give equal results.
        lengths: of prompts and answers.
        factor: on every model's request rate.
        representatives: of more equal instances of a model than this, only so many are simulated, with their share of
            the requests. None: all of them.
        warm_up_s: before anything is measured; None: a quarter of ``seconds`` and two lives of a request, within
            reason.
    """

    seconds: float = 120.0
    seed: int = 0
    lengths: Lengths = field(default_factory=Lengths)
    factor: float = 1.0
    representatives: int | None = None
    warm_up_s: float | None = None


_DEFAULT = SimulationOptions()


@dataclass(frozen=True, slots=True)
class ModelResult:
    """What a model's requests saw.

    Args:
        requests_per_second: that were offered, the factor included.
        measured: requests that arrived in the measured time, of all simulated instances.
        unfinished: how many of them were not done in time.
        ttft_s: time to first token by percentile; inf where that many did not get one.
        tpot_s: time per output token by percentile; empty for answers of one token.
        goodput_requests_per_s: rate of those that met both objectives.
        output_tokens_per_s: generated for measured requests, over the measured time.
        sustained: whether no queue kept growing.
        preemptions: of all simulated instances.
        kv_cache_used: the largest share of an instance's cache that was in use.
        violated: ``ttft``, ``tpot``, ``throughput`` as far as they did not hold.
    """

    model: str
    requests_per_second: float
    instances: int
    measured: int
    unfinished: int
    ttft_s: Mapping[float, float]
    tpot_s: Mapping[float, float]
    goodput_requests_per_s: float
    output_tokens_per_s: float
    sustained: bool
    preemptions: int
    kv_cache_used: float
    violated: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether the load is carried within the objectives."""
        return not self.violated


@dataclass(frozen=True, slots=True)
class LargestFactor:
    """The largest common factor on all demands at which every objective holds, and that of each model alone."""

    factor: float
    by_model: Mapping[str, float]
    first_violated: Mapping[str, tuple[str, ...]]


@dataclass(slots=True)
class Simulation:
    """A fleet that can be simulated again and again; step times are remembered between runs."""

    instances: Sequence[SimulatedInstance]
    models: Sequence[SimulatedModel]
    _times: dict[tuple[object, ...], StepTimes] = field(default_factory=dict)

    def run(self, options: SimulationOptions = _DEFAULT) -> dict[str, ModelResult]:
        """Simulate every model. A model without instances carries nothing."""
        return {model.name: self.run_model(model, options) for model in sorted(self.models, key=lambda one: one.name)}

    def run_model(self, model: SimulatedModel, options: SimulationOptions) -> ModelResult:
        """Simulate one model.

        Raises:
            FleetError: that would be millions of requests, or an instance cannot be simulated.
        """
        mine = [one for one in self.instances if one.model == model.name]
        rate = model.requests_per_second * options.factor
        if not mine:
            return _nothing(model, rate)
        chosen = _representatives(mine, options.representatives)
        engines = [
            SimulatedEngine(
                self._step_times(one),
                one.kv_cache_tokens,
                async_scheduling=one.async_scheduling,
                slowdown=one.slowdown,
            )
            for one in chosen
        ]
        arrivals = Arrivals(
            name=model.name,
            seed=options.seed,
            requests_per_second=rate * len(chosen) / len(mine),
            prompt_tokens=model.prompt_tokens,
            output_tokens=model.output_tokens,
            lengths=options.lengths,
            most_tokens=model.max_model_len,
        )
        expected = arrivals.requests_per_second * options.seconds
        if expected > _MOST_REQUESTS:
            raise FleetError(
                f"models.{model.name}",
                f"{expected:.3g} requests are too many to simulate; take fewer seconds or representatives",
            )
        warm_up_s = options.warm_up_s
        if warm_up_s is None:
            life_s = max(self._life_s(one, model) for one in chosen)
            warm_up_s = min(0.25 * options.seconds + 2.0 * life_s, max(5.0 * options.seconds, _LONGEST_WARM_UP_S))
        router = LeastConnections([one.weight for one in chosen])
        run = _Run(engines, router, warm_up_s, options.seconds)
        run.go(arrivals)
        return _result(model, rate, run, scale=len(mine) / len(chosen), instances=len(mine))

    def largest_factor(
        self,
        options: SimulationOptions = _DEFAULT,
        *,
        low: float = 0.0,
        high: float = 8.0,
        tolerance: float = 0.01,
        by_model: bool = True,
    ) -> LargestFactor:
        """The largest factor on all demands at which every objective holds.

        Args:
            options: of each run; its factor is replaced.
            low: a factor that is taken to hold.
            high: the largest that is looked at.
            tolerance: relative, of the answer.
            by_model: look for each model's own factor too. Without it, models that hold at the smallest factor found
                so far are not looked at further and are left out of the answer.
        """
        factors: dict[str, float] = {}
        violated: dict[str, tuple[str, ...]] = {}
        least = high
        for model in sorted(self.models, key=lambda one: one.name):
            top = high if by_model else least
            found, why = self._model_factor(model, options, low, top, tolerance)
            if why or by_model:
                factors[model.name], violated[model.name] = found, why
            least = min(least, found)
        return LargestFactor(least, factors, violated)

    def _model_factor(
        self, model: SimulatedModel, options: SimulationOptions, low: float, high: float, tolerance: float
    ) -> tuple[float, tuple[str, ...]]:
        """Bisection, upwards from 1: runs far above what holds are long and say little."""
        why: tuple[str, ...] = ()
        middle = 1.0 if low < 1.0 < high else high if low >= 1.0 else 0.5 * (low + high)
        top = inf
        while middle > _SMALLEST_FACTOR and (top == inf or top - low > tolerance * top):
            result = self.run_model(model, replace(options, factor=middle))
            if result.holds:
                low = middle
            else:
                top, why = middle, result.violated
            if low >= high:
                return high, ()
            middle = min(2.0 * low, high) if top == inf else 0.5 * (low + top)
        return low, why

    def check(self, one: SimulatedInstance) -> None:
        """See whether an instance can be simulated.

        Raises:
            FleetError: its options contradict the model, or each other.
        """
        SimulatedEngine(self._step_times(one), one.kv_cache_tokens)

    def _step_times(self, one: SimulatedInstance) -> StepTimes:
        key = (id(one.facts), one.gpu.kind, repr(one.options))
        if key not in self._times:
            self._times[key] = StepTimes(SpeedModel(one.facts, one.gpu, one.options))
        return self._times[key]

    def _life_s(self, one: SimulatedInstance, model: SimulatedModel) -> float:
        context = model.prompt_tokens + model.output_tokens // 2
        sequences = max(1, min(_LIFE_SEQUENCES, one.kv_cache_tokens // max(1, context), one.options.max_num_seqs))
        speed = self._step_times(one).speed
        stages = one.options.pipeline_parallel_size
        step_s = max(speed.aggregate_step(max(1, sequences // stages), float(context)).seconds, 1e-4)
        return model.output_tokens * step_s


class _Run:
    """The events of one model."""

    def __init__(
        self, engines: Sequence[SimulatedEngine], router: LeastConnections, warm_up_s: float, seconds: float
    ) -> None:
        self.engines = engines
        self.seconds = seconds
        self.measured: list[SimulatedRequest] = []
        self.waiting_before = 0
        self.waiting_after = 0
        self._router = router
        self._from_s = warm_up_s
        self._until_s = warm_up_s + seconds
        # Who waits longer than this after the measured time is lost.
        self._end_s = self._until_s + max(seconds, 2.0 * warm_up_s)
        self._open = 0

    def go(self, arrivals: Arrivals) -> None:
        """Simulate until the measured requests are done."""
        engines, router = self.engines, self._router
        events: list[tuple[float, int]] = []
        counted_before = counted_after = False
        for arrival_s, prompt_tokens, output_tokens in arrivals.stream():
            while events and events[0][0] <= arrival_s:
                self._advance(events)
            if not counted_before and arrival_s >= self._from_s:
                counted_before, self.waiting_before = True, sum(engine.waiting for engine in engines)
            if not counted_after and arrival_s >= self._until_s:
                counted_after, self.waiting_after = True, sum(engine.waiting for engine in engines)
            if arrival_s >= self._until_s and (not self._open or arrival_s >= self._end_s):
                return
            request = SimulatedRequest(arrival_s, prompt_tokens, output_tokens)
            if self._from_s <= arrival_s < self._until_s:
                self.measured.append(request)
                self._open += 1
            server = router.pick()
            engine = engines[server]
            if not engine.can_ever_serve(request):
                # vLLM answers such a request with an error.
                self._open -= self._is_measured(request)
                continue
            idle = engine.wake_s == inf
            engine.add(request, arrival_s)
            router.changed(server, engine.connections)
            if idle:
                heapq.heappush(events, (engine.wake_s, server))

    def _advance(self, events: list[tuple[float, int]]) -> None:
        server = events[0][1]
        engine = self.engines[server]
        finished = engine.advance()
        if engine.wake_s < inf:
            heapq.heapreplace(events, (engine.wake_s, server))
        else:
            heapq.heappop(events)
        if finished:
            self._router.changed(server, engine.connections)
            for request in finished:
                self._open -= self._is_measured(request)

    def _is_measured(self, request: SimulatedRequest) -> bool:
        return self._from_s <= request.arrival_s < self._until_s


def _representatives(mine: Sequence[SimulatedInstance], most: int | None) -> list[SimulatedInstance]:
    """Few instances in the proportions of all: at least one of each kind."""
    if most is None or len(mine) <= most:
        return list(mine)
    kinds: dict[tuple[object, ...], list[SimulatedInstance]] = {}
    for one in mine:
        kinds.setdefault(
            (id(one.facts), one.gpu.kind, repr(one.options), one.kv_cache_tokens, one.weight, one.slowdown), []
        ).append(one)
    chosen: list[SimulatedInstance] = []
    for members in kinds.values():
        chosen += members[: max(1, round(len(members) * most / len(mine)))]
    return chosen


def _result(model: SimulatedModel, rate: float, run: _Run, *, scale: float, instances: int) -> ModelResult:
    objectives, measured = model.objectives, run.measured
    ttft = np.array([inf if one.ttft_s is None else one.ttft_s for one in measured])
    several = [one for one in measured if one.output_tokens > 1]
    tpot = np.array([inf if one.tpot_s is None else one.tpot_s for one in several])
    percentiles = sorted({*PERCENTILES, objectives.percentile})
    ttft_s, tpot_s = _percentiles(ttft, percentiles), _percentiles(tpot, percentiles)
    arrived = len(measured)
    grown = run.waiting_after - run.waiting_before
    sustained = grown <= max(_GROWTH_REQUESTS * len(run.engines), _GROWTH * arrived)
    violated = []
    if not _within(ttft_s, objectives.ttft_ms, objectives.percentile):
        violated.append("ttft")
    if not _within(tpot_s, objectives.tpot_ms, objectives.percentile):
        violated.append("tpot")
    if not sustained:
        violated.append("throughput")
    met = sum(_meets(one, objectives) for one in measured)
    tokens = sum(one.output_tokens for one in measured if one.finish_s is not None)
    return ModelResult(
        model=model.name,
        requests_per_second=rate,
        instances=instances,
        measured=arrived,
        unfinished=sum(one.finish_s is None for one in measured),
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        goodput_requests_per_s=scale * met / run.seconds,
        output_tokens_per_s=scale * tokens / run.seconds,
        sustained=sustained,
        preemptions=sum(engine.preemptions for engine in run.engines),
        kv_cache_used=max(1.0 - engine.fewest_free_blocks / max(engine.total_blocks, 1) for engine in run.engines),
        violated=tuple(violated),
    )


def _nothing(model: SimulatedModel, rate: float) -> ModelResult:
    """The result of a model that no instance serves."""
    nothing = dict.fromkeys(sorted({*PERCENTILES, model.objectives.percentile}), inf)
    return ModelResult(model.name, rate, 0, 0, 0, nothing, nothing, 0.0, 0.0, False, 0, 0.0, ("throughput",))


def _percentiles(values: np.ndarray[Any, np.dtype[np.float64]], percentiles: Iterable[float]) -> dict[float, float]:
    if not len(values):
        return {}
    # The value that so many requests reach, never one in between: the next may be infinite.
    return {one: float(np.percentile(values, one, method="higher")) for one in percentiles}


def _within(values_s: Mapping[float, float], limit_ms: float | None, percentile: float) -> bool:
    return limit_ms is None or not values_s or values_s[percentile] * 1e3 <= limit_ms


def _meets(one: SimulatedRequest, objectives: Objectives) -> bool:
    if one.finish_s is None or one.ttft_s is None:
        return False
    tpot_s = one.tpot_s
    return (objectives.ttft_ms is None or one.ttft_s * 1e3 <= objectives.ttft_ms) and (
        objectives.tpot_ms is None or tpot_s is None or tpot_s * 1e3 <= objectives.tpot_ms
    )
