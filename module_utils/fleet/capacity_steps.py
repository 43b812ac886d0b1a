"""Step times of one kind of request by running sequences, as the closed forms of ``capacity`` need them.

With ``S`` pipeline stages, running sequences are spread over ``S`` batches that follow one another, and a token takes
a round of them (``decode_s``). Chance spreads them, and the fullest batch sets the pace. What prompts add to a batch
holds up every batch behind it at each stage: ``S`` times what it adds to one stage for the first batch with prompts,
once for those that follow directly.
"""

from __future__ import annotations

from bisect import bisect_right
from math import exp, sqrt
from typing import TYPE_CHECKING, NamedTuple

from .speed import PromptChunk

if TYPE_CHECKING:
    from .speed import SpeedModel

GRID = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024)
MOST_PROMPTS_IN_A_STEP = 24
# Mean of the largest of so many shares of a binomial split, in standard deviations of one; and how much of it counts,
# since the fullest batch is not always the one that others wait for (fitted to simulations, tests/bench).
_LARGEST_OF = {2: 0.80, 3: 1.04, 4: 1.19, 8: 1.52}
_COUNTS = 0.6


class StepRow(NamedTuple):
    """Times at one number of running sequences.

    Args:
        decode_s: from one token to the next, without prompts.
        interval_s: from one batch to the next: ``decode_s`` over the stages.
        chunks: steps that a prompt takes.
        chunk_added_s: what a prompt's chunks add to the slowest stage, all together.
        most_added_s: the most that one of them adds.
        last_added_s: what the last of them adds.
        full_interval_s: a batch at the slowest stage whose budget is used up.
        full_step_prompts: prompts, or the part of one, that use it up.
        added_s: by prompts (bundles of short ones) in a batch, what they add to the slowest stage; the last is a batch
            whose budget is used up.
    """

    sequences: float
    decode_s: float
    interval_s: float
    chunks: int
    chunk_added_s: float
    most_added_s: float
    last_added_s: float
    full_interval_s: float
    full_step_prompts: float
    added_s: tuple[float, ...]


