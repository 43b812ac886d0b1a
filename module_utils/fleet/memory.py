"""What fits: the memory of every rank of an engine, before it is started."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from .activations import activation_bytes
from .errors import FleetError
from .kv_cache import DEFAULT_BLOCK_SIZE, KvCacheLayout, kv_cache_layout
from .quantization_config import planned_quantization
from .weights import (
    DTYPE_BYTES,
    MACHETE,
    MARLIN,
    RankWeights,
    WeightPlan,
    check_divisible,
    pipeline_split,
    rank_weights,
)

if TYPE_CHECKING:
    from .engine_options import EngineOptions
    from .hardware import GpuModel
    from .model_facts import ModelFacts
    from .quantization_config import QuantizationFacts

_MIB = 1024**2


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Memory of one rank in bytes. ``available_kv_cache_bytes`` is the expected value, before the margin."""

    pipeline_rank: int
    tensor_rank: int
    layers: int
    weights_bytes: int
    activation_bytes: int
    non_torch_bytes: int
    cudagraph_bytes: int
    attention_workspace_bytes: int
    margin_bytes: int
    available_kv_cache_bytes: int
    bytes_per_block: int


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The answer for one model, GPU and set of engine options.

    ``kv_cache_tokens`` is what the engine is expected to report; ``kv_cache_tokens_planned`` is what is left after
    the margin and what placement relies on. Byte fields are those of the tightest rank.
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
    ranks: tuple[RankMemory, ...]
    unknown: tuple[str, ...]

    def to_document(self) -> dict[str, object]:
        """A JSON object with these fields' names."""
        document = asdict(self)
        document["max_concurrency"] = round(self.max_concurrency, 4)
        return document


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
    quantization = effective_quantization(model, options)
    dtype = serving_dtype(model, options)
    stages = _stages(model, options)
    check_divisible(model, options.tensor_parallel_size, where="tensor_parallel_size")
    max_model_len = _max_model_len(model, options)
    plan = WeightPlan(
        dtype_bytes=DTYPE_BYTES[dtype],
        quantization=quantization,
        kernel=MACHETE if gpu.is_hopper else MARLIN,
        tensor_parallel_size=options.tensor_parallel_size,
        stages=stages,
    )
    budget = budget_bytes
    if budget is None:
        budget = math.ceil(gpu.torch_visible_bytes * options.gpu_memory_utilization)
    layout = _layout(model, options, stages, DTYPE_BYTES[dtype])
    ranks = tuple(
        _rank(model, options, plan, layout, budget, stage, rank)
        for stage in range(len(stages))
        for rank in range(options.tensor_parallel_size)
    )
    return _answer(model, gpu, options, layout, ranks, budget, max_model_len)


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


def serving_dtype(model: ModelFacts, options: EngineOptions) -> str:
    """The dtype of activations. ``auto`` serves 32-bit checkpoints in 16 bits, as the engine does."""
    dtype = model.native_dtype if options.dtype == "auto" else options.dtype
    if options.dtype == "auto" and dtype == "float32":
        return "float16" if model.quantization is not None and model.quantization.method == "awq" else "bfloat16"
    return dtype if dtype in DTYPE_BYTES else "bfloat16"


def _stages(model: ModelFacts, options: EngineOptions) -> tuple[int, ...]:
    size = options.pipeline_parallel_size
    layers = model.num_hidden_layers
    if size > layers:
        raise FleetError("pipeline_parallel_size", f"{size} stages for {layers} layers")
    if options.pipeline_layers is None:
        return tuple(pipeline_split(layers, size))
    if len(options.pipeline_layers) != size or sum(options.pipeline_layers) != layers:
        raise FleetError("pipeline_layers", f"must be {size} numbers that add up to {layers}")
    return options.pipeline_layers


def _max_model_len(model: ModelFacts, options: EngineOptions) -> int:
    if options.max_model_len is None:
        return model.max_position_embeddings
    if options.max_model_len > model.max_position_embeddings:
        raise FleetError(
            "max_model_len",
            f"{options.max_model_len} is above the model's max_position_embeddings {model.max_position_embeddings}",
        )
    return options.max_model_len


def version_tuple(version: str) -> tuple[int, int]:
    """Major and minor of an engine version.

    Raises:
        FleetError: not a version.
    """
    parts = version.split(".")
    if len(parts) < 2 or not (parts[0].isdigit() and parts[1].isdigit()):
        raise FleetError("engine_version", f"must be like 0.33.0, got {version!r}")
    return int(parts[0]), int(parts[1])


