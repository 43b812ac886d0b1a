"""A benchmark of one instance: which one, what is asked of it, and what came of it beside what was predicted.

The sweep is the seed's (section 4): so many concurrent requests, and where throughput peaks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .capacity import CapacityModel
from .engine_options import options_from_engine_args
from .errors import FleetError
from .plan_document import id_order
from .report_curves import consistent_facts
from .report_fleet import gpu_kinds
from .report_models import curve_models
from .speed import SpeedModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .host_document import HostDocument
    from .plan_document import Instance, Plan

SCHEMA = 1
# A step that comes this near to the best is as good: a larger one only makes requests wait.
_AS_GOOD = 0.95
_LENGTHS = "benchmark_prompt_tokens, benchmark_output_tokens"


@dataclass(frozen=True, slots=True)
class Target:
    """What is benchmarked, and with which requests.

    Args:
        instance: the instance.
        others: the other instances of its model, which serve meanwhile.
        prompt_tokens: of each request.
        output_tokens: of each request.
    """

    instance: Instance
    others: tuple[str, ...]
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """What was predicted.

    Args:
        gpu: the kind of GPU that it is for.
        rows: ``output_tokens_per_s``, and ``tpot_ms`` with its waits, of each step.
        why: why there are no rows.
    """

    gpu: str = ""
    rows: tuple[Mapping[str, float], ...] = ()
    why: str = ""


def choose(
    plan: Plan,
    *,
    instance: str = "",
    model: str = "",
    prompt_tokens: int = 0,
    output_tokens: int = 0,
    force: bool = False,
) -> Target:
    """The instance to benchmark.

    Args:
        plan: what runs.
        instance: its id; wins over ``model``.
        model: the first instance of this model or alias.
        prompt_tokens: of each request; 0 takes what the plan knows of the model's traffic.
        output_tokens: of each request; 0 likewise.
        force: also the only instance of its model.

    Raises:
        FleetError: there is no such instance, it cannot be benchmarked, or its model would be without another one.
    """
    found = _find(plan, instance, model)
    if found.engine != "vllm" or found.task != "generate":
        kind = found.task if found.engine == "vllm" else f"{found.engine} instance"
        raise FleetError("benchmark_instance", f"{found.id}: only vLLM instances that generate text, this is a {kind}")
    others = tuple(one.id for one in plan.instances if one.model == found.model and one.id != found.id)
    if not others and not force:
        raise FleetError(
            "benchmark_instance",
            f"{found.id} is the only instance of {found.model}, whose users would feel it; "
            "give the model a second replica, or set benchmark_force",
        )
    known = curve_models(plan, where="plan").get(found.model)
    prompt = prompt_tokens or (known.prompt_tokens if known else 0)
    output = output_tokens or (known.output_tokens if known else 0)
    if prompt < 1 or output < 2:
        raise FleetError(_LENGTHS, f"{found.id}: must be given, 1 and 2 or more")
    longest = found.engine_args.get("max_model_len")
    if isinstance(longest, int) and prompt + output > longest:
        raise FleetError(_LENGTHS, f"{prompt} and {output} are more than the {longest} tokens that {found.id} takes")
    return Target(found, others, prompt, output)


def _find(plan: Plan, instance: str, model: str) -> Instance:
    ordered = sorted(plan.instances, key=lambda one: id_order(one.id))
    if instance:
        for one in ordered:
            if one.id == instance:
                return one
        known = ", ".join(one.id for one in ordered) or "none"
        raise FleetError("benchmark_instance", f"{instance} is not in the plan; its instances are: {known}")
    if not model:
        raise FleetError("benchmark_instance", "say which: -e benchmark_instance=ID, or -e benchmark_model=NAME")
    for one in ordered:
        if model in (one.model, *one.aliases):
            return one
    known = ", ".join(sorted({one.model for one in ordered})) or "none"
    raise FleetError("benchmark_model", f"{model} has no instance in the plan; its models are: {known}")


def requests_of_step(
    concurrency: int, measured: Sequence[Mapping[str, Any]], *, rounds: int, most: int, seconds: float
) -> int:
    """How many requests a step sends: some for each client, and no more than fit into its time.

    Args:
        concurrency: clients, each of which has one request at a time.
        measured: the steps before, as ``fleet_benchmark`` returns them.
        rounds: requests of each client.
        most: of all clients together; each client sends one at least.
        seconds: what the step may take at the rate of the step before.
    """
    wanted = min(concurrency * rounds, most)
    rate = measured[-1]["requests_per_s"] if measured else None
    if rate:
        wanted = min(wanted, int(rate * seconds))
    return max(concurrency, wanted)


def predict(plan: Plan, target: Target, concurrency: Sequence[int], hosts: Sequence[HostDocument] | None) -> Prediction:
    """What the speed model says of each number of concurrent requests.

    All clients always have a request, so that the engine works in rounds: the prompts of those that have room, and
    output tokens 2 to N with all of them running. Their decode steps wait while prompts of others are computed.
    """
    one = target.instance
    try:
        gpu = gpu_kinds(plan, hosts, where="plan").get(one.id)
        known = curve_models(plan, where="plan").get(one.model)
        tokens = one.memory.get("kv_cache_tokens_planned")
        if gpu is None or known is None or not isinstance(tokens, int):
            return Prediction(why="the plan does not say enough of its GPU, model or memory")
        options = options_from_engine_args(one.engine_args, where=f"plan: instances {one.id}.engine_args")
        version = one.memory.get("engine_version")
        options = replace(options, engine_version=version) if isinstance(version, str) else options
        with consistent_facts(one.model, "plan"):
            speed = SpeedModel(known.facts, gpu, options)
            room = CapacityModel(
                speed, prompt_tokens=target.prompt_tokens, output_tokens=target.output_tokens, kv_cache_tokens=tokens
            ).max_running_sequences
            rows = tuple(_round(speed, min(clients, room), target) for clients in concurrency)
    except FleetError as error:
        return Prediction(why=str(error))
    return Prediction(gpu.name, rows)


def _round(speed: SpeedModel, running: int, target: Target) -> dict[str, float]:
    row = speed.row(running, target.prompt_tokens, target.output_tokens)
    following = target.output_tokens - 1
    tpot_s = row.tpot_ms / 1e3
    waits_s = row.prefill_s * (running - 1) / running / following
    return {
        "output_tokens_per_s": round(running * target.output_tokens / (row.prefill_s + following * tpot_s), 2),
        "tpot_ms": round((tpot_s + waits_s) * 1e3, 4),
    }


def peak_of(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Where throughput peaks.

    Returns:
        ``concurrency`` and ``output_tokens_per_s`` of the best step; ``enough_concurrency``, the least that comes near
        to it; ``at_the_end``, whether it is the last that was tried, so that more may be better. None when no request
        was answered.
    """
    answered = [step for step in steps if step["output_tokens_per_s"] > 0]
    if not answered:
        return None
    best = max(answered, key=lambda step: step["output_tokens_per_s"])
    good = _AS_GOOD * best["output_tokens_per_s"]
    near = (one["concurrency"] for one in answered if one["output_tokens_per_s"] >= good)
    return {
        "concurrency": best["concurrency"],
        "output_tokens_per_s": best["output_tokens_per_s"],
        "enough_concurrency": min(near),
        "at_the_end": best is steps[-1] and len(steps) > 1,
    }


