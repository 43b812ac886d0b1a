"""What fits: the memory of every rank of an engine, before it is started."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from .activations import RankShape, activation_bytes, cudagraph_bytes, runner_buffers_bytes, uses_second_runner
from .drafting_memory import (
    check_drafting,
    draft_activation_bytes,
    draft_tensor_parallel_size,
    drafting_buffers_bytes,
    judged_logits_bytes,
)
from .encoder_memory import encoder_margin_bytes
from .engine_behaviour import (
    NON_TORCH_FIRST_RUNNER_BYTES,
    NON_TORCH_PER_PEER_BYTES,
    NON_TORCH_SECOND_RUNNER_BYTES,
    EngineBehaviour,
    engine_behaviour,
)
from .errors import FleetError
from .kv_cache import DEFAULT_BLOCK_SIZE, KvCacheLayout, kv_cache_layout
from .quantization_config import planned_quantization
from .weights import (
    DTYPE_BYTES,
    MACHETE,
    MARLIN,
    WeightKernel,
    WeightPlan,
    check_divisible,
    lora_bytes,
    pipeline_split,
    rank_weights,
)

if TYPE_CHECKING:
    from .engine_options import EngineOptions, SpeculativeOptions
    from .hardware import GpuModel
    from .model_facts import ModelFacts
    from .quantization_config import QuantizationFacts

_MIB = 1024**2
_GIB = 1024**3
# vllm/config/model.py, _FLOAT16_NOT_SUPPORTED_MODELS
_NO_FLOAT16 = frozenset({"gemma2", "gemma3", "gemma3_text"})
# The CUDA context and the first handles, taken before the engine's baseline: outside its budget, on the card all the
# same. 0.45 GiB is what an idle process of PyTorch with cuBLAS holds on a data-centre card.
CONTEXT_BYTES = 460 * _MIB


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Memory of one rank in bytes. ``available_kv_cache_bytes`` is the expected value, before the margin.

    ``outside_bytes`` lie on the card but not in the engine's budget: the CUDA context, the attention workspace, and
    what the engine does not see in its profile run.
    """

    pipeline_rank: int
    tensor_rank: int
    layers: int
    weights_bytes: int
    activation_bytes: int
    non_torch_bytes: int
    cudagraph_bytes: int
    attention_workspace_bytes: int
    runner_buffers_bytes: int
    outside_bytes: int
    margin_bytes: int
    available_kv_cache_bytes: int
    planned_kv_cache_bytes: int
    bytes_per_block: int


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The answer for one model, GPU and set of engine options.

    ``kv_cache_tokens`` is what the engine is expected to report; ``kv_cache_tokens_planned`` is what is left after
    the margin and what placement relies on. Byte fields are those of the tightest rank. ``missing_bytes`` is by how
    much the tightest rank falls short, 0 where it fits. ``foreign_bytes`` of the card are left to others that hold
    memory on it.
    """

    fits: bool
    reason: str
    constraint: str | None
    missing_bytes: int
    total_bytes: int
    budget_bytes: int
    weights_bytes: int
    activation_bytes: int
    non_torch_bytes: int
    cudagraph_bytes: int
    attention_workspace_bytes: int
    runner_buffers_bytes: int
    margin_bytes: int
    available_kv_cache_bytes: int
    block_size: int
    num_gpu_blocks: int
    num_gpu_blocks_planned: int
    kv_cache_tokens: int
    kv_cache_tokens_planned: int
    max_model_len: int
    max_concurrency: float
    max_model_len_that_fits: int
    attention_backend: str
    engine_version: str
    measured: bool
    ranks: tuple[RankMemory, ...]
    unknown: tuple[str, ...]
    foreign_bytes: int = 0

    def to_document(self) -> dict[str, object]:
        """A JSON object with these fields' names."""
        document = asdict(self)
        document["max_concurrency"] = round(self.max_concurrency, 4)
        if not self.foreign_bytes:
            del document["foreign_bytes"]
        return document


@dataclass(frozen=True, slots=True)
class _Demand:
    """What the engine is asked to run, once the options have been checked against the model."""

    model: ModelFacts
    gpu: GpuModel
    options: EngineOptions
    behaviour: EngineBehaviour
    plan: WeightPlan
    max_model_len: int
    budget_bytes: int


