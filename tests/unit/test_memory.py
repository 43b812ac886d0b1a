from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fleet.eagle_head import eagle3_facts
from fleet.engine_options import EngineOptions, LoraOptions, SpeculativeOptions, options_from_engine_args
from fleet.errors import FleetError
from fleet.hardware import gpu_by_name
from fleet.memory import estimate_memory
from fleet.model import facts_from_config
from model_configs import config, facts, measured_cases, measured_drafting_cases, measured_ranks

GIB = 1024**3
L40S = gpu_by_name("L40S", where="test")
H100 = gpu_by_name("H100", where="test")


@pytest.mark.parametrize("case", measured_cases(), ids=lambda case: case["case"])
def test_agrees_with_what_real_vllm_measured(case):
    """Issue 3: weights within 1 %, tokens within 2 % and never more than 1 % over. We ask for half of that."""
    model = facts_from_config(case["model_config"], where=case["case"])
    kernel = "machete" if case.get("kernel", "").startswith("Machete") else "marlin"
    options = options_from_engine_args(
        {**case["engine_args"], "engine_version": "0.24.0", "weight_kernel": kernel}, where="engine_args"
    )
    estimate = estimate_memory(model, H100, options, budget_bytes=case["budget_bytes"])
    measured = case["measured"]

    assert estimate.weights_bytes == pytest.approx(measured["weights_bytes"], rel=0.005)
    assert estimate.activation_bytes == pytest.approx(measured["peak_activation_bytes"], rel=0.005)
    assert -0.01 <= estimate.kv_cache_tokens / measured["kv_cache_tokens"] - 1 <= 0.005
    assert estimate.block_size == measured["block_size"]
    assert estimate.kv_cache_tokens_planned < measured["kv_cache_tokens"]


def _layouts():
    return [
        pytest.param(case, layout, id=f"{case['case']} {layout['layout']} {case['budget_bytes'] / 1e9:.1f} GB")
        for case in measured_ranks()["memory"]
        for layout in case["layouts"]
    ]


@pytest.mark.parametrize(("case", "layout"), _layouts())
def test_every_rank_agrees_with_what_real_vllm_measured(case, layout):
    """Issue 8: tokens within 2 %. The ranks shared one GPU over gloo: what NCCL holds is planned but was not there."""
    tensor, pipeline = map(int, layout["layout"].split("x"))
    model = facts_from_config(case["model_config"], where=case["case"])
    options = options_from_engine_args(
        {
            **case["engine_args"],
            "engine_version": "0.24.0",
            "weight_kernel": "marlin",
            "tensor_parallel_size": tensor,
            "pipeline_parallel_size": pipeline,
        },
        where="engine_args",
    )
    gpu = gpu_by_name("H200", where="test")
    estimate = estimate_memory(model, gpu, options, budget_bytes=case["budget_bytes"])
    tokens = layout["num_gpu_blocks"] * layout["block_size"]

    assert len(layout["ranks"]) == tensor * pipeline
    for measured in layout["ranks"]:
        rank = estimate.ranks[measured["rank"]]
        assert rank.weights_bytes == pytest.approx(measured["weights_bytes"], rel=0.002)
        not_over_nccl = measured["available_kv_cache_bytes"] - (rank.non_torch_bytes - measured["non_torch_bytes"])
        assert rank.available_kv_cache_bytes == pytest.approx(not_over_nccl, abs=0.003 * case["budget_bytes"])
    assert -0.02 <= estimate.kv_cache_tokens / tokens - 1 <= 0.005
    assert estimate.kv_cache_tokens_planned < tokens


@pytest.mark.parametrize("case", measured_drafting_cases(), ids=lambda case: case["case"])
def test_drafts_and_adapters_agree_with_what_real_vllm_measured(case):
    """Tokens as above. An EAGLE3 head of random weights shares the model's output layer, which a real one brings."""
    model = facts_from_config(case["model_config"], where=case["case"])
    options = options_from_engine_args({**case["engine_args"], "engine_version": "0.24.0"}, where="engine_args")
    shared_bytes = 0
    if "draft_config" in case:
        config, speculative = case["draft_config"], options.speculative
        if speculative.method == "eagle3":
            draft = eagle3_facts(config, ["fc.weight"], where="draft")
            shared_bytes = config["draft_vocab_size"] * config["hidden_size"] * 2
        else:
            draft = facts_from_config(config, where="draft")
        options = replace(options, speculative=replace(speculative, model="draft", draft=draft))
    estimate = estimate_memory(model, H100, options, budget_bytes=case["budget_bytes"])
    measured = case["measured"]

    assert estimate.weights_bytes - shared_bytes == pytest.approx(measured["weights_bytes"], rel=0.005)
    assert estimate.activation_bytes == pytest.approx(measured["peak_activation_bytes"], rel=0.02)
    assert -0.01 <= estimate.kv_cache_tokens / measured["kv_cache_tokens"] - 1 <= 0.005
    assert estimate.kv_cache_tokens_planned < measured["kv_cache_tokens"]


