"""What a model is made of, as the engine builds it: layers, their linear modules and their attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .quantization_config import QuantizationFacts

AttentionKind = Literal["full", "sliding", "mla", "encoder"]
Sharding = Literal["column", "row", "qkv", "replicated"]


@dataclass(frozen=True, slots=True)
class AttentionFacts:
    """Attention of one layer. ``sliding_window`` is in tokens, None for full attention.

    For MLA, ``head_size`` is that of the query and key of a head (nope + rope), and one token's cache entry is
    ``kv_lora_rank + qk_rope_head_dim`` elements, shared by all heads. An encoder's layer attends both ways and caches
    nothing.
    """

    kind: AttentionKind
    num_heads: int
    num_kv_heads: int
    head_size: int
    head_size_v: int
    sliding_window: int | None = None
    kv_lora_rank: int = 0
    qk_rope_head_dim: int = 0


@dataclass(frozen=True, slots=True)
class LinearModule:
    """A linear layer as the engine fuses it. Sizes are whole, before tensor parallelism.

    ``checkpoint_names`` are the names below the layer that its parts have in a checkpoint; lists of modules that are
    not quantized use them.
    """

    name: str
    input_size: int
    output_sizes: tuple[int, ...]
    sharding: Sharding
    checkpoint_names: tuple[str, ...]
    bias: bool = False
    quantizable: bool = True

    @property
    def output_size(self) -> int:
        """Output elements of all fused parts."""
        return sum(self.output_sizes)

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.input_size * self.output_size + (self.output_size if self.bias else 0)


@dataclass(frozen=True, slots=True)
class ExpertsModule:
    """The routed experts of one layer: gate-up ``[E, 2I, H]`` and down ``[E, H, I]``."""

    num_experts: int
    experts_per_token: int
    hidden_size: int
    intermediate_size: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        """Weights and biases of all experts."""
        weights = 3 * self.hidden_size * self.intermediate_size
        biases = 2 * self.intermediate_size + self.hidden_size if self.bias else 0
        return self.num_experts * (weights + biases)


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """One kind of decoder layer. ``norm_parameters`` are replicated on every tensor-parallel rank.

    ``sharded_parameters`` are small ones split over the heads (attention sinks). ``float32_parameters`` are kept in
    32 bits by the engine whatever the dtype (the router's correction bias).
    """

    attention: AttentionFacts
    modules: tuple[LinearModule, ...]
    norm_parameters: int
    experts: ExpertsModule | None = None
    sharded_parameters: int = 0
    float32_parameters: int = 0

    @property
    def parameters(self) -> int:
        """Parameters that the checkpoint stores for this layer (the correction bias is a buffer there)."""
        experts = self.experts.parameters if self.experts else 0
        linear = sum(module.parameters for module in self.modules)
        return linear + experts + self.norm_parameters + self.sharded_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters that one token passes through."""
        if self.experts is None:
            return self.parameters
        idle = self.experts.num_experts - self.experts.experts_per_token
        return self.parameters - self.experts.parameters * idle // self.experts.num_experts


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """The encoder of a multimodal model, on every rank (the engine does not split it in its default mode).

    ``tokens_per_item`` and ``output_tokens_per_item`` are of the largest image. A video is ``images_per_video`` of them
    at most; 0: it takes none. ``pixels_per_token``: pixels of one output token where images keep their size, 0 where
    all are scaled to the same. ``gated``: its MLP has a gate beside the up projection.
    """

    modality: str
    parameters: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    tokens_per_item: int
    output_tokens_per_item: int
    layers: int
    gated: bool = False
    images_per_video: int = 0
    pixels_per_token: int = 0


@dataclass(frozen=True, slots=True)
class CheckpointTensors:
    """Exact figures from safetensors headers. Bytes are as stored.

    ``layer_bytes[i]`` belongs to decoder layer i. ``replicated`` parts are those of one dimension, which tensor
    parallelism does not split.
    """

    layer_bytes: tuple[int, ...]
    layer_replicated_bytes: tuple[int, ...]
    embedding_bytes: int
    head_bytes: int
    other_bytes: int
    parameters: int
    stored_dtypes: Mapping[str, int]

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors that the engine loads."""
        return sum(self.layer_bytes) + self.embedding_bytes + self.head_bytes + self.other_bytes


@dataclass(frozen=True, slots=True, eq=False)
class ModelFacts:
    """A model, as far as memory and speed depend on it. Compared and hashed by identity, so that caches stay cheap.

    ``rotary_caches`` are the engine's cos-sin tables as (positions, dimensions).

    ``layer_kinds[layer_pattern[i]]`` is layer i. ``unknown`` lists in words what the configuration did not say and
    the estimate therefore does not cover.
    """

    architecture: str
    model_type: str
    hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    native_dtype: str
    tie_word_embeddings: bool
    layer_kinds: tuple[LayerFacts, ...]
    layer_pattern: tuple[int, ...]
    final_norm_parameters: int
    rotary_caches: tuple[tuple[int, int], ...] = ()
    quantization: QuantizationFacts | None = None
    encoder: EncoderFacts | None = None
    has_lm_head: bool = True
    shares_embedding: bool = False
    checkpoint: CheckpointTensors | None = None
    unknown: tuple[str, ...] = ()

    @property
    def has_bidirectional_images(self) -> bool:
        """Whether the tokens of an image attend to one another in both directions."""
        return self.model_type == "gemma3" and self.encoder is not None

    @property
    def num_hidden_layers(self) -> int:
        """Decoder layers."""
        return len(self.layer_pattern)

    @property
    def has_kv_cache(self) -> bool:
        """Whether any layer keeps keys and values; encoders do not."""
        return any(kind.attention.kind != "encoder" for kind in self.layer_kinds)

    def layers(self, start: int, stop: int) -> list[tuple[LayerFacts, int]]:
        """The layers ``start`` to ``stop - 1`` as (kind, how many)."""
        counts = [0] * len(self.layer_kinds)
        for kind in self.layer_pattern[start:stop]:
            counts[kind] += 1
        return [(self.layer_kinds[kind], count) for kind, count in enumerate(counts) if count]

    @property
    def embedding_parameters(self) -> int:
        """Token embedding. A draft head may use that of the model."""
        return 0 if self.shares_embedding else self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """All parameters, tied embeddings counted once."""
        embeddings = self.embedding_parameters * (2 if self.has_lm_head and not self.tie_word_embeddings else 1)
        layers = sum(kind.parameters * count for kind, count in self.layers(0, self.num_hidden_layers))
        encoder = self.encoder.parameters if self.encoder else 0
        return embeddings + layers + self.final_norm_parameters + encoder

    @property
    def active_parameters(self) -> int:
        """Parameters that one token passes through, without the embedding look-up."""
        layers = sum(kind.active_parameters * count for kind, count in self.layers(0, self.num_hidden_layers))
        return layers + (self.embedding_parameters if self.has_lm_head else 0) + self.final_norm_parameters

    @property
    def num_attention_heads(self) -> int:
        """Query heads, which tensor parallelism has to divide."""
        return self.layer_kinds[0].attention.num_heads

    @property
    def num_key_value_heads(self) -> int:
        """Key and value heads of the first layer."""
        return self.layer_kinds[0].attention.num_kv_heads