def estimate_memory(
    model: ModelFacts, gpu: GpuModel, options: EngineOptions, *, budget_bytes: int | None = None
) -> MemoryEstimate:
    """Predict what the engine finds at start.

    Args:
        model: facts of the model.
        gpu: the card. Every rank has one of these.
        options: how the engine is started.
        budget_bytes: replaces ``gpu_memory_utilization`` times the card's torch-visible total.

    Raises:
        FleetError: the options contradict the model, whatever the memory.
    """
    estimate = _evaluate(model, gpu, options, budget_bytes)
    longest = estimate.max_model_len_that_fits
    # MLA's workspace and what an encoder is given grow with the context, so that a longer one leaves fewer blocks.
    if longest <= 0 or (model.layer_kinds[0].attention.kind != "mla" and model.encoder is None):
        return estimate

    def fits(max_model_len: int) -> bool:
        return _evaluate(model, gpu, replace(options, max_model_len=max_model_len), budget_bytes).fits

    if fits(longest):
        return estimate
    shortest = min(longest, served_model_len(model, options)) if estimate.fits else 0
    while longest - shortest > 1:
        middle = (shortest + longest) // 2
        shortest, longest = (middle, longest) if fits(middle) else (shortest, middle)
    return replace(estimate, max_model_len_that_fits=shortest)


def _evaluate(model: ModelFacts, gpu: GpuModel, options: EngineOptions, budget_bytes: int | None) -> MemoryEstimate:
    dtype = serving_dtype(model, options)
    check_divisible(model, options.tensor_parallel_size, where="tensor_parallel_size")
    check_drafting(model, options)
    budget = budget_bytes
    if budget is None:
        budget = math.ceil(gpu.torch_visible_bytes * options.gpu_memory_utilization)
    demand = _Demand(
        model=model,
        gpu=gpu,
        options=options,
        behaviour=engine_behaviour(options.engine_version),
        plan=WeightPlan(
            dtype_bytes=DTYPE_BYTES[dtype],
            quantization=effective_quantization(model, options),
            kernel=_weight_kernel(gpu, options),
            hopper=gpu.is_hopper,
            tensor_parallel_size=options.tensor_parallel_size,
            stages=pipeline_stages(model, options),
        ),
        max_model_len=served_model_len(model, options),
        budget_bytes=budget,
    )
    layout = _layout(demand)
    by_stage = [_stage_memory(demand, layout, stage) for stage in range(len(demand.plan.stages))]
    return _answer(demand, layout, by_stage)


def _weight_kernel(gpu: GpuModel, options: EngineOptions) -> WeightKernel:
    if options.weight_kernel is not None:
        return MACHETE if options.weight_kernel == "machete" else MARLIN
    return MACHETE if gpu.is_hopper else MARLIN


def effective_quantization(model: ModelFacts, options: EngineOptions) -> QuantizationFacts | None:
    """The checkpoint's quantization, or else the one that the options ask for.

    Raises:
        FleetError: they contradict one another.
    """
    name = options.quantization
    if name is None:
        return model.quantization
    asked = planned_quantization(name, where="quantization")
    if model.quantization is None:
        return asked
    if model.quantization.method not in (asked.method, name):
        raise FleetError("quantization", f"{name!r} was asked for, the checkpoint is {model.quantization.method!r}")
    return model.quantization


def foreign_bytes(gpu: GpuModel) -> int:
    """What is left to others of a card on which they hold memory: all that an engine may not want at start."""
    if gpu.start_utilization is None:
        return 0
    return max(0, gpu.torch_visible_bytes - CONTEXT_BYTES - math.ceil(gpu.torch_visible_bytes * gpu.start_utilization))


def serving_dtype(model: ModelFacts, options: EngineOptions) -> str:
    """The dtype of activations. ``auto`` serves 32-bit checkpoints in 16 bits, as the engine does.

    Raises:
        FleetError: a dtype that the engine refuses for this family.
    """
    if options.dtype == "float16" and model.model_type in _NO_FLOAT16:
        raise FleetError("dtype", f"{model.model_type} is numerically unstable in float16, use bfloat16")
    if options.dtype != "auto":
        return options.dtype
    return "float16" if model.native_dtype == "float16" else "bfloat16"


def pipeline_stages(model: ModelFacts, options: EngineOptions) -> tuple[int, ...]:
    """Layers of each pipeline stage.

    Raises:
        FleetError: more stages than layers, or a given split that does not add up.
    """
    size = options.pipeline_parallel_size
    layers = model.num_hidden_layers
    if size > layers:
        raise FleetError("pipeline_parallel_size", f"{size} stages for {layers} layers")
    if options.pipeline_layers is None:
        return tuple(pipeline_split(layers, size))
    if len(options.pipeline_layers) != size or sum(options.pipeline_layers) != layers:
        raise FleetError("pipeline_layers", f"must be {size} numbers that add up to {layers}")
    return options.pipeline_layers


