"""Real vLLM under load, as ``measure_serving.py`` measured it, beside the simulation of the same.

python tests/bench/compare_serving.py [tests/data/speed/h100_serving.json ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fleet.checkpoint import load_model_facts
from fleet.engine_options import options_from_engine_args
from fleet.hardware import gpu_by_name
from fleet.memory import estimate_memory
from fleet.simulation import SimulatedInstance, SimulatedModel, Simulation, SimulationOptions
from fleet.simulation_workload import Lengths

DATA = Path(__file__).parents[1] / "data"


def main(paths: list[str]) -> int:
    """Print a row for each run: measured, simulated, and the ratio of the two."""
    gpu = gpu_by_name("H100", where="")
    sys.stdout.write("chunk  rate   TTFT p50 ms  p95 ms    TPOT p50 ms  p95 ms   (simulated / measured)\n")
    for path in paths or [str(DATA / "speed" / "h100_serving.json")]:
        document = json.loads(Path(path).read_text())
        facts = load_model_facts(DATA / "model_configs" / f"{document['model']}.json")
        for run in document["runs"]:
            options = options_from_engine_args(run["engine_args"] | {"engine_version": "0.24.0"}, where=path)
            tokens = estimate_memory(facts, gpu, options).kv_cache_tokens
            instance = SimulatedInstance("m", facts, gpu, options, tokens)
            model = SimulatedModel(
                "m", run["requests_per_second"], document["prompt_tokens"], document["output_tokens"]
            )
            found = Simulation([instance], [model]).run(SimulationOptions(seconds=200.0, lengths=Lengths("fixed")))["m"]
            cells = [
                f"{run[name][str(int(p))] * 1e3:8.1f} ({getattr(found, name)[p] / run[name][str(int(p))]:4.2f})"
                for name in ("ttft_s", "tpot_s")
                for p in (50.0, 95.0)
            ]
            sys.stdout.write(
                f"{options.max_num_batched_tokens:5} {run['requests_per_second']:5.0f}  {'  '.join(cells)}\n"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
