"""What must hold for every model, precision, parallel size and budget."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from fleet.engine_options import EngineOptions
from fleet.errors import FleetError
from fleet.hardware import gpu_by_name
from fleet.memory import MemoryEstimate, estimate_memory, pipeline_stages
from fleet.model import facts_from_config
from fleet.weights import MARLIN, WeightPlan, check_divisible, rank_weights
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

CONFIGS = Path(__file__).resolve().parent.parent / "data" / "model_configs"
MODELS = {
    path.stem: facts_from_config(json.loads(path.read_text()), where=path.name) for path in CONFIGS.glob("*.json")
}
FULL_PRECISION = sorted(name for name, model in MODELS.items() if model.quantization is None)
L40S = gpu_by_name("L40S", where="test")
GIB = 1024**3

RELAXED = settings(deadline=None, max_examples=150)  # the machine is shared: a slow moment is no failure

names = st.sampled_from(sorted(MODELS))
options_of_any_kind = st.builds(
    EngineOptions,
    quantization=st.sampled_from([None, "fp8", "int8", "awq", "gptq"]),
    kv_cache_dtype=st.sampled_from(["auto", "fp8"]),
    max_model_len=st.integers(min_value=16, max_value=2048),
    max_num_seqs=st.sampled_from([1, 16, 128, 256]),
    max_num_batched_tokens=st.sampled_from([256, 2048, 8192]),
    tensor_parallel_size=st.sampled_from([1, 2, 4, 8]),
    pipeline_parallel_size=st.sampled_from([1, 2, 3, 4]),
    enforce_eager=st.booleans(),
    engine_version=st.sampled_from(["0.24.0", "0.33.0"]),
)
# Sixteen tokens hold no image; with a longer context the encoder is given room for a large one.
IMAGES_GROW_WITH_THE_CONTEXT = EngineOptions(
    quantization="awq",
    max_model_len=16,
    max_num_seqs=1,
    max_num_batched_tokens=256,
    tensor_parallel_size=4,
    pipeline_parallel_size=3,
    engine_version="0.24.0",
)
budgets = st.integers(min_value=1 * GIB, max_value=L40S.torch_visible_bytes)


def estimate(name: str, options: EngineOptions, budget: int | None = None) -> MemoryEstimate:
    model = MODELS[name]
    if model.quantization is not None:
        options = replace(options, quantization=None)
    try:
        return estimate_memory(model, L40S, options, budget_bytes=budget)
    except FleetError:
        assume(False)
        raise


@RELAXED
@given(names, options_of_any_kind, budgets, budgets)
def test_more_memory_never_fits_fewer_tokens(name, options, one, other):
    small, large = (estimate(name, options, budget) for budget in sorted((one, other)))
    assert small.kv_cache_tokens <= large.kv_cache_tokens
    assert small.kv_cache_tokens_planned <= large.kv_cache_tokens or large.budget_bytes > L40S.torch_visible_bytes
    assert small.fits <= large.fits or large.budget_bytes + large.ranks[0].outside_bytes > L40S.torch_visible_bytes


@RELAXED
@given(names, options_of_any_kind, budgets, st.integers(16, 2048))
def test_more_context_never_fits_more_sequences(name, options, budget, other_length):
    short, long = sorted((options.max_model_len, other_length))
    few = estimate(name, replace(options, max_model_len=long), budget)
    many = estimate(name, replace(options, max_model_len=short), budget)
    assert few.max_concurrency <= many.max_concurrency
    assert few.fits <= many.fits


@RELAXED
@given(st.sampled_from(FULL_PRECISION), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 3, 4]))
def test_tensor_and_pipeline_parallelism_conserve_weights(name, tensor_size, pipeline_size):
    """All ranks together hold the model once, besides what is replicated by design, which is small."""
    model = MODELS[name]
    options = EngineOptions(tensor_parallel_size=tensor_size, pipeline_parallel_size=pipeline_size)
    try:
        check_divisible(model, tensor_size, where="tensor_parallel_size")
    except FleetError:
        assume(False)

    def total(tensor: int, stages: tuple[int, ...]) -> int:
        plan = WeightPlan(2, None, MARLIN, hopper=False, tensor_parallel_size=tensor, stages=stages)
        return tensor * sum(rank_weights(model, plan, stage).total_bytes for stage in range(len(stages)))

    whole = total(1, (model.num_hidden_layers,))
    split = total(tensor_size, pipeline_stages(model, options))
    kv_heads = model.num_key_value_heads
    replicated = tensor_size * pipeline_size * (0.01 * whole + 40 * 1024**2)
    replicated += tensor_size * pipeline_size * sum(rows * columns * 2 for rows, columns in model.rotary_caches)
    if model.encoder is not None:
        replicated += tensor_size * pipeline_size * model.encoder.parameters * 2
    if tensor_size > kv_heads or model.layer_kinds[0].attention.kind == "mla":
        replicated += tensor_size * 0.1 * whole
    if model.tie_word_embeddings and pipeline_size > 1:
        replicated += model.embedding_parameters * 2
    assert whole * 0.999 - 4096 <= split <= whole + replicated


@RELAXED
@given(st.sampled_from(FULL_PRECISION), options_of_any_kind)
def test_fp8_cache_holds_twice_the_tokens(name, options):
    plain = estimate(name, replace(options, kv_cache_dtype="auto", attention_backend="TRITON_ATTN"))
    halved = estimate(name, replace(options, kv_cache_dtype="fp8", attention_backend="TRITON_ATTN"))
    assume(plain.num_gpu_blocks >= 20)
    assert 1.9 <= halved.kv_cache_tokens / plain.kv_cache_tokens <= 2.1
    assert halved.num_gpu_blocks in (2 * plain.num_gpu_blocks, 2 * plain.num_gpu_blocks + 1)


@RELAXED
@given(names, options_of_any_kind, st.one_of(st.none(), budgets), st.floats(0.1, 1.0))
def test_nothing_planned_exceeds_the_card(name, options, budget, utilization):
    answer = estimate(name, replace(options, gpu_memory_utilization=utilization), budget)
    assume(answer.fits)
    for rank in answer.ranks:
        planned = answer.num_gpu_blocks_planned * rank.bytes_per_block
        inside = rank.weights_bytes + rank.activation_bytes + rank.non_torch_bytes + rank.cudagraph_bytes
        assert planned + inside + rank.runner_buffers_bytes + rank.margin_bytes <= answer.budget_bytes
        assert planned + inside + rank.runner_buffers_bytes + rank.outside_bytes <= L40S.torch_visible_bytes


@RELAXED
@given(names, options_of_any_kind, budgets)
@example("qwen2.5-vl-7b", IMAGES_GROW_WITH_THE_CONTEXT, 5_191_300_364)
def test_the_longest_context_that_is_offered_fits(name, options, budget):
    answer = estimate(name, options, budget)
    longest = answer.max_model_len_that_fits
    assume(longest > 0)
    assert estimate(name, replace(options, max_model_len=longest), budget).fits


@RELAXED
@given(names, options_of_any_kind)
def test_what_is_planned_is_below_what_is_expected(name, options):
    answer = estimate(name, options)
    assert answer.kv_cache_tokens_planned <= answer.kv_cache_tokens
    assert min(rank.margin_bytes for rank in answer.ranks) > 0
