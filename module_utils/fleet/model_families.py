"""Families of models: from a config.json's keys to layers, as the engine builds them.

Defaults are those of the family's transformers configuration class; published config.json files leave them out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .config_reader import ConfigReader
from .errors import FleetError
from .model_facts import AttentionFacts, EncoderFacts, ExpertsModule, LayerFacts, LinearModule, ModelFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Family:
    """How one ``model_type`` is read, and what its configuration class fills in."""

    build: Callable[[ConfigReader], ModelFacts]
    defaults: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class _LlamaTraits:
    """In what a family differs from Llama."""

    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    query_key_norm: bool = False
    norms_per_layer: int = 2
    fused_names: bool = False


def _attention(reader: ConfigReader, *, window: int | None = None) -> AttentionFacts:
    heads = reader.integer("num_attention_heads")
    hidden = reader.integer("hidden_size")
    kv_heads = reader.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise FleetError(
            f"{reader.where}: num_key_value_heads", f"must divide num_attention_heads {heads}, got {kv_heads}"
        )
    if not reader.has("head_dim") and hidden % heads:
        raise FleetError(f"{reader.where}: num_attention_heads", f"must divide hidden_size {hidden}, got {heads}")
    head_size = reader.integer("head_dim", hidden // heads)
    return AttentionFacts(
        kind="full" if window is None else "sliding",
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        head_size_v=head_size,
        sliding_window=window,
    )


def _attention_modules(attention: AttentionFacts, hidden: int, traits: _LlamaTraits) -> tuple[LinearModule, ...]:
    query = attention.num_heads * attention.head_size
    key = attention.num_kv_heads * attention.head_size
    value = attention.num_kv_heads * attention.head_size_v
    names = ("qkv_proj",) if traits.fused_names else ("q_proj", "k_proj", "v_proj")
    return (
        LinearModule(
            name="self_attn.qkv_proj",
            input_size=hidden,
            output_sizes=(query, key, value),
            sharding="qkv",
            checkpoint_names=tuple(f"self_attn.{name}" for name in names),
            bias=traits.qkv_bias,
        ),
        LinearModule(
            name="self_attn.o_proj",
            input_size=attention.num_heads * attention.head_size_v,
            output_sizes=(hidden,),
            sharding="row",
            checkpoint_names=("self_attn.o_proj",),
            bias=traits.output_bias,
        ),
    )


def _mlp_modules(
    hidden: int, intermediate: int, *, bias: bool = False, prefix: str = "mlp", fused_names: bool = False
) -> tuple[LinearModule, ...]:
    names = ("gate_up_proj",) if fused_names else ("gate_proj", "up_proj")
    return (
        LinearModule(
            name=f"{prefix}.gate_up_proj",
            input_size=hidden,
            output_sizes=(intermediate, intermediate),
            sharding="column",
            checkpoint_names=tuple(f"{prefix}.{name}" for name in names),
            bias=bias,
        ),
        LinearModule(
            name=f"{prefix}.down_proj",
            input_size=intermediate,
            output_sizes=(hidden,),
            sharding="row",
            checkpoint_names=(f"{prefix}.down_proj",),
            bias=bias,
        ),
    )


def _router(hidden: int, experts: int, *, name: str = "mlp.gate", bias: bool = False) -> LinearModule:
    return LinearModule(
        name=name,
        input_size=hidden,
        output_sizes=(experts,),
        sharding="replicated",
        checkpoint_names=(name,),
        bias=bias,
        quantizable=False,
    )


def _facts(
    reader: ConfigReader,
    kinds: Sequence[LayerFacts],
    pattern: Sequence[int],
    *,
    rotary_dim: int | None,
    unscaled_rotary: bool = False,
    final_norm_parameters: int | None = None,
    tied_by_default: bool = False,
    encoder: EncoderFacts | None = None,
) -> ModelFacts:
    hidden = reader.integer("hidden_size")
    architectures = reader.texts("architectures")
    positions = reader.integer("max_position_embeddings")
    return ModelFacts(
        architecture=architectures[0] if architectures else "",
        model_type=reader.text("model_type"),
        hidden_size=hidden,
        vocab_size=reader.integer("vocab_size"),
        max_position_embeddings=positions,
        native_dtype=_native_dtype(reader),
        tie_word_embeddings=reader.flag("tie_word_embeddings", default=tied_by_default),
        layer_kinds=tuple(kinds),
        layer_pattern=tuple(pattern),
        final_norm_parameters=hidden if final_norm_parameters is None else final_norm_parameters,
        rotary_caches=_rotary_caches(reader, positions, rotary_dim, unscaled_rotary=unscaled_rotary),
        encoder=encoder,
    )


def _native_dtype(reader: ConfigReader) -> str:
    # transformers 5 renamed torch_dtype. Without either, the engine reads the tensors, which are 32-bit by convention.
    return reader.text("dtype", reader.text("torch_dtype", "float32")).removeprefix("torch.")


def _rotary_caches(
    reader: ConfigReader, positions: int, dimensions: int | None, *, unscaled_rotary: bool
) -> tuple[tuple[int, int], ...]:
    """The engine's tables: one, and a second without scaling where sliding layers have their own base."""
    if dimensions is None:
        return ()
    scaled = (_rotary_positions(reader, positions), dimensions)
    return (scaled, (positions, dimensions)) if unscaled_rotary else (scaled,)