def served_model_len(model: ModelFacts, options: EngineOptions) -> int:
    """The context length that the engine is started with.

    Raises:
        FleetError: longer than the model's positions.
    """
    if options.max_num_batched_tokens < options.max_num_seqs:
        raise FleetError("max_num_batched_tokens", f"must be at least max_num_seqs {options.max_num_seqs}")
    if options.max_model_len is None:
        return model.max_position_embeddings
    if options.max_model_len > model.max_position_embeddings:
        raise FleetError(
            "max_model_len",
            f"{options.max_model_len} is above the model's max_position_embeddings {model.max_position_embeddings}",
        )
    return options.max_model_len


def attention_backend(model: ModelFacts, gpu: GpuModel, options: EngineOptions) -> str:
    """The backend that the engine picks on this card where the options name none."""
    if options.attention_backend is not None:
        return options.attention_backend
    attention = model.layer_kinds[0].attention
    if attention.kind == "mla":
        return "FLASH_ATTN_MLA" if gpu.is_hopper else "TRITON_MLA"
    if gpu.is_hopper:
        return "FLASH_ATTN"
    if model.layer_kinds[0].sharded_parameters or model.has_bidirectional_images:
        return "TRITON_ATTN"  # attention sinks and tokens of images that see one another: not in FlashAttention 2
    return "FLASHINFER" if options.kv_cache_dtype.startswith("fp8") else "FLASH_ATTN"


def attention_workspace_bytes(model: ModelFacts, gpu: GpuModel, options: EngineOptions) -> int:
    """What the attention backend takes outside the profile run (FlashInfer: read from 0.33's source)."""
    if attention_backend(model, gpu, options) != "FLASHINFER":
        return 0
    attention = model.layer_kinds[0].attention
    heads = attention.num_heads // options.tensor_parallel_size
    floor = engine_behaviour(options.engine_version).flashinfer_workspace_bytes
    return max(floor, options.max_num_batched_tokens * heads * attention.head_size * 16)


def _layout(demand: _Demand) -> KvCacheLayout:
    options = demand.options
    steps = 1
    if demand.behaviour.counts_batches_in_flight:
        steps = options.pipeline_parallel_size + 1 if options.pipeline_parallel_size > 1 else 2
    models = [(demand.model, options.tensor_parallel_size)]
    if options.speculative is not None and options.speculative.draft is not None:
        models.append((options.speculative.draft, draft_tensor_parallel_size(options, options.speculative)))
    return kv_cache_layout(
        tuple(models),
        block_size=options.block_size or DEFAULT_BLOCK_SIZE,
        element_bytes=1 if options.kv_cache_dtype.startswith("fp8") else demand.plan.dtype_bytes,
        stages=demand.plan.stages,
        in_flight_tokens=steps * options.max_num_batched_tokens,
        reserves_null_block=demand.behaviour.reserves_null_block,
    )


@lru_cache(maxsize=4096)
def _cached_weights(model: ModelFacts, plan: WeightPlan, stage: int) -> int:
    return rank_weights(model, plan, stage).total_bytes


def _stage_memory(demand: _Demand, layout: KvCacheLayout, stage: int) -> RankMemory:
    """Memory of each tensor-parallel rank of one stage; they are alike."""
    model, gpu, options, plan = demand.model, demand.gpu, demand.options, demand.plan
    last = stage == len(plan.stages) - 1
    weights = _cached_weights(model, plan, stage)
    if options.lora is not None:
        start = sum(plan.stages[:stage])
        weights += lora_bytes(model, (start, start + plan.stages[stage]), options.lora, plan)
    shape = RankShape(plan.dtype_bytes, plan.quantization, first_stage=stage == 0, last_stage=last)
    activations = activation_bytes(model, gpu, options, shape)
    judging = 0
    if options.speculative is not None and last:
        draft = options.speculative.draft
        if draft is not None:
            weights += _draft_weights(draft, options.speculative, demand)
        activations = max(activations, draft_activation_bytes(model, gpu, options, options.speculative, shape))
        judging = judged_logits_bytes(model, options, options.speculative, plan.dtype_bytes)
    second_runner = uses_second_runner(model, options)
    non_torch = NON_TORCH_SECOND_RUNNER_BYTES if second_runner else NON_TORCH_FIRST_RUNNER_BYTES
    non_torch += NON_TORCH_PER_PEER_BYTES * (options.world_size > 1)
    graphs = cudagraph_bytes(model, options)
    buffers = runner_buffers_bytes(model, options) if second_runner else 0
    if options.speculative is not None and last:
        buffers += drafting_buffers_bytes(model, options, options.speculative, plan.dtype_bytes)
    counted = buffers if demand.behaviour.counts_runner_buffers else 0
    workspace = attention_workspace_bytes(model, gpu, options)
    margin = demand.behaviour.margin_bytes + int(demand.behaviour.margin_of_weights * weights)
    if stage == 0:
        margin += encoder_margin_bytes(model, options, plan.dtype_bytes)
    available = demand.budget_bytes - weights - activations - non_torch - graphs - counted
    outside = CONTEXT_BYTES + workspace + buffers - counted + judging
    overflow = max(0, demand.budget_bytes + outside + foreign_bytes(gpu) - gpu.torch_visible_bytes)
    return RankMemory(
        pipeline_rank=stage,
        tensor_rank=0,
        layers=plan.stages[stage],
        weights_bytes=weights,
        activation_bytes=activations,
        non_torch_bytes=non_torch,
        cudagraph_bytes=graphs,
        attention_workspace_bytes=workspace,
        runner_buffers_bytes=counted,
        outside_bytes=outside,
        margin_bytes=margin,
        available_kv_cache_bytes=available,
        planned_kv_cache_bytes=available - margin - overflow,
        bytes_per_block=layout.bytes_per_block[stage],
    )


