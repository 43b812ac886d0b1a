"""A rate that an instance cannot exceed within its objectives, from a handful of step times.

It leaves out everything random: the mean step is taken as ``d(n) + n w / (N - 1)``, with ``n`` running sequences,
``d(n)`` a decode step, ``w`` what a prompt adds to a full step (the least it can cost) and ``N`` output tokens. The
mean time per output token cannot be below it, and no percentile from the median on lies below what the mean must keep.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .capacity import Objectives
    from .speed import SpeedModel

# The number of sequences is bracketed to one part in so many.
_BRACKET = 32


def most_requests_per_second(
    speed: SpeedModel, *, prompt_tokens: int, output_tokens: int, kv_cache_tokens: int, objectives: Objectives
) -> float:
    """Requests a second that the instance cannot exceed.

    Args:
        speed: step times of the instance.
        prompt_tokens: of each request.
        output_tokens: of each request.
        kv_cache_tokens: tokens that the KV cache holds.
        objectives: of which the time per output token counts.
    """
    options = speed.options
    context = prompt_tokens + 0.5 * output_tokens
    most = max(1, min(options.max_num_seqs, options.max_num_batched_tokens - 1, int(kv_cache_tokens / context)))
    following = max(output_tokens - 1, 0)

    def step_s(sequences: int) -> tuple[float, float]:
        """A decode step, and what a prompt adds to the mean of the steps that follow it."""
        each = sequences / speed.batches_in_flight(sequences)
        tokens = max(1, options.max_num_batched_tokens - int(each))
        full = speed.aggregate_step(
            each,
            context,
            prefill_tokens=tokens,
            prefill_pairs=tokens * (prompt_tokens + 1) / 2.0,
            prefill_past_tokens=0.0,
            prefill_sequences=max(1.0, tokens / prompt_tokens),
        )
        added_s = full.interval_s - speed.aggregate_step(each, context).interval_s
        return speed.decode_step(sequences, context).seconds, max(added_s, 0.0) * prompt_tokens / tokens

    if not following:
        tokens = options.max_num_batched_tokens
        full = speed.aggregate_step(0, 0.0, prefill_tokens=tokens, prefill_pairs=tokens * (prompt_tokens + 1) / 2.0)
        return tokens / prompt_tokens / full.interval_s
    limit_s = None if objectives.tpot_ms is None else objectives.tpot_ms * 1e-3
    low, high = 1, most
    # The rate grows with the sequences, so that the upper end of a narrow bracket bounds it as well.
    while limit_s is not None and high - low > max(1, high // _BRACKET):
        middle = (low + high) // 2
        decode_s, added_s = step_s(middle)
        if decode_s + middle * added_s / following <= limit_s:
            low = middle
        else:
            high = middle
    decode_s, added_s = step_s(high)
    return high / (following * decode_s + high * added_s)
