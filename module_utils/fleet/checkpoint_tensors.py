"""What the tensors of a checkpoint say about a model: exact sizes, and the modules that are quantized. No I/O."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .errors import FleetError
from .model_facts import AttentionFacts, CheckpointTensors, LayerFacts, LinearModule, ModelFacts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
_FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
_SERVED_BYTES = 2  # float tensors are cast to the serving dtype, which has 16 bits
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
_EMBEDDING = re.compile(r"(embed_tokens|word_embeddings|wte|tok_embeddings)\.weight$")
_QUANTIZED = re.compile(r"^(?P<module>.*)\.(?:qweight|weight_packed)$")
# A family's structure is taken when the tensors agree with it this closely; otherwise the tensors alone count.
_AGREEMENT = 0.002


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a safetensors header."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)

    @property
    def stored_bytes(self) -> int:
        """Bytes in the file."""
        return self.elements * DTYPE_BYTES[self.dtype]

    @property
    def served_bytes(self) -> int:
        """Bytes once loaded: floats in 16 bits, packed and 8-bit weights as they are."""
        return self.elements * _SERVED_BYTES if self.dtype in _FLOATS else self.stored_bytes


def parse_tensors(header: Mapping[str, object], *, where: str) -> list[Tensor]:
    """The tensors of one safetensors header.

    Raises:
        FleetError: an entry without dtype or shape, or of an unknown dtype.
    """
    tensors = []
    for name, entry in header.items():
        dtype = entry.get("dtype") if isinstance(entry, dict) else None
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if dtype not in DTYPE_BYTES or not isinstance(shape, list) or not all(type(n) is int for n in shape):
            raise FleetError(f"{where}: {name}", "has no known dtype and shape")
        tensors.append(Tensor(name, str(dtype), tuple(shape)))
    return tensors


def with_quantized_modules(model: ModelFacts, names: Iterable[str]) -> ModelFacts:
    """Fill in which linear modules are quantized, where the configuration left it to the tensors (GPTQ)."""
    quantization = model.quantization
    if quantization is None or quantization.quantized_modules != ():
        return model
    modules = set()
    for name in names:
        match = _QUANTIZED.match(name)
        if match:
            layer = _LAYER.search(match["module"])
            modules.add(match["module"][layer.end() :] if layer else match["module"])
    return replace(model, quantization=replace(quantization, quantized_modules=tuple(sorted(modules))))


def with_tensors(model: ModelFacts | None, config: Mapping[str, object], tensors: Sequence[Tensor]) -> ModelFacts:
    """Facts that agree with the tensors.

    Args:
        model: what the configuration says; None for an architecture that is not known.
        config: the configuration, for the geometry of an unknown architecture.
        tensors: all tensors of the checkpoint.
    """
    if model is None:
        return _unknown_model(config, tensors)
    summary = summarize(tensors, model.num_hidden_layers, tied=model.tie_word_embeddings)
    model = replace(with_quantized_modules(model, (tensor.name for tensor in tensors)), checkpoint=summary)
    if model.quantization is not None or abs(summary.parameters - model.parameters) <= _AGREEMENT * model.parameters:
        return model
    kinds, pattern = _layers_from_tensors(model, tensors)
    note = (
        f"the tensors hold {summary.parameters} parameters where the configuration makes {model.parameters}: "
        "sizes are those of the tensors"
    )
    return replace(model, layer_kinds=kinds, layer_pattern=pattern, unknown=(*model.unknown, note))


def summarize(tensors: Sequence[Tensor], layers: int, *, tied: bool) -> CheckpointTensors:
    """Bytes by layer. Layers beyond ``layers`` (multi-token prediction) and a tied head's copy are not loaded."""
    layer_bytes, replicated = [0] * layers, [0] * layers
    embedding = head = other = parameters = 0
    dtypes: dict[str, int] = {}
    for tensor in tensors:
        index = layer_of(tensor.name)
        if (index is not None and index >= layers) or (tied and tensor.name.endswith("lm_head.weight")):
            continue
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + tensor.stored_bytes
        parameters += tensor.elements
        if index is not None:
            layer_bytes[index] += tensor.stored_bytes
            replicated[index] += tensor.stored_bytes if len(tensor.shape) < 2 else 0
        elif _EMBEDDING.search(tensor.name):
            embedding += tensor.stored_bytes
        elif tensor.name.endswith("lm_head.weight"):
            head += tensor.stored_bytes
        else:
            other += tensor.stored_bytes
    return CheckpointTensors(tuple(layer_bytes), tuple(replicated), embedding, head, other, parameters, dtypes)


