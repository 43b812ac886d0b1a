"""Constants of the speed model, by GPU. ``tests/bench/fit_speed.py`` prints them from measured kernels.

Kernels: AIConfigurator's tables (aiconfigurator-core 0.12.0, Apache-2.0), measured on each of these GPUs with vLLM
0.24.0. A comment gives the rows and the error of the fit. The dense ``marlin`` curves are derived: 16-bit rows, slowed
by the ratio that the experts' INT4 and 16-bit kernels show.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .speed_kernels import DecodeAttentionCurve, ExpertsCurve, MatrixCurve, PrefillAttentionCurve

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class KernelCurves:
    """All kernels of one GPU: matrices and experts by weight format, attention by the KV cache's dtype."""

    matrix: Mapping[str, MatrixCurve]
    decode: Mapping[str, DecodeAttentionCurve]
    prefill: Mapping[str, PrefillAttentionCurve]
    experts: Mapping[str, ExpertsCurve]


@dataclass(frozen=True, slots=True)
class EngineOverheads:
    """What the engine adds to its kernels.

    ``small_kernel_s`` is the least time of a normalization or the like in a CUDA graph, ``small_bandwidth_fraction``
    the share of the datasheet's bandwidth that such kernels reach on large inputs. ``graph_launch_s`` is the most that
    a matrix kernel's launch costs inside a CUDA graph. ``sustained_flops`` is the share of the 16-bit kernels' measured
    rate that is left when they follow one another for seconds and the power limit lowers the clocks. ``step_s`` and
    ``sequence_s`` are what a step costs beside its kernels, whole and per sequence. ``first_token_s`` is what a request
    waits before and after its first step. ``launch_layer_s`` is how fast the host can launch a layer outside CUDA
    graphs, compiled, ``launch_experts_layer_s`` one with experts, and ``eager_layer_s`` with ``enforce_eager``.
    """

    small_kernel_s: float
    small_bandwidth_fraction: float
    graph_launch_s: float
    sustained_flops: float
    step_s: float
    sequence_s: float
    first_token_s: float
    launch_layer_s: float
    launch_experts_layer_s: float
    eager_layer_s: float


# Printed by tests/bench/fit_speed_overheads.py from 32 sweeps of Llama-3-8B (16-bit, FP8) and Llama-2-13B on an H100
# (tests/data/speed/h100_sweeps.json and the reference sweeps), except the launch rates: that of experts is a prompt of
# 2,048 tokens on Qwen3-30B-A3B, the others are set low enough to bound none of the measured steps.
_HOPPER_OVERHEADS = EngineOverheads(
    small_kernel_s=0.8e-6,
    small_bandwidth_fraction=0.95,
    graph_launch_s=3.73e-6,
    sustained_flops=0.871,
    step_s=0.349e-3,
    sequence_s=3.33e-6,
    first_token_s=2.29e-3,
    launch_layer_s=100e-6,
    launch_experts_layer_s=1.8e-3,
    eager_layer_s=350e-6,
)

OVERHEADS: Mapping[str, EngineOverheads] = {
    "H100": _HOPPER_OVERHEADS,
    # No engine was measured on the others. The host's part is taken over; the L40S's kernel tables already show the
    # clocks under load (259 TFLOPS fall to 187 as products grow), its quantization kernels 0.77 of the bandwidth.
    "H200": _HOPPER_OVERHEADS,
    "L40S": replace(_HOPPER_OVERHEADS, sustained_flops=1.0, small_bandwidth_fraction=0.8),
}