@pytest.mark.parametrize(
    ("name", "options", "fits"),
    [
        ("llama-3-8b", EngineOptions(max_model_len=8192, gpu_memory_utilization=0.9), True),
        ("llama-3.1-8b", EngineOptions(max_model_len=32768, kv_cache_dtype="fp8"), True),
        ("llama-2-13b", EngineOptions(), True),
        ("codellama-34b", EngineOptions(quantization="awq"), True),
        ("llama-3-70b", EngineOptions(max_model_len=8192, tensor_parallel_size=2, gpu_memory_utilization=0.9), False),
        ("llama-3-70b", EngineOptions(max_model_len=4096, quantization="awq", gpu_memory_utilization=0.85), False),
    ],
)
def test_the_seeds_own_configurations(name, options, fits):
    assert estimate_memory(facts(name), L40S, options).fits is fits


def test_a_refusal_names_the_constraint_and_the_bytes():
    estimate = estimate_memory(facts("llama-3-70b"), L40S, EngineOptions(max_model_len=8192, tensor_parallel_size=2))
    assert estimate.constraint == "weights"
    assert estimate.missing_bytes > 20 * GIB
    assert "weights take" in estimate.reason


def test_fewer_bytes_than_one_request_needs_is_a_refusal_about_the_kv_cache():
    model = facts("llama-3.1-8b")
    estimate = estimate_memory(model, L40S, EngineOptions(max_model_len=131072), budget_bytes=24 * GIB)
    assert estimate.constraint == "kv_cache"
    needed = estimate_memory(
        model, L40S, EngineOptions(max_model_len=131072), budget_bytes=24 * GIB + estimate.missing_bytes
    )
    assert needed.fits
    assert not estimate_memory(
        model, L40S, EngineOptions(max_model_len=131072), budget_bytes=24 * GIB + estimate.missing_bytes - 1
    ).fits


def test_memory_given_by_hand_makes_exactly_the_blocks_that_the_engine_makes():
    """vLLM's CPU build: block size 128, 268,435,456 bytes gave 2,048 blocks, 262,144 tokens of 1,024 bytes."""
    tiny = facts_from_config(
        {
            **config("tinyllama-1.1b"),
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 256,
        },
        where="tiny",
    )
    options = EngineOptions(dtype="bfloat16", kv_cache_memory_bytes=268_435_456, block_size=128)
    estimate = estimate_memory(tiny, L40S, options)
    assert (estimate.num_gpu_blocks, estimate.kv_cache_tokens) == (2048, 262_144)
    assert estimate.kv_cache_tokens_planned == 262_144


@pytest.mark.parametrize(
    ("name", "options", "where"),
    [
        ("llama-3-8b", EngineOptions(tensor_parallel_size=3), "tensor_parallel_size"),
        ("llama-3-8b", EngineOptions(pipeline_parallel_size=33), "pipeline_parallel_size"),
        ("llama-3-8b", EngineOptions(max_model_len=100_000), "max_model_len"),
        ("llama-3-8b", EngineOptions(max_num_batched_tokens=128), "max_num_batched_tokens"),
        ("llama-3-8b", EngineOptions(quantization="nonsense"), "quantization"),
        ("deepseek-v3", EngineOptions(quantization="awq"), "quantization"),
        ("llama-3-8b", EngineOptions(engine_version="next"), "engine_version"),
        ("llama-3-8b", EngineOptions(pipeline_parallel_size=2, pipeline_layers=(30, 1)), "pipeline_layers"),
    ],
)
def test_options_that_contradict_the_model_are_errors(name, options, where):
    with pytest.raises(FleetError) as caught:
        estimate_memory(facts(name), L40S, options)
    assert caught.value.where == where


def test_a_draft_model_takes_weights_and_cache():
    target = facts("llama-3.1-8b")
    draft = SpeculativeOptions("draft_model", 5, model="draft", draft=facts("llama-3.2-1b"))
    alone = estimate_memory(target, L40S, EngineOptions(max_model_len=8192))
    both = estimate_memory(target, L40S, EngineOptions(max_model_len=8192, speculative=draft))
    assert both.weights_bytes - alone.weights_bytes == pytest.approx(2 * 1_235_814_400, rel=0.02)
    # Each token's entry grows by the draft's 16 layers of 8 heads of 64.
    assert both.ranks[0].bytes_per_block - alone.ranks[0].bytes_per_block == 16 * 16 * 8 * 128 * 2


