"""The simulation against real vLLM 0.24.0 under Poisson arrivals on an H100 (``tests/bench/measure_serving.py``)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from fleet.checkpoint import load_model_facts
from fleet.engine_options import options_from_engine_args
from fleet.hardware import gpu_by_name
from fleet.memory import estimate_memory
from fleet.simulation import SimulatedInstance, SimulatedModel, Simulation, SimulationOptions
from fleet.simulation_workload import Lengths
from model_configs import CONFIGS

MEASURED = json.loads((Path(__file__).parents[1] / "data" / "speed" / "h100_serving.json").read_text())
GPU = gpu_by_name("H100", where="")
FACTS = load_model_facts(CONFIGS / "llama-3-8b.json")


def name_of(run):
    return f"{run['engine_args']['max_num_batched_tokens']}-{run['requests_per_second']:.0f}"


RUNS = {name_of(run): run for run in MEASURED["runs"]}


@cache
def simulated(name):
    run = RUNS[name]
    options = options_from_engine_args(run["engine_args"] | {"engine_version": "0.24.0"}, where="run")
    instance = SimulatedInstance("m", FACTS, GPU, options, estimate_memory(FACTS, GPU, options).kv_cache_tokens)
    model = SimulatedModel("m", run["requests_per_second"], MEASURED["prompt_tokens"], MEASURED["output_tokens"])
    return Simulation([instance], [model]).run(SimulationOptions(seconds=200.0, lengths=Lengths("fixed")))["m"]


@pytest.mark.parametrize("name", RUNS)
def test_time_per_output_token(name):
    found, measured = simulated(name), RUNS[name]["tpot_s"]
    assert found.tpot_s[50.0] == pytest.approx(measured["50"], rel=0.10)
    assert found.tpot_s[95.0] == pytest.approx(measured["95"], rel=0.30)


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run["ttft_s"]["50"] < 1.0])
def test_time_to_first_token_where_no_queue_grows(name):
    found, measured = simulated(name), RUNS[name]["ttft_s"]
    assert found.ttft_s[50.0] == pytest.approx(measured["50"], rel=0.15)
    assert found.ttft_s[95.0] == pytest.approx(measured["95"], rel=0.35)


def test_smaller_chunks_trade_time_to_first_token_for_time_per_output_token_as_measured():
    small, large = RUNS["512-28"], RUNS["2048-28"]
    assert small["tpot_s"]["95"] < 0.5 * large["tpot_s"]["95"]
    assert small["ttft_s"]["95"] > 2.0 * large["ttft_s"]["95"]
    assert simulated("512-28").tpot_s[95.0] < 0.5 * simulated("2048-28").tpot_s[95.0]
    assert simulated("512-28").ttft_s[95.0] > 2.0 * simulated("2048-28").ttft_s[95.0]
