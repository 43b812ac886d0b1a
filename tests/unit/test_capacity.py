"""Capacity of an instance: its objectives, its limits, and simulated values that it has to meet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fleet.capacity import CapacityModel, Objectives
from fleet.capacity_waits import deterministic_queue_wait
from fleet.engine_options import EngineOptions
from fleet.errors import FleetError
from fleet.hardware import gpu_by_name
from fleet.model import facts_from_config
from fleet.speed import SpeedModel

CONFIG = Path(__file__).parents[1] / "data" / "model_configs" / "llama-3-8b.json"
LLAMA = facts_from_config(json.loads(CONFIG.read_text()), where="llama-3-8b.json")
L40S = gpu_by_name("L40S", where="test")
SPEED = SpeedModel(LLAMA, L40S, EngineOptions())


def _model(prompt_tokens=1024, output_tokens=256, kv_cache_tokens=200_000, speed=SPEED):
    return CapacityModel(
        speed, prompt_tokens=prompt_tokens, output_tokens=output_tokens, kv_cache_tokens=kv_cache_tokens
    )


def test_tpot_limits_a_strict_objective_and_holds_there():
    answer = _model().capacity(Objectives(ttft_ms=2000, tpot_ms=60))
    assert answer.limit == "tpot"
    assert answer.at_capacity.tpot_s == pytest.approx(0.060, rel=0.01)
    assert 3.5 < answer.requests_per_second < 5.5


def test_ttft_limits_when_it_is_strict():
    answer = _model().capacity(Objectives(ttft_ms=250, tpot_ms=200))
    assert answer.limit == "ttft"
    assert answer.at_capacity.ttft_s == pytest.approx(0.250, rel=0.02)


def test_without_objectives_throughput_limits():
    answer = _model().capacity(Objectives())
    assert answer.limit == "throughput"
    assert 0.8 < answer.requests_per_second / answer.saturation_requests_per_second <= 1.0


def test_an_objective_faster_than_a_single_step_cannot_be_met():
    answer = _model().capacity(Objectives(tpot_ms=5))
    assert (answer.requests_per_second, answer.limit) == (0.0, "nothing fits")


def test_little_kv_room_limits_running_sequences():
    small = _model(kv_cache_tokens=20_000)
    assert small.kv_limited
    assert small.max_running_sequences < 20_000 / (1024 + 128)
    answer = small.capacity(Objectives(ttft_ms=5000, tpot_ms=200))
    assert answer.requests_per_second < _model().capacity(Objectives(ttft_ms=5000, tpot_ms=200)).requests_per_second


def test_a_request_larger_than_the_cache_is_refused():
    with pytest.raises(FleetError, match=r"kv_cache_tokens: 1000 hold no request of 1024 \+ 256 tokens"):
        _model(kv_cache_tokens=1000)
    with pytest.raises(FleetError, match="prompt_tokens: must be 1 or more, got 0"):
        _model(prompt_tokens=0)


def test_peak_batch_yields_more_tokens_than_a_tenth_of_it():
    batch, rate = _model().throughput_peak()
    assert batch > 100
    assert rate > 1.5 * batch / 10 / SPEED.decode_step(batch / 10, 1152).seconds


# p95 as `fleet.simulation` gives it (20,000 requests, fixed lengths, seed 0): prompt and output tokens, KV tokens,
# max_num_batched_tokens, quantization, rate, TPOT s, TTFT s.
SIMULATED = [
    (1024, 256, 200_000, 2048, None, 2.45, 0.0381, 0.232),
    (1024, 256, 200_000, 2048, None, 4.6, 0.0655, 0.365),
    (128, 128, 200_000, 2048, None, 26.8, 0.0377, 0.118),
    (4096, 256, 200_000, 2048, None, 0.66, 0.0453, 0.733),
    (2048, 256, 250_000, 8192, "fp8", 2.41, 0.0396, 0.332),
    (4096, 1024, 250_000, 2048, "fp8", 0.43, 0.0392, 0.490),
    (256, 1024, 250_000, 2048, "fp8", 2.87, 0.0346, 0.105),
    (512, 64, 250_000, 2048, "fp8", 11.0, 0.0230, 0.108),
    (8192, 256, 250_000, 2048, "fp8", 0.41, 0.0387, 1.073),
]


@pytest.mark.parametrize("case", SIMULATED)
def test_simulated_times_are_met(case):
    prompt, output, kv, budget, quantization, rate, tpot_s, ttft_s = case
    speed = SpeedModel(LLAMA, L40S, EngineOptions(max_num_batched_tokens=budget, quantization=quantization))
    load = _model(prompt, output, kv, speed).load(rate, Objectives())
    assert load.tpot_s == pytest.approx(tpot_s, rel=0.08)
    assert load.ttft_s == pytest.approx(ttft_s, rel=0.10)


def test_queue_of_equal_services():
    # M/D/1 at load 0.5: the mean wait is half a service; Crommelin's table gives P(W = 0) = 0.5.
    assert deterministic_queue_wait(0.5, 1.0, 0.5) == 0.0
    assert 1.5 < deterministic_queue_wait(0.5, 1.0, 0.95) < 2.5
    assert deterministic_queue_wait(1.0, 1.0, 0.95) == float("inf")
