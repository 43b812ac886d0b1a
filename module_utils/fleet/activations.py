"""Peak of the profile run: what the engine sets aside for activations and sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .engine_options import EngineOptions
    from .model_facts import LayerFacts, ModelFacts


def activation_bytes(model: ModelFacts, options: EngineOptions, *, dtype_bytes: int, first_stage: bool) -> int:
    """Peak torch memory of the profile run over its level before, on one rank."""
    tokens = options.max_num_batched_tokens
    hidden = model.hidden_size
    widest = max(_layer_bytes_per_token(kind, hidden, options.tensor_parallel_size) for kind in model.layer_kinds)
    peaks = [tokens * widest * dtype_bytes]
    if first_stage and not options.enforce_eager:
        vocabulary = -(-model.vocab_size // 64) * 64 // options.tensor_parallel_size
        peaks.append(vocabulary * hidden * dtype_bytes + 2 * tokens * hidden * dtype_bytes)
    return max(peaks)


def _layer_bytes_per_token(layer: LayerFacts, hidden: int, tensor_parallel_size: int) -> int:
    """Elements alive at once in the widest place of a layer: gate-up output, its activation, four hidden states."""
    widest = max(
        module.output_size // (tensor_parallel_size if module.sharding != "replicated" else 1)
        for module in layer.modules
    )
    elements = widest + widest // 2 + 4 * hidden
    if layer.experts is not None:
        experts = layer.experts
        per_token = experts.experts_per_token * (
            3 * experts.intermediate_size // tensor_parallel_size + experts.hidden_size
        )
        elements = max(elements, per_token + 4 * hidden)
    return elements
