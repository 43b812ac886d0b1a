"""Families of encoders, which pool: embedders and cross-encoders. They attend both ways and keep no KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .model_facts import AttentionFacts, LayerFacts, LinearModule, ModelFacts
from .model_families import Family

if TYPE_CHECKING:
    from .config_reader import ConfigReader

_BERT_DEFAULTS: dict[str, object] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
# RoBERTa counts positions from after the padding token (vllm/model_executor/models/roberta.py).
_ROBERTA_DEFAULTS = {**_BERT_DEFAULTS, "vocab_size": 50265, "pad_token_id": 1}
_CLASSIFIERS = ("ForSequenceClassification",)


def _layer(reader: ConfigReader) -> LayerFacts:
    hidden, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    intermediate = reader.integer("intermediate_size")
    head_size = hidden // heads
    return LayerFacts(
        attention=AttentionFacts("encoder", heads, heads, head_size, head_size),
        modules=(
            LinearModule(
                name="attention.self.qkv_proj",
                input_size=hidden,
                output_sizes=(hidden, hidden, hidden),
                sharding="qkv",
                checkpoint_names=tuple(f"attention.self.{part}" for part in ("query", "key", "value")),
                bias=True,
            ),
            LinearModule("attention.output.dense", hidden, (hidden,), "row", ("attention.output.dense",), bias=True),
            LinearModule("mlp.intermediate", hidden, (intermediate,), "column", ("intermediate.dense",), bias=True),
            LinearModule("mlp.output", intermediate, (hidden,), "row", ("output.dense",), bias=True),
        ),
        norm_parameters=4 * hidden,
    )


def _encoder(reader: ConfigReader, *, first_position: int) -> ModelFacts:
    """What is neither a layer nor the token embedding (positions, types, norm, head) stands with the final norm."""
    hidden = reader.integer("hidden_size")
    positions = reader.integer("max_position_embeddings")
    architecture = (reader.texts("architectures") or ("",))[0]
    head = hidden * hidden + hidden
    if architecture.endswith(_CLASSIFIERS):
        labels = len(reader.mapping("id2label") or {}) or reader.integer("num_labels", 2)
        head += labels * hidden + labels
    return ModelFacts(
        architecture=architecture,
        model_type=reader.text("model_type"),
        hidden_size=hidden,
        vocab_size=reader.integer("vocab_size"),
        max_position_embeddings=positions - first_position,
        native_dtype=reader.text("dtype", reader.text("torch_dtype", "float32")).removeprefix("torch."),
        tie_word_embeddings=False,
        layer_kinds=(_layer(reader),),
        layer_pattern=(0,) * reader.integer("num_hidden_layers"),
        final_norm_parameters=(positions + reader.integer("type_vocab_size") + 2) * hidden + head,
        has_lm_head=False,
    )


def _bert(reader: ConfigReader) -> ModelFacts:
    return _encoder(reader, first_position=0)


def _roberta(reader: ConfigReader) -> ModelFacts:
    return _encoder(reader, first_position=reader.integer("pad_token_id", minimum=0) + 1)


POOLING_FAMILIES = {
    "bert": Family(_bert, _BERT_DEFAULTS),
    "roberta": Family(_roberta, _ROBERTA_DEFAULTS),
    "xlm-roberta": Family(_roberta, {**_ROBERTA_DEFAULTS, "vocab_size": 250002}),
}
