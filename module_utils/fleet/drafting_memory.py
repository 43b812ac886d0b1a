"""What drafting takes of a GPU beside the draft's weights and its part of the KV cache.

Read from vLLM 0.33.0 (v1/worker/gpu/model_runner.py and spec_decode/, config/vllm.py), and measured with 0.24.0 on an
H100 (tests/data/vllm_memory_further.json). S is ``max_num_seqs``, k ``num_speculative_tokens``, V the vocabulary, T
``max_num_batched_tokens``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .activations import RankShape, activation_bytes
from .errors import FleetError

if TYPE_CHECKING:
    from .engine_options import EngineOptions, SpeculativeOptions
    from .hardware import GpuModel
    from .model_facts import ModelFacts

_INT32_BYTES = 4
_FLOAT32_BYTES = 4
# Models with supports_aux_hidden_states_over_pp (llama.py and qwen2.py, which the others build on).
_HANDS_ON = frozenset({"llama", "mistral", "qwen2", "qwen3"})


def check_drafting(model: ModelFacts, options: EngineOptions) -> None:
    """What the engine refuses at its start for the model and the parallel sizes.

    Raises:
        FleetError: an EAGLE3 head on a pipeline whose stages hand no hidden states on, or a step too short.
    """
    speculative = options.speculative
    if speculative is None:
        return
    if speculative.method == "eagle3" and options.pipeline_parallel_size > 1 and model.model_type not in _HANDS_ON:
        raise FleetError(
            "pipeline_parallel_size", f"stages of {model.architecture} hand no hidden states on to an EAGLE3 head"
        )
    if options.max_num_batched_tokens <= speculative.num_speculative_tokens:
        raise FleetError(
            "speculative_config.num_speculative_tokens",
            f"must be below max_num_batched_tokens {options.max_num_batched_tokens},"
            f" got {speculative.num_speculative_tokens}",
        )


def draft_tensor_parallel_size(options: EngineOptions, speculative: SpeculativeOptions) -> int:
    """Over how many GPUs the draft is split.

    vLLM's configuration takes 1 or the model's own size; the worker of a draft model only the latter (v1/spec_decode/
    draft_model.py, ``_raise_if_draft_tp_mismatch``).

    Raises:
        FleetError: another size is asked for.
    """
    own = options.tensor_parallel_size
    asked = speculative.draft_tensor_parallel_size or own
    if asked == own:
        return asked
    where = "speculative_config.draft_tensor_parallel_size"
    if asked != 1:
        raise FleetError(where, f"must be 1 or the model's tensor parallel size {own}, got {asked}")
    if speculative.method == "draft_model":
        raise FleetError(where, f"1 is refused by the worker of a draft model, whose model has {own}; leave it out")
    return asked


def draft_activation_bytes(
    model: ModelFacts, gpu: GpuModel, options: EngineOptions, speculative: SpeculativeOptions, shape: RankShape
) -> int:
    """Peak of the draft's turn in the profile run; the model's hidden states are held meanwhile. 0 without a draft."""
    draft = speculative.draft
    if draft is None:
        return 0
    # A draft model reads one token more of every sequence than the batch has.
    more = options.max_num_seqs if speculative.method == "draft_model" else 0
    tokens = options.max_num_batched_tokens + more
    as_draft = replace(
        options,
        speculative=None,
        max_num_batched_tokens=tokens,
        tensor_parallel_size=draft_tensor_parallel_size(options, speculative),
        limit_mm_per_prompt=None,
    )
    own_shape = RankShape(shape.dtype_bytes, draft.quantization, first_stage=True, last_stage=True)
    # An EAGLE3 head reads the states of three layers beside the last.
    states = 4 if speculative.method == "eagle3" else 1
    held = states * options.max_num_batched_tokens * model.hidden_size * shape.dtype_bytes
    return activation_bytes(draft, gpu, as_draft, own_shape) + held


def drafting_buffers_bytes(
    model: ModelFacts, options: EngineOptions, speculative: SpeculativeOptions, dtype_bytes: int
) -> int:
    """Buffers made before the profile run: the draft's logits where it samples, all tokens where they are looked up."""
    rows = options.max_num_seqs
    if speculative.method == "ngram":
        return rows * (options.max_model_len or model.max_position_embeddings) * _INT32_BYTES
    if speculative.draft_sample_method == "probabilistic":
        return rows * speculative.num_speculative_tokens * model.vocab_size * dtype_bytes
    return 0


def judged_logits_bytes(
    model: ModelFacts, options: EngineOptions, speculative: SpeculativeOptions, dtype_bytes: int
) -> int:
    """Logits of drafted tokens: the profile run samples S rows, a step that judges drafts S x (k + 1), at most T."""
    rows = min(options.max_num_batched_tokens, options.max_num_seqs * (speculative.num_speculative_tokens + 1))
    more = max(0, rows - options.max_num_seqs)
    return more * model.vocab_size * (dtype_bytes + _FLOAT32_BYTES)
