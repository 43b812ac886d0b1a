"""The encoder of a multimodal model in the engine's profile run: what it is given, and what that takes.

Read from vLLM 0.33's source (v1/worker/gpu_model_runner.py, profile_run; multimodal/encoder_budget.py); not measured,
so that it gets a margin of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .engine_options import EngineOptions
    from .model_facts import EncoderFacts, ModelFacts

# vLLM's limit of each modality where none is given.
_DEFAULT_LIMIT = 999
_MARGIN = 0.2


def takes(encoder: EncoderFacts, options: EngineOptions, modality: str) -> bool:
    """Whether the engine accepts items of this modality."""
    if modality == "video" and not encoder.images_per_video:
        return False
    return dict(options.limit_mm_per_prompt or ()).get(modality, _DEFAULT_LIMIT) > 0


def with_largest_image(encoder: EncoderFacts, pixels: int) -> EncoderFacts:
    """The encoder where images are scaled down to so many pixels, as ``mm_processor_kwargs: {max_pixels}`` has it."""
    if not encoder.pixels_per_token:
        return encoder
    tokens = max(1, pixels // encoder.pixels_per_token)
    patches = encoder.tokens_per_item // encoder.output_tokens_per_item
    return replace(encoder, tokens_per_item=tokens * patches, output_tokens_per_item=tokens)


def modalities(model: ModelFacts, options: EngineOptions) -> tuple[str, ...]:
    """What the engine understands beside text."""
    encoder = model.encoder
    if encoder is None:
        return ()
    return tuple(name for name in (encoder.modality, "video") if takes(encoder, options, name))


def profiled_images(model: ModelFacts, options: EngineOptions) -> int:
    """How many images of the largest size the encoder gets at once; a video counts as several. 0: it is not run.

    The run is made with the modality whose items have the most tokens, as many of them as fill the encoder's budget:
    ``max_num_batched_tokens``, or one item where that is larger.
    """
    encoder = model.encoder
    if encoder is None:
        return 0
    length = options.max_model_len or model.max_position_embeddings
    per_item = 0
    if takes(encoder, options, encoder.modality):
        per_item = 1
    if takes(encoder, options, "video"):
        per_item = max(1, min(encoder.images_per_video, length // encoder.output_tokens_per_item))
    if per_item == 0:
        return 0
    tokens = per_item * encoder.output_tokens_per_item
    modality = "video" if takes(encoder, options, "video") else encoder.modality
    limit = dict(options.limit_mm_per_prompt or ()).get(modality, _DEFAULT_LIMIT)
    of_prompts = options.max_num_seqs * max(1, min(limit, length // tokens))
    return per_item * max(1, min(options.max_num_batched_tokens // tokens, of_prompts))


def encoder_run_bytes(model: ModelFacts, options: EngineOptions, dtype_bytes: int) -> int:
    """Activations while the encoder runs: the widest place of a layer for every patch."""
    encoder = model.encoder
    if encoder is None:
        return 0
    widest = encoder.intermediate_size * (3 if encoder.gated else 2) + 4 * encoder.hidden_size
    return profiled_images(model, options) * encoder.tokens_per_item * widest * dtype_bytes


def encoder_output_bytes(model: ModelFacts, options: EngineOptions, dtype_bytes: int) -> int:
    """The encoder's outputs, which are kept while the language model runs: the engine's encoder cache."""
    if model.encoder is None:
        return 0
    tokens = profiled_images(model, options) * model.encoder.output_tokens_per_item
    return tokens * model.hidden_size * dtype_bytes


def encoder_margin_bytes(model: ModelFacts, options: EngineOptions, dtype_bytes: int) -> int:
    """What is left free because the figures above were never measured."""
    return int(
        _MARGIN * (encoder_run_bytes(model, options, dtype_bytes) + encoder_output_bytes(model, options, dtype_bytes))
    )
