"""Time of single kernels on one GPU: matrix products, attention, experts, and what moves bytes only.

Each curve is a roofline with rounded corner: the p-norm of bytes over bandwidth and FLOPs over rate, plus a launch.
The constants are in ``speed_constants``, fitted by ``tests/bench/fit_speed.py`` to measured kernels.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import exp, log2
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

Bound = Literal["memory", "compute", "link", "launch"]
MatrixFormat = Literal["bfloat16", "fp8", "fp8_block", "marlin"]

# Rows at which a matrix curve has a correction of its own; kernels change tile and split between them.
ROW_KNOTS = (1, 16, 32, 64, 128, 192, 256, 512, 1024, 2048, 4096, 8192, 16384)
_ROW_KNOTS_LOG2 = tuple(log2(rows) for rows in ROW_KNOTS)


class Time(NamedTuple):
    """Seconds, and how many of them go to what bounds them. The parts add up to the whole."""

    seconds: float
    memory_s: float = 0.0
    compute_s: float = 0.0
    link_s: float = 0.0
    launch_s: float = 0.0

    def plus(self, other: Time) -> Time:
        """Both, one after the other."""
        return Time(
            self.seconds + other.seconds,
            self.memory_s + other.memory_s,
            self.compute_s + other.compute_s,
            self.link_s + other.link_s,
            self.launch_s + other.launch_s,
        )

    def times(self, factor: float) -> Time:
        """The same, ``factor`` times over."""
        return Time(
            self.seconds * factor,
            self.memory_s * factor,
            self.compute_s * factor,
            self.link_s * factor,
            self.launch_s * factor,
        )

    @property
    def bound(self) -> Bound:
        """What takes the largest part."""
        parts: list[tuple[float, Bound]] = [
            (self.memory_s, "memory"),
            (self.compute_s, "compute"),
            (self.link_s, "link"),
            (self.launch_s, "launch"),
        ]
        return max(parts, key=lambda part: part[0])[1]


NO_TIME = Time(0.0)


@dataclass(frozen=True, slots=True)
class MatrixCurve:
    """Product of ``m x k`` activations and ``k x n`` weights.

    ``bandwidth_fraction`` and ``flops_fraction`` are of the GPU's datasheet rates. ``column_offset`` and
    ``depth_offset`` are columns and depth that a tile pays without using them; ``tile_s_per_k`` is the time that one
    tile takes for one step of depth, below which a narrow product does not come however many multiprocessors are idle,
    and ``least_s`` what the smallest one takes.
    ``row_log_factors`` correct the curve at ``ROW_KNOTS``.
    """

    launch_s: float
    least_s: float
    bandwidth_fraction: float
    flops_fraction: float
    depth_offset: float
    column_offset: float
    tile_s_per_k: float
    smoothness: float
    row_log_factors: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class DecodeAttentionCurve:
    """One query token a sequence against its cached keys and values.

    ``kv_head_s`` and ``query_head_s`` are what a sequence costs a head before the first cached byte is read.
    """

    launch_s: float
    kv_head_s: float
    query_head_s: float
    bandwidth_fraction: float
    smoothness: float


@dataclass(frozen=True, slots=True)
class PrefillAttentionCurve:
    """Many query tokens a sequence. ``io_bandwidth_fraction`` counts reading Q, K, V and writing O."""

    launch_s: float
    flops_fraction: float
    io_bandwidth_fraction: float
    smoothness: float


@dataclass(frozen=True, slots=True)
class ExpertsCurve:
    """Routed experts of a layer: gate-up, activation and down.

    ``row_padding`` is rows an expert's tile pays without using them; ``io_factor`` scales the bytes of activations,
    which are sorted, written and read between the two products.
    """

    launch_s: float
    row_padding: float
    bandwidth_fraction: float
    flops_fraction: float
    io_factor: float
    smoothness: float


@dataclass(frozen=True, slots=True)
class GpuRates:
    """Datasheet rates that the fractions are of."""

    bandwidth_bytes_per_s: float
    flops_per_s: Mapping[str, float]


def rounded_max(memory_s: float, compute_s: float, smoothness: float) -> float:
    """The p-norm of two times: their sum at 1, the larger of them at infinity."""
    if compute_s <= 0.0:
        return memory_s
    if memory_s <= 0.0:
        return compute_s
    small, large = (memory_s, compute_s) if memory_s < compute_s else (compute_s, memory_s)
    return float(large * (1.0 + (small / large) ** smoothness) ** (1.0 / smoothness))


def _split(seconds: float, launch_s: float, memory_s: float, compute_s: float) -> Time:
    """Attribute a kernel's time to the side that bounds it."""
    if memory_s >= compute_s:
        return Time(seconds + launch_s, memory_s=seconds, launch_s=launch_s)
    return Time(seconds + launch_s, compute_s=seconds, launch_s=launch_s)