def result_document(
    target: Target,
    steps: Sequence[Mapping[str, Any]],
    prediction: Prediction,
    *,
    engine: Mapping[str, str],
    at: str,
) -> dict[str, Any]:
    """The JSON that is kept.

    Args:
        target: what was benchmarked.
        steps: as ``fleet_benchmark`` returns them.
        prediction: of ``predict``.
        engine: ``version`` and ``accelerator``.
        at: when, as ISO 8601 has it.
    """
    one = target.instance
    rows = [
        {**step, "predicted": dict(prediction.rows[number]) if prediction.rows else None}
        for number, step in enumerate(steps)
    ]
    why = prediction.why
    if not why and engine["accelerator"] != "cuda":
        why = f"it is for the {prediction.gpu}, and this engine runs on vLLM's {engine['accelerator'].upper()} build"
    return {
        "schema": SCHEMA,
        "at": at,
        "instance": one.id,
        "model": one.model,
        "host": one.hosts[0],
        "hosts": list(one.hosts),
        "engine": dict(engine),
        "engine_args": dict(one.engine_args),
        "prompt_tokens": target.prompt_tokens,
        "output_tokens": target.output_tokens,
        "steps": rows,
        "peak": peak_of(steps),
        "prediction": {"gpu": prediction.gpu, "comparable": not why, "why": why},
    }


def peak_words(document: Mapping[str, Any]) -> str:
    """The peak as a sentence."""
    peak = document["peak"]
    if peak is None:
        return f"{document['instance']}: no request was answered."
    words = (
        f"{document['instance']}: throughput peaks at {peak['concurrency']} concurrent requests "
        f"with {peak['output_tokens_per_s']:,.1f} output tokens/s"
    )
    if peak["enough_concurrency"] != peak["concurrency"]:
        words += f"; {peak['enough_concurrency']} give 95 % of that"
    return words + ("; it was the last step, more may be better." if peak["at_the_end"] else ".")


def result_lines(document: Mapping[str, Any]) -> list[str]:
    """The result for a terminal: the peak, and what was measured beside what was predicted."""
    prediction = document["prediction"]
    lines = [peak_words(document)]
    for step in document["steps"]:
        words = f"{step['concurrency']:>5} concurrent: {step['output_tokens_per_s']:>9,.1f} output tokens/s"
        if step["predicted"] and prediction["comparable"]:
            words += f", predicted {step['predicted']['output_tokens_per_s']:,.1f}"
        lines.append(words)
    return (
        lines if prediction["comparable"] else [*lines, f"The prediction is not to be compared: {prediction['why']}."]
    )