def _draft_weights(draft: ModelFacts, speculative: SpeculativeOptions, demand: _Demand) -> int:
    """Weights of the draft on one rank of the last stage, which alone drafts."""
    if draft.vocab_size != demand.model.vocab_size and not speculative.use_heterogeneous_vocab:
        raise FleetError(
            "speculative_config.model",
            f"the draft's vocabulary of {draft.vocab_size} is not the target's {demand.model.vocab_size}",
        )
    size = draft_tensor_parallel_size(demand.options, speculative)
    check_divisible(draft, size, where="speculative_config.draft_tensor_parallel_size")
    return _cached_weights(draft, _draft_plan(draft, size, demand), 0)


def _draft_plan(draft: ModelFacts, size: int, demand: _Demand) -> WeightPlan:
    return WeightPlan(
        dtype_bytes=demand.plan.dtype_bytes,
        quantization=draft.quantization,
        kernel=demand.plan.kernel,
        hopper=demand.plan.hopper,
        tensor_parallel_size=size,
        stages=(draft.num_hidden_layers,),
    )


def _answer(demand: _Demand, layout: KvCacheLayout, by_stage: list[RankMemory]) -> MemoryEstimate:
    options, model = demand.options, demand.model
    given = options.kv_cache_memory_bytes
    expected_blocks, planned_blocks = _blocks(given, by_stage) if model.has_kv_cache else (0, 0)
    tightest = min(by_stage, key=lambda rank: rank.planned_kv_cache_bytes / max(1, rank.bytes_per_block))
    constraint, reason, missing = _verdict(demand, layout, by_stage)
    return MemoryEstimate(
        fits=constraint is None,
        reason=reason,
        constraint=constraint,
        missing_bytes=missing,
        total_bytes=demand.gpu.torch_visible_bytes,
        budget_bytes=demand.budget_bytes,
        weights_bytes=tightest.weights_bytes,
        activation_bytes=tightest.activation_bytes,
        non_torch_bytes=tightest.non_torch_bytes,
        cudagraph_bytes=tightest.cudagraph_bytes,
        attention_workspace_bytes=tightest.attention_workspace_bytes,
        runner_buffers_bytes=tightest.runner_buffers_bytes,
        margin_bytes=tightest.margin_bytes,
        available_kv_cache_bytes=given or tightest.available_kv_cache_bytes,
        block_size=layout.block_size,
        num_gpu_blocks=expected_blocks,
        num_gpu_blocks_planned=planned_blocks,
        kv_cache_tokens=layout.tokens(expected_blocks, demand.max_model_len),
        kv_cache_tokens_planned=layout.tokens(planned_blocks, demand.max_model_len),
        max_model_len=demand.max_model_len,
        max_concurrency=planned_blocks / layout.blocks_per_request(demand.max_model_len)
        if model.has_kv_cache
        else float(sequences_in_a_batch(options, demand.max_model_len)),
        max_model_len_that_fits=layout.longest_model_len(planned_blocks, model.max_position_embeddings)
        if model.has_kv_cache
        else _longest_without_cache(demand, by_stage),
        attention_backend=attention_backend(model, demand.gpu, options),
        engine_version=options.engine_version,
        measured=demand.behaviour.measured,
        ranks=tuple(
            _with_tensor_rank(rank, index) for rank in by_stage for index in range(options.tensor_parallel_size)
        ),
        unknown=model.unknown + _notes(demand),
        foreign_bytes=foreign_bytes(demand.gpu),
    )


