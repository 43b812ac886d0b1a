"""What making a quantized checkpoint takes: time, memory of host and GPU, disk. Estimates, to show and to refuse by.

Time is arithmetic over a rate that large matrix products reach, and transfers. It was not measured on a GPU and decides
nothing. Memory is counted from what the libraries hold at once: the whole source in host memory, one layer on the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .hardware import GpuModel
    from .model_facts import LayerFacts, ModelFacts
    from .quantize_recipes import Recipe

_GIB = 1 << 30
_SOURCE_BYTES = 2  # bfloat16
_FLOAT32_BYTES = 4
# Passes over the calibration tokens by method: two of the sequential pipeline, and what the method reads besides: AWQ
# runs each layer's parts once for every scale that it tries; the Hessians of GPTQ cost about as much as a pass.
_PASSES = {"gptq": 3.0, "gptqmodel": 3.0, "gptq_g_idx": 3.0, "int8": 3.0, "fp8_static": 2.0, "fp8_dynamic": 0.0}
_AWQ_PASSES = 2.0
# GPTQ goes through the input columns of a matrix one after the other, a few small kernels each.
_COLUMN_S = 1e-4
_WITH_COLUMNS = ("gptq", "gptqmodel", "gptq_g_idx", "int8")
# What of the datasheet's rate the passes reach, and the rate of a server's CPU in bfloat16.
_EFFICIENCY = 0.4
_CPU_FLOPS_PER_S = 2e11
_DISK_BYTES_PER_S = 1e9
_PCIE_BYTES_PER_S = 1e10
# A process with its libraries, before it has read a weight.
_PROCESS_BYTES = int(1.5 * _GIB)
_CUDA_BYTES = _GIB
_START_S = 15.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What a job takes.

    Args:
        seconds: from start to verdict.
        host_bytes: host memory at its height.
        gpu_bytes: memory of the GPU at its height; 0 on a CPU.
        disk_bytes: what has to be free, the result included.
        output_bytes: the result.
        layer_by_layer: the source does not fit on the GPU, so that it is scored in parts.
    """

    seconds: float
    host_bytes: int
    gpu_bytes: int
    disk_bytes: int
    output_bytes: int
    layer_by_layer: bool

    def to_document(self) -> dict[str, float | int | bool]:
        """The cost as JSON has it."""
        return {
            "seconds": round(self.seconds, 1),
            "host_bytes": self.host_bytes,
            "gpu_bytes": self.gpu_bytes,
            "disk_bytes": self.disk_bytes,
            "output_bytes": self.output_bytes,
            "layer_by_layer": self.layer_by_layer,
        }


def estimate_cost(model: ModelFacts, recipe: Recipe, gpu: GpuModel | None, *, held_out_tokens: int) -> Cost:
    """What a job takes.

    Args:
        model: facts of the source, in full precision.
        recipe: how it is quantized.
        gpu: the card that it runs on; None for the CPU.
        held_out_tokens: tokens that source and result are judged on.
    """
    source_bytes = model.parameters * _SOURCE_BYTES
    output = output_bytes(model, recipe)
    layer = max(_layer_parameters(kind) for kind in model.layer_kinds)
    sample = recipe.sequence_length * model.hidden_size * _SOURCE_BYTES
    # Inputs and outputs of the layer that is worked on, for all samples.
    activations = 2 * recipe.samples * sample
    hessians = sum(_inputs(kind) for kind in model.layer_kinds[:1]) if recipe.method in _WITH_COLUMNS else 0
    logits = 2 * recipe.sequence_length * model.vocab_size * _FLOAT32_BYTES
    # The layer as it is, in 32 bits while it is worked on, and its Hessians.
    working = layer * (_SOURCE_BYTES + _FLOAT32_BYTES) + hessians + logits + 8 * sample
    fits = gpu is not None and source_bytes <= gpu.torch_visible_bytes * 0.8
    host = source_bytes + activations + _PROCESS_BYTES + (0 if gpu else working)
    flops_per_s = _CPU_FLOPS_PER_S if gpu is None else gpu.flops_per_s["bfloat16"] * _EFFICIENCY
    passes = _AWQ_PASSES + recipe.grid if recipe.method == "awq" else _PASSES[recipe.method]
    compute = 2.0 * model.active_parameters * (passes * recipe.tokens + 2.0 * held_out_tokens) / flops_per_s
    columns = _columns(model) * _COLUMN_S if recipe.method in _WITH_COLUMNS else 0.0
    files = (3.0 * source_bytes + 2.0 * output) / _DISK_BYTES_PER_S
    transfers = 0.0 if gpu is None else (4.0 if fits else 8.0) * source_bytes / _PCIE_BYTES_PER_S
    return Cost(
        seconds=_START_S + compute + columns + files + transfers,
        host_bytes=host,
        gpu_bytes=0 if gpu is None else working + _CUDA_BYTES,
        disk_bytes=2 * output + (0 if recipe.tool == "llmcompressor" else output) + _GIB,
        output_bytes=output,
        layer_by_layer=gpu is not None and not fits,
    )


def output_bytes(model: ModelFacts, recipe: Recipe) -> int:
    """Size of the result: layers in the recipe's precision, embeddings and head as they were."""
    quantized = sum(_layer_parameters(kind) * count for kind, count in model.layers(0, model.num_hidden_layers))
    if recipe.group_size > 0:
        # A scale of 16 bits and, with AWQ, a zero point for each group.
        bits = recipe.bits + (16 + (recipe.bits if recipe.method == "awq" else 0)) / recipe.group_size
    else:
        bits = float(recipe.bits)
    return int(quantized * bits / 8) + (model.parameters - quantized) * _SOURCE_BYTES


def _layer_parameters(kind: LayerFacts) -> int:
    linear = sum(module.parameters for module in kind.modules if module.quantizable)
    return linear + (kind.experts.parameters if kind.experts else 0)


def _inputs(kind: LayerFacts) -> int:
    """Bytes of the Hessians of one layer, which are held at once: inputs squared in 32 bits for each matrix."""
    sizes = [module.input_size for module in kind.modules if module.quantizable for _ in module.output_sizes]
    if kind.experts:
        sizes += [kind.experts.hidden_size, kind.experts.hidden_size, kind.experts.intermediate_size]
    return sum(size * size * _FLOAT32_BYTES for size in sizes)


def _columns(model: ModelFacts) -> int:
    total = 0
    for kind, count in model.layers(0, model.num_hidden_layers):
        one = sum(module.input_size * len(module.output_sizes) for module in kind.modules if module.quantizable)
        if kind.experts:
            one += kind.experts.num_experts * (2 * kind.experts.hidden_size + kind.experts.intermediate_size)
        total += one * count
    return total