KERNELS: Mapping[str, KernelCurves] = {
    "L40S": KernelCurves(
        matrix={
            "bfloat16": MatrixCurve(
                launch_s=1.47e-07,
                least_s=2.91e-06,
                bandwidth_fraction=0.743,
                flops_fraction=0.701,
                depth_offset=253.0,
                column_offset=305.0,
                tile_s_per_k=0.0,
                smoothness=4.93,
                row_log_factors=(-0.091, -0.063, -0.002, 0.0, 0.017, 0.038, 0.024, -0.0, -0.0, -0.0, -0.0, -0.0, 0.0),
            ),  # 7120 rows, error 5.5 % median, 15 % at the 90th percentile
            "fp8": MatrixCurve(
                launch_s=0.0,
                least_s=7.69e-06,
                bandwidth_fraction=0.67,
                flops_fraction=0.597,
                depth_offset=627.0,
                column_offset=945.0,
                tile_s_per_k=3.87e-09,
                smoothness=4.52,
                row_log_factors=(-0.045, -0.034, -0.002, -0.0, 0.03, 0.077, 0.014, 0.0, -0.0, -0.0, -0.0, -0.0, -0.0),
            ),  # 7139 rows, error 5.4 % median, 13 % at the 90th percentile
            "fp8_block": MatrixCurve(
                launch_s=0.0,
                least_s=7.69e-06,
                bandwidth_fraction=0.67,
                flops_fraction=0.379,
                depth_offset=0.0,
                column_offset=498.0,
                tile_s_per_k=3.87e-09,
                smoothness=4.0,
                row_log_factors=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
            ),  # 1671 rows, error 5.7 % median, 13 % at the 90th percentile
            "marlin": MatrixCurve(
                launch_s=1.47e-07,
                least_s=2.91e-06,
                bandwidth_fraction=0.743,
                flops_fraction=0.578,
                depth_offset=253.0,
                column_offset=305.0,
                tile_s_per_k=0.0,
                smoothness=4.93,
                row_log_factors=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
            ),
        },
        decode={
            "bfloat16": DecodeAttentionCurve(
                launch_s=9.02e-06, kv_head_s=2.93e-08, query_head_s=2.1e-10, bandwidth_fraction=0.799, smoothness=2.76
            ),  # 870 rows, error 6.4 % median, 9 % at the 90th percentile
            "fp8": DecodeAttentionCurve(
                launch_s=1.09e-05, kv_head_s=1.62e-08, query_head_s=5.82e-10, bandwidth_fraction=0.792, smoothness=1.95
            ),  # 537 rows, error 3.5 % median, 9 % at the 90th percentile
        },
        prefill={
            "bfloat16": PrefillAttentionCurve(
                launch_s=6.78e-06, flops_fraction=0.526, io_bandwidth_fraction=1.25, smoothness=0.999
            ),  # 3148 rows, error 7.9 % median, 29 % at the 90th percentile
            "fp8": PrefillAttentionCurve(
                launch_s=1.18e-05, flops_fraction=0.446, io_bandwidth_fraction=1.17, smoothness=0.999
            ),  # 3150 rows, error 11.9 % median, 43 % at the 90th percentile
        },
        experts={
            "bfloat16": ExpertsCurve(
                launch_s=0.0,
                row_padding=98.4,
                bandwidth_fraction=0.813,
                flops_fraction=0.673,
                io_factor=1.61,
                smoothness=2.25,
            ),  # 945 rows, error 3.7 % median, 27 % at the 90th percentile
            "fp8": ExpertsCurve(
                launch_s=6.41e-06,
                row_padding=0.29,
                bandwidth_fraction=0.769,
                flops_fraction=0.63,
                io_factor=1.28,
                smoothness=1.44,
            ),  # 770 rows, error 1.5 % median, 10 % at the 90th percentile
            "fp8_block": ExpertsCurve(
                launch_s=9.87e-06,
                row_padding=0.0,
                bandwidth_fraction=0.781,
                flops_fraction=0.463,
                io_factor=1.52,
                smoothness=2.47,
            ),  # 1070 rows, error 2.0 % median, 11 % at the 90th percentile
            "marlin": ExpertsCurve(
                launch_s=5.19e-05,
                row_padding=0.0,
                bandwidth_fraction=0.814,
                flops_fraction=0.555,
                io_factor=1.87,
                smoothness=3.43,
            ),  # 78 rows, error 0.9 % median, 9 % at the 90th percentile
        },
    ),
    "H100": KernelCurves(
        matrix={
            "bfloat16": MatrixCurve(
                launch_s=3.75e-06,
                least_s=0.0,
                bandwidth_fraction=0.877,
                flops_fraction=0.829,
                depth_offset=128.0,
                column_offset=0.0,
                tile_s_per_k=1.69e-09,
                smoothness=4.18,
                row_log_factors=(
                    -0.02,
                    -0.004,
                    0.002,
                    0.007,
                    -0.001,
                    0.029,
                    -0.001,
                    -0.058,
                    0.0,
                    0.0,
                    0.001,
                    0.001,
                    0.001,
                ),
            ),  # 7155 rows, error 4.1 % median, 11 % at the 90th percentile
            "fp8": MatrixCurve(
                launch_s=5.65e-06,
                least_s=0.0,
                bandwidth_fraction=0.831,
                flops_fraction=0.66,
                depth_offset=0.0,
                column_offset=1460.0,
                tile_s_per_k=2.36e-09,
                smoothness=2.01,
                row_log_factors=(0.001, 0.011, 0.027, -0.048, -0.144, 0.016, -0.2, -0.179, 0.0, 0.0, 0.0, 0.0, 0.0),
            ),  # 7155 rows, error 4.3 % median, 13 % at the 90th percentile
            "fp8_block": MatrixCurve(
                launch_s=5.65e-06,
                least_s=0.0,
                bandwidth_fraction=0.831,
                flops_fraction=0.642,
                depth_offset=0.0,
                column_offset=600.0,
                tile_s_per_k=2.36e-09,
                smoothness=4.0,
                row_log_factors=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
            ),  # 1522 rows, error 7.6 % median, 16 % at the 90th percentile
            "marlin": MatrixCurve(
                launch_s=3.75e-06,
                least_s=0.0,
                bandwidth_fraction=0.877,
                flops_fraction=0.391,
                depth_offset=128.0,
                column_offset=0.0,
                tile_s_per_k=1.69e-09,
                smoothness=4.18,
                row_log_factors=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
            ),
        },
        decode={
            "bfloat16": DecodeAttentionCurve(
                launch_s=1.13e-05, kv_head_s=2.52e-08, query_head_s=4.2e-10, bandwidth_fraction=0.894, smoothness=1.34
            ),  # 1260 rows, error 4.0 % median, 10 % at the 90th percentile
            "fp8": DecodeAttentionCurve(
                launch_s=1.28e-05, kv_head_s=2.7e-08, query_head_s=4.2e-10, bandwidth_fraction=0.823, smoothness=1.02
            ),  # 870 rows, error 3.8 % median, 8 % at the 90th percentile
        },
        prefill={
            "bfloat16": PrefillAttentionCurve(
                launch_s=1.3e-05, flops_fraction=0.681, io_bandwidth_fraction=0.398, smoothness=1.06
            ),  # 3156 rows, error 5.4 % median, 19 % at the 90th percentile
            "fp8": PrefillAttentionCurve(
                launch_s=1.62e-05, flops_fraction=0.658, io_bandwidth_fraction=0.298, smoothness=0.999
            ),  # 3156 rows, error 7.3 % median, 23 % at the 90th percentile
        },
        experts={
            "bfloat16": ExpertsCurve(
                launch_s=2.68e-05,
                row_padding=34.8,
                bandwidth_fraction=0.906,
                flops_fraction=0.564,
                io_factor=2.56,
                smoothness=3.01,
            ),  # 934 rows, error 2.8 % median, 21 % at the 90th percentile
            "fp8": ExpertsCurve(
                launch_s=3.68e-05,
                row_padding=0.0,
                bandwidth_fraction=0.878,
                flops_fraction=0.322,
                io_factor=3.16,
                smoothness=2.16,
            ),  # 1092 rows, error 2.3 % median, 11 % at the 90th percentile
            "fp8_block": ExpertsCurve(
                launch_s=3.68e-05,
                row_padding=0.0,
                bandwidth_fraction=0.878,
                flops_fraction=0.322,
                io_factor=3.16,
                smoothness=2.16,
            ),  # 1092 rows, error 2.3 % median, 11 % at the 90th percentile
            "marlin": ExpertsCurve(
                launch_s=4.33e-05,
                row_padding=0.0,
                bandwidth_fraction=0.842,
                flops_fraction=0.266,
                io_factor=4.75,
                smoothness=2.39,
            ),  # 80 rows, error 3.1 % median, 12 % at the 90th percentile
        },
    ),
    "H200": KernelCurves(
        matrix={
            "bfloat16": MatrixCurve(
                launch_s=3.94e-06,
                least_s=0.0,
                bandwidth_fraction=0.847,
                flops_fraction=0.808,
                depth_offset=64.7,
                column_offset=0.0,
                tile_s_per_k=1.41e-09,
                smoothness=3.55,
                row_log_factors=(
                    -0.002,
                    -0.001,
                    0.003,
                    0.022,
                    -0.014,
                    0.003,
                    -0.049,
                    -0.079,
                    0.001,
                    0.001,
                    0.001,
                    0.001,
                    0.001,
                ),
            ),  # 7155 rows, error 4.5 % median, 11 % at the 90th percentile
            "fp8": MatrixCurve(
                launch_s=5.81e-06,
                least_s=0.0,
                bandwidth_fraction=0.809,
                flops_fraction=0.78,
                depth_offset=1.94,
                column_offset=1870.0,
                tile_s_per_k=2.25e-09,
                smoothness=1.73,
                row_log_factors=(0.003, 0.002, 0.158, -0.063, -0.201, 0.063, -0.202, -0.167, 0.0, 0.0, 0.0, 0.0, 0.0),
            ),  # 7155 rows, error 4.4 % median, 13 % at the 90th percentile
            "fp8_block": MatrixCurve(
                launch_s=5.81e-06,
                least_s=0.0,
                bandwidth_fraction=0.809,
                flops_fraction=0.63,
                depth_offset=0.0,
                column_offset=600.0,
                tile_s_per_k=2.25e-09,
                smoothness=4.0,
                row_log_factors=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
            ),  # 1540 rows, error 7.5 % median, 15 % at the 90th percentile
            "marlin": MatrixCurve(
                launch_s=3.94e-06,
                least_s=0.0,
                bandwidth_fraction=0.847,
                flops_fraction=0.331,
                depth_offset=64.7,
                column_offset=0.0,
                tile_s_per_k=1.41e-09,
                smoothness=3.55,
                row_log_factors=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
            ),
        },
        decode={
            "bfloat16": DecodeAttentionCurve(
                launch_s=1.12e-05, kv_head_s=2.55e-08, query_head_s=4.35e-10, bandwidth_fraction=0.865, smoothness=1.25
            ),  # 1260 rows, error 4.8 % median, 10 % at the 90th percentile
            "fp8": DecodeAttentionCurve(
                launch_s=1.25e-05, kv_head_s=2.72e-08, query_head_s=4.26e-10, bandwidth_fraction=0.641, smoothness=1.0
            ),  # 870 rows, error 3.7 % median, 8 % at the 90th percentile
        },
        prefill={
            "bfloat16": PrefillAttentionCurve(
                launch_s=1.3e-05, flops_fraction=0.673, io_bandwidth_fraction=0.303, smoothness=1.04
            ),  # 3156 rows, error 5.0 % median, 18 % at the 90th percentile
            "fp8": PrefillAttentionCurve(
                launch_s=1.6e-05, flops_fraction=0.643, io_bandwidth_fraction=0.216, smoothness=0.999
            ),  # 3156 rows, error 6.7 % median, 22 % at the 90th percentile
        },
        experts={
            "bfloat16": ExpertsCurve(
                launch_s=2.78e-05,
                row_padding=0.0,
                bandwidth_fraction=0.903,
                flops_fraction=0.652,
                io_factor=3.51,
                smoothness=2.34,
            ),  # 961 rows, error 3.5 % median, 16 % at the 90th percentile
            "fp8": ExpertsCurve(
                launch_s=3.68e-05,
                row_padding=0.0,
                bandwidth_fraction=0.863,
                flops_fraction=0.326,
                io_factor=4.35,
                smoothness=2.1,
            ),  # 1092 rows, error 4.5 % median, 14 % at the 90th percentile
            "fp8_block": ExpertsCurve(
                launch_s=3.68e-05,
                row_padding=0.0,
                bandwidth_fraction=0.863,
                flops_fraction=0.326,
                io_factor=4.35,
                smoothness=2.1,
            ),  # 1092 rows, error 4.5 % median, 14 % at the 90th percentile
            "marlin": ExpertsCurve(
                launch_s=4.22e-05,
                row_padding=0.0,
                bandwidth_fraction=0.691,
                flops_fraction=0.267,
                io_factor=5.77,
                smoothness=2.16,
            ),  # 80 rows, error 4.3 % median, 14 % at the 90th percentile
        },
    ),
}