def test_a_draft_of_another_vocabulary_is_refused():
    draft = SpeculativeOptions("draft_model", 5, model="draft", draft=facts("tinyllama-1.1b"))
    with pytest.raises(FleetError, match="vocabulary"):
        estimate_memory(facts("llama-3-8b"), L40S, EngineOptions(speculative=draft))


def test_adapters_take_room_by_rank_and_slot():
    def weights(**lora: int) -> int:
        options = EngineOptions(lora=LoraOptions(**lora) if lora else None)
        return estimate_memory(facts("llama-3-8b"), L40S, options).weights_bytes

    one = weights(max_loras=1, max_lora_rank=16) - weights()
    assert one > 0
    assert weights(max_loras=4, max_lora_rank=16) - weights() == 4 * one
    assert weights(max_loras=1, max_lora_rank=64) - weights() == 4 * one


def test_the_first_pipeline_stage_holds_the_embedding_and_the_last_the_head():
    estimate = estimate_memory(facts("llama-3-70b"), L40S, EngineOptions(quantization="fp8", pipeline_parallel_size=4))
    first, second, third, last = estimate.ranks
    assert first.weights_bytes > second.weights_bytes == third.weights_bytes
    assert last.weights_bytes > third.weights_bytes


def test_key_and_value_heads_are_replicated_beyond_their_number():
    model = facts("qwen3-30b-a3b")  # four key and value heads
    by_size = {
        size: estimate_memory(
            model, L40S, EngineOptions(max_model_len=4096, tensor_parallel_size=size), budget_bytes=40 * GIB
        )
        for size in (4, 8)
    }
    assert by_size[4].ranks[0].bytes_per_block == by_size[8].ranks[0].bytes_per_block


def test_fp8_cache_names_its_backend_and_counts_its_workspace():
    model = facts("llama-3.1-8b")
    flashinfer = estimate_memory(
        model, L40S, EngineOptions(max_model_len=8192, kv_cache_dtype="fp8", max_num_batched_tokens=32768)
    )
    triton = estimate_memory(
        model,
        L40S,
        EngineOptions(
            max_model_len=8192,
            kv_cache_dtype="fp8",
            max_num_batched_tokens=32768,
            attention_backend="TRITON_ATTN",
        ),
    )
    assert flashinfer.attention_backend == "FLASHINFER"
    assert flashinfer.attention_workspace_bytes == 32768 * 32 * 128 * 16
    assert triton.attention_workspace_bytes == 0
    assert flashinfer.kv_cache_tokens == triton.kv_cache_tokens


def test_the_card_bounds_what_the_budget_promises():
    tight = EngineOptions(max_model_len=8192, gpu_memory_utilization=1.0)
    estimate = estimate_memory(facts("llama-3-8b"), L40S, tight)
    rank = estimate.ranks[0]
    planned = estimate.num_gpu_blocks_planned * rank.bytes_per_block
    used = rank.weights_bytes + rank.activation_bytes + rank.non_torch_bytes + rank.cudagraph_bytes
    assert planned + used + rank.runner_buffers_bytes + rank.outside_bytes <= L40S.torch_visible_bytes


def test_an_unmeasured_version_takes_a_wider_margin():
    model, options = facts("llama-3-8b"), EngineOptions(max_model_len=8192)
    newer = estimate_memory(model, L40S, options)
    older = estimate_memory(model, L40S, replace(options, engine_version="0.24.0"))
    oldest = estimate_memory(model, L40S, replace(options, engine_version="0.19.1"))
    assert (older.measured, newer.measured, oldest.measured) == (True, False, False)
    assert newer.margin_bytes > older.margin_bytes
    assert oldest.margin_bytes > older.margin_bytes


def test_the_document_is_json_with_the_fields_of_the_design():
    document = estimate_memory(facts("gemma-3-4b"), L40S, EngineOptions(max_model_len=8192)).to_document()
    assert json.loads(json.dumps(document)) == json.loads(json.dumps(document))
    assert {
        "fits", "reason", "weights_bytes", "activation_bytes", "non_torch_bytes", "cudagraph_bytes",
        "attention_workspace_bytes", "margin_bytes", "available_kv_cache_bytes", "kv_cache_tokens",
        "kv_cache_tokens_planned", "max_concurrency", "max_model_len_that_fits", "ranks",
    } <= document.keys()  # fmt: skip
