from __future__ import annotations

import pytest
from fleet.alternatives import nearest_changes
from fleet.engine_options import EngineOptions
from fleet.errors import FleetError
from fleet.guide import guide_rows
from fleet.hardware import gpu_by_name
from fleet.memory import estimate_memory
from fleet.model import facts_from_config
from fleet.quantization import batch_sweet_spot, choose_precision
from model_configs import config, facts

L40S = gpu_by_name("L40S", where="test")


def test_full_precision_where_it_fits():
    choice = choose_precision(facts("llama-3-8b"), L40S, EngineOptions(max_model_len=8192))
    assert (choice.quantization, choice.kv_cache_dtype) == ("none", "auto")


def test_the_70b_on_one_card_is_int4_and_says_why_not_more_faithful():
    options = EngineOptions(max_model_len=4096, gpu_memory_utilization=0.95)
    choice = choose_precision(facts("llama-3-70b"), L40S, options)
    assert choice.quantization == "awq"
    assert choice.estimate.fits
    reasons = choice.reasons()
    assert "awq" in reasons[0]
    assert any(reason.startswith("none with auto") and "weights take" in reason for reason in reasons)
    assert any(reason.startswith("fp8 with auto") for reason in reasons)


def test_fp8_cache_is_tried_before_weights_are_quantized():
    choice = choose_precision(facts("llama-2-13b"), L40S, EngineOptions(), sequences=7)
    assert (choice.quantization, choice.kv_cache_dtype) == ("none", "fp8")
    assert choice.options.attention_backend == "TRITON_ATTN"


def test_the_user_can_forbid_and_force():
    model, options = facts("llama-3-70b"), EngineOptions(max_model_len=4096, tensor_parallel_size=2)
    assert choose_precision(model, L40S, options).quantization == "fp8"
    assert choose_precision(model, L40S, options, forbidden=("fp8", "int8")).quantization == "awq"
    assert choose_precision(model, L40S, options, quantization="int8").quantization == "int8"
    assert choose_precision(model, L40S, options, quantization="none").quantization is None


def test_objectives_can_rule_a_precision_out():
    choice = choose_precision(
        facts("llama-3-8b"),
        L40S,
        EngineOptions(max_model_len=8192),
        accept=lambda options, _: None if options.quantization == "fp8" else "too slow",
    )
    assert choice.quantization == "fp8"
    assert choice.alternatives[0].why_not == "too slow"


def test_a_quantized_checkpoint_is_taken_as_it_is():
    quantized = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
    model = facts_from_config(config("llama-3-8b", quantization_config=quantized), where="config.json")
    choice = choose_precision(model, L40S, EngineOptions(max_model_len=8192))
    assert choice.quantization == "awq"
    assert choice.options.quantization is None
    with pytest.raises(FleetError, match="is forced"):
        choose_precision(model, L40S, EngineOptions(max_model_len=8192), quantization="fp8")


def test_the_sweet_spot_comes_from_room_and_objectives():
    estimate = estimate_memory(facts("llama-3-8b"), L40S, EngineOptions(max_model_len=8192))
    room = estimate.kv_cache_tokens_planned // 1280
    assert batch_sweet_spot(estimate, tokens_per_request=1280) == room // 8 * 8
    assert batch_sweet_spot(estimate, tokens_per_request=1280, meets_objectives=lambda batch: batch <= 45) == 40
    assert batch_sweet_spot(estimate, tokens_per_request=1280, meets_objectives=lambda batch: batch <= 3) == 3
    assert batch_sweet_spot(estimate, tokens_per_request=10**9) == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama-3-70b", EngineOptions(max_model_len=8192, tensor_parallel_size=2, gpu_memory_utilization=0.9)),
        ("llama-3-70b", EngineOptions(max_model_len=4096, quantization="awq", gpu_memory_utilization=0.85)),
        ("codellama-34b", EngineOptions()),
        ("gemma-3-27b-text", EngineOptions(max_model_len=131072)),
        ("deepseek-v3", EngineOptions(tensor_parallel_size=8)),
    ],
)
def test_every_suggestion_works(name, options):
    assert not estimate_memory(facts(name), L40S, options).fits
    for change in nearest_changes(facts(name), L40S, options):
        assert estimate_memory(facts(name), L40S, change.options).fits


def test_the_guide_has_a_row_a_size_whose_strategy_starts():
    rows = guide_rows(L40S)
    assert [row.size for row in rows] == ["7B", "13B", "34B", "70B", "180B"]
    assert [row.parameters for row in rows] == [
        6_738_415_616, 13_015_864_320, 33_743_970_304, 70_553_706_496, 178_557_088_768,
    ]  # fmt: skip
    assert all(row.concurrency >= 4 for row in rows)
    assert [bool(row.differs_because) for row in rows] == [False, False, True, True, True]
