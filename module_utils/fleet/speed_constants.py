"""Constants of the speed model, by GPU. ``tests/bench/fit_speed.py`` prints them from measured kernels.

Kernels: AIConfigurator's tables (aiconfigurator-core 0.12.0, Apache-2.0), measured on each of these GPUs with vLLM
0.24.0. A comment gives the rows and the error of the fit. The dense ``marlin`` curves are derived: 16-bit rows, slowed by
the ratio that the experts' INT4 and 16-bit kernels show.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    the share of the datasheet's bandwidth that such kernels reach on large inputs. ``step_s`` and ``sequence_s`` are
    what a step costs beside its kernels, whole and per sequence. ``first_token_s`` is what a request waits before and
    after its first step. ``launch_layer_s`` is how fast the host can launch a layer outside CUDA graphs, compiled, and
    ``eager_layer_s`` with ``enforce_eager``.
    """

    small_kernel_s: float
    small_bandwidth_fraction: float
    step_s: float
    sequence_s: float
    first_token_s: float
    launch_layer_s: float
    eager_layer_s: float


OVERHEADS = EngineOverheads(
    small_kernel_s=2.0e-6,
    small_bandwidth_fraction=0.8,
    step_s=0.3e-3,
    sequence_s=3e-6,
    first_token_s=2.4e-3,
    launch_layer_s=100e-6,
    eager_layer_s=350e-6,
)

KERNELS: Mapping[str, KernelCurves] = {
    "L40S": KernelCurves(
        matrix={
            "bfloat16": MatrixCurve(
                launch_s=1.47e-07,
                bandwidth_fraction=0.746,
                flops_fraction=0.682,
                depth_offset=207.0,
                column_offset=137.0,
                tile_s_per_k=2.32e-10,
                smoothness=4.9,
                row_log_factors=(
                    -0.075,
                    -0.055,
                    -0.001,
                    0.0,
                    0.011,
                    0.03,
                    0.014,
                    -0.001,
                    -0.001,
                    -0.004,
                    -0.001,
                    0.049,
                    0.074,
                ),
            ),  # 9550 rows, error 5.8 % median, 15 % at the 90th percentile
            "fp8": MatrixCurve(
                launch_s=0.0,
                bandwidth_fraction=0.676,
                flops_fraction=0.566,
                depth_offset=680.0,
                column_offset=600.0,
                tile_s_per_k=3.98e-09,
                smoothness=3.76,
                row_log_factors=(
                    -0.051,
                    -0.043,
                    -0.001,
                    0.001,
                    0.01,
                    0.038,
                    -0.0,
                    0.0,
                    -0.0,
                    -0.012,
                    -0.0,
                    0.002,
                    0.001,
                ),
            ),  # 9569 rows, error 6.7 % median, 23 % at the 90th percentile
            "fp8_block": MatrixCurve(
                launch_s=0.0,
                bandwidth_fraction=0.676,
                flops_fraction=0.379,
                depth_offset=0.0,
                column_offset=498.0,
                tile_s_per_k=3.98e-09,
                smoothness=4.0,
                row_log_factors=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
            ),  # 1671 rows, error 5.7 % median, 13 % at the 90th percentile
            "marlin": MatrixCurve(
                launch_s=1.47e-07,
                bandwidth_fraction=0.746,
                flops_fraction=0.562,
                depth_offset=207.0,
                column_offset=137.0,
                tile_s_per_k=2.32e-10,
                smoothness=4.9,
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
                launch_s=3.7e-06,
                bandwidth_fraction=0.88,
                flops_fraction=0.828,
                depth_offset=125.0,
                column_offset=0.0,
                tile_s_per_k=1.09e-09,
                smoothness=3.47,
                row_log_factors=(
                    -0.012,
                    -0.0,
                    0.001,
                    0.001,
                    -0.001,
                    0.003,
                    -0.001,
                    -0.058,
                    -0.033,
                    -0.017,
                    0.011,
                    0.004,
                    0.027,
                ),
            ),  # 9585 rows, error 4.3 % median, 11 % at the 90th percentile
            "fp8": MatrixCurve(
                launch_s=5.44e-06,
                bandwidth_fraction=0.846,
                flops_fraction=0.652,
                depth_offset=0.0,
                column_offset=600.0,
                tile_s_per_k=2.45e-09,
                smoothness=1.67,
                row_log_factors=(
                    -0.0,
                    0.0,
                    0.009,
                    -0.087,
                    -0.222,
                    -0.001,
                    -0.222,
                    -0.155,
                    -0.0,
                    0.077,
                    0.137,
                    0.001,
                    0.052,
                ),
            ),  # 9585 rows, error 5.6 % median, 15 % at the 90th percentile
            "fp8_block": MatrixCurve(
                launch_s=5.44e-06,
                bandwidth_fraction=0.846,
                flops_fraction=0.642,
                depth_offset=0.0,
                column_offset=600.0,
                tile_s_per_k=2.45e-09,
                smoothness=4.0,
                row_log_factors=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
            ),  # 1522 rows, error 7.6 % median, 16 % at the 90th percentile
            "marlin": MatrixCurve(
                launch_s=3.7e-06,
                bandwidth_fraction=0.88,
                flops_fraction=0.391,
                depth_offset=125.0,
                column_offset=0.0,
                tile_s_per_k=1.09e-09,
                smoothness=3.47,
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
                launch_s=4.07e-06,
                bandwidth_fraction=0.849,
                flops_fraction=0.825,
                depth_offset=77.8,
                column_offset=0.0,
                tile_s_per_k=8.46e-10,
                smoothness=3.39,
                row_log_factors=(
                    -0.001,
                    -0.001,
                    0.001,
                    0.011,
                    -0.001,
                    0.001,
                    -0.025,
                    -0.051,
                    -0.022,
                    -0.001,
                    0.024,
                    0.038,
                    0.068,
                ),
            ),  # 9585 rows, error 4.8 % median, 11 % at the 90th percentile
            "fp8": MatrixCurve(
                launch_s=5.46e-06,
                bandwidth_fraction=0.82,
                flops_fraction=0.742,
                depth_offset=0.0,
                column_offset=600.0,
                tile_s_per_k=2.54e-09,
                smoothness=1.5,
                row_log_factors=(
                    -0.0,
                    -0.018,
                    0.118,
                    -0.125,
                    -0.297,
                    0.001,
                    -0.215,
                    -0.126,
                    -0.0,
                    0.106,
                    0.153,
                    0.037,
                    0.078,
                ),
            ),  # 9585 rows, error 6.2 % median, 18 % at the 90th percentile
            "fp8_block": MatrixCurve(
                launch_s=5.46e-06,
                bandwidth_fraction=0.82,
                flops_fraction=0.63,
                depth_offset=0.0,
                column_offset=600.0,
                tile_s_per_k=2.54e-09,
                smoothness=4.0,
                row_log_factors=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
            ),  # 1540 rows, error 7.5 % median, 15 % at the 90th percentile
            "marlin": MatrixCurve(
                launch_s=4.07e-06,
                bandwidth_fraction=0.849,
                flops_fraction=0.338,
                depth_offset=77.8,
                column_offset=0.0,
                tile_s_per_k=8.46e-10,
                smoothness=3.39,
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
