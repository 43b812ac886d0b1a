"""Compares the speed model with AIConfigurator's measured L40S kernels (vLLM 0.24.0), BF16 and FP8 dense on one GPU.

    python tests/bench/bench_speed_l40s.py

Two readings, both printed. Kernels: every measured row against our curve. Forward: the whole pass composed of measured
rows (matrices and attention, interpolated in the logarithms between measured sizes), against the same sum of ours. What
AIConfigurator did not measure (normalization, sampling, the host) is on neither side. Its decode attention rows read
the KV cache from L2 where it fits (96 MB), its small products the weights; an engine's do not stay there, so decode is
also printed for caches beyond L2 and products by their least side.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[2] / "module_utils"), str(Path(__file__).parent)]

from aiconfigurator_tables import Table, load, systems_directory  # noqa: E402
from fleet.hardware import gpu_by_name  # noqa: E402
from fleet.speed_constants import KERNELS  # noqa: E402
from fleet.speed_kernels import (  # noqa: E402
    GpuRates,
    decode_attention_time,
    matrix_time,
    prefill_attention_time,
)

GPU = gpu_by_name("L40S", where="bench")
RATES = GpuRates(GPU.memory_bandwidth_bytes_per_s, GPU.flops_per_s)
CURVES = KERNELS["L40S"]
# name: layers, hidden, intermediate, query heads, key-value heads, vocabulary
MODELS = {
    "Llama-3-8B": (32, 4096, 14336, 32, 8, 128256),
    "Qwen3-14B": (40, 5120, 17408, 40, 8, 151936),
    "Qwen3-32B": (64, 5120, 25600, 64, 8, 151936),
    "Llama-3-70B": (80, 8192, 28672, 64, 8, 128256),
}
BYTES = {"bfloat16": 2, "fp8": 1}
TARGET = 0.10


def matrix_s(dtype: str, m: float, n: int, k: int) -> float:
    """Ours."""
    size = BYTES[dtype]
    return matrix_time(
        CURVES.matrix[dtype], RATES, peak=dtype, m=m, n=n, k=k, weight_bytes=size * n * k, activation_bytes=size
    ).seconds


class MeasuredMatrices:
    """Measured products, interpolated: linear in the logarithms of n and k at measured m."""

    def __init__(self, table: Table) -> None:
        """Index the rows by (dtype, m, n, k)."""
        keys = zip(table["gemm_dtype"], table["m"], table["n"], table["k"], table["latency"], strict=True)
        self._rows = {(str(d), int(m), int(n), int(k)): float(t) for d, m, n, k, t in keys}
        self._sides = sorted({key[2] for key in self._rows})

    def __call__(self, dtype: str, m: int, n: int, k: int) -> float:
        """Seconds, from the four neighbours of (n, k)."""
        total = 0.0
        for weight_n, side_n in self._neighbours(n):
            for weight_k, side_k in self._neighbours(k):
                if weight_n * weight_k:
                    total += weight_n * weight_k * np.log(self._rows[dtype, m, side_n, side_k])
        return float(np.exp(total))

    def _neighbours(self, size: int) -> list[tuple[float, int]]:
        for low, high in pairwise(self._sides):
            if low <= size <= high:
                share = np.log(size / low) / np.log(high / low)
                return [(1.0 - share, low), (share, high)]
        low, high = self._sides[-2:]
        share = np.log(size / low) / np.log(high / low)
        return [(1.0 - share, low), (share, high)]


def measured_attention(  # noqa: PLR0917
    table: Table, heads: int, kv_heads: int, sequences: int, length: int, length_name: str
) -> float:
    """Seconds of the measured row; nan where it was not measured."""
    keep = (table["num_heads"] == heads) & (table["num_key_value_heads"] == kv_heads) & (table["head_dim"] == 128)
    keep &= (table["batch_size"] == sequences) & (table[length_name] == length) & (table["window_size"] == 0)
    keep &= table["kv_cache_dtype"] == "bfloat16"
    return float(np.median(table["latency"][keep])) if keep.any() else float("nan")


def forward(matrices: MeasuredMatrices, prefill: Table, decode: Table) -> list[tuple[str, str, str, float, bool]]:
    """(model, dtype, case, error, cache beyond L2) of whole passes."""
    results = []
    for name, (layers, hidden, inter, heads, kv_heads, vocabulary) in MODELS.items():
        qkv = (heads + 2 * kv_heads) * 128
        shapes = ((qkv, hidden), (hidden, heads * 128), (2 * inter, hidden), (hidden, inter))
        for dtype in BYTES:
            for sequences, length in [(b, s) for b in (1, 4, 16, 32, 64, 128, 256) for s in (255, 1023, 2047, 8191)]:
                attention = measured_attention(decode, heads, kv_heads, sequences, length, "step")
                cached = sequences * (length + 1) * kv_heads * 2 * 128 * 2
                if np.isnan(attention) or cached * layers > 40e9:
                    continue
                measured = layers * (sum(matrices(dtype, sequences, n, k) for n, k in shapes) + attention)
                measured += matrices("bfloat16", sequences, vocabulary, hidden)
                own = decode_attention_time(
                    CURVES.decode["bfloat16"], RATES, sequences=sequences, query_tokens=1, cached_bytes=cached,
                    num_heads=heads, num_kv_heads=kv_heads,
                ).seconds  # fmt: skip
                ours = layers * (sum(matrix_s(dtype, sequences, n, k) for n, k in shapes) + own)
                ours += matrix_s("bfloat16", sequences, vocabulary, hidden)
                results.append((name, dtype, f"decode {sequences}x{length + 1}", ours / measured - 1, cached > 96e6))
            for sequences, length in ((1, 512), (1, 1024), (1, 2048), (4, 512), (2, 1024), (1, 4096), (1, 8192)):
                attention = measured_attention(prefill, heads, kv_heads, sequences, length, "isl")
                tokens = sequences * length
                if np.isnan(attention):
                    continue
                measured = layers * (sum(matrices(dtype, tokens, n, k) for n, k in shapes) + attention)
                own = prefill_attention_time(
                    CURVES.prefill["bfloat16"], RATES, query_tokens=tokens, past_bytes=0, num_heads=heads,
                    query_key_pairs=sequences * length * (length + 1) / 2, num_kv_heads=kv_heads, head_size=128,
                ).seconds  # fmt: skip
                ours = layers * (sum(matrix_s(dtype, tokens, n, k) for n, k in shapes) + own)
                results.append((name, dtype, f"prefill {sequences}x{length}", ours / measured - 1, True))
    return results


def summary(errors: np.ndarray) -> dict[str, float]:
    """Median, 90th percentile and worst of the absolute errors, and the median with its sign."""
    size = np.abs(errors)
    return {
        "rows": len(errors),
        "median": round(float(np.median(size)), 4),
        "p90": round(float(np.quantile(size, 0.9)), 4),
        "worst": round(float(size.max()), 4),
        "bias": round(float(np.median(errors)), 4),
    }


def main() -> int:
    """Print the table as JSON lines; 1 when a whole-pass median misses the target."""
    if systems_directory() is None:
        print("skipped: aiconfigurator-core 0.12.0 is not installed")
        return 0
    gemm = load("L40S", "gemm/gemm")
    for dtype in BYTES:
        for label, least in (("all rows", 0), ("n and k of 1,024 or more", 1024), ("n and k of 2,048 or more", 2048)):
            keep = (gemm["gemm_dtype"] == dtype) & (gemm["n"] >= least) & (gemm["k"] >= least)
            m, n, k, measured = (gemm[c][keep] for c in ("m", "n", "k", "latency"))
            ours = np.array([matrix_s(dtype, float(a), int(b), int(c)) for a, b, c in zip(m, n, k, strict=True)])
            print(json.dumps({"kernel": f"gemm {dtype}, {label}", **summary(ours / measured - 1)}))
    results = forward(
        MeasuredMatrices(gemm),
        load("L40S", "attention/context_attention"),
        load("L40S", "attention/generation_attention"),
    )
    worst = 0.0
    for dtype in BYTES:
        for phase in ("decode", "prefill"):
            for cold in (False, True):
                errors = np.array(
                    [e for _, d, case, e, beyond in results if d == dtype and case.startswith(phase) and beyond >= cold]
                )
                label = f"{dtype} {phase}" + (", caches beyond L2" if cold and phase == "decode" else "")
                if phase == "decode" or cold:
                    print(json.dumps({"forward": label, **summary(errors)}))
        whole = summary(np.array([e for _, d, _, e, _ in results if d == dtype]))
        print(json.dumps({"forward": f"{dtype} all", **whole}))
        worst = max(worst, whole["median"])
    return int(worst > TARGET)


if __name__ == "__main__":
    sys.exit(main())