def _blocks(given: int | None, by_stage: list[RankMemory]) -> tuple[int, int]:
    """Blocks that the engine is expected to report, and those that are left after the margin."""
    expected = max(0, min((given or rank.available_kv_cache_bytes) // rank.bytes_per_block for rank in by_stage))
    if given is not None:
        # Memory given by hand is the engine's own number, as long as it is there at all.
        return expected, expected
    return expected, max(0, min(rank.planned_kv_cache_bytes // rank.bytes_per_block for rank in by_stage))


def sequences_in_a_batch(options: EngineOptions, tokens: int) -> int:
    """Whole sequences of so many tokens that one step takes, where nothing but the batch bounds them."""
    return max(1, min(options.max_num_seqs, options.max_num_batched_tokens // tokens))


def _notes(demand: _Demand) -> tuple[str, ...]:
    quantization = demand.plan.quantization
    if quantization is None or quantization.quantized_modules != ():
        return ()
    return (
        "a GPTQ config.json does not say which linear modules are quantized: all but routed experts are counted in "
        "full precision, as the engine does with this file alone; give the checkpoint's directory or its index",
    )


def _with_tensor_rank(rank: RankMemory, index: int) -> RankMemory:
    if index == 0:
        return rank
    return RankMemory(**{name: getattr(rank, name) for name in RankMemory.__slots__} | {"tensor_rank": index})


def _verdict(demand: _Demand, layout: KvCacheLayout, by_stage: list[RankMemory]) -> tuple[str | None, str, int]:
    """The constraint that fails first, in words, and by how many bytes; (None, "fits", 0) where none does."""
    given = demand.options.kv_cache_memory_bytes
    card = demand.gpu.torch_visible_bytes
    if demand.budget_bytes > card:
        over = demand.budget_bytes - card
        return "gpu_memory", f"the budget is {_gib(over)} more than the card's {_gib(card)}", over
    weights_short = max(r.weights_bytes + r.non_torch_bytes + r.margin_bytes - demand.budget_bytes for r in by_stage)
    if weights_short > 0:
        heaviest = max(by_stage, key=lambda r: r.weights_bytes)
        return (
            "weights",
            f"weights take {_gib(heaviest.weights_bytes)} a GPU, {_gib(weights_short)} more than the budget of "
            f"{_gib(demand.budget_bytes)} leaves",
            weights_short,
        )
    if not demand.model.has_kv_cache:
        return _verdict_without_cache(demand, by_stage)
    blocks = layout.blocks_per_request(demand.max_model_len) + int(layout.reserves_null_block)
    short = max(
        blocks * r.bytes_per_block
        - (r.planned_kv_cache_bytes if given is None else min(given, _room_for_given(demand, r)))
        for r in by_stage
    )
    if short > 0:
        return (
            "kv_cache",
            f"{_gib(short)} short of the KV cache for one request of {demand.max_model_len} tokens",
            short,
        )
    if given is not None:
        over = max(given - _room_for_given(demand, r) for r in by_stage)
        if over > 0:
            return "gpu_memory", f"kv_cache_memory_bytes is {_gib(over)} more than the card has left", over
    return None, "fits", 0


def _verdict_without_cache(demand: _Demand, by_stage: list[RankMemory]) -> tuple[str | None, str, int]:
    options = demand.options
    if options.max_num_batched_tokens < demand.max_model_len:
        tokens = options.max_num_batched_tokens
        reason = f"an encoder takes whole prompts: max_num_batched_tokens {tokens} is below {demand.max_model_len}"
        return "max_num_batched_tokens", reason, 0
    short = _short_of_activations(by_stage)
    if short <= 0:
        return None, "fits", 0
    batch = f"a batch of {options.max_num_batched_tokens} tokens"
    return "activations", f"{_gib(short)} short of the activations of {batch}", short


def _longest_without_cache(demand: _Demand, by_stage: list[RankMemory]) -> int:
    """The batch is set aside whatever the length of a prompt: either every prompt that fits into it fits, or none."""
    if _short_of_activations(by_stage) > 0:
        return 0
    return min(demand.options.max_num_batched_tokens, demand.model.max_position_embeddings)


def _short_of_activations(by_stage: list[RankMemory]) -> int:
    return max(-rank.planned_kv_cache_bytes for rank in by_stage)


def _room_for_given(demand: _Demand, rank: RankMemory) -> int:
    """With ``kv_cache_memory_bytes`` the budget does not bound the KV cache, the card does."""
    return rank.planned_kv_cache_bytes + max(
        0, demand.gpu.torch_visible_bytes - foreign_bytes(demand.gpu) - rank.outside_bytes - demand.budget_bytes
    )


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB"
