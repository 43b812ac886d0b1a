"""Fits the kernel curves of module_utils/fleet/speed_constants.py and prints them as Python.

    python tests/bench/fit_speed.py [GPU ...]

Source: AIConfigurator's kernel tables (see ``aiconfigurator_tables``). Needs numpy, scipy and pyarrow. Deterministic:
the same tables give the same constants. The model's own functions check every printed curve at the end.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import least_squares

sys.path[:0] = [str(Path(__file__).parents[2] / "module_utils"), str(Path(__file__).parent)]

from aiconfigurator_tables import Table, load  # noqa: E402
from fleet.hardware import gpu_by_name  # noqa: E402
from fleet.speed_kernels import (  # noqa: E402
    ROW_KNOTS,
    DecodeAttentionCurve,
    ExpertsCurve,
    GpuRates,
    MatrixCurve,
    PrefillAttentionCurve,
    decode_attention_time,
    experts_time,
    matrix_time,
    prefill_attention_time,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fleet.hardware import GpuModel

L2_BYTES = {"L40S": 96e6, "H100": 50e6, "H200": 50e6}
# A cached operand is no operand of a serving engine: between two uses of a tensor, a whole layer passes through L2.
COLD_FACTOR = 2.0


def solve(
    residual: Callable[[np.ndarray], np.ndarray], start: Sequence[float], low: Sequence[float], high: Sequence[float]
) -> np.ndarray:
    """Robust least squares of logarithms, so that every size counts alike and outliers little."""
    return np.asarray(least_squares(residual, start, loss="soft_l1", f_scale=0.05, bounds=(low, high)).x)


def fit_matrix(gpu: GpuModel, table: Table, dtype: str, weight_bytes: int) -> tuple[MatrixCurve, np.ndarray]:
    """Rows that decide an engine's speed: both sides 2,048 or more, 16 M weights; tokens to 16 or multiples of 8."""
    every = table["gemm_dtype"] == dtype
    all_m, all_n, all_k = (table[c].astype(float)[every] for c in "mnk")
    m, n, k = (table[c].astype(float) for c in "mnk")
    keep = (table["gemm_dtype"] == dtype) & (n >= 2048) & (k >= 2048) & (n * k >= 16e6) & (m <= 16384)
    keep &= (m < 17) | (m % 8 == 0)
    m, n, k, measured = m[keep], n[keep], k[keep], table["latency"][keep]
    bandwidth, peak = gpu.memory_bandwidth_bytes_per_s, gpu.flops_per_s[dtype]

    def model(x: np.ndarray, m: np.ndarray, n: np.ndarray, k: np.ndarray, least_s: float = 0.0) -> np.ndarray:
        launch, by, fl, depth, smooth, tile, column = x[:7]
        memory = (weight_bytes * (n * k + m * k) + 2 * m * n) / (bandwidth * by)
        compute = 2 * m * (n + column) * (k + depth) / (peak * fl)
        floor = tile * 1e-9 * (k + depth) * np.clip(m, 32, 128) / 128
        factor = np.exp(np.interp(np.log2(m), np.log2(ROW_KNOTS), x[7:]))
        return launch * 1e-6 + factor * (memory**smooth + compute**smooth + floor**smooth + least_s**smooth) ** (
            1 / smooth
        )

    def residual(x: np.ndarray) -> np.ndarray:
        # Large products differ in rate by shape, not by rows: their corrections are kept close to one another.
        large = x[7 + ROW_KNOTS.index(1024) :]
        return np.concatenate([np.log(model(x, m, n, k) / measured), 20 * x[7:], 300 * np.diff(large)])

    knots = len(ROW_KNOTS)
    x = solve(
        residual,
        [2, 0.8, 0.7, 100, 3, 1, 50] + [0] * knots,
        [0, 0.3, 0.2, 0, 1.5, 0, 0] + [-0.4] * knots,
        [30, 0.95, 1, 1500, 8, 100, 2000] + [0.4] * knots,
    )
    # Small products (shards of small models, routers) are decided by the least time of a kernel: one more constant.
    least_s = solve(
        lambda y: np.log(model(x, all_m, all_n, all_k, y[0] * 1e-6) / table["latency"][every]), [4.0], [0.0], [20.0]
    )[0]
    curve = MatrixCurve(
        launch_s=_round(x[0], 1e-6),
        least_s=_round(least_s, 1e-6),
        bandwidth_fraction=_round(x[1]),
        flops_fraction=_round(x[2]),
        depth_offset=_round(x[3]),
        column_offset=_round(x[6]),
        tile_s_per_k=_round(x[5], 1e-9),
        smoothness=_round(x[4]),
        row_log_factors=tuple(round(float(v), 3) for v in x[7:]),
    )
    rates = _rates(gpu)
    ours = np.array(
        [
            matrix_time(
                curve,
                rates,
                peak=dtype,
                m=a,
                n=int(b),
                k=int(c),
                weight_bytes=weight_bytes * b * c,
                activation_bytes=weight_bytes,
            ).seconds
            for a, b, c in zip(m, n, k, strict=True)
        ]
    )
    return curve, np.log(ours / measured)


