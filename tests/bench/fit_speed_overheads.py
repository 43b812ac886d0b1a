"""Fits the engine's overheads of module_utils/fleet/speed_constants.py to measured sweeps and prints them.

    python tests/bench/fit_speed_overheads.py SWEEPS.json ...

The first file counts double. 4-bit sweeps are left out (Hopper's own kernel), and mixtures of experts, whose prefill
sweeps hold compilations. Prefill of less than 16,384 tokens counts from the first file only: the second was measured
with the engine in a process of its own, whose start-up of a request is not the engine's. Needs numpy and scipy.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

sys.path.insert(0, str(Path(__file__).parents[2] / "module_utils"))

from fleet.engine_options import options_from_engine_args
from fleet.hardware import gpu_by_name
from fleet.model import facts_from_config
from fleet.speed import SpeedModel
from fleet.speed_constants import OVERHEADS, EngineOverheads

NAMES = ("small_kernel_s", "graph_launch_s", "sustained_flops", "step_s", "sequence_s", "first_token_s")
SCALES = np.array([1e-6, 1e-6, 1.0, 1e-3, 1e-6, 1e-3, 1.0])
START = [2.0, 1.6, 0.9, 0.3, 3.0, 2.4, 0.8]
LOW = [0.8, 0.0, 0.7, 0.05, 0.0, 0.5, 0.5]
HIGH = [5.0, 8.0, 1.0, 2.0, 15.0, 6.0, 0.95]


def overheads(x: np.ndarray) -> EngineOverheads:
    """The fitted values in place of the table's."""
    names = (*NAMES, "small_bandwidth_fraction")
    return replace(OVERHEADS["H100"], **dict(zip(names, (float(v) for v in x * SCALES), strict=True)))


def main(paths: list[str]) -> None:
    """Fit and print."""
    gpu = gpu_by_name("H100", where="argument")
    cases = []
    for position, path in enumerate(paths):
        for case in json.loads(Path(path).read_text())["cases"]:
            if not case.get("sweep") or "kernel" in case or "num_experts" in case["model_config"]:
                continue
            model = facts_from_config(case["model_config"], where=path)
            options = options_from_engine_args(case["engine_args"], where=path)
            cases.append((model, options, case["sweep"], 2.0 if position == 0 else 1.0))

    def residual(x: np.ndarray) -> np.ndarray:
        errors = []
        for model, options, sweep, weight in cases:
            speed = SpeedModel(model, gpu, options, overheads=overheads(x))
            for point in sweep:
                row = speed.row(point["batch"], point["isl"])
                errors.append(weight * np.log(row.tpot_ms / point["tpot_ms"]))
                if weight > 1 or point["batch"] * point["isl"] >= 16384:
                    errors.append(weight * np.log(row.prefill_s / point["prefill_s"]))
        return np.array(errors)

    fit = least_squares(residual, START, loss="soft_l1", f_scale=0.03, bounds=(LOW, HIGH), diff_step=1e-2)
    print(overheads(fit.x))


if __name__ == "__main__":
    main(sys.argv[1:])
