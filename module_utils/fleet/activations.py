"""Peak of the profile run: what the engine sets aside for activations, sampling and CUDA graphs.

Every term was seen in PyTorch's allocation history of vLLM 0.24.0's profile run (tests/bench/measure_vllm_memory.py
with ``trace``). T is ``max_num_batched_tokens``, S ``min(T, max_num_seqs)`` sampled rows, h the hidden size, I the
width of the MLP on one rank, V the padded vocabulary on one rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .encoder_memory import encoder_output_bytes, encoder_run_bytes
from .engine_behaviour import engine_behaviour

if TYPE_CHECKING:
    from .engine_options import EngineOptions
    from .hardware import GpuModel
    from .model_facts import AttentionFacts, ExpertsModule, LayerFacts, ModelFacts
    from .quantization_config import QuantizationFacts

_MIB = 1024**2
# cuBLAS takes a workspace of 32 MiB on Hopper at its first product, about 8 on other GPUs (PyTorch,
# CUDABlas.cpp, parseChosenWorkspaceSize). The larger is used everywhere: the difference is within the margin.
_CUBLAS_BYTES = 32 * _MIB
# A second workspace that compiled products in 16 bits take, seen with MLPs of 13,824 and 14,336: split-K of cuBLASLt.
_COMPILED_PRODUCT_BYTES = 50 * _MIB
# mla_attention.py: rows of the profile run's stand-in for the decompressed context.
_MLA_WORKSPACE_TOKENS = 64 * 1024
# Graphs of decoders: measured 264 MiB for 54 graphs (Mixtral), 558 to 660 MiB for 102, 412 MiB for 86.
_BYTES_PER_GRAPH = 5 * _MIB
_LARGE_FULL_GRAPHS_BYTES = 80 * _MIB
_FULL_GRAPHS_TOKENS = 256
_LARGEST_GRAPH_TOKENS = 512


@dataclass(frozen=True, slots=True)
class RankShape:
    """What the activations of one rank depend on besides the model and the options."""

    dtype_bytes: int
    quantization: QuantizationFacts | None
    first_stage: bool
    last_stage: bool


def uses_second_runner(model: ModelFacts, options: EngineOptions) -> bool:
    """Whether the engine runs this model with its second model runner, which samples in less memory."""
    architectures = engine_behaviour(options.engine_version).second_runner_architectures
    if architectures is None:
        return True
    draft = options.speculative
    return model.architecture in architectures and (draft is None or draft.method in ("eagle", "eagle3", "mtp"))


def activation_bytes(model: ModelFacts, gpu: GpuModel, options: EngineOptions, shape: RankShape) -> int:
    """Peak torch memory of the profile run over its level before, on one rank."""
    workspace = max(
        (_experts_workspace_bytes(kind.experts, options, shape, gpu) for kind in model.layer_kinds if kind.experts),
        default=0,
    )
    peaks = [
        _layer_bytes(kind, model, options, shape) + (workspace if index in _kinds_after_experts(model) else 0)
        for index, kind in enumerate(model.layer_kinds)
    ]
    if shape.first_stage and not options.enforce_eager:
        peaks.append(_compilation_bytes(model, options, shape))
    if shape.last_stage and model.has_lm_head:
        peaks.append(workspace + _sampler_bytes(model, gpu, options, shape))
    if model.encoder is None or not shape.first_stage:
        return max(peaks)
    # The encoder runs first, and its outputs are kept while the language model runs.
    kept = encoder_output_bytes(model, options, shape.dtype_bytes)
    run = encoder_run_bytes(model, options, shape.dtype_bytes)
    return max(max(peaks) + kept, run + kept + _CUBLAS_BYTES if run else 0)


def _kinds_after_experts(model: ModelFacts) -> set[int]:
    """Kinds of layers that run while the experts' workspace exists: from the first layer with experts on."""
    first = next((i for i, kind in enumerate(model.layer_pattern) if model.layer_kinds[kind].experts), None)
    return set() if first is None else set(model.layer_pattern[first:])