def _rotary_positions(reader: ConfigReader, positions: int) -> int:
    """Rows of the engine's cos-sin cache. YaRN scales the original length, the other kinds keep the maximum."""
    scaling = reader.mapping("rope_scaling") or reader.mapping("rope_parameters")
    if scaling is None:
        return positions
    scaling_reader = ConfigReader(scaling, f"{reader.where}: rope_scaling")
    kind = scaling_reader.text("rope_type", scaling_reader.text("type", "default"))
    factor = scaling.get("factor")
    if kind in ("yarn", "deepseek_yarn") and isinstance(factor, int | float):
        return int(scaling_reader.integer("original_max_position_embeddings", positions) * factor)
    if kind == "linear" and isinstance(factor, int | float):
        return int(positions * factor)
    return positions


def _layer_types(reader: ConfigReader, layers: int, every: int) -> list[bool]:
    """Which layers slide. ``layer_types`` says so, or else all but each ``every``-th."""
    types = reader.texts("layer_types")
    if not types:
        return [bool((index + 1) % every) for index in range(layers)]
    if len(types) != layers:
        raise FleetError(f"{reader.where}: layer_types", f"has {len(types)} entries for {layers} layers")
    unknown = set(types) - {"sliding_attention", "full_attention"}
    if unknown:
        raise FleetError(f"{reader.where}: layer_types", f"unknown kind {sorted(unknown)[0]!r}")
    return [kind == "sliding_attention" for kind in types]


def _dense_layer(reader: ConfigReader, traits: _LlamaTraits, *, window: int | None = None) -> LayerFacts:
    attention = _attention(reader, window=window)
    hidden = reader.integer("hidden_size")
    return LayerFacts(
        attention=attention,
        modules=_attention_modules(attention, hidden, traits)
        + _mlp_modules(
            hidden, reader.integer("intermediate_size"), bias=traits.mlp_bias, fused_names=traits.fused_names
        ),
        norm_parameters=_norms(attention, hidden, traits),
    )


def _norms(attention: AttentionFacts, hidden: int, traits: _LlamaTraits) -> int:
    return traits.norms_per_layer * hidden + (2 * attention.head_size if traits.query_key_norm else 0)


def _uniform(reader: ConfigReader, traits: _LlamaTraits, *, window: int | None = None) -> ModelFacts:
    layer = _dense_layer(reader, traits, window=window)
    rotary = int(layer.attention.head_size * _partial_rotary_factor(reader))
    return _facts(reader, [layer], [0] * reader.integer("num_hidden_layers"), rotary_dim=rotary)


def _partial_rotary_factor(reader: ConfigReader) -> float:
    value = (reader.mapping("rope_parameters") or {}).get("partial_rotary_factor")
    return float(value) if isinstance(value, int | float) else 1.0