def _layout(model: ModelFacts, options: EngineOptions, stages: tuple[int, ...], dtype_bytes: int) -> KvCacheLayout:
    version = version_tuple(options.engine_version)
    # Up to 0.24 one step's tokens are counted, later one for every step in flight: two with async scheduling, one
    # more than the stages with pipelines (vllm/config/vllm.py, max_in_flight_tokens).
    steps = 1
    if version > (0, 24):
        steps = options.pipeline_parallel_size + 1 if options.pipeline_parallel_size > 1 else 2
    return kv_cache_layout(
        [(model, options.tensor_parallel_size)],
        block_size=options.block_size or DEFAULT_BLOCK_SIZE,
        element_bytes=1 if options.kv_cache_dtype.startswith("fp8") else dtype_bytes,
        stages=stages,
        in_flight_tokens=steps * options.max_num_batched_tokens,
        reserves_null_block=version > (0, 24),
    )


def _rank(
    model: ModelFacts,
    options: EngineOptions,
    plan: WeightPlan,
    layout: KvCacheLayout,
    budget: int,
    stage: int,
    rank: int,
) -> RankMemory:
    weights: RankWeights = rank_weights(model, plan, stage)
    activations = activation_bytes(model, options, dtype_bytes=plan.dtype_bytes, first_stage=stage == 0)
    non_torch = 230 * _MIB
    available = budget - weights.total_bytes - activations - non_torch
    return RankMemory(
        pipeline_rank=stage,
        tensor_rank=rank,
        layers=plan.stages[stage],
        weights_bytes=weights.total_bytes,
        activation_bytes=activations,
        non_torch_bytes=non_torch,
        cudagraph_bytes=0,
        attention_workspace_bytes=0,
        margin_bytes=256 * _MIB,
        available_kv_cache_bytes=available,
        bytes_per_block=layout.bytes_per_block[stage],
    )


def _answer(
    model: ModelFacts,
    gpu: GpuModel,
    options: EngineOptions,
    layout: KvCacheLayout,
    ranks: tuple[RankMemory, ...],
    budget: int,
    max_model_len: int,
) -> MemoryEstimate:
    given = options.kv_cache_memory_bytes
    expected_blocks = min((given or rank.available_kv_cache_bytes) // rank.bytes_per_block for rank in ranks)
    planned_blocks = min(
        (given or rank.available_kv_cache_bytes - rank.margin_bytes) // rank.bytes_per_block for rank in ranks
    )
    expected_blocks, planned_blocks = max(0, expected_blocks), max(0, planned_blocks)
    tightest = min(ranks, key=lambda rank: (rank.available_kv_cache_bytes // rank.bytes_per_block, rank.pipeline_rank))
    needed = layout.blocks_per_request(max_model_len) + (1 if layout.reserves_null_block else 0)
    missing = max(
        0, *(needed * r.bytes_per_block - (given or r.available_kv_cache_bytes - r.margin_bytes) for r in ranks)
    )
    fits = missing == 0
    longest = layout.longest_model_len(planned_blocks, model.max_position_embeddings)
    reason = "fits"
    if not fits:
        reason = f"{missing / 2**30:.2f} GiB short of one request of {max_model_len} tokens"
    return MemoryEstimate(
        fits=fits,
        reason=reason,
        constraint=None if fits else "kv_cache_memory",
        missing_bytes=missing,
        total_bytes=gpu.torch_visible_bytes,
        budget_bytes=budget,
        weights_bytes=tightest.weights_bytes,
        activation_bytes=tightest.activation_bytes,
        non_torch_bytes=tightest.non_torch_bytes,
        cudagraph_bytes=tightest.cudagraph_bytes,
        attention_workspace_bytes=tightest.attention_workspace_bytes,
        margin_bytes=tightest.margin_bytes,
        available_kv_cache_bytes=given or tightest.available_kv_cache_bytes,
        block_size=layout.block_size,
        num_gpu_blocks=expected_blocks,
        num_gpu_blocks_planned=planned_blocks,
        kv_cache_tokens=layout.tokens(expected_blocks, max_model_len),
        kv_cache_tokens_planned=layout.tokens(planned_blocks, max_model_len),
        max_model_len=max_model_len,
        max_concurrency=planned_blocks / layout.blocks_per_request(max_model_len),
        max_model_len_that_fits=longest,
        attention_backend=options.attention_backend or "FLASH_ATTN",
        engine_version=options.engine_version,
        ranks=ranks,
        unknown=model.unknown,
    )


def with_max_model_len(options: EngineOptions, max_model_len: int) -> EngineOptions:
    """The same options at another context length."""
    return replace(options, max_model_len=max_model_len)
