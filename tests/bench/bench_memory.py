"""Print how long ``fleet memory`` takes as a process, and how many configurations a second the model evaluates.

Usage: bench_memory.py   exits 1 when the process takes more than 200 ms or fewer than 2,000 a second are evaluated
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from fleet.engine_options import EngineOptions
from fleet.errors import FleetError
from fleet.hardware import gpu_by_name
from fleet.memory import estimate_memory
from fleet.model import facts_from_config

CONFIGS = Path(__file__).resolve().parent.parent / "data" / "model_configs"
PROCESS_LIMIT_S = 0.2
LEAST_PER_S = 2000


def process_s(runs: int = 15) -> float:
    """Median wall time of ``fleet memory``."""
    fleet = str(Path(sys.executable).with_name("fleet"))
    command = [fleet, "memory", "--config", str(CONFIGS / "llama-3-8b.json"), "--gpu", "L40S", "--json"]
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def evaluations_per_s() -> float:
    """Distinct configurations over all models: caches help only as far as they do in a plan."""
    gpu = gpu_by_name("L40S", where="bench")
    models = [
        facts_from_config(json.loads(path.read_text()), where=path.name) for path in sorted(CONFIGS.glob("*.json"))
    ]
    points = list(
        itertools.product(
            models,
            (None, "fp8", "int8", "awq"),
            ("auto", "fp8"),
            (1, 2, 4),
            (1, 2),
            (2048, 4096),
            (64, 256),
            (2048, 8192),
        )
    )
    done = 0
    began = time.perf_counter()
    for model, quantization, kv, tensor, pipeline, length, sequences, tokens in points:
        options = EngineOptions(
            quantization=quantization if model.quantization is None else None,
            kv_cache_dtype=kv,
            tensor_parallel_size=tensor,
            pipeline_parallel_size=pipeline,
            max_model_len=length,
            max_num_seqs=sequences,
            max_num_batched_tokens=tokens,
        )
        try:
            estimate_memory(model, gpu, options)
        except FleetError:
            continue
        done += 1
    return done / (time.perf_counter() - began)


def main() -> int:
    """Print both figures."""
    process, rate = process_s(), evaluations_per_s()
    sys.stdout.write(f"fleet memory as a process: {process * 1000:.0f} ms (limit {PROCESS_LIMIT_S * 1000:.0f})\n")
    sys.stdout.write(f"evaluations in process: {rate:.0f} a second (at least {LEAST_PER_S})\n")
    return int(process > PROCESS_LIMIT_S or rate < LEAST_PER_S)


if __name__ == "__main__":
    sys.exit(main())
