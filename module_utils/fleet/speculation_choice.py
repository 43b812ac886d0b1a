"""Whether an instance drafts tokens: as asked for, or with ``auto`` where the speed model says that it pays."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .carrying import Carrying, Traffic
from .configurations import with_speculation
from .errors import FleetError
from .memory import estimate_memory
from .sources import DRAFT
from .speculation import SpeculativeSpeed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .configurations import Configuration, ResolvedModel
    from .engine_options import EngineOptions, SpeculativeOptions
    from .hardware import GpuModel
    from .memory import MemoryEstimate
    from .speculation import SpeculationEffect

# The lower ends of what was published (speculation.DEFAULT_ACCEPTANCE has the means): n-grams find little outside of
# summaries and edits.
CAUTIOUS_ACCEPTANCE = {"draft_model": 0.6, "eagle3": 0.65, "ngram": 0.2}
_TOKENS_TRIED = (1, 2, 3, 4, 5)
# Drafting begins where it is so much faster, and what drafts goes on until it is slower: a load between the two
# restarts no engine.
_WORTH_STARTING = 1.10
_WORTH_KEEPING = 1.0
_AS_GOOD = 0.98


@dataclass(frozen=True, slots=True)
class _Candidate:
    options: EngineOptions
    drafting: SpeculativeOptions
    effect: SpeculationEffect
    acceptance_rate: float


class Drafting:
    """Answers for the instances of one plan; instances that are alike are asked once."""

    def __init__(self, carrying: Carrying | None = None) -> None:
        self._carrying = carrying or Carrying()
        self._known: dict[tuple[object, ...], tuple[Configuration, tuple[str, ...]]] = {}

    def decide(
        self,
        model: ResolvedModel,
        gpu: GpuModel,
        found: Configuration,
        speed: Mapping[str, Any],
        running: Mapping[str, Any] | None,
    ) -> tuple[Configuration, tuple[str, ...]]:
        """The configuration with what is drafted, and why.

        Args:
            model: the model.
            gpu: the card.
            found: the configuration; what was asked for is in it already, unless that was ``auto``.
            speed: of the instance at its share of the demand; empty without one.
            running: ``speculative_config`` of the instance where it stays as it is; None where it drafts nothing.
        """
        asked = model.request.speculative
        if asked is None:
            return found, ()
        key = (model.request.name, id(found), speed.get("requests_per_s"), repr(running))
        if key not in self._known:
            if asked.method != "auto":
                self._known[key] = found, _as_asked(model, gpu, found, speed)
            else:
                self._known[key] = self._chosen(model, gpu, found, speed, running)
        return self._known[key]

    def _chosen(
        self,
        model: ResolvedModel,
        gpu: GpuModel,
        found: Configuration,
        speed: Mapping[str, Any],
        running: Mapping[str, Any] | None,
    ) -> tuple[Configuration, tuple[str, ...]]:
        why_not = _why_not_considered(found, speed)
        if why_not is not None:
            return found, (f"No speculative decoding: {why_not}.",)
        candidates = _candidates(model, gpu, found, speed)
        if not candidates:
            return found, ("No speculative decoding: what it drafts does not fit into a step.",)
        kept = [one for one in candidates if _is_running(one.drafting, running)]
        most = max(one.effect.speedup for one in candidates)
        # The fewest tokens that are as good: padding to captured sizes makes the speed-up uneven.
        best = next(one for one in candidates if one.effect.speedup >= most * _AS_GOOD)
        if kept and kept[0].effect.speedup >= _WORTH_KEEPING:
            best = kept[0]
        elif best.effect.speedup < _WORTH_STARTING:
            at_most = f"{best.effect.speedup:.2f} times as fast with {_tokens(best.drafting)}"
            return found, (
                f"No speculative decoding: {_at(best)} {_by(model, best.drafting)} would be {at_most},"
                f" {_WORTH_STARTING} is asked for; {_assumption(model, best.acceptance_rate)}",
            )
        estimate = estimate_memory(model.facts, gpu, best.options)
        short = self._why_no_room(model, gpu, best.options, estimate, speed)
        if short is not None:
            return found, (f"No speculative decoding: {short}.",)
        reason = (
            f"Drafts {_tokens(best.drafting)} a step {_by(model, best.drafting)}: {_effect_words(best)};"
            f" {_assumption(model, best.acceptance_rate)} What the instance carries is counted without."
        )
        return replace(found, options=best.options, estimate=estimate), (reason,)

    def _why_no_room(
        self,
        model: ResolvedModel,
        gpu: GpuModel,
        options: EngineOptions,
        estimate: MemoryEstimate,
        speed: Mapping[str, Any],
    ) -> str | None:
        if not estimate.fits:
            return f"with it, {estimate.reason}"
        traffic, rate = Traffic.of(model.request), float(speed["requests_per_s"])
        tokens = estimate.kv_cache_tokens_planned
        if traffic is not None and not self._carrying.carries(
            model.facts, gpu, options, tokens, traffic, requests_per_second=rate
        ):
            return f"{tokens:,} tokens of KV cache, which it would leave, are too few for {rate:.3g} requests/s"
        return None


def _why_not_considered(found: Configuration, speed: Mapping[str, Any]) -> str | None:
    if not speed:
        return "without a demand it is not known how many sequences run at a time"
    if found.shape.ways > 1:
        return "its GPU is shared"
    if found.options.pipeline_parallel_size > 1:
        return "its effect on pipelines is not known"
    return None


def _candidates(
    model: ResolvedModel, gpu: GpuModel, found: Configuration, speed: Mapping[str, Any]
) -> list[_Candidate]:
    asked, demand = model.request.speculative, model.request.demand
    if asked is None or demand is None:
        return []
    document = asked.engine_document()
    document["method"] = "draft_model" if asked.model is not None else "ngram"
    rate = asked.acceptance_rate or CAUTIOUS_ACCEPTANCE[document["method"]]
    batch = max(1, math.ceil(speed["running_sequences"]))
    result = []
    for tokens in (asked.num_speculative_tokens,) if asked.num_speculative_tokens else _TOKENS_TRIED:
        options = with_speculation(model, found.options, {**document, "num_speculative_tokens": tokens})
        if options.speculative is None or batch * (tokens + 1) > options.max_num_batched_tokens:
            continue
        result.append(_candidate(model, gpu, options, options.speculative, rate=rate, batch=batch))
    return result


def _candidate(
    model: ResolvedModel,
    gpu: GpuModel,
    options: EngineOptions,
    drafting: SpeculativeOptions,
    *,
    rate: float,
    batch: int,
) -> _Candidate:
    demand = model.request.demand
    context = demand.prompt_tokens + demand.output_tokens / 2 if demand is not None else 1024.0
    effect = SpeculativeSpeed(model.facts, gpu, options, acceptance_rate=rate).effect(batch, context)
    return _Candidate(options, drafting, effect, rate)


def _as_asked(model: ResolvedModel, gpu: GpuModel, found: Configuration, speed: Mapping[str, Any]) -> tuple[str, ...]:
    """What the speed model says of drafting that was asked for."""
    asked, drafting = model.request.speculative, found.options.speculative
    if asked is None or drafting is None:
        return ()
    rate = asked.acceptance_rate or CAUTIOUS_ACCEPTANCE.get(drafting.method, 0.5)
    batch = max(1, math.ceil(speed["running_sequences"])) if speed else 1
    begin = f"Drafts {_tokens(drafting)} a step {_by(model, drafting)}, as asked for"
    try:
        one = _candidate(model, gpu, found.options, drafting, rate=rate, batch=batch)
    except FleetError:
        return (f"{begin}.",)
    return (f"{begin}: {_effect_words(one)}; {_assumption(model, rate)}",)


def _is_running(drafting: SpeculativeOptions, running: Mapping[str, Any] | None) -> bool:
    if running is None:
        return False
    same = {"method": drafting.method, "num_speculative_tokens": drafting.num_speculative_tokens}
    return running.get("model") == drafting.model and all(running.get(name) == value for name, value in same.items())


def _tokens(drafting: SpeculativeOptions) -> str:
    count = drafting.num_speculative_tokens
    return f"{count} token{'s' if count > 1 else ''}"


def _by(model: ResolvedModel, drafting: SpeculativeOptions) -> str:
    draft = model.further_by_label(DRAFT)
    return f"by {draft.source.source.text}" if drafting.method != "ngram" and draft is not None else "by n-grams"


def _at(one: _Candidate) -> str:
    return f"at {one.effect.batch} running sequence{'s' if one.effect.batch > 1 else ''}"


def _effect_words(one: _Candidate) -> str:
    effect = one.effect
    return (
        f"{_at(one)} a step yields {effect.tokens_per_step:.2f} tokens, {effect.tpot_s * 1e3:.1f} ms each instead of"
        f" {effect.plain_tpot_s * 1e3:.1f}, {effect.speedup:.2f} times as fast"
    )


def _assumption(model: ResolvedModel, rate: float) -> str:
    if model.request.speculative is not None and model.request.speculative.acceptance_rate is not None:
        return f"speculative.acceptance_rate says that {rate:.0%} of drafted tokens are accepted."
    return f"that {rate:.0%} of drafted tokens are accepted is an assumption (speculative.acceptance_rate)."