def fit_block_fp8(gpu: GpuModel, table: Table, plain: MatrixCurve) -> tuple[MatrixCurve, np.ndarray]:
    """Block-scaled FP8: only its compute side was measured free of launches from Python (0.3 ms a call on Ada).

    A decode step runs in a CUDA graph, without those launches: its memory side is taken from plain FP8.
    """
    m, n, k = (table[c].astype(float) for c in "mnk")
    keep = (table["gemm_dtype"] == "fp8_block") & (n >= 2048) & (k >= 2048) & (m >= 1024) & (m <= 16384) & (m % 8 == 0)
    keep &= table["latency"] > (1e-3 if gpu.name == "L40S" else 3e-4)
    m, n, k, measured = m[keep], n[keep], k[keep], table["latency"][keep]
    peak = gpu.flops_per_s["fp8"]
    x = solve(
        lambda x: np.log(2 * m * (n + x[1]) * (k + x[2]) / (peak * x[0]) / measured),
        [0.3, 10, 10],
        [0.05, 0, 0],
        [1, 600, 800],
    )
    curve = MatrixCurve(
        launch_s=plain.launch_s,
        least_s=plain.least_s,
        bandwidth_fraction=plain.bandwidth_fraction,
        flops_fraction=_round(x[0]),
        depth_offset=_round(x[2]),
        column_offset=_round(x[1]),
        tile_s_per_k=plain.tile_s_per_k,
        smoothness=4.0,
        row_log_factors=(0.0,) * len(ROW_KNOTS),
    )
    rates = _rates(gpu)
    ours = np.array(
        [
            matrix_time(
                curve, rates, peak="fp8", m=a, n=int(b), k=int(c), weight_bytes=b * c, activation_bytes=1
            ).seconds
            for a, b, c in zip(m, n, k, strict=True)
        ]
    )
    return curve, np.log(ours / measured)


def fit_decode(gpu: GpuModel, table: Table, kv_dtype: str) -> tuple[DecodeAttentionCurve, np.ndarray]:
    """Caches well beyond L2, and nearly empty ones for the floor. Those that fit in L2 were read from there."""
    element = 2 if kv_dtype == "bfloat16" else 1
    b, h, g = (table[c].astype(float) for c in ("batch_size", "num_heads", "num_key_value_heads"))
    context = table["step"] + 1.0
    cached = b * context * g * 2 * 128 * element
    keep = (table["head_dim"] == 128) & (table["window_size"] == 0) & (h >= g) & (b <= 512)
    keep &= (table["kv_cache_dtype"] == kv_dtype) & ((cached > COLD_FACTOR * L2_BYTES[gpu.name]) | (context <= 16))
    b, h, g, cached, measured = b[keep], h[keep], g[keep], cached[keep], table["latency"][keep]
    bandwidth = gpu.memory_bandwidth_bytes_per_s

    def model(x: np.ndarray) -> np.ndarray:
        floor = x[1] * 1e-6 * b * g / 8 + x[4] * 1e-6 * b * h / 32
        return x[0] * 1e-6 + (floor ** x[3] + (cached / (bandwidth * x[2])) ** x[3]) ** (1 / x[3])

    x = solve(lambda x: np.log(model(x) / measured), [8, 0.2, 0.8, 1.7, 0.05], [0, 0, 0.3, 1, 0], [30, 3, 0.95, 8, 3])
    curve = DecodeAttentionCurve(
        launch_s=_round(x[0], 1e-6),
        kv_head_s=_round(x[1], 1e-6 / 8),
        query_head_s=_round(x[4], 1e-6 / 32),
        bandwidth_fraction=_round(x[2]),
        smoothness=_round(x[3]),
    )
    rates = _rates(gpu)
    ours = np.array(
        [
            decode_attention_time(
                curve, rates, sequences=a, query_tokens=1, cached_bytes=c, num_heads=int(d), num_kv_heads=int(e)
            ).seconds
            for a, c, d, e in zip(b, cached, h, g, strict=True)
        ]
    )
    cold = cached > COLD_FACTOR * L2_BYTES[gpu.name]
    return curve, np.log(ours / measured)[cold]