def _llama(reader: ConfigReader) -> ModelFacts:
    bias = reader.flag("attention_bias", default=False)
    traits = _LlamaTraits(qkv_bias=bias, output_bias=bias, mlp_bias=reader.flag("mlp_bias", default=False))
    return _uniform(reader, traits)


def _mistral(reader: ConfigReader) -> ModelFacts:
    return _uniform(reader, _LlamaTraits(), window=reader.optional_integer("sliding_window"))


def _qwen2(reader: ConfigReader) -> ModelFacts:
    return _qwen_window(reader, _LlamaTraits(qkv_bias=True))


def _qwen3(reader: ConfigReader) -> ModelFacts:
    bias = reader.flag("attention_bias", default=False)
    return _qwen_window(reader, _LlamaTraits(qkv_bias=bias, output_bias=bias, query_key_norm=True))


def _qwen_window(reader: ConfigReader, traits: _LlamaTraits) -> ModelFacts:
    """Qwen names a window in every file and uses it only where ``use_sliding_window`` says so."""
    if not reader.flag("use_sliding_window", default=False) or not reader.has("sliding_window"):
        return _uniform(reader, traits)
    layers = reader.integer("num_hidden_layers")
    first = reader.integer("max_window_layers", layers, minimum=0)
    types = reader.texts("layer_types")
    slides = [t == "sliding_attention" for t in types] if types else [index >= first for index in range(layers)]
    kinds = [_dense_layer(reader, traits), _dense_layer(reader, traits, window=reader.integer("sliding_window"))]
    return _facts(reader, kinds, [int(s) for s in slides], rotary_dim=kinds[0].attention.head_size)


def _phi3(reader: ConfigReader) -> ModelFacts:
    return _uniform(reader, _LlamaTraits(fused_names=True), window=reader.optional_integer("sliding_window"))


def _gemma(reader: ConfigReader) -> ModelFacts:
    facts = _uniform(reader, _LlamaTraits())
    return replace(facts, tie_word_embeddings=reader.flag("tie_word_embeddings", default=True))


def _interleaved(reader: ConfigReader, traits: _LlamaTraits, every: int, *, unscaled_rotary: bool) -> ModelFacts:
    window = reader.integer("sliding_window")
    kinds = [_dense_layer(reader, traits), _dense_layer(reader, traits, window=window)]
    pattern = [int(slides) for slides in _layer_types(reader, reader.integer("num_hidden_layers"), every)]
    return _facts(
        reader,
        kinds,
        pattern,
        rotary_dim=kinds[0].attention.head_size,
        unscaled_rotary=unscaled_rotary,
        tied_by_default=True,
    )


def _gemma2(reader: ConfigReader) -> ModelFacts:
    return _interleaved(reader, _LlamaTraits(norms_per_layer=4), 2, unscaled_rotary=False)


def _gemma3_text(reader: ConfigReader) -> ModelFacts:
    every = reader.integer("sliding_window_pattern", 6)
    traits = _LlamaTraits(norms_per_layer=4, query_key_norm=True)
    return _interleaved(reader, traits, every, unscaled_rotary=True)


def _gemma3(reader: ConfigReader) -> ModelFacts:
    text = reader.mapping("text_config")
    if text is None:
        raise FleetError(f"{reader.where}: text_config", "missing")
    inherited = {
        "architectures": list(reader.texts("architectures")) or ["Gemma3ForConditionalGeneration"],
        "torch_dtype": _native_dtype(reader),
    }
    text_reader = ConfigReader(
        {**inherited, **{key: value for key, value in text.items() if value is not None}},
        f"{reader.where}: text_config",
        FAMILIES["gemma3_text"].defaults,
    )
    facts = _gemma3_text(text_reader)
    vision = reader.mapping("vision_config")
    if vision is None:
        return facts
    return replace(
        facts,
        model_type="gemma3",
        encoder=_siglip(ConfigReader(vision, f"{reader.where}: vision_config", _SIGLIP_DEFAULTS), reader, facts),
    )


