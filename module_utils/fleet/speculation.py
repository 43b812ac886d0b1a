"""Speculative decoding: what a draft costs, what it saves, and the batch at which it stops paying.

A step drafts ``k`` tokens a sequence and verifies them together with the next one in a single pass of the target.
With acceptance rate ``a`` a draft token, independent of position, a step yields ``(1 - a^(k+1)) / (1 - a)`` tokens
(Leviathan et al., 2023, equation 1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .errors import FleetError
from .speed import SpeedModel, StepTime
from .speed_kernels import NO_TIME, Time

if TYPE_CHECKING:
    from .engine_options import EngineOptions, SpeculativeOptions
    from .hardware import GpuModel
    from .model_facts import ModelFacts
    from .speed_collectives import Links

# Acceptance of one draft token where nothing was measured. Published means on chat and code: separate draft models of
# the same family 0.6 to 0.8, EAGLE 0.7 to 0.8, n-gram look-up 0.2 to 0.5 outside summarizing and editing.
DEFAULT_ACCEPTANCE = {"draft_model": 0.7, "ngram": 0.3, "eagle": 0.7, "eagle3": 0.75, "mtp": 0.7}


@dataclass(frozen=True, slots=True)
class SpeculationEffect:
    """One batch with and without speculation.

    ``tokens_per_step`` is what a sequence gains in a step on average; ``speedup`` above 1 pays.
    """

    batch: int
    tokens_per_step: float
    step_s: float
    draft_s: float
    tpot_s: float
    plain_tpot_s: float

    @property
    def speedup(self) -> float:
        """Time per output token without, over with."""
        return self.plain_tpot_s / self.tpot_s


def expected_tokens_per_step(acceptance_rate: float, num_speculative_tokens: int) -> float:
    """Accepted draft tokens and the one that the target adds.

    Raises:
        FleetError: the rate is not between 0 and 1.
    """
    if not 0.0 <= acceptance_rate <= 1.0:
        raise FleetError("acceptance_rate", f"must be between 0 and 1, got {acceptance_rate}")
    if acceptance_rate == 1.0:
        return num_speculative_tokens + 1.0
    return float((1.0 - acceptance_rate ** (num_speculative_tokens + 1)) / (1.0 - acceptance_rate))


class SpeculativeSpeed:
    """Step times with ``options.speculative``.

    Args:
        model: facts of the target.
        gpu: the card; every rank has one.
        options: of the engine, with ``speculative`` set.
        acceptance_rate: of one draft token; None takes the method's default.
        links: between the ranks.

    Raises:
        FleetError: no speculative options, or a draft model without facts.
    """

    def __init__(
        self,
        model: ModelFacts,
        gpu: GpuModel,
        options: EngineOptions,
        *,
        acceptance_rate: float | None = None,
        links: Links | None = None,
    ) -> None:
        speculative = options.speculative
        if speculative is None:
            raise FleetError("speculative", "missing")
        self.options = speculative
        if acceptance_rate is None:
            acceptance_rate = DEFAULT_ACCEPTANCE.get(speculative.method, 0.6)
        self.tokens_per_step = expected_tokens_per_step(acceptance_rate, speculative.num_speculative_tokens)
        self._target = SpeedModel(model, gpu, options, links=links)
        self._draft = _draft_model(speculative, gpu, options, links)
        self._links = links

    def decode_step(self, batch: int, context_tokens: float) -> StepTime:
        """Draft and verify once for the whole batch. Each sequence gains ``tokens_per_step`` tokens on average."""
        draft = self._draft_time(batch, context_tokens)
        count = self.options.num_speculative_tokens
        step = self._target.aggregate_step(batch, context_tokens, query_tokens=count + 1)
        return StepTime(step.time.plus(draft), step.interval_s + draft.seconds)

    def effect(self, batch: int, context_tokens: float) -> SpeculationEffect:
        """Compare with plain decoding at this batch."""
        step = self.decode_step(batch, context_tokens)
        return SpeculationEffect(
            batch=batch,
            tokens_per_step=self.tokens_per_step,
            step_s=step.seconds,
            draft_s=self._draft_time(batch, context_tokens).seconds,
            tpot_s=step.seconds / self.tokens_per_step,
            plain_tpot_s=self._target.decode_step(batch, context_tokens).seconds,
        )

    def pays_until_batch(self, context_tokens: float, *, max_batch: int = 256) -> int:
        """The largest batch at which it still pays, 0 where it never does.

        Padding to captured batch sizes makes the speed-up uneven; what counts is the first batch from which on it does
        not come back, looked up among the batches that the engine captures.
        """
        batches = [batch for batch in (1, 2, 4, *range(8, max_batch + 1, 8)) if batch <= max_batch]
        paying = [batch for batch in batches if self.effect(batch, context_tokens).speedup > 1.0]
        return max(paying, default=0)

    def _draft_time(self, batch: int, context_tokens: float) -> Time:
        count = self.options.num_speculative_tokens
        if self._draft is None:
            return NO_TIME
        return self._draft.decode_step(batch, context_tokens).time.times(count)


def _draft_model(
    speculative: SpeculativeOptions, gpu: GpuModel, options: EngineOptions, links: Links | None
) -> SpeedModel | None:
    """The draft's own steps; None for methods that look the draft up (n-gram, suffix)."""
    if speculative.method in ("ngram", "suffix"):
        return None
    if speculative.draft is None:
        raise FleetError("speculative.model", f"{speculative.method} needs the draft model's configuration")
    draft_options = replace(
        options,
        speculative=None,
        quantization=None,
        pipeline_parallel_size=1,
        pipeline_layers=None,
        tensor_parallel_size=speculative.draft_tensor_parallel_size or options.tensor_parallel_size,
    )
    return SpeedModel(speculative.draft, gpu, draft_options, links=links)
