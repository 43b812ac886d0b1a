"""The lab's models of other kinds than chat: an embedder, a reranker, a vision-language model and a LoRA adapter.

Shapes are those of bge-m3, bge-reranker-v2-m3 and SmolVLM (Idefics3), as small as vLLM takes them; the adapter is
one for tiny-qwen. Each ``make_*`` writes one checkpoint directory. Idefics3, because it is one of the few
vision-language models of vLLM that load without torchvision, which the engine's CPU build lacks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tiny_parts import tokenizer, write_json, write_tensors
from tokenizers import processors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

# XLM-RoBERTa counts positions from after the padding token, so that two of them are not usable.
_ENCODER_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_ENCODER: dict[str, Any] = {
    "model_type": "xlm-roberta",
    "torch_dtype": "bfloat16",
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 514,
    "position_embedding_type": "absolute",
    "type_vocab_size": 1,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
_IMAGE = "<image>"
_END_OF_UTTERANCE = "<end_of_utterance>"
_VISION_TOKENS = ("<s>", "</s>", "<pad>", _IMAGE, "<fake_token_around_image>", "<global-img>", _END_OF_UTTERANCE)
_VISION_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ message['role'] | capitalize + ': ' }}
{%- for part in message['content'] -%}
{{ '<image>' if part['type'] == 'image' else part['text'] }}
{%- endfor -%}
{{ '<end_of_utterance>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ 'Assistant:' }}
{%- endif -%}
"""
# Patches are joined by squares of _SCALE x _SCALE: 16 of them are 4 tokens.
_IMAGE_SIZE, _PATCH_SIZE, _SCALE = 64, 16, 2
_TEXT: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 640,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_TOWER: dict[str, Any] = {
    "model_type": "idefics3_vision",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": _IMAGE_SIZE,
    "patch_size": _PATCH_SIZE,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_ADAPTER: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "tiny-qwen",
    "r": 8,
    "lora_alpha": 64,
    "lora_dropout": 0.0,
    "bias": "none",
    "target_modules": ["q_proj", "v_proj", "down_proj"],
    "modules_to_save": None,
    "use_dora": False,
    "use_rslora": False,
}


def _linear(name: str, output_size: int, input_size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (output_size, input_size), f"{name}.bias": (output_size,)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def encoder_shapes(prefix: str) -> dict[str, tuple[int, ...]]:
    """Tensors of the encoder, without pooler and head."""
    hidden, intermediate = _ENCODER["hidden_size"], _ENCODER["intermediate_size"]
    found: dict[str, tuple[int, ...]] = {
        f"{prefix}embeddings.word_embeddings.weight": (_ENCODER["vocab_size"], hidden),
        f"{prefix}embeddings.position_embeddings.weight": (_ENCODER["max_position_embeddings"], hidden),
        f"{prefix}embeddings.token_type_embeddings.weight": (_ENCODER["type_vocab_size"], hidden),
        **_norm(f"{prefix}embeddings.LayerNorm", hidden),
    }
    for layer in range(_ENCODER["num_hidden_layers"]):
        name = f"{prefix}encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            found |= _linear(f"{name}.attention.self.{part}", hidden, hidden)
        found |= {
            **_linear(f"{name}.attention.output.dense", hidden, hidden),
            **_norm(f"{name}.attention.output.LayerNorm", hidden),
            **_linear(f"{name}.intermediate.dense", intermediate, hidden),
            **_linear(f"{name}.output.dense", hidden, intermediate),
            **_norm(f"{name}.output.LayerNorm", hidden),
        }
    return found


def _write_encoder(directory: Path, architecture: str, more_config: Mapping[str, Any]) -> None:
    directory.mkdir(parents=True)
    write_json(directory / "config.json", {"architectures": [architecture], **_ENCODER, **more_config})
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "cls_token": "<s>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "mask_token": "<mask>",
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": _ENCODER["max_position_embeddings"] - 2,
        },
    )
    made = tokenizer(_ENCODER["vocab_size"], _ENCODER_TOKENS)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    made.save(str(directory / "tokenizer.json"))


