"""Makes the lab's checkpoints: tiny models with random weights that real vLLM serves within seconds on a CPU.

Usage: tiny_models.py DIRECTORY

Two chat models of different architectures, each with a byte-level BPE tokenizer trained on the spot, a chat template
and a generation configuration, and one of each further kind (``tiny_kinds``). The same bytes come out every time, so
that their checksums mean something.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tiny_kinds
from tiny_parts import SCALE, tokenizer, write_json, write_tensors

TURN_TEMPLATE = """\
{%- if tools -%}
{{ '<|im_start|>system\\nYou may call these functions:\\n' }}
{%- for tool in tools -%}
{{ tool | tojson + '\\n' }}
{%- endfor -%}
{{ 'Answer with <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') }}
{%- for call in message['tool_calls'] or [] -%}
{{ '<tool_call>' + (call['function'] | tojson) + '</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{ '<think>\\n\\n</think>\\n\\n' }}
{%- endif -%}
{%- endif -%}
"""
HEADER_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif -%}
"""


@dataclass(frozen=True)
class TinyModel:
    """What one checkpoint is made of; sizes are named as in its config.json."""

    name: str
    seed: int
    architecture: str
    model_type: str
    special_tokens: tuple[str, ...]
    marks: tuple[str, ...]
    bos: str
    eos: str
    pad: str
    chat_template: str
    template_in_own_file: bool
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    query_key_norm: bool
    more_config: tuple[tuple[str, Any], ...]
    layer_scale: float = SCALE


LLAMA = TinyModel(
    name="tiny-llama",
    seed=1,
    architecture="LlamaForCausalLM",
    model_type="llama",
    special_tokens=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    marks=(),
    bos="<|begin_of_text|>",
    eos="<|eot_id|>",
    pad="<|end_of_text|>",
    chat_template=HEADER_TEMPLATE,
    template_in_own_file=True,
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=8192,
    tie_word_embeddings=False,
    query_key_norm=False,
    more_config=(("mlp_bias", False),),
)
QWEN = TinyModel(
    name="tiny-qwen",
    seed=2,
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    # What the parsers qwen3 (reasoning) and hermes (tools) look for.
    marks=("<think>", "</think>", "<tool_call>", "</tool_call>"),
    bos="<|endoftext|>",
    eos="<|im_end|>",
    pad="<|endoftext|>",
    chat_template=TURN_TEMPLATE,
    template_in_own_file=False,
    vocab_size=768,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=64,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
    query_key_norm=True,
    more_config=(("use_sliding_window", False), ("sliding_window", None), ("max_window_layers", 3)),
)
# Layers that add next to nothing to the embedding, which is the output's too: the likeliest token is the last one
# again. So a larger and a smaller one agree, and what they write repeats.
PARROT = replace(
    LLAMA, name="tiny-parrot", seed=3, tie_word_embeddings=True, layer_scale=0.001, max_position_embeddings=4096
)
PARROT_DRAFT = replace(
    PARROT,
    name="tiny-parrot-draft",
    seed=4,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
)


def config(model: TinyModel, token_ids: dict[str, int]) -> dict[str, Any]:
    """The config.json."""
    return {
        "architectures": [model.architecture],
        "model_type": model.model_type,
        "torch_dtype": "bfloat16",
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_hidden_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_key_value_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": model.tie_word_embeddings,
        "use_cache": True,
        "bos_token_id": token_ids[model.bos],
        "eos_token_id": token_ids[model.eos],
        "pad_token_id": token_ids[model.pad],
        **dict(model.more_config),
    }


def shapes(model: TinyModel) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint, under the name that Transformers gives it, with its shape (out, in)."""
    hidden, heads = model.hidden_size, model.num_attention_heads * model.head_dim
    key_value = model.num_key_value_heads * model.head_dim
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (model.vocab_size, hidden)}
    for layer in range(model.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        found |= {
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
            f"{prefix}.self_attn.q_proj.weight": (heads, hidden),
            f"{prefix}.self_attn.k_proj.weight": (key_value, hidden),
            f"{prefix}.self_attn.v_proj.weight": (key_value, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, heads),
            f"{prefix}.mlp.gate_proj.weight": (model.intermediate_size, hidden),
            f"{prefix}.mlp.up_proj.weight": (model.intermediate_size, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, model.intermediate_size),
        }
        if model.query_key_norm:
            found[f"{prefix}.self_attn.q_norm.weight"] = (model.head_dim,)
            found[f"{prefix}.self_attn.k_norm.weight"] = (model.head_dim,)
    found["model.norm.weight"] = (hidden,)
    if not model.tie_word_embeddings:
        found["lm_head.weight"] = (model.vocab_size, hidden)
    return found


def write(model: TinyModel, directory: Path) -> None:
    """Writes one checkpoint directory."""
    directory.mkdir(parents=True)
    made = tokenizer(model.vocab_size, model.special_tokens, model.marks)
    token_ids = {token: made.get_vocab()[token] for token in model.special_tokens}
    tokenizer_config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": model.bos,
        "eos_token": model.eos,
        "pad_token": model.pad,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.max_position_embeddings,
    }
    if model.template_in_own_file:
        (directory / "chat_template.jinja").write_text(model.chat_template)
    else:
        tokenizer_config["chat_template"] = model.chat_template
    generation_config = {
        "bos_token_id": token_ids[model.bos],
        "eos_token_id": [token_ids[model.eos]],
        "pad_token_id": token_ids[model.pad],
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
    }
    for name, document in (
        ("config.json", config(model, token_ids)),
        ("generation_config.json", generation_config),
        ("tokenizer_config.json", tokenizer_config),
    ):
        write_json(directory / name, document)
    made.save(str(directory / "tokenizer.json"))
    write_tensors(shapes(model), model.seed, directory / "model.safetensors", layer_scale=model.layer_scale)


def main() -> None:
    """Writes every checkpoint beside its final name first, so that a directory that is there is whole."""
    root = Path(sys.argv[1])
    makers = {model.name: partial(write, model) for model in (LLAMA, QWEN, PARROT, PARROT_DRAFT)} | tiny_kinds.MAKERS
    for name, make in makers.items():
        unfinished = root / f".{name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        make(unfinished)
        shutil.rmtree(root / name, ignore_errors=True)
        unfinished.rename(root / name)


if __name__ == "__main__":
    main()