def layer_of(name: str) -> int | None:
    """The decoder layer that a tensor belongs to. Encoders' layers do not count."""
    if re.search(r"(vision|visual|audio|encoder)", name):
        return None
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def _layers_from_tensors(
    model: ModelFacts, tensors: Sequence[Tensor]
) -> tuple[tuple[LayerFacts, ...], tuple[int, ...]]:
    attention = [model.layer_kinds[kind].attention for kind in model.layer_pattern]
    return _kinds(tensors, attention)


def _kinds(
    tensors: Sequence[Tensor], attention: Sequence[AttentionFacts]
) -> tuple[tuple[LayerFacts, ...], tuple[int, ...]]:
    """One kind per distinct layer, whose tensors stand as products of their size in 16 bits."""
    by_layer: list[list[Tensor]] = [[] for _ in attention]
    for tensor in tensors:
        index = layer_of(tensor.name)
        if index is not None and index < len(by_layer):
            by_layer[index].append(tensor)
    kinds: dict[LayerFacts, int] = {}
    pattern = []
    for members, facts in zip(by_layer, attention, strict=True):
        modules = tuple(
            LinearModule(
                name=_LAYER.split(tensor.name)[-1],
                input_size=tensor.served_bytes // _SERVED_BYTES // max(1, tensor.shape[0]),
                output_sizes=(tensor.shape[0],),
                sharding="replicated" if len(tensor.shape) < 2 else "column",
                checkpoint_names=(_LAYER.split(tensor.name)[-1],),
                quantizable=tensor.dtype in _FLOATS,
            )
            for tensor in sorted(members, key=lambda tensor: tensor.name)
            if len(tensor.shape) >= 2
        )
        small = sum(tensor.served_bytes for tensor in members if len(tensor.shape) < 2) // _SERVED_BYTES
        layer = LayerFacts(attention=facts, modules=modules, norm_parameters=small)
        pattern.append(kinds.setdefault(layer, len(kinds)))
    return tuple(kinds), tuple(pattern)


def _unknown_model(config: Mapping[str, object], tensors: Sequence[Tensor]) -> ModelFacts:
    """A model of an architecture that is not known: sizes from the tensors, geometry from the usual keys."""
    from .config_reader import ConfigReader  # noqa: PLC0415 (only unknown architectures need it)

    reader = ConfigReader(config, "config.json")
    hidden, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    head_size = reader.integer("head_dim", hidden // heads)
    window = reader.optional_integer("sliding_window")
    facts = AttentionFacts("full", heads, reader.integer("num_key_value_heads", heads), head_size, head_size)
    kinds, pattern = _kinds(tensors, [facts] * reader.integer("num_hidden_layers"))
    tied = not any(tensor.name.endswith("lm_head.weight") for tensor in tensors)
    summary = summarize(tensors, len(pattern), tied=tied)
    architectures = reader.texts("architectures")
    vocabulary = reader.integer("vocab_size")
    embedding = vocabulary * hidden * (1 if tied else 2)
    loose = sum(t.served_bytes for t in tensors if layer_of(t.name) is None) // _SERVED_BYTES - embedding
    unknown = [f"architecture {architectures[0] if architectures else reader.text('model_type')!r} is not known: "]
    unknown[0] += "sizes are those of the tensors, the KV cache assumes full attention in every layer"
    if window is not None:
        unknown.append(f"sliding_window {window} is not used: layers that slide would take less KV cache")
    return ModelFacts(
        architecture=architectures[0] if architectures else "",
        model_type=reader.text("model_type"),
        hidden_size=hidden,
        vocab_size=vocabulary,
        max_position_embeddings=reader.integer("max_position_embeddings"),
        native_dtype=reader.text("dtype", reader.text("torch_dtype", "float32")).removeprefix("torch."),
        tie_word_embeddings=tied,
        layer_kinds=kinds,
        layer_pattern=pattern,
        final_norm_parameters=max(0, loose),
        checkpoint=summary,
        unknown=tuple(unknown),
    )
