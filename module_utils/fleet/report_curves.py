"""Throughput and time per output token against running sequences, for every way in which a model is run."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .capacity import CapacityModel, Objectives
from .engine_options import options_from_engine_args
from .errors import FleetError
from .report_load import limit_words, speed_figure
from .report_words import configuration_namer
from .speed import SpeedModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .hardware import GpuModel
    from .model_facts import ModelFacts
    from .plan_document import Instance, Plan

_GRID = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
# Rates at which the sustained curve is computed, as shares of the rate that saturates the instance.
_SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)


@dataclass(frozen=True, slots=True)
class CurveModel:
    """What is known of a model beside its instances.

    Args:
        facts: its configuration.
        prompt_tokens: of a request; assumed where there is no demand.
        output_tokens: of a request.
        objectives: to mark in the curves.
        requests_per_s: the demand; None without one.
    """

    facts: ModelFacts
    prompt_tokens: int
    output_tokens: int
    objectives: Objectives
    requests_per_s: float | None

    @property
    def has_demand(self) -> bool:
        """Whether there is a demand."""
        return self.requests_per_s is not None


@contextmanager
def consistent_facts(model: str, where: str) -> Iterator[None]:
    """What is computed from a plan's facts of a model fails as bad input where they contradict one another.

    Raises:
        FleetError: numbers that are right one by one do not make a model.
    """
    try:
        yield
    except (ArithmeticError, LookupError, ValueError) as error:
        raise FleetError(f"{where}: models.{model}.facts", f"do not fit together ({error})") from error


@dataclass(frozen=True, slots=True)
class Point:
    """One number of running sequences of one instance."""

    sequences: float
    tokens_per_s: float
    tpot_ms: float


@dataclass(frozen=True, slots=True)
class Curve:
    """One configuration of one model.

    Args:
        decode: decode steps alone.
        sustained: what a steady stream of requests gets, prompts mixed in; the TPOT is that of the objectives'
            percentile. Empty without a demand.
        planned: where the plan runs an instance; None without a demand.
        capacity: the most that keeps the objectives.
        peak: where decode alone yields most tokens a second.
        limit: what keeps the capacity from being larger, in words.
        nodes: hosts of an instance; what goes between them is not in the curves.
        room: sequences for which there is room.
        room_is_kv: the KV cache limits them, otherwise max_num_seqs.
    """

    model: str
    configuration: str
    instances: int
    prompt_tokens: int
    output_tokens: int
    percentile: float
    tpot_objective_ms: float | None
    decode: tuple[Point, ...]
    sustained: tuple[Point, ...]
    planned: Point | None
    capacity: Point | None
    capacity_requests_per_s: float | None
    limit: str
    peak: Point
    nodes: int
    room: int
    room_is_kv: bool


@dataclass(frozen=True, slots=True)
class NoCurve:
    """Why there is no curve of a configuration."""

    model: str
    configuration: str
    why: str


def curves(
    plan: Plan, models: Mapping[str, CurveModel], gpus: Mapping[str, GpuModel], *, where: str
) -> tuple[tuple[Curve, ...], tuple[NoCurve, ...]]:
    """The curves of every configuration that runs, by model.

    Args:
        plan: the plan.
        models: facts by model name.
        gpus: the kind of GPU of each instance, by id, as far as it is known.
        where: the plan, for errors.

    Raises:
        FleetError: a figure of an instance is of the wrong type.
    """
    words = configuration_namer(plan)
    groups: dict[tuple[str, str, str], list[Instance]] = {}
    for one in plan.instances:
        # Instances may get different loads; those of one configuration get the same from us.
        key = (one.model, words(one), str(sorted(one.speed.items())))
        groups.setdefault(key, []).append(one)
    found: list[Curve] = []
    missing: list[NoCurve] = []
    for (model, configuration, _), ones in sorted(groups.items()):
        try:
            with consistent_facts(model, where):
                found.append(_curve(ones, configuration, models.get(model), gpus.get(ones[0].id), where))
        except FleetError as error:
            if error.where.startswith(where):
                raise
            missing.append(NoCurve(model, configuration, str(error)))
    return tuple(found), tuple(missing)


def _curve(
    ones: Sequence[Instance], configuration: str, known: CurveModel | None, gpu: GpuModel | None, where: str
) -> Curve:
    one = ones[0]
    if known is None:
        raise FleetError("models", "the plan holds no facts of the model")
    if gpu is None:
        raise FleetError("gpu", "its kind is not known; give --facts")
    if known.output_tokens < 2:
        raise FleetError("task", "it gives no output tokens")
    options = options_from_engine_args(one.engine_args, where=f"{where}: instances {one.id}.engine_args")
    version = one.memory.get("engine_version")
    options = replace(options, engine_version=version) if isinstance(version, str) else options
    tokens = one.memory.get("kv_cache_tokens_planned")
    if isinstance(tokens, bool) or not isinstance(tokens, int):
        raise FleetError("memory", "the plan does not say how many tokens the KV cache holds")
    speed = SpeedModel(known.facts, gpu, options)
    steady = CapacityModel(
        speed, prompt_tokens=known.prompt_tokens, output_tokens=known.output_tokens, kv_cache_tokens=tokens
    )
    context = known.prompt_tokens + 0.5 * known.output_tokens
    ways = one.sharing.ways if one.sharing else 1

    def decode(sequences: float) -> Point:
        seconds = ways * speed.decode_step(sequences, context).seconds
        return Point(sequences, sequences / seconds, seconds * 1e3)

    most = steady.max_running_sequences
    peak, _ = steady.throughput_peak()
    return Curve(
        model=one.model,
        configuration=configuration,
        instances=len(ones),
        prompt_tokens=known.prompt_tokens,
        output_tokens=known.output_tokens,
        percentile=known.objectives.percentile,
        tpot_objective_ms=known.objectives.tpot_ms,
        decode=tuple(decode(float(at)) for at in (*(at for at in _GRID if at < most), most)),
        sustained=_sustained(one, steady, known, where) if known.has_demand else (),
        planned=_planned(one, known, where),
        capacity=_at_rate(steady, known, ways, speed_figure(one, "capacity_requests_per_s", where)),
        capacity_requests_per_s=speed_figure(one, "capacity_requests_per_s", where),
        limit=limit_words(one),
        peak=decode(float(peak)),
        nodes=len(one.shards),
        room=most,
        room_is_kv=steady.kv_limited,
    )


def _sustained(one: Instance, steady: CapacityModel, known: CurveModel, where: str) -> tuple[Point, ...]:
    ways = one.sharing.ways if one.sharing else 1
    top = steady.saturation_requests_per_second() / ways
    rates = [share * top for share in _SHARES]
    # The line passes through the points that are marked on it.
    for name in ("requests_per_s", "capacity_requests_per_s"):
        rates.append(speed_figure(one, name, where) or 0.0)
    points = (_at_rate(steady, known, ways, rate) for rate in sorted(rates))
    return tuple(point for point in points if point is not None)


def _at_rate(steady: CapacityModel, known: CurveModel, ways: int, requests_per_s: float | None) -> Point | None:
    """What an instance does at a rate; with all its neighbours at work, each step takes ``ways`` times longer."""
    if not requests_per_s or not known.has_demand:
        return None
    load = steady.load(requests_per_s * ways, known.objectives)
    if not load.stable:
        return None
    return Point(load.running_sequences, requests_per_s * known.output_tokens, ways * load.tpot_s * 1e3)


def _planned(one: Instance, known: CurveModel, where: str) -> Point | None:
    sequences, rate, tpot_ms = (
        speed_figure(one, name, where) for name in ("running_sequences", "requests_per_s", "tpot_ms")
    )
    if not sequences or not rate or not tpot_ms:
        return None
    return Point(sequences, rate * known.output_tokens, tpot_ms)
