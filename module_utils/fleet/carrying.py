"""What one instance carries: requests a second at which its objectives hold, by configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .capacity import CapacityModel, Objectives, tokens_held
from .capacity_bound import most_requests_per_second
from .errors import FleetError
from .speed import SpeedModel

if TYPE_CHECKING:
    from .capacity import Capacity, Load
    from .engine_options import EngineOptions
    from .hardware import GpuModel
    from .model_facts import ModelFacts
    from .requests import ModelRequest

# An instance that is busy for so small a share of the time shows what a lonely request gets.
_LIGHT = 1e-3


@dataclass(frozen=True, slots=True)
class Traffic:
    """One kind of request and the objectives that it has to meet."""

    prompt_tokens: int
    output_tokens: int
    objectives: Objectives

    @classmethod
    def of(cls, request: ModelRequest) -> Traffic | None:
        """The traffic of a model; None without a demand."""
        if request.demand is None:
            return None
        asked = request.objectives
        # Pooling models answer with the prompt's own pass.
        output_tokens = request.demand.output_tokens if request.task == "generate" else 1
        return cls(
            request.demand.prompt_tokens, output_tokens, Objectives(asked.ttft_ms, asked.tpot_ms, asked.percentile)
        )


class Carrying:
    """What instances carry, remembered: models that differ only in name and demand are asked once."""

    def __init__(self) -> None:
        self._speeds: dict[tuple[object, ...], SpeedModel] = {}
        self._models: dict[tuple[object, ...], CapacityModel | FleetError] = {}
        self._capacities: dict[tuple[object, ...], Capacity] = {}
        self._known_facts: dict[int, tuple[ModelFacts, str]] = {}
        self._bounds: dict[tuple[object, ...], float] = {}
        self._carried: dict[tuple[object, ...], bool] = {}

    def why_not(
        self, facts: ModelFacts, gpu: GpuModel, options: EngineOptions, kv_cache_tokens: int, traffic: Traffic
    ) -> str | None:
        """Why not even one request at a time meets the objectives, or None."""
        model = self._model(facts, gpu, options, kv_cache_tokens, traffic)
        if isinstance(model, FleetError):
            return model.problem
        light = model.load(_LIGHT / model.lonely_request_s(), traffic.objectives)
        asked = traffic.objectives
        for name, limit_ms, seconds in (
            ("time to first token", asked.ttft_ms, light.ttft_s),
            ("time per output token", asked.tpot_ms, light.tpot_s),
        ):
            if limit_ms is not None and seconds * 1e3 > limit_ms:
                return f"{name} would be {seconds * 1e3:,.0f} ms at best, {limit_ms:,.0f} ms are asked for"
        return None

    def carries(
        self,
        facts: ModelFacts,
        gpu: GpuModel,
        options: EngineOptions,
        kv_cache_tokens: int,
        traffic: Traffic,
        *,
        requests_per_second: float,
    ) -> bool:
        """Whether the objectives hold at this rate; cheaper than the capacity."""
        key = (*self._key(facts, gpu, options, kv_cache_tokens, traffic), requests_per_second)
        if key not in self._carried:
            model = self._model(facts, gpu, options, kv_cache_tokens, traffic)
            self._carried[key] = (
                not isinstance(model, FleetError) and model.violated(requests_per_second, traffic.objectives) is None
            )
        return self._carried[key]

    def capacity(
        self, facts: ModelFacts, gpu: GpuModel, options: EngineOptions, kv_cache_tokens: int, traffic: Traffic
    ) -> Capacity | None:
        """The largest rate at which the objectives hold; None when no request fits."""
        key = self._key(facts, gpu, options, kv_cache_tokens, traffic)
        model = self._model(facts, gpu, options, kv_cache_tokens, traffic)
        if isinstance(model, FleetError):
            return None
        if key not in self._capacities:
            self._capacities[key] = model.capacity(traffic.objectives)
        return self._capacities[key]

    def at_rate(
        self,
        facts: ModelFacts,
        gpu: GpuModel,
        options: EngineOptions,
        kv_cache_tokens: int,
        traffic: Traffic,
        *,
        requests_per_second: float,
    ) -> dict[str, Any]:
        """What a plan says about the speed of an instance with this load."""
        model = self._model(facts, gpu, options, kv_cache_tokens, traffic)
        capacity = self.capacity(facts, gpu, options, kv_cache_tokens, traffic)
        if isinstance(model, FleetError) or capacity is None:
            return {}
        load: Load = model.load(requests_per_second, traffic.objectives)
        return {
            "capacity_requests_per_s": round(capacity.requests_per_second, 6),
            "limit": capacity.limit,
            "percentile": traffic.objectives.percentile,
            "requests_per_s": round(requests_per_second, 6),
            "running_sequences": round(load.running_sequences, 2),
            "running_sequences_at_capacity": round(capacity.at_capacity.running_sequences, 2),
            "tpot_ms": round(load.tpot_s * 1e3, 2),
            "ttft_ms": round(load.ttft_s * 1e3, 1),
            "peak_batch": capacity.peak_batch,
        }

    def _model(
        self, facts: ModelFacts, gpu: GpuModel, options: EngineOptions, kv_cache_tokens: int, traffic: Traffic
    ) -> CapacityModel | FleetError:
        key = self._key(facts, gpu, options, kv_cache_tokens, traffic)
        if key not in self._models:
            try:
                self._models[key] = CapacityModel(
                    self._speed(facts, gpu, options),
                    prompt_tokens=traffic.prompt_tokens,
                    output_tokens=traffic.output_tokens,
                    kv_cache_tokens=tokens_held(facts, options, kv_cache_tokens),
                )
            except FleetError as error:
                self._models[key] = error
        return self._models[key]

    def bound(
        self, facts: ModelFacts, gpu: GpuModel, options: EngineOptions, kv_cache_tokens: int, traffic: Traffic
    ) -> float:
        """A rate that the instance cannot exceed but by what interpolation errs; much cheaper than the capacity."""
        key = self._key(facts, gpu, options, kv_cache_tokens, traffic)
        if key not in self._bounds:
            self._bounds[key] = most_requests_per_second(
                self._speed(facts, gpu, options),
                prompt_tokens=traffic.prompt_tokens,
                output_tokens=traffic.output_tokens,
                kv_cache_tokens=tokens_held(facts, options, kv_cache_tokens),
                objectives=traffic.objectives,
            )
        return self._bounds[key]

    def _speed(self, facts: ModelFacts, gpu: GpuModel, options: EngineOptions) -> SpeedModel:
        """Step times, whatever the traffic: it remembers the parts of those that it was asked for."""
        key = (self._facts_key(facts), gpu.kind, repr(options))
        if key not in self._speeds:
            self._speeds[key] = SpeedModel(facts, gpu, options)
        return self._speeds[key]

    def _facts_key(self, facts: ModelFacts) -> str:
        if id(facts) not in self._known_facts:
            self._known_facts[id(facts)] = (facts, repr(facts))
        return self._known_facts[id(facts)][1]

    def _key(
        self, facts: ModelFacts, gpu: GpuModel, options: EngineOptions, kv_cache_tokens: int, traffic: Traffic
    ) -> tuple[object, ...]:
        return (self._facts_key(facts), gpu.kind, repr(options), kv_cache_tokens, traffic)
