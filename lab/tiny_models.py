"""Makes the lab's checkpoints: tiny models with random weights that real vLLM serves within seconds on a CPU.

Usage: tiny_models.py DIRECTORY

Two architectures, each with a byte-level BPE tokenizer trained on the spot, a chat template and a generation
configuration. The same bytes come out every time, so that their checksums mean something.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = Path(__file__).resolve().parent.parent / "LICENSE"
TURN_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
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


LLAMA = TinyModel(
    name="tiny-llama",
    seed=1,
    architecture="LlamaForCausalLM",
    model_type="llama",
    special_tokens=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
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


def bfloat16_bytes(values: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
    """Little-endian bfloat16 of float32 values: their upper halves, rounded to nearest."""
    bits = values.astype("<f4").view("<u4")
    return ((bits + 0x8000) >> 16).astype("<u2").tobytes()


def write_weights(model: TinyModel, path: Path) -> None:
    """Writes random bfloat16 tensors, norms as ones, as a safetensors file.

    The file is written here, not by the safetensors library: numpy has no bfloat16, and the bytes must not depend on
    the library's version. The format: the header's length in eight bytes, the header in JSON, then the tensors.
    """
    generator = np.random.Generator(np.random.PCG64(model.seed))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, shape in shapes(model).items():
        is_norm = len(shape) == 1
        values = np.ones(shape) if is_norm else generator.standard_normal(shape) * 0.05
        begin = len(data)
        data += bfloat16_bytes(values.astype(np.float32))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, len(data)]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def tokenizer(model: TinyModel) -> Tokenizer:
    """A byte-level BPE tokenizer: every text can be encoded, and comes back as it was."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=model.vocab_size,
        special_tokens=list(model.special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS.read_text().splitlines(), trainer)
    if made.get_vocab_size() != model.vocab_size:
        raise SystemExit(f"{CORPUS}: too little text for a vocabulary of {model.vocab_size}")
    return made


def write(model: TinyModel, directory: Path) -> None:
    """Writes one checkpoint directory."""
    directory.mkdir(parents=True)
    made = tokenizer(model)
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
        (directory / name).write_text(json.dumps(document, indent=2) + "\n")
    made.save(str(directory / "tokenizer.json"))
    write_weights(model, directory / "model.safetensors")


def main() -> None:
    """Writes every checkpoint beside its final name first, so that a directory that is there is whole."""
    root = Path(sys.argv[1])
    for model in (LLAMA, QWEN):
        unfinished = root / f".{model.name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        write(model, unfinished)
        shutil.rmtree(root / model.name, ignore_errors=True)
        unfinished.rename(root / model.name)


if __name__ == "__main__":
    main()