def make_embedder(directory: Path) -> None:
    """Writes an encoder whose first token's output, normalized, is the embedding: sentence-transformers' modules."""
    hidden = _ENCODER["hidden_size"]
    _write_encoder(directory, "XLMRobertaModel", {})
    write_json(
        directory / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (path, kind) in enumerate(
                (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
            )
        ],
    )
    write_json(
        directory / "1_Pooling" / "config.json",
        {"word_embedding_dimension": hidden, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
    )
    write_json(
        directory / "sentence_bert_config.json",
        {"max_seq_length": _ENCODER["max_position_embeddings"] - 2, "do_lower_case": False},
    )
    shapes = {**encoder_shapes(""), **_linear("pooler.dense", hidden, hidden)}
    write_tensors(shapes, 3, directory / "model.safetensors")


def make_reranker(directory: Path) -> None:
    """Writes an encoder with a head of one label: a cross-encoder, which scores a pair of texts."""
    hidden = _ENCODER["hidden_size"]
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    _write_encoder(directory, "XLMRobertaForSequenceClassification", labels)
    shapes = {
        **encoder_shapes("roberta."),
        **_linear("classifier.dense", hidden, hidden),
        **_linear("classifier.out_proj", 1, hidden),
    }
    write_tensors(shapes, 4, directory / "model.safetensors")


def vision_shapes() -> dict[str, tuple[int, ...]]:
    """Tensors of the vision tower, the connector and the language model, under the names of published checkpoints."""
    tower, text = _TOWER["hidden_size"], _TEXT["hidden_size"]
    prefix = "model.vision_model"
    found: dict[str, tuple[int, ...]] = {
        f"{prefix}.embeddings.patch_embedding.weight": (tower, 3, _PATCH_SIZE, _PATCH_SIZE),
        f"{prefix}.embeddings.patch_embedding.bias": (tower,),
        f"{prefix}.embeddings.position_embedding.weight": ((_IMAGE_SIZE // _PATCH_SIZE) ** 2, tower),
    }
    for layer in range(_TOWER["num_hidden_layers"]):
        name = f"{prefix}.encoder.layers.{layer}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            found |= _linear(f"{name}.self_attn.{part}", tower, tower)
        found |= {
            **_norm(f"{name}.layer_norm1", tower),
            **_linear(f"{name}.mlp.fc1", _TOWER["intermediate_size"], tower),
            **_linear(f"{name}.mlp.fc2", tower, _TOWER["intermediate_size"]),
            **_norm(f"{name}.layer_norm2", tower),
        }
    found |= {
        **_norm(f"{prefix}.post_layernorm", tower),
        "model.connector.modality_projection.proj.weight": (text, tower * _SCALE**2),
        "model.text_model.embed_tokens.weight": (_TEXT["vocab_size"], text),
    }
    heads = _TEXT["num_attention_heads"] * _TEXT["head_dim"]
    key_value = _TEXT["num_key_value_heads"] * _TEXT["head_dim"]
    for layer in range(_TEXT["num_hidden_layers"]):
        name = f"model.text_model.layers.{layer}"
        found |= {
            f"{name}.input_layernorm.weight": (text,),
            f"{name}.post_attention_layernorm.weight": (text,),
            f"{name}.self_attn.q_proj.weight": (heads, text),
            f"{name}.self_attn.k_proj.weight": (key_value, text),
            f"{name}.self_attn.v_proj.weight": (key_value, text),
            f"{name}.self_attn.o_proj.weight": (text, heads),
            f"{name}.mlp.gate_proj.weight": (_TEXT["intermediate_size"], text),
            f"{name}.mlp.up_proj.weight": (_TEXT["intermediate_size"], text),
            f"{name}.mlp.down_proj.weight": (text, _TEXT["intermediate_size"]),
        }
    found["model.text_model.norm.weight"] = (text,)
    found["lm_head.weight"] = (_TEXT["vocab_size"], text)
    return found


def make_vision(directory: Path) -> None:
    """Writes a vision tower, a connector and a Llama, with the processor that makes pixels of images."""
    directory.mkdir(parents=True)
    made = tokenizer(_TEXT["vocab_size"], _VISION_TOKENS)
    token_ids = {token: made.get_vocab()[token] for token in _VISION_TOKENS}
    ends = [token_ids["</s>"], token_ids[_END_OF_UTTERANCE]]
    write_json(
        directory / "config.json",
        {
            "architectures": ["Idefics3ForConditionalGeneration"],
            "model_type": "idefics3",
            "torch_dtype": "bfloat16",
            "image_token_id": token_ids[_IMAGE],
            "pad_token_id": token_ids["<pad>"],
            "scale_factor": _SCALE,
            "tie_word_embeddings": False,
            "text_config": {**_TEXT, "bos_token_id": 0, "eos_token_id": ends, "pad_token_id": token_ids["<pad>"]},
            "vision_config": _TOWER,
        },
    )
    write_json(
        directory / "generation_config.json",
        {"bos_token_id": 0, "eos_token_id": ends, "pad_token_id": token_ids["<pad>"]},
    )
    write_json(
        directory / "preprocessor_config.json",
        {
            "image_processor_type": "Idefics3ImageProcessor",
            "processor_class": "Idefics3Processor",
            "do_convert_rgb": True,
            "do_image_splitting": False,
            "do_resize": True,
            "size": {"longest_edge": _IMAGE_SIZE},
            "max_image_size": {"longest_edge": _IMAGE_SIZE},
            "resample": 1,
            "do_pad": True,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    )
    write_json(
        directory / "processor_config.json",
        {"processor_class": "Idefics3Processor", "image_seq_len": (_IMAGE_SIZE // _PATCH_SIZE // _SCALE) ** 2},
    )
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "Idefics3Processor",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "model_max_length": _TEXT["max_position_embeddings"],
        },
    )
    (directory / "chat_template.jinja").write_text(_VISION_TEMPLATE)
    made.save(str(directory / "tokenizer.json"))
    write_tensors(vision_shapes(), 5, directory / "model.safetensors")


def adapter_shapes() -> dict[str, tuple[int, ...]]:
    """Tensors of the adapter for tiny-qwen, under PEFT's names."""
    rank = _ADAPTER["r"]
    sizes = {"self_attn.q_proj": (256, 256), "self_attn.v_proj": (256, 64), "mlp.down_proj": (768, 256)}
    found: dict[str, tuple[int, ...]] = {}
    for layer in range(3):
        for module, (input_size, output_size) in sizes.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            found[f"{name}.lora_A.weight"] = (rank, input_size)
            found[f"{name}.lora_B.weight"] = (output_size, rank)
    return found


def make_adapter(directory: Path) -> None:
    """Writes a LoRA adapter that shows in what tiny-qwen answers."""
    directory.mkdir(parents=True)
    write_json(directory / "adapter_config.json", _ADAPTER)
    write_tensors(adapter_shapes(), 6, directory / "adapter_model.safetensors")


MAKERS: dict[str, Callable[[Path], None]] = {
    "tiny-embedder": make_embedder,
    "tiny-reranker": make_reranker,
    "tiny-vision": make_vision,
    "tiny-qwen-adapter": make_adapter,
}