class StepTable:
    """Rows for a grid of running sequences, made when they are asked for, and what lies between them.

    Args:
        speed: step times of the instance.
        prompt_tokens: of each request.
        output_tokens: of each request.
        most: running sequences that there is room for.
    """

    def __init__(self, speed: SpeedModel, prompt_tokens: int, output_tokens: int, most: int) -> None:
        self.stages = speed.options.pipeline_parallel_size
        self._speed = speed
        self._prompt = prompt_tokens
        self._context = prompt_tokens + 0.5 * output_tokens
        self._budget = speed.options.max_num_batched_tokens
        # Very short prompts are counted in bundles, so that a full step holds a bounded number of them.
        self.bundle = max(1, -(-self._budget // (prompt_tokens * MOST_PROMPTS_IN_A_STEP)))
        self._sequences = sorted({*(n for n in GRID if n < most), most})
        self._known: dict[int, StepRow] = {}

    @property
    def rows(self) -> list[StepRow]:
        """All rows of the grid."""
        return [self.row(index) for index in range(len(self._sequences))]

    def row(self, index: int) -> StepRow:
        """A row of the grid."""
        if index not in self._known:
            self._known[index] = self._make(self._sequences[index])
        return self._known[index]

    def at(self, sequences: float) -> StepRow:
        """Between the rows. Fewer than one sequence count as one: a step is never free."""
        index = bisect_right(self._sequences, sequences)
        if index == 0:
            return self.row(0)
        if index == len(self._sequences):
            return self.row(index - 1)
        low, high = self.row(index - 1), self.row(index)
        share = (sequences - low.sequences) / (high.sequences - low.sequences)

        def between(a: float, b: float) -> float:
            return a + share * (b - a)

        return StepRow(
            sequences,
            between(low.decode_s, high.decode_s),
            between(low.interval_s, high.interval_s),
            low.chunks,
            between(low.chunk_added_s, high.chunk_added_s),
            between(low.most_added_s, high.most_added_s),
            between(low.last_added_s, high.last_added_s),
            between(low.full_interval_s, high.full_interval_s),
            between(low.full_step_prompts, high.full_step_prompts),
            tuple(map(between, low.added_s, high.added_s)),
        )

    def prompt_added_s(self, row: StepRow, round_s: float, rate: float) -> float:
        """What a prompt adds to the time from one token to the next, summed over the rounds that it touches.

        Args:
            row: at the running sequences.
            round_s: the mean time from one token to the next.
            rate: requests a second.
        """
        others = self.stages - 1
        per_batch = rate * round_s / self.stages
        if row.full_step_prompts < 2.0:
            # Chunks of one prompt follow one another; only the first finds the stages behind it without prompts.
            alone = exp(-per_batch * (others + row.chunks - 1)) if others else 0.0
            return row.chunk_added_s + others * alone * row.most_added_s
        per_batch /= self.bundle
        room = row.full_step_prompts / self.bundle
        added = carried = 0.0
        probability = exp(-per_batch)
        for count in range(1, 4 * MOST_PROMPTS_IN_A_STEP):
            probability *= per_batch / count
            added += probability * row.added_s[min(count, len(row.added_s) - 1)]
            carried += probability * min(count, room)
            if count > per_batch and probability < 1e-6:
                break
        one = added / carried if carried > 0.0 else row.added_s[1]
        return one / self.bundle * (1.0 + others * exp(-per_batch * others))

    def _make(self, sequences: int) -> StepRow:
        speed, prompt, context = self._speed, self._prompt, self._context
        each = self._fullest_batch(sequences)
        alone = speed.aggregate_step(each, context)
        alone_s = alone.interval_s
        decode_s = max(alone.seconds, min(self.stages, sequences) * alone_s)
        room = max(1, self._budget - int(each))
        chunk_added_s, most_added_s, one_s, past, chunks = 0.0, 0.0, 0.0, 0, 0
        while past < prompt:
            tokens = min(room, prompt - past)
            one_s = max(speed.step(each, context, [PromptChunk(tokens, past)]).interval_s - alone_s, 0.0)
            chunk_added_s += one_s
            most_added_s = max(most_added_s, one_s)
            past += tokens
            chunks += 1
        added = [0.0]
        count = 1
        while count * prompt * self.bundle < room:
            added.append(self._interval_with(each, count * prompt * self.bundle) - alone_s)
            count += 1
        full_interval_s = self._interval_with(each, room)
        return StepRow(
            float(sequences),
            decode_s,
            decode_s / self.stages,
            chunks,
            chunk_added_s,
            most_added_s,
            one_s,
            full_interval_s,
            room / prompt,
            (*added, max(full_interval_s - alone_s, 0.0)),
        )

    def _fullest_batch(self, sequences: int) -> float:
        """Sequences in the fullest of the pipeline's batches, in the mean, when chance spreads them."""
        if self.stages == 1:
            return float(sequences)
        share = 1.0 / self.stages
        most = _LARGEST_OF.get(self.stages, max(_LARGEST_OF.values()))
        return min(float(sequences), sequences * share + _COUNTS * most * sqrt(sequences * share * (1.0 - share)))

    def _interval_with(self, sequences: float, tokens: int) -> float:
        """A batch with ``tokens`` prompt tokens: whole prompts, or a chunk from the middle of one."""
        prompts = tokens / self._prompt
        return self._speed.aggregate_step(
            sequences,
            self._context,
            prefill_tokens=tokens,
            prefill_pairs=tokens * (self._prompt + 1) / 2.0,
            prefill_past_tokens=self._prompt / 2.0 if prompts < 1.0 else 0.0,
            prefill_sequences=max(1.0, prompts),
        ).interval_s
