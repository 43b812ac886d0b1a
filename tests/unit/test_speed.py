"""The speed model against measured sweeps, and the physics that it must not lose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from fleet.engine_options import EngineOptions, SpeculativeOptions, options_from_engine_args
from fleet.errors import FleetError
from fleet.hardware import gpu_by_name
from fleet.model import facts_from_config
from fleet.speculation import SpeculativeSpeed, expected_tokens_per_step
from fleet.speed import PromptChunk, SpeedModel
from fleet.speed_collectives import PCIE_LINKS, Links, measured_links
from fleet.speed_kernels import experts_touched, rounded_max
from model_configs import measured_ranks

DATA = Path(__file__).parents[1] / "data"
SWEEPS = json.loads((DATA / "speed" / "h100_sweeps.json").read_text())["cases"]
REFERENCE = json.loads((DATA / "vllm_memory_h100.json").read_text())["cases"]
CASES = {case["case"]: case for case in SWEEPS}
LLAMA = facts_from_config(CASES["8b-bf16"]["model_config"], where="8b")
QWEN_MOE = facts_from_config(CASES["qwen3-30b-a3b-bf16"]["model_config"], where="qwen")
L40S = gpu_by_name("L40S", where="test")


def _rows(case):
    name = case["case"]
    model = facts_from_config(case["model_config"], where=name)
    speed = SpeedModel(
        model, gpu_by_name("H100", where="test"), options_from_engine_args(case["engine_args"], where=name)
    )
    return [(point, speed.row(point["batch"], point["isl"])) for point in case["sweep"]]


@pytest.mark.parametrize("name", CASES)
def test_time_per_output_token_of_measured_sweeps(name):
    errors = [abs(row.tpot_ms / point["tpot_ms"] - 1) for point, row in _rows(CASES[name])]
    assert median(errors) < 0.05
    assert max(errors) < 0.12


@pytest.mark.parametrize("name", ["8b-bf16", "8b-fp8", "13b-bf16"])
def test_prefill_of_measured_sweeps(name):
    # Short batches hold what a fresh process adds to a request, which the reference sweeps do not have.
    errors = [
        abs(row.prefill_s / point["prefill_s"] - 1)
        for point, row in _rows(CASES[name])
        if point["batch"] * point["isl"] > 8192
    ]
    assert median(errors) < 0.08
    assert max(errors) < 0.15


def test_reference_sweeps_in_16_bit_and_fp8():
    """The targets of the project, on the reference that it was given."""
    rows = [pair for case in REFERENCE if case["case"] in ("8b-bf16", "8b-fp8") for pair in _rows(case)]
    decode = [abs(row.tpot_ms / point["tpot_ms"] - 1) for point, row in rows]
    prefill = [abs(row.prefill_s / point["prefill_s"] - 1) for point, row in rows]
    assert len(rows) == 14
    assert median(decode) < 0.05
    assert max(decode) < 0.12
    assert median(prefill) < 0.08
    assert max(prefill) < 0.15


@pytest.mark.parametrize("layout", measured_ranks()["shares"]["layouts"], ids=lambda layout: layout["layout"])
def test_times_of_one_ranks_share(layout):
    """Issue 8: times within 12 %, but for what links add, on an H200: no engine was fitted there.

    One prompt of 512 tokens waits for the host of that machine, not for the GPU: 9 to 25 ms in no order of size.
    """
    case = measured_ranks()["shares"]
    tensor, pipeline = map(int, layout["layout"].split("x"))
    instant = ((1.0, 1e-12), (1e9, 1e-12))
    links = Links({2: instant, 4: instant}, send_bytes_per_s=1e18, send_s=0.0)
    config = dict(case["model_config"], num_hidden_layers=case["model_config"]["num_hidden_layers"] // pipeline)
    options = options_from_engine_args(
        {**case["engine_args"], "engine_version": "0.24.0", "tensor_parallel_size": tensor}, where="engine_args"
    )
    model = facts_from_config(config, where=case["case"])
    speed = SpeedModel(model, gpu_by_name("H200", where="test"), options, links=links)
    rows = [(point, speed.row(point["batch"], 512)) for point in layout["sweep"]]

    assert max(abs(row.tpot_ms / point["tpot_ms"] - 1) for point, row in rows) < 0.12
    assert max(abs(row.prefill_s / point["prefill_s"] - 1) for point, row in rows if point["batch"] > 1) < 0.05


def test_bound_is_memory_for_one_sequence_and_compute_for_a_long_prompt():
    row = SpeedModel(LLAMA, L40S, EngineOptions()).row(1, 2048)
    assert (row.bound, row.prefill_bound) == ("memory", "compute")


def test_four_way_tensor_parallel_prefill_over_pcie_is_bound_by_links():
    row = SpeedModel(LLAMA, L40S, EngineOptions(tensor_parallel_size=4)).row(8, 2048)
    assert row.prefill_bound == "link"


def test_measured_links_replace_the_default():
    slow = measured_links({2: {8192: 1e-3, 1 << 24: 1e-1}}, where="host-1")
    options = EngineOptions(tensor_parallel_size=2)
    default = SpeedModel(LLAMA, L40S, options).decode_step(1, 100).seconds
    measured = SpeedModel(LLAMA, L40S, options, links=slow).decode_step(1, 100).seconds
    assert measured - default == pytest.approx(2 * 32 * (1e-3 - PCIE_LINKS.all_reduce_s(2, 8192)), rel=0.2)


def test_measured_links_with_one_size_are_refused():
    with pytest.raises(FleetError, match=r"host-1.2: needs two sizes or more, got 1"):
        measured_links({2: {4096: 1e-3}}, where="host-1")


def test_pipeline_divides_work_but_not_latency():
    plain = SpeedModel(LLAMA, L40S, EngineOptions()).aggregate_step(1, 1000)
    piped = SpeedModel(LLAMA, L40S, EngineOptions(pipeline_parallel_size=4)).aggregate_step(1, 1000)
    assert piped.seconds == pytest.approx(plain.seconds, rel=0.05)
    assert piped.interval_s < 0.4 * plain.interval_s


def test_a_pipeline_spreads_sequences_over_as_many_batches_as_stages():
    speed = SpeedModel(LLAMA, L40S, EngineOptions(pipeline_parallel_size=2))
    step = speed.aggregate_step(64 / 2, 1000)
    assert speed.decode_step(64, 1000).seconds == pytest.approx(max(step.seconds, 2 * step.interval_s))
    assert speed.batches_in_flight(64) == 2


def test_long_prompts_pay_for_attention_quadratically():
    speed = SpeedModel(LLAMA, L40S, EngineOptions(max_num_batched_tokens=65536, max_model_len=65536))
    whole = speed.step(0, 0, [PromptChunk(32768, 0)]).seconds
    halves = 2 * speed.step(0, 0, [PromptChunk(16384, 0)]).seconds
    assert whole > 1.15 * halves


def test_chunks_of_a_prompt_attend_to_what_came_before():
    speed = SpeedModel(LLAMA, L40S, EngineOptions())
    late = speed.step(0, 0, [PromptChunk(2048, 30000)]).seconds
    assert late > 1.3 * speed.step(0, 0, [PromptChunk(2048, 0)]).seconds


def test_sliding_window_bounds_the_cache_that_is_read():
    config = {**CASES["8b-bf16"]["model_config"], "model_type": "mistral", "sliding_window": 4096}
    windowed = SpeedModel(facts_from_config(config, where="mistral"), L40S, EngineOptions())
    assert windowed.decode_step(16, 4096).seconds == pytest.approx(windowed.decode_step(16, 15000).seconds)


def test_decode_is_padded_to_captured_batches_but_attention_is_not():
    speed = SpeedModel(QWEN_MOE, L40S, EngineOptions())
    nine, sixteen = (speed.decode_step(batch, 10).seconds for batch in (9, 16))
    assert nine == pytest.approx(sixteen, rel=0.02)
    assert speed.decode_step(17, 10).seconds > 1.02 * sixteen


def test_eager_mode_is_bound_by_launches():
    row = SpeedModel(LLAMA, gpu_by_name("H100", where="test"), EngineOptions(enforce_eager=True)).row(1, 16)
    assert row.bound == "launch" or row.tpot_ms > 32 * 0.35


@pytest.mark.parametrize(
    ("quantization", "faster"), [("fp8", (1.5, 1.8)), ("int8", (1.5, 1.8)), ("awq", (2.2, 3.0)), ("gptq", (2.2, 3.0))]
)
def test_quantization_speeds_up_decode_of_one_sequence(quantization, faster):
    plain = SpeedModel(LLAMA, L40S, EngineOptions()).row(1, 256)
    packed = SpeedModel(LLAMA, L40S, EngineOptions(quantization=quantization)).row(1, 256)
    assert faster[0] < plain.tpot_ms / packed.tpot_ms < faster[1]


def test_four_bit_weights_slow_down_prefill():
    plain = SpeedModel(LLAMA, L40S, EngineOptions()).row(8, 2048)
    packed = SpeedModel(LLAMA, L40S, EngineOptions(quantization="awq")).row(8, 2048)
    assert packed.prefill_s > 1.1 * plain.prefill_s


def test_block_fp8_is_slower_than_plain_fp8_at_large_products_on_ada():
    config = CASES["8b-bf16"]["model_config"]
    block = {**config, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    blocked = SpeedModel(facts_from_config(block, where="block"), L40S, EngineOptions()).row(8, 2048)
    plain = SpeedModel(LLAMA, L40S, EngineOptions(quantization="fp8")).row(8, 2048)
    assert blocked.prefill_s > 1.2 * plain.prefill_s


def test_fp8_kv_cache_halves_what_decode_attention_reads():
    auto, fp8 = (SpeedModel(LLAMA, L40S, EngineOptions(kv_cache_dtype=dtype)) for dtype in ("auto", "fp8"))
    growth = [speed.decode_step(64, 8000).seconds - speed.decode_step(64, 1000).seconds for speed in (auto, fp8)]
    assert growth[0] / growth[1] == pytest.approx(2.0, rel=0.05)


def test_experts_touched():
    assert experts_touched(128, 8, 1) == pytest.approx(8)
    assert experts_touched(128, 8, 16) == pytest.approx(128 * (1 - (15 / 16) ** 16))
    assert experts_touched(8, 8, 1) == 8


def test_rounded_max_lies_between_maximum_and_sum():
    assert rounded_max(3.0, 4.0, 2.0) == pytest.approx(5.0)
    assert rounded_max(3.0, 4.0, 1.0) == pytest.approx(7.0)
    assert rounded_max(0.0, 4.0, 2.0) == 4.0


def test_options_that_contradict_the_model_are_refused():
    with pytest.raises(FleetError, match="3 does not divide the 32 attention heads"):
        SpeedModel(LLAMA, L40S, EngineOptions(tensor_parallel_size=3))
    with pytest.raises(FleetError, match="33 stages for 32 layers"):
        SpeedModel(LLAMA, L40S, EngineOptions(pipeline_parallel_size=33))
    with pytest.raises(FleetError, match="no measured kernels for A100"):
        SpeedModel(LLAMA, replace(L40S, name="A100"), EngineOptions())


def test_expected_tokens_per_step():
    assert expected_tokens_per_step(0.5, 3) == pytest.approx(1 + 0.5 + 0.25 + 0.125)
    assert expected_tokens_per_step(1.0, 4) == 5
    assert expected_tokens_per_step(0.0, 4) == 1
    with pytest.raises(FleetError, match=r"acceptance_rate: must be between 0 and 1, got 1.5"):
        expected_tokens_per_step(1.5, 4)


def test_speculation_pays_while_memory_bound_and_then_stops():
    options = EngineOptions(speculative=SpeculativeOptions(method="ngram", num_speculative_tokens=4))
    speed = SpeculativeSpeed(LLAMA, L40S, options, acceptance_rate=0.3)
    assert speed.effect(1, 100).speedup > 1.3
    last = speed.pays_until_batch(100)
    assert 16 <= last < 256
    assert speed.effect(last, 100).speedup > 1 > speed.effect(256, 100).speedup


def test_a_draft_as_slow_as_the_target_never_pays():
    speculative = SpeculativeOptions(method="draft_model", num_speculative_tokens=4, draft=LLAMA)
    speed = SpeculativeSpeed(LLAMA, L40S, EngineOptions(speculative=speculative), acceptance_rate=0.8)
    assert speed.pays_until_batch(1000) == 0


def test_a_draft_model_without_facts_is_refused():
    speculative = SpeculativeOptions(method="draft_model", num_speculative_tokens=4)
    with pytest.raises(FleetError, match="needs the draft model's configuration"):
        SpeculativeSpeed(LLAMA, L40S, EngineOptions(speculative=speculative))