def _siglip(vision: ConfigReader, reader: ConfigReader, text: ModelFacts) -> EncoderFacts:
    """SigLIP with Gemma's projector: patch and position embeddings, pre-norm layers with biases throughout."""
    hidden = vision.integer("hidden_size")
    intermediate = vision.integer("intermediate_size")
    layers = vision.integer("num_hidden_layers")
    patch = vision.integer("patch_size")
    patches = (vision.integer("image_size") // patch) ** 2
    per_layer = 4 * (hidden * hidden + hidden) + 2 * hidden * intermediate + intermediate + hidden + 4 * hidden
    tower = patch * patch * 3 * hidden + hidden + patches * hidden + layers * per_layer + 2 * hidden
    projector = hidden * text.hidden_size + hidden
    return EncoderFacts(
        modality="image",
        parameters=tower + projector,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_heads=vision.integer("num_attention_heads"),
        tokens_per_item=patches,
        output_tokens_per_item=reader.integer("mm_tokens_per_image", 256),
        layers=layers,
    )


def _mixtral(reader: ConfigReader) -> ModelFacts:
    attention = _attention(reader, window=reader.optional_integer("sliding_window"))
    hidden = reader.integer("hidden_size")
    experts = ExpertsModule(
        num_experts=reader.integer("num_local_experts"),
        experts_per_token=reader.integer("num_experts_per_tok"),
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size"),
    )
    layer = LayerFacts(
        attention=attention,
        modules=(
            *_attention_modules(attention, hidden, _LlamaTraits()),
            _router(hidden, experts.num_experts, name="block_sparse_moe.gate"),
        ),
        norm_parameters=2 * hidden,
        experts=experts,
    )
    pattern = [0] * reader.integer("num_hidden_layers")
    return _facts(reader, [layer], pattern, rotary_dim=attention.head_size)


def _qwen_moe(reader: ConfigReader) -> ModelFacts:
    """Qwen2-MoE (with shared expert and QKV bias) and Qwen3-MoE (with query and key norms)."""
    is_qwen3 = reader.text("model_type") == "qwen3_moe"
    bias = reader.flag("attention_bias", default=False) if is_qwen3 else reader.flag("qkv_bias", default=True)
    traits = _LlamaTraits(qkv_bias=bias, output_bias=bias and is_qwen3, query_key_norm=is_qwen3)
    attention = _attention(reader)
    hidden = reader.integer("hidden_size")
    experts = ExpertsModule(
        num_experts=reader.integer("num_experts"),
        experts_per_token=reader.integer("num_experts_per_tok"),
        hidden_size=hidden,
        intermediate_size=reader.integer("moe_intermediate_size"),
    )
    modules = [*_attention_modules(attention, hidden, traits), _router(hidden, experts.num_experts)]
    if not is_qwen3:
        shared = reader.integer("shared_expert_intermediate_size")
        modules += _mlp_modules(hidden, shared, prefix="mlp.shared_expert")
        modules.append(_router(hidden, 1, name="mlp.shared_expert_gate"))
    sparse = LayerFacts(attention, tuple(modules), _norms(attention, hidden, traits), experts=experts)
    dense = _dense_layer(reader, traits)
    step = reader.integer("decoder_sparse_step", 1)
    dense_layers = set(reader.integers("mlp_only_layers"))
    pattern = [
        int(index not in dense_layers and (index + 1) % step == 0)
        for index in range(reader.integer("num_hidden_layers"))
    ]
    return _facts(reader, [dense, sparse], pattern, rotary_dim=attention.head_size)


def _deepseek(reader: ConfigReader) -> ModelFacts:
    hidden = reader.integer("hidden_size")
    heads = reader.integer("num_attention_heads")
    kv_rank = reader.integer("kv_lora_rank")
    nope = reader.integer("qk_nope_head_dim")
    rope = reader.integer("qk_rope_head_dim")
    value = reader.integer("v_head_dim")
    query_rank = reader.optional_integer("q_lora_rank")
    bias = reader.flag("attention_bias", default=False)
    attention = AttentionFacts(
        kind="mla",
        num_heads=heads,
        num_kv_heads=1,
        head_size=nope + rope,
        head_size_v=value,
        kv_lora_rank=kv_rank,
        qk_rope_head_dim=rope,
    )
    modules = [
        *_mla_query_modules(hidden, heads * (nope + rope), query_rank, kv_rank + rope, bias=bias),
        _linear("self_attn.kv_b_proj", kv_rank, (heads * (nope + value),), "column"),
        _linear("self_attn.o_proj", heads * value, (hidden,), "row", bias=bias),
    ]
    norms = 2 * hidden + kv_rank + (query_rank or 0)
    dense = LayerFacts(
        attention, (*modules, *_mlp_modules(hidden, reader.integer("intermediate_size"))), norm_parameters=norms
    )
    pattern = _deepseek_pattern(reader)
    if not any(pattern):
        return _facts(reader, [dense], pattern, rotary_dim=rope)
    routed = reader.integer("n_routed_experts")
    intermediate = reader.integer("moe_intermediate_size")
    shared = reader.integer("n_shared_experts", 0, minimum=0)
    sparse_modules = [*modules, _router(hidden, routed)]
    if shared:
        sparse_modules += _mlp_modules(hidden, shared * intermediate, prefix="mlp.shared_experts")
    sparse = LayerFacts(
        attention,
        tuple(sparse_modules),
        norm_parameters=norms,
        experts=ExpertsModule(routed, reader.integer("num_experts_per_tok"), hidden, intermediate),
        float32_parameters=routed if reader.text("topk_method", "") == "noaux_tc" else 0,
    )
    return _facts(reader, [dense, sparse], pattern, rotary_dim=rope)


def _deepseek_pattern(reader: ConfigReader) -> list[int]:
    layers = reader.integer("num_hidden_layers")
    if not reader.has("n_routed_experts"):
        return [0] * layers
    first = reader.integer("first_k_dense_replace", 0, minimum=0)
    frequency = reader.integer("moe_layer_freq", 1)
    return [int(index >= first and index % frequency == 0) for index in range(layers)]


def _linear(
    name: str, input_size: int, output_sizes: tuple[int, ...], sharding: str, *, bias: bool = False
) -> LinearModule:
    return LinearModule(
        name=name,
        input_size=input_size,
        output_sizes=output_sizes,
        sharding=sharding,  # type: ignore[arg-type]
        checkpoint_names=(name,),
        bias=bias,
    )


def _mla_query_modules(
    hidden: int, query: int, query_rank: int | None, cache_entry: int, *, bias: bool
) -> list[LinearModule]:
    if query_rank is None:
        return [
            _linear("self_attn.q_proj", hidden, (query,), "column"),
            _linear("self_attn.kv_a_proj_with_mqa", hidden, (cache_entry,), "replicated", bias=bias),
        ]
    fused = LinearModule(
        name="self_attn.fused_qkv_a_proj",
        input_size=hidden,
        output_sizes=(query_rank, cache_entry),
        sharding="replicated",
        checkpoint_names=("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"),
        bias=bias,
    )
    return [fused, _linear("self_attn.q_b_proj", query_rank, (query,), "column")]


def _gpt_oss(reader: ConfigReader) -> ModelFacts:
    hidden = reader.integer("hidden_size")
    experts = ExpertsModule(
        num_experts=reader.integer("num_local_experts"),
        experts_per_token=reader.integer("num_experts_per_tok"),
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size"),
        bias=True,
    )
    traits = _LlamaTraits(qkv_bias=True, output_bias=True)

    def layer(window: int | None) -> LayerFacts:
        attention = _attention(reader, window=window)
        return LayerFacts(
            attention=attention,
            modules=(
                *_attention_modules(attention, hidden, traits),
                _router(hidden, experts.num_experts, name="mlp.router", bias=True),
            ),
            norm_parameters=2 * hidden,
            experts=experts,
            sharded_parameters=attention.num_heads,
        )

    kinds = [layer(None), layer(reader.integer("sliding_window"))]
    pattern = [int(slides) for slides in _layer_types(reader, reader.integer("num_hidden_layers"), 2)]
    return _facts(reader, kinds, pattern, rotary_dim=kinds[0].attention.head_size)


def _falcon(reader: ConfigReader) -> ModelFacts:
    hidden = reader.integer("hidden_size")
    heads = reader.integer("num_attention_heads", reader.optional_integer("n_head"))
    head_size = hidden // heads
    new_architecture = reader.flag("new_decoder_architecture", default=False)
    if new_architecture:
        kv_heads = reader.integer("num_kv_heads", reader.optional_integer("n_head_kv") or heads)
    else:
        kv_heads = 1 if reader.flag("multi_query", default=True) else heads
    bias = reader.flag("bias", default=False)
    intermediate = reader.integer("ffn_hidden_size", 4 * hidden)
    parallel = reader.flag("parallel_attn", default=True)
    norms = 2 if not parallel or (new_architecture and reader.integer("num_ln_in_parallel_attn", 2) == 2) else 1
    attention = AttentionFacts("full", heads, kv_heads, head_size, head_size)
    qkv = LinearModule(
        name="self_attention.query_key_value",
        input_size=hidden,
        output_sizes=(heads * head_size, kv_heads * head_size, kv_heads * head_size),
        sharding="qkv",
        checkpoint_names=("self_attention.query_key_value",),
        bias=bias,
    )
    layer = LayerFacts(
        attention=attention,
        modules=(
            qkv,
            _linear("self_attention.dense", heads * head_size, (hidden,), "row", bias=bias),
            _linear("mlp.dense_h_to_4h", hidden, (intermediate,), "column", bias=bias),
            _linear("mlp.dense_4h_to_h", intermediate, (hidden,), "row", bias=bias),
        ),
        norm_parameters=norms * 2 * hidden,
    )
    alibi = reader.flag("alibi", default=False)
    layers = reader.integer("num_hidden_layers", reader.optional_integer("n_layer"))
    return _facts(
        reader,
        [layer],
        [0] * layers,
        rotary_dim=None if alibi else head_size,
        final_norm_parameters=2 * hidden,
        tied_by_default=True,
    )


_SIGLIP_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}
_GEMMA3_TEXT_DEFAULTS = {
    "model_type": "gemma3_text",
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
_QWEN_MOE_DEFAULTS: dict[str, object] = {"max_position_embeddings": 32768}

FAMILIES: dict[str, Family] = {
    "llama": Family(_llama, {"max_position_embeddings": 2048}),
    "mistral": Family(_mistral, {"max_position_embeddings": 131072}),
    "qwen2": Family(_qwen2, {"max_position_embeddings": 32768}),
    "qwen3": Family(_qwen3, {"max_position_embeddings": 32768, "head_dim": 128}),
    "phi3": Family(_phi3, {"max_position_embeddings": 4096}),
    "gemma": Family(_gemma, {"head_dim": 256, "max_position_embeddings": 8192}),
    "gemma2": Family(_gemma2, {"head_dim": 256, "max_position_embeddings": 8192, "sliding_window": 4096}),
    "gemma3_text": Family(_gemma3_text, _GEMMA3_TEXT_DEFAULTS),
    "gemma3": Family(_gemma3, {}),
    "mixtral": Family(_mixtral, {"num_local_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 131072}),
    "qwen2_moe": Family(_qwen_moe, _QWEN_MOE_DEFAULTS),
    "qwen3_moe": Family(_qwen_moe, _QWEN_MOE_DEFAULTS),
    "deepseek_v2": Family(_deepseek, {"max_position_embeddings": 2048}),
    "deepseek_v3": Family(_deepseek, {"max_position_embeddings": 4096, "topk_method": "noaux_tc"}),
    "gpt_oss": Family(
        _gpt_oss,
        {"head_dim": 64, "sliding_window": 128, "max_position_embeddings": 131072, "num_experts_per_tok": 4},
    ),
    "falcon": Family(_falcon, {"max_position_embeddings": 2048}),
}