def row_factor(curve: MatrixCurve, rows: float) -> float:
    """The curve's correction at ``rows``, linear in the logarithm between the knots."""
    factors = curve.row_log_factors
    position = log2(max(rows, 1.0))
    index = bisect_right(_ROW_KNOTS_LOG2, position)
    if index >= len(factors):
        return exp(factors[-1])
    low, high = _ROW_KNOTS_LOG2[index - 1], _ROW_KNOTS_LOG2[index]
    share = (position - low) / (high - low)
    return exp(factors[index - 1] + share * (factors[index] - factors[index - 1]))


def matrix_time(
    curve: MatrixCurve,
    rates: GpuRates,
    *,
    peak: str,
    m: float,
    n: int,
    k: int,
    weight_bytes: float,
    activation_bytes: float,
) -> Time:
    """Time of one product. ``peak`` names the rate, ``activation_bytes`` is of one input element."""
    moved = weight_bytes + activation_bytes * m * k + 2.0 * m * n
    memory_s = moved / (rates.bandwidth_bytes_per_s * curve.bandwidth_fraction)
    rate = rates.flops_per_s[peak] * curve.flops_fraction
    depth = k + curve.depth_offset
    compute_s = 2.0 * m * (n + curve.column_offset) * depth / rate
    tile_s = curve.tile_s_per_k * depth * min(max(m, 32.0), 128.0) / 128.0
    p = curve.smoothness
    seconds = (memory_s**p + compute_s**p + tile_s**p + curve.least_s**p) ** (1.0 / p) * row_factor(curve, m)
    return _split(seconds, curve.launch_s, memory_s, compute_s)


def decode_attention_time(
    curve: DecodeAttentionCurve,
    rates: GpuRates,
    *,
    sequences: float,
    query_tokens: float,
    cached_bytes: float,
    num_heads: int,
    num_kv_heads: int,
) -> Time:
    """Time of one layer. ``cached_bytes`` is the keys and values of all sequences in this layer.

    ``query_tokens`` above 1 are draft tokens to verify: they share one reading of the cache.
    """
    blocks_s = sequences * (num_kv_heads * curve.kv_head_s + query_tokens * num_heads * curve.query_head_s)
    memory_s = cached_bytes / (rates.bandwidth_bytes_per_s * curve.bandwidth_fraction)
    seconds = rounded_max(memory_s, blocks_s, curve.smoothness)
    if blocks_s > memory_s:
        return Time(seconds + curve.launch_s, launch_s=seconds + curve.launch_s)
    return Time(seconds + curve.launch_s, memory_s=seconds, launch_s=curve.launch_s)


def prefill_attention_time(
    curve: PrefillAttentionCurve,
    rates: GpuRates,
    *,
    query_tokens: float,
    query_key_pairs: float,
    past_bytes: float,
    num_heads: int,
    num_kv_heads: int,
    head_size: float,
) -> Time:
    """Time of one layer.

    Args:
        curve: constants.
        rates: of the GPU.
        query_tokens: tokens of all sequences in this step.
        query_key_pairs: pairs that attend to one another, causal: ``tokens * (past + (tokens + 1) / 2)`` a sequence.
        past_bytes: cached keys and values of earlier chunks.
        num_heads: query heads of the rank.
        num_kv_heads: key-value heads of the rank.
        head_size: mean of the key's and the value's head size.
    """
    compute_s = 4.0 * num_heads * head_size * query_key_pairs / (rates.flops_per_s["bfloat16"] * curve.flops_fraction)
    io_bytes = query_tokens * head_size * 4.0 * (num_heads + num_kv_heads) + past_bytes
    memory_s = io_bytes / (rates.bandwidth_bytes_per_s * curve.io_bandwidth_fraction)
    return _split(rounded_max(memory_s, compute_s, curve.smoothness), curve.launch_s, memory_s, compute_s)


def experts_touched(num_experts: int, experts_per_token: int, tokens: float) -> float:
    """Expected distinct experts that ``tokens`` tokens reach when routing is even and independent."""
    if experts_per_token >= num_experts:
        return float(num_experts)
    return float(num_experts * (1.0 - (1.0 - experts_per_token / num_experts) ** tokens))


def experts_time(
    curve: ExpertsCurve,
    rates: GpuRates,
    *,
    peak: str,
    tokens: float,
    touched: float,
    experts_per_token: int,
    hidden_size: int,
    intermediate_size: int,
    weight_bytes: float,
) -> Time:
    """Time of one layer's experts on one rank. ``weight_bytes`` is of one weight, scales included."""
    weights = 3.0 * hidden_size * intermediate_size
    rows = tokens * experts_per_token
    moved = touched * weights * weight_bytes + rows * 4.0 * (hidden_size + intermediate_size) * curve.io_factor
    memory_s = moved / (rates.bandwidth_bytes_per_s * curve.bandwidth_fraction)
    compute_s = 2.0 * weights * (rows + touched * curve.row_padding) / (rates.flops_per_s[peak] * curve.flops_fraction)
    return _split(rounded_max(memory_s, compute_s, curve.smoothness), curve.launch_s, memory_s, compute_s)
