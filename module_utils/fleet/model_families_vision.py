"""Families of vision-language models: a language model of another family, with the encoder that images pass."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .config_reader import ConfigReader
from .errors import FleetError
from .model_facts import EncoderFacts
from .model_families import FAMILIES as TEXT_FAMILIES
from .model_families import Family

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .model_facts import ModelFacts

# Keys of the whole that the configuration of its language model leaves out.
_INHERITED = ("dtype", "torch_dtype", "tie_word_embeddings", "quantization_config")
_CLIP_DEFAULTS: dict[str, object] = {
    "model_type": "clip_vision_model",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}
# transformers' LlamaConfig: LLaVA's published files leave out what equals it.
_LLAMA_DEFAULTS: dict[str, object] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
_IDEFICS3_VISION_DEFAULTS: dict[str, object] = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 32,
}
# The published preprocessors let an image be 4 x 4 parts.
_IDEFICS3_PARTS = 17
# max_pixels of the published preprocessors, 12,845,056, in merged patches of 28 x 28 pixels.
_QWEN_IMAGE_TOKENS = 16384
# A video's frames pass in pairs, 14 of them at most in the engine's profile run (qwen2_vl.py, _MAX_FRAMES_PER_VIDEO).
_QWEN_IMAGES_PER_VIDEO = 7
_QWEN_CHANNELS = 3
_QWEN2_VISION_DEFAULTS: dict[str, object] = {
    "depth": 32,
    "embed_dim": 1280,
    "mlp_ratio": 4,
    "num_heads": 16,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
}
_QWEN25_VISION_DEFAULTS: dict[str, object] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
}


def _part(reader: ConfigReader, key: str, defaults: Mapping[str, object]) -> ConfigReader:
    found = reader.mapping(key)
    if found is None:
        raise FleetError(f"{reader.where}: {key}", "missing")
    return ConfigReader(found, f"{reader.where}: {key}", defaults)


def _language_model(reader: ConfigReader, text: Mapping[str, object], model_type: str, where: str) -> ModelFacts:
    """Facts of the language model, under the name and the model_type of the whole."""
    family = TEXT_FAMILIES.get(model_type)
    if family is None:
        known = ", ".join(sorted(TEXT_FAMILIES))
        raise FleetError(f"{where}: model_type", f"unknown family {model_type!r}, known are {known}")
    given = {key: value for key in _INHERITED if (value := reader.value(key)) is not None}
    given |= {key: value for key, value in text.items() if value is not None}
    facts = family.build(ConfigReader({**given, "model_type": model_type}, where, family.defaults))
    architecture = (reader.texts("architectures") or (facts.architecture,))[0]
    return replace(facts, architecture=architecture, model_type=reader.text("model_type"))


def _llava(reader: ConfigReader) -> ModelFacts:
    """CLIP or SigLIP, two linear layers, and any language model."""
    text = reader.mapping("text_config") or {}
    where = f"{reader.where}: text_config"
    model_type = ConfigReader(text, where).text("model_type", "llama")
    if model_type == "llama":
        text = {**_LLAMA_DEFAULTS, **text}
    facts = _language_model(reader, text, model_type, where)
    vision = _part(reader, "vision_config", _CLIP_DEFAULTS)
    hidden, intermediate = vision.integer("hidden_size"), vision.integer("intermediate_size")
    layers, patch = vision.integer("num_hidden_layers"), vision.integer("patch_size")
    patches = (vision.integer("image_size") // patch) ** 2
    is_clip = vision.text("model_type") == "clip_vision_model"
    per_layer = 4 * (hidden * hidden + hidden) + 2 * hidden * intermediate + intermediate + hidden + 4 * hidden
    # CLIP has a token for the class and a norm before its layers, SigLIP a bias in its patch embedding.
    embedding = 3 * patch * patch * hidden + patches * hidden + (4 * hidden if is_clip else hidden)
    projector = hidden * facts.hidden_size + facts.hidden_size**2 + 2 * facts.hidden_size
    return replace(
        facts,
        encoder=EncoderFacts(
            modality="image",
            parameters=embedding + layers * per_layer + 2 * hidden + projector,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_heads=vision.integer("num_attention_heads"),
            tokens_per_item=patches + is_clip,
            output_tokens_per_item=patches,
            layers=layers,
        ),
    )


def _idefics3(reader: ConfigReader) -> ModelFacts:
    """SigLIP, whose patches are joined by squares, one linear layer, and any language model."""
    text = reader.mapping("text_config") or {}
    where = f"{reader.where}: text_config"
    facts = _language_model(reader, text, ConfigReader(text, where).text("model_type", "llama"), where)
    vision = _part(reader, "vision_config", _IDEFICS3_VISION_DEFAULTS)
    hidden, intermediate = vision.integer("hidden_size"), vision.integer("intermediate_size")
    layers, patch = vision.integer("num_hidden_layers"), vision.integer("patch_size")
    patches = (vision.integer("image_size") // patch) ** 2
    joined = reader.integer("scale_factor", 2) ** 2
    per_layer = 4 * (hidden * hidden + hidden) + 2 * hidden * intermediate + intermediate + hidden + 4 * hidden
    embedding = 3 * patch * patch * hidden + hidden + patches * hidden
    return replace(
        facts,
        encoder=EncoderFacts(
            modality="image",
            parameters=embedding + layers * per_layer + 2 * hidden + hidden * joined * facts.hidden_size,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_heads=vision.integer("num_attention_heads"),
            # A large image is split into as many parts of image_size, and shown as a whole besides.
            tokens_per_item=patches * _IDEFICS3_PARTS,
            output_tokens_per_item=max(1, patches // joined) * _IDEFICS3_PARTS,
            layers=layers,
        ),
    )


def _qwen_text(reader: ConfigReader) -> ModelFacts:
    """The language model, whose keys stand in ``text_config`` or, in older files, beside ``vision_config``."""
    text = reader.mapping("text_config")
    if text is not None:
        return _language_model(reader, text, "qwen2", f"{reader.where}: text_config")
    return _language_model(reader, reader.document, "qwen2", reader.where)


def _qwen_encoder(vision: ConfigReader, facts: ModelFacts, *, hidden: int, layers: int, norms: int) -> ModelFacts:
    merged = hidden * vision.integer("spatial_merge_size") ** 2
    patch = _QWEN_CHANNELS * vision.integer("temporal_patch_size") * vision.integer("patch_size") ** 2 * hidden
    merger = norms * hidden + merged * merged + merged + merged * facts.hidden_size + facts.hidden_size
    gated = vision.has("intermediate_size")
    depth = vision.integer("depth")
    return replace(
        facts,
        encoder=EncoderFacts(
            modality="image",
            parameters=patch + depth * layers + merger,
            hidden_size=hidden,
            intermediate_size=vision.integer("intermediate_size", hidden * 4),
            num_heads=vision.integer("num_heads"),
            tokens_per_item=_QWEN_IMAGE_TOKENS * vision.integer("spatial_merge_size") ** 2,
            output_tokens_per_item=_QWEN_IMAGE_TOKENS,
            layers=depth,
            gated=gated,
            images_per_video=_QWEN_IMAGES_PER_VIDEO,
            pixels_per_token=(vision.integer("patch_size") * vision.integer("spatial_merge_size")) ** 2,
        ),
    )


def _qwen2_vl(reader: ConfigReader) -> ModelFacts:
    vision = _part(reader, "vision_config", _QWEN2_VISION_DEFAULTS)
    hidden = vision.integer("embed_dim")
    intermediate = hidden * vision.integer("mlp_ratio")
    layer = 4 * hidden + 4 * (hidden * hidden + hidden) + 2 * hidden * intermediate + intermediate + hidden
    return _qwen_encoder(vision, _qwen_text(reader), hidden=hidden, layers=layer, norms=2)


def _qwen2_5_vl(reader: ConfigReader) -> ModelFacts:
    vision = _part(reader, "vision_config", _QWEN25_VISION_DEFAULTS)
    hidden, intermediate = vision.integer("hidden_size"), vision.integer("intermediate_size")
    layer = 2 * hidden + 4 * (hidden * hidden + hidden) + 3 * hidden * intermediate + 2 * intermediate + hidden
    return _qwen_encoder(vision, _qwen_text(reader), hidden=hidden, layers=layer, norms=1)


VISION_FAMILIES = {
    "idefics3": Family(_idefics3, {}),
    "llava": Family(_llava, {}),
    "qwen2_vl": Family(_qwen2_vl, {}),
    "qwen2_5_vl": Family(_qwen2_5_vl, {}),
}