def fit_prefill(gpu: GpuModel, table: Table, kv_dtype: str) -> tuple[PrefillAttentionCurve, np.ndarray]:
    """Whole prompts of 64 tokens and more, 32,768 tokens a call at most."""
    b, h, g, length = (table[c].astype(float) for c in ("batch_size", "num_heads", "num_key_value_heads", "isl"))
    keep = (table["head_dim"] == 128) & (table["window_size"] == 0) & (length >= 64) & (b * length <= 32768)
    keep &= (table["kv_cache_dtype"] == kv_dtype) & (h >= 4)
    b, h, g, length, measured = b[keep], h[keep], g[keep], length[keep], table["latency"][keep]
    bandwidth, peak = gpu.memory_bandwidth_bytes_per_s, gpu.flops_per_s["bfloat16"]
    pairs = b * length * (length + 1) / 2

    def model(x: np.ndarray) -> np.ndarray:
        compute = 4 * h * 128 * pairs / (peak * x[1])
        moved = b * length * 128 * 4 * (h + g) / (bandwidth * x[2])
        return x[0] * 1e-6 + (compute ** x[3] + moved ** x[3]) ** (1 / x[3])

    x = solve(lambda x: np.log(model(x) / measured), [8, 0.6, 0.8, 1.0], [0, 0.1, 0.1, 0.999], [40, 1, 2, 1.5])
    curve = PrefillAttentionCurve(
        launch_s=_round(x[0], 1e-6),
        flops_fraction=_round(x[1]),
        io_bandwidth_fraction=_round(x[2]),
        smoothness=_round(x[3]),
    )
    rates = _rates(gpu)
    ours = np.array(
        [
            prefill_attention_time(
                curve,
                rates,
                query_tokens=a * e,
                query_key_pairs=c,
                past_bytes=0,
                num_heads=int(d),
                num_kv_heads=int(f),
                head_size=128,
            ).seconds
            for a, c, d, e, f in zip(b, pairs, h, length, g, strict=True)
        ]
    )
    return curve, np.log(ours / measured)


def fit_experts(
    gpu: GpuModel, table: Table, dtype: str, weight_bytes: float, peak: str
) -> tuple[ExpertsCurve, np.ndarray]:
    """Evenly routed rows, where the number of experts touched is known."""
    t, hid, inter, top, count, tp = (
        table[c].astype(float)
        for c in ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size")
    )
    inter = inter / tp
    touched = np.minimum(count, t * top)
    keep = (table["moe_dtype"] == dtype) & (table["distribution"] == "balanced") & (table["moe_ep_size"] == 1)
    keep &= (tp <= 4) & (count <= 384) & (top > 1) & (touched * 3 * hid * inter * weight_bytes > L2_BYTES[gpu.name])
    t, hid, inter, top, touched, measured = (a[keep] for a in (t, hid, inter, top, touched, table["latency"]))
    bandwidth, rate = gpu.memory_bandwidth_bytes_per_s, gpu.flops_per_s[peak]

    def model(x: np.ndarray) -> np.ndarray:
        moved = touched * 3 * hid * inter * weight_bytes + t * top * 4 * (hid + inter) * x[5]
        compute = 6 * hid * inter * (t * top + touched * x[1]) / (rate * x[3])
        return x[0] * 1e-6 + ((moved / (bandwidth * x[2])) ** x[4] + compute ** x[4]) ** (1 / x[4])

    x = solve(
        lambda x: np.log(model(x) / measured),
        [20, 8, 0.8, 0.4, 2, 1],
        [0, 0, 0.2, 0.05, 1, 0],
        [300, 128, 0.95, 1, 8, 6],
    )
    curve = ExpertsCurve(
        launch_s=_round(x[0], 1e-6),
        row_padding=_round(x[1]),
        bandwidth_fraction=_round(x[2]),
        flops_fraction=_round(x[3]),
        io_factor=_round(x[5]),
        smoothness=_round(x[4]),
    )
    rates = _rates(gpu)
    ours = np.array(
        [
            experts_time(
                curve,
                rates,
                peak=peak,
                tokens=a,
                touched=b,
                experts_per_token=int(c),
                hidden_size=int(d),
                intermediate_size=int(e),
                weight_bytes=weight_bytes,
            ).seconds
            for a, b, c, d, e in zip(t, touched, top, hid, inter, strict=True)
        ]
    )
    return curve, np.log(ours / measured)


