"""Bytes of weights on each rank, as the engine holds them after loading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import FleetError

if TYPE_CHECKING:
    from .engine_options import LoraOptions
    from .model_facts import ExpertsModule, LayerFacts, LinearModule, ModelFacts
    from .quantization_config import QuantizationFacts

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
VOCABULARY_PADDING = 64  # vLLM: vocab_parallel_embedding.DEFAULT_VOCAB_PADDING_SIZE
_KIB = 1024
_MIB = 1024**2
# PyTorch's caching allocator (CUDACachingAllocator: kMinBlockSize, kSmallSize, kMinLargeAlloc, kRoundLarge), and the
# limit that vLLM sets while it loads (gpu_worker.py, _scoped_allocator_max_split): larger blocks are never split.
_BLOCK = 512
_SMALL = _MIB
_LARGE = 10 * _MIB
_SEGMENT = 2 * _MIB
_MAX_SPLIT = 20 * _MIB


@dataclass(frozen=True, slots=True)
class WeightKernel:
    """How an engine version on a GPU stores quantized weights.

    ``zero_point_bits`` of INT4: Marlin packs them to 4 bits, Hopper's Machete widens them to 16. ``slack_bytes`` is
    what one layer loses when repacked tensors take larger blocks that others left: measured 0.7 MiB (Marlin, 70B), 0.5
    to 1.2 MiB (Machete, 8B to 70B).
    """

    name: str
    zero_point_bits: int
    slack_bytes: int


MARLIN = WeightKernel("Marlin", 4, 720 * _KIB)
MACHETE = WeightKernel("Machete", 16, 1232 * _KIB)
# Online FP8 frees the 16-bit weights layer by layer: measured 1.0 MiB a layer on the 8B.
_ONLINE_SLACK_BYTES = _MIB


def allocated_bytes(size: int) -> int:
    """What PyTorch's allocator counts for a lasting tensor of ``size`` bytes.

    Sizes are rounded to 512 bytes. From 10 MiB on a tensor gets segments of 2 MiB, whose rest is split off for others
    only when it is more than 1 MiB and the segment is not above 20 MiB.
    """
    rounded = -(-size // _BLOCK) * _BLOCK
    if rounded < _LARGE:
        return rounded
    segments = -(-rounded // _SEGMENT) * _SEGMENT
    return segments if segments > _MAX_SPLIT or segments - rounded <= _SMALL else rounded


def pipeline_split(layers: int, stages: int) -> list[int]:
    """Layers of each pipeline stage, as vLLM's ``get_pp_indices``: the rest goes to the later stages but the last."""
    split = [layers // stages] * stages
    for position in range(2, layers % stages + 2):
        split[-position] += 1
    return split


def shard_sizes(module: LinearModule, layer: LayerFacts, tensor_parallel_size: int) -> tuple[int, int]:
    """Input and output elements of one rank's part. Fewer key-value heads than ranks are replicated."""
    size = tensor_parallel_size
    if module.sharding == "row":
        return module.input_size // size, module.output_size
    if module.sharding == "column":
        return module.input_size, sum(part // size for part in module.output_sizes)
    if module.sharding == "qkv":
        kv_heads = layer.attention.num_kv_heads
        query, key, value = module.output_sizes
        factor = max(1, kv_heads // size)
        return module.input_size, query // size + factor * (key + value) // kv_heads
    return module.input_size, module.output_size


def linear_tensors(
    inputs: int, outputs: int, dtype_bytes: int, quantization: QuantizationFacts | None, kernel: WeightKernel
) -> list[int]:
    """Bytes of each tensor that holds a matrix of ``inputs`` x ``outputs``: packed weights, scales, zero points."""
    elements = inputs * outputs
    if quantization is None:
        return [elements * dtype_bytes]
    group = quantization.group_size
    match quantization.weight_format:
        case "int4" | "int8" if quantization.activation_bits is None:
            groups = -(-inputs // group) if group > 0 else 1
            tensors = [elements * quantization.weight_bits // 8, groups * outputs * dtype_bytes]
            if quantization.zero_points:
                bits = max(kernel.zero_point_bits, quantization.weight_bits)
                tensors.append(groups * outputs * bits // 8)
            if quantization.act_order:
                tensors += [inputs * 4, inputs * 4]
            return tensors
        case "fp8_block":
            rows, columns = quantization.block_shape or (128, 128)
            return [elements, -(-outputs // rows) * -(-inputs // columns) * 4]
        case "mxfp4":
            return [elements // 2, elements // 32]
        case _:
            return [elements, 4 if group == 0 else outputs * 4]


@dataclass(frozen=True, slots=True)
class RankWeights:
    """Weights of one rank in bytes, by what they are."""

    layers_bytes: int
    embedding_bytes: int
    head_bytes: int
    other_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.layers_bytes + self.embedding_bytes + self.head_bytes + self.other_bytes


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """How the weights are held: serving dtype, quantization, kernel, parallel sizes."""

    dtype_bytes: int
    quantization: QuantizationFacts | None
    kernel: WeightKernel
    hopper: bool
    tensor_parallel_size: int
    stages: tuple[int, ...]


def check_divisible(model: ModelFacts, tensor_parallel_size: int, *, where: str) -> None:
    """Apply the engine's own conditions on tensor parallelism.

    Raises:
        FleetError: a dimension that has to be split is not divisible.
    """
    size = tensor_parallel_size
    for kind in model.layer_kinds:
        heads = kind.attention.num_heads
        if heads % size:
            raise FleetError(where, f"{size} does not divide the {heads} attention heads of {model.architecture}")
        kv_heads = kind.attention.num_kv_heads
        if kind.attention.kind != "mla" and kv_heads % size and size % kv_heads:
            raise FleetError(where, f"{size} and the {kv_heads} key-value heads do not divide one another")
        for module in kind.modules:
            parts = (module.input_size,) if module.sharding == "row" else module.output_sizes
            if module.sharding in ("row", "column") and any(part % size for part in parts):
                raise FleetError(where, f"{size} does not divide {module.name} ({', '.join(map(str, parts))})")
        if kind.experts is not None and kind.experts.intermediate_size % size:
            raise FleetError(where, f"{size} does not divide the experts' size {kind.experts.intermediate_size}")


def rank_weights(model: ModelFacts, plan: WeightPlan, stage: int) -> RankWeights:
    """Weights of one tensor-parallel rank of pipeline stage ``stage``."""
    first = sum(plan.stages[:stage])
    last_stage = stage == len(plan.stages) - 1
    layers = sum(_layer_bytes(kind, plan) * count for kind, count in model.layers(first, first + plan.stages[stage]))
    vocabulary = _padded_vocabulary_bytes(model, plan)
    has_embedding = (stage == 0 or (last_stage and model.tie_word_embeddings)) and not model.shares_embedding
    has_head = last_stage and model.has_lm_head and not model.tie_word_embeddings
    return RankWeights(
        layers_bytes=layers,
        embedding_bytes=vocabulary if has_embedding else 0,
        head_bytes=vocabulary if has_head else 0,
        other_bytes=_other_bytes(model, plan, last_stage=last_stage),
    )


def _padded_vocabulary_bytes(model: ModelFacts, plan: WeightPlan) -> int:
    padded = -(-model.vocab_size // VOCABULARY_PADDING) * VOCABULARY_PADDING
    return allocated_bytes(padded // plan.tensor_parallel_size * model.hidden_size * plan.dtype_bytes)


def _layer_bytes(layer: LayerFacts, plan: WeightPlan) -> int:
    total = 0
    for module in layer.modules:
        inputs, outputs = shard_sizes(module, layer, plan.tensor_parallel_size)
        quantization = module_quantization(module, plan.quantization)
        tensors = linear_tensors(inputs, outputs, plan.dtype_bytes, quantization, plan.kernel)
        if module.bias:
            tensors.append(outputs * plan.dtype_bytes)
        if quantization is not None and module.name == "self_attn.kv_b_proj":
            # MLA absorbs this product into the query and output: the engine keeps it in full precision besides.
            tensors.append(inputs * outputs * plan.dtype_bytes)
        total += sum(map(allocated_bytes, tensors))
    if layer.experts is not None:
        total += sum(map(allocated_bytes, _expert_tensors(layer.experts, plan)))
    total += layer.norm_parameters * plan.dtype_bytes + layer.float32_parameters * 4
    total += layer.sharded_parameters // plan.tensor_parallel_size * plan.dtype_bytes
    # The attention layer keeps four scalars (query, key, value and probability scale), each in a block of its own.
    return total + 4 * _BLOCK + _slack_bytes(plan)


def module_quantization(module: LinearModule, quantization: QuantizationFacts | None) -> QuantizationFacts | None:
    """The quantization of one linear module, None where it stays in full precision. MXFP4 is for experts only."""
    if quantization is None or not module.quantizable or quantization.weight_format == "mxfp4":
        return None
    return None if quantization.skips(module.checkpoint_names) else quantization


def _slack_bytes(plan: WeightPlan) -> int:
    if plan.quantization is None:
        return 0
    if plan.quantization.weight_format == "int4":
        return plan.kernel.slack_bytes
    return _ONLINE_SLACK_BYTES if plan.quantization.online else 0


def _expert_tensors(experts: ExpertsModule, plan: WeightPlan) -> list[int]:
    width, hidden = experts.intermediate_size // plan.tensor_parallel_size, experts.hidden_size
    quantization = plan.quantization
    mxfp4 = quantization is not None and quantization.weight_format == "mxfp4"
    if mxfp4 and not plan.hopper:
        # Marlin's tiles (oracle/mxfp4.py, mxfp4_round_up_hidden_size_and_intermediate_size).
        width, hidden = -(-width // 128) * 128, -(-hidden // 256) * 256
    tensors: list[int] = []
    for inputs, outputs in ((hidden, 2 * width), (width, hidden)):
        sizes = linear_tensors(inputs, outputs, plan.dtype_bytes, quantization, plan.kernel)
        if mxfp4 and plan.hopper:
            # Hopper's kernels read a swizzled copy of the scales; the loaded one stays.
            sizes.append(sizes[1])
        if experts.bias:
            sizes.append(outputs * (4 if mxfp4 and plan.hopper else plan.dtype_bytes))
        if quantization is not None and quantization.method == "gptq":
            sizes.append(-(-inputs // max(1, quantization.group_size)) * outputs * plan.dtype_bytes // 8)
        tensors += [experts.num_experts * size for size in sizes]
    return tensors


def lora_bytes(model: ModelFacts, layers: tuple[int, int], lora: LoraOptions, plan: WeightPlan) -> int:
    """Room for adapters on layers ``start`` to ``stop - 1`` and on what the stage has beside: stacked A and B per slot.

    The embedding and the head get it too, whatever the adapters change, and whole on every rank
    (vllm/lora/layers/vocab_parallel_embedding.py and logits_processor.py).
    """
    of_vocabulary = model.vocab_size + model.hidden_size
    per_rank = of_vocabulary if layers[0] == 0 else 0
    if layers[1] == model.num_hidden_layers and model.has_lm_head:
        per_rank += of_vocabulary
    for kind, count in model.layers(*layers):
        for module in kind.modules:
            if not module.quantizable:
                continue
            inputs, outputs = shard_sizes(module, kind, plan.tensor_parallel_size)
            per_rank += count * (len(module.output_sizes) * inputs + outputs)
    return per_rank * lora.max_lora_rank * lora.max_loras * plan.dtype_bytes


def _other_bytes(model: ModelFacts, plan: WeightPlan, *, last_stage: bool) -> int:
    rotary = sum(allocated_bytes(rows * columns * plan.dtype_bytes) for rows, columns in model.rotary_caches)
    norm = model.final_norm_parameters * plan.dtype_bytes if last_stage else 0
    encoder = model.encoder.parameters * plan.dtype_bytes if model.encoder else 0
    return rotary + norm + encoder