def runner_buffers_bytes(model: ModelFacts, options: EngineOptions) -> int:
    """Buffers that the runner keeps from its start: token counts for penalties dominate, S x V of 32 bits."""
    if not model.has_lm_head:
        return 0
    return options.max_num_seqs * (model.vocab_size * 4 + model.vocab_size // 8) + 48 * _MIB


def cudagraph_bytes(model: ModelFacts, options: EngineOptions) -> int:
    """The engine's own estimate of what CUDA graphs will take."""
    if options.enforce_eager:
        return 0
    if (
        uses_second_runner(model, options)
        and not engine_behaviour(options.engine_version).second_runner_estimates_graphs
    ):
        return 0
    # A sequence that drafts takes so many tokens of a step (config/vllm.py, _set_cudagraph_sizes).
    query = options.speculative.num_speculative_tokens + 1 if options.speculative is not None else 1
    largest = min(2 * options.max_num_seqs * query, _LARGEST_GRAPH_TOKENS, options.max_num_batched_tokens)
    full = min(largest, options.max_num_seqs)
    graphs = _capture_sizes(largest) + _capture_sizes(full)
    if options.speculative is not None and uses_second_runner(model, options):
        # Sizes of uniform steps are captured beside the usual ones, and an EAGLE head has graphs of its own.
        graphs += _capture_sizes(full) * (2 if options.speculative.method == "eagle3" else 1)
    large = max(0, full - _FULL_GRAPHS_TOKENS) * _LARGE_FULL_GRAPHS_BYTES // _FULL_GRAPHS_TOKENS
    return graphs * _BYTES_PER_GRAPH + large


def _capture_sizes(largest: int) -> int:
    """How many batch sizes are captured: 1, 2, 4, then every 8 up to 256, then every 16."""
    small = sum(size <= largest for size in (1, 2, 4))
    return small + min(largest, 248) // 8 + (max(0, largest - 256) // 16 + 1 if largest >= 256 else 0)


def _padded_vocabulary(model: ModelFacts, tensor_parallel_size: int) -> int:
    return -(-model.vocab_size // 64) * 64 // tensor_parallel_size


def _compilation_bytes(model: ModelFacts, options: EngineOptions, shape: RankShape) -> int:
    """Inductor times the first kernel on stand-ins: the embedding table, its output, the norm's and the FP8 copy.

    It happens in the profile run of a start that has to compile, which is the larger of the two.
    """
    tokens, hidden = options.max_num_batched_tokens, model.hidden_size
    vocabulary = _padded_vocabulary(model, options.tensor_parallel_size)
    quantized_copy = 1 if shape.quantization is not None and shape.quantization.weight_format == "fp8" else 0
    return (
        vocabulary * hidden * shape.dtype_bytes
        + tokens * hidden * (2 * shape.dtype_bytes + quantized_copy)
        + tokens * 4
        + hidden * shape.dtype_bytes
    )


def _layer_bytes(layer: LayerFacts, model: ModelFacts, options: EngineOptions, shape: RankShape) -> int:
    """The widest place of one layer, whatever lasts through the run included."""
    tokens, size, hidden = options.max_num_batched_tokens, options.tensor_parallel_size, model.hidden_size
    workspaces = 0
    if any(shape.quantization is None or not module.quantizable for module in layer.modules):
        workspaces = _CUBLAS_BYTES
        if not options.enforce_eager and layer.attention.kind != "mla":
            workspaces += _COMPILED_PRODUCT_BYTES
    elements = max(_attention_elements(layer.attention, hidden, size), _mlp_elements(layer, hidden, size))
    if layer.experts is not None:
        elements = max(elements, 4 * hidden + 2 * layer.experts.num_experts)
    total = tokens * elements * shape.dtype_bytes + workspaces
    if layer.attention.kind == "mla":
        heads = layer.attention.num_heads // size
        nope = layer.attention.head_size - layer.attention.qk_rope_head_dim
        total = max(
            total,
            tokens * _attention_elements(layer.attention, hidden, size) * shape.dtype_bytes
            + _mla_workspace_tokens(model, options) * heads * (nope + layer.attention.head_size_v) * shape.dtype_bytes
            + workspaces,
        )
    return total


def _mla_workspace_tokens(model: ModelFacts, options: EngineOptions) -> int:
    length = options.max_model_len or model.max_position_embeddings
    block = options.block_size or 16
    wanted = max(8 * length, 4 * options.max_num_seqs * block)
    return max(min(wanted, _MLA_WORKSPACE_TOKENS), options.max_num_seqs * block)


def _attention_elements(attention: AttentionFacts, hidden: int, size: int) -> int:
    """For one token: query, key and value twice (before and after rotation), the output and two hidden states.

    MLA rotates in place and keeps one hidden state.
    """
    heads = attention.num_heads // size
    query = heads * attention.head_size
    output = heads * attention.head_size_v
    if attention.kind == "mla":
        return query + output + hidden + attention.kv_lora_rank + attention.qk_rope_head_dim
    kv_heads = max(1, attention.num_kv_heads // size)
    return 2 * (query + kv_heads * (attention.head_size + attention.head_size_v)) + output + 2 * hidden


def _mlp_elements(layer: LayerFacts, hidden: int, size: int) -> int:
    """The widest product, what the activation function makes of it, and three hidden states."""
    widest = 0
    for module in layer.modules:
        if module.sharding == "column" and module.name.startswith("mlp."):
            parts = module.output_sizes
            widest = max(widest, (sum(parts) + parts[0]) // size)
    return widest + 3 * hidden


def _experts_workspace_bytes(experts: ExpertsModule, options: EngineOptions, shape: RankShape, gpu: GpuModel) -> int:
    """The experts' shared buffers, which stay: both products' outputs for every chosen expert of every token."""
    if gpu.is_hopper and shape.quantization is not None and shape.quantization.weight_format == "mxfp4":
        return 0
    width, hidden = experts.intermediate_size // options.tensor_parallel_size, experts.hidden_size
    rows = options.max_num_batched_tokens * experts.experts_per_token
    return rows * (max(width, hidden) + max(2 * width, hidden)) * shape.dtype_bytes


def _sampler_bytes(model: ModelFacts, gpu: GpuModel, options: EngineOptions, shape: RankShape) -> int:
    """Logits in the model's dtype and in 32 bits; the first runner adds probabilities, noise and a top-k buffer."""
    tokens = options.max_num_batched_tokens
    rows = min(tokens, options.max_num_seqs)
    vocabulary = -(-model.vocab_size // 64) * 64
    hidden_states = (tokens + 2 * rows) * model.hidden_size * shape.dtype_bytes
    logits = rows * vocabulary * (shape.dtype_bytes + 4)
    if not uses_second_runner(model, options):
        logits += rows * vocabulary * 8 + gpu.multiprocessors * vocabulary * 4 + 2 * _MIB
        if options.speculative is not None:
            # Its profile run judges one draft a sequence: measured, four copies of the logits in 32 bits.
            logits += rows * vocabulary * 16
    return hidden_states + logits + _CUBLAS_BYTES