# 4-bit weights with a 16-bit scale and a 4-bit zero point for 128 or (MoE rows) 32 to 128 weights.
INT4_BYTES = 0.53
EXPERT_TABLES = {  # served format -> measured rows, bytes a weight, peak
    "bfloat16": ("bfloat16", 2.0, "bfloat16"),
    "fp8": ("fp8", 1.0, "fp8"),
    "fp8_block": ("fp8_block", 1.0, "fp8"),
    "marlin": ("int4_wo", INT4_BYTES, "bfloat16"),
}


def fit_gpu(name: str) -> None:
    """Print the table entry of one GPU, with errors as comments."""
    gpu = gpu_by_name(name, where="argument")
    print(f'    "{name}": KernelCurves(\n        matrix={{')
    gemm = load(name, "gemm/gemm")
    bf16, error = fit_matrix(gpu, gemm, "bfloat16", 2)
    _entry("bfloat16", bf16, error)
    fp8, error = fit_matrix(gpu, gemm, "fp8", 1)
    _entry("fp8", fp8, error)
    block, error = fit_block_fp8(gpu, gemm, fp8)
    _entry("fp8_block", block, error)
    moe = load(name, "moe/moe")
    experts = {}
    for served, (rows, weight_bytes, peak) in EXPERT_TABLES.items():
        # Hopper's plain FP8 rows are of a CUTLASS path that loses to the Triton one, which the block rows show.
        source = "fp8_block" if served == "fp8" and gpu.is_hopper else rows
        experts[served] = fit_experts(gpu, moe, source, weight_bytes, peak)
    # There are no dense INT4 rows: the experts' kernel is the same, and what it loses to the 16-bit one is its own.
    slower = experts["marlin"][0].flops_fraction / experts["bfloat16"][0].flops_fraction
    marlin = replace(bf16, flops_fraction=_round(bf16.flops_fraction * slower), row_log_factors=(0.0,) * len(ROW_KNOTS))
    print(f'            "marlin": {marlin!r},')
    print("        },\n        decode={")
    decode, prefill = load(name, "attention/generation_attention"), load(name, "attention/context_attention")
    for kv in ("bfloat16", "fp8"):
        _entry(kv, *fit_decode(gpu, decode, kv))
    print("        },\n        prefill={")
    for kv in ("bfloat16", "fp8"):
        _entry(kv, *fit_prefill(gpu, prefill, kv))
    print("        },\n        experts={")
    for served, (curve, error) in experts.items():
        _entry(served, curve, error)
    print("        },\n    ),")


def _entry(name: str, curve: object, log_error: np.ndarray) -> None:
    error = np.abs(np.expm1(log_error))
    print(
        f'            "{name}": {curve!r},  # {len(error)} rows, error {100 * np.median(error):.1f} % median,'
        f" {100 * np.quantile(error, 0.9):.0f} % at the 90th percentile"
    )


def _rates(gpu: GpuModel) -> GpuRates:
    return GpuRates(gpu.memory_bandwidth_bytes_per_s, gpu.flops_per_s)


def _round(value: float, scale: float = 1.0) -> float:
    """Three digits. What the fit drove to nothing becomes zero."""
    return float(f"{value * scale:.3g}") if value > 1e-3 else 0.0


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["L40S", "H100", "H200"]:
        fit_gpu(argument)
