from __future__ import annotations

import json
import struct

import pytest
from fleet.checkpoint import load_model_facts, manifest
from fleet.engine_options import EngineOptions
from fleet.errors import FleetError
from fleet.hardware import gpu_by_name
from fleet.memory import estimate_memory
from model_configs import config

SIZES = {"BF16": 2, "F32": 4, "I32": 4}
TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 256,
}


def write_safetensors(path, tensors, *, cut=0):
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = SIZES[dtype]
        for dimension in shape:
            size *= dimension
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header).encode()
    path.write_bytes((struct.pack("<Q", len(encoded)) + encoded + bytes(offset))[: -cut or None])


def tiny_tensors(*, dtype="BF16", prefix="model"):
    tensors = {f"{prefix}.embed_tokens.weight": (dtype, (256, 64)), "lm_head.weight": (dtype, (256, 64))}
    tensors[f"{prefix}.norm.weight"] = (dtype, (64,))
    for layer in range(2):
        at = f"{prefix}.layers.{layer}"
        tensors |= {
            f"{at}.self_attn.q_proj.weight": (dtype, (64, 64)),
            f"{at}.self_attn.k_proj.weight": (dtype, (32, 64)),
            f"{at}.self_attn.v_proj.weight": (dtype, (32, 64)),
            f"{at}.self_attn.o_proj.weight": (dtype, (64, 64)),
            f"{at}.mlp.gate_proj.weight": (dtype, (128, 64)),
            f"{at}.mlp.up_proj.weight": (dtype, (128, 64)),
            f"{at}.mlp.down_proj.weight": (dtype, (64, 128)),
            f"{at}.input_layernorm.weight": (dtype, (64,)),
            f"{at}.post_attention_layernorm.weight": (dtype, (64,)),
        }
    return tensors


def checkpoint(path, tensors, **changes):
    (path / "config.json").write_text(json.dumps(config("tinyllama-1.1b", **{**TINY, **changes})))
    write_safetensors(path / "model.safetensors", tensors)
    return path


def weights_bytes(model):
    return estimate_memory(model, gpu_by_name("L40S", where="test"), EngineOptions(max_model_len=64)).weights_bytes


def test_tensors_and_configuration_agree(tmp_path):
    model = load_model_facts(checkpoint(tmp_path, tiny_tensors()))
    assert model.unknown == ()
    assert model.checkpoint.parameters == model.parameters
    assert model.checkpoint.total_bytes == 2 * model.parameters


def test_tensors_win_over_a_configuration_that_is_wrong(tmp_path):
    tensors = tiny_tensors()
    tensors["model.layers.1.extra.weight"] = ("BF16", (4096, 64))
    model = load_model_facts(checkpoint(tmp_path, tensors))
    assert "sizes are those of the tensors" in model.unknown[0]
    plain = tmp_path / "plain"
    plain.mkdir()
    difference = weights_bytes(model) - weights_bytes(load_model_facts(checkpoint(plain, tiny_tensors())))
    assert difference == 4096 * 64 * 2


def test_an_unknown_architecture_has_the_size_of_its_tensors(tmp_path):
    path = checkpoint(tmp_path, tiny_tensors(), model_type="wonder", architectures=["WonderForCausalLM"])
    model = load_model_facts(path)
    assert "WonderForCausalLM" in model.unknown[0]
    total = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) * 2 for _, shape in tiny_tensors().values())
    assert weights_bytes(model) == pytest.approx(total, abs=2 * 4 * 512)


def test_32_bit_tensors_are_served_in_16(tmp_path):
    path = checkpoint(tmp_path, tiny_tensors(dtype="F32"), torch_dtype="float32")
    model = load_model_facts(path)
    assert model.checkpoint.total_bytes == 4 * model.parameters
    other = tmp_path / "bf16"
    other.mkdir()
    assert weights_bytes(model) == weights_bytes(load_model_facts(checkpoint(other, tiny_tensors())))


def test_an_index_alone_says_what_gptq_quantized(tmp_path):
    quantized = config(
        "llama-3-8b", quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}
    )
    (tmp_path / "config.json").write_text(json.dumps(quantized))
    alone = load_model_facts(tmp_path)
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    names += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    index = {f"model.layers.0.{name}.qweight": "model-00001-of-00002.safetensors" for name in names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    indexed = load_model_facts(tmp_path)
    assert weights_bytes(indexed) < 0.4 * weights_bytes(alone)


def test_the_manifest_names_every_file_and_changes_with_one_byte(tmp_path):
    path = checkpoint(tmp_path, tiny_tensors())
    first = manifest(path)
    assert set(first["files"]) == {"config.json", "model.safetensors"}
    assert first["total_bytes"] == sum(entry["bytes"] for entry in first["files"].values())
    assert manifest(path) == first
    (path / "config.json").write_text((path / "config.json").read_text() + " ")
    assert manifest(path)["digest"] != first["digest"]


@pytest.mark.parametrize(
    ("damage", "place", "problem"),
    [
        (lambda path: (path / "config.json").unlink(), "config.json", "no such file"),
        (lambda path: (path / "config.json").write_text("{"), "config.json", "is not JSON"),
        (
            lambda path: write_safetensors(path / "model.safetensors", tiny_tensors(), cut=10),
            "model.safetensors",
            "is truncated",
        ),
        (lambda path: (path / "model.safetensors").write_bytes(b"PK"), "model.safetensors", "no whole"),
        (
            lambda path: (path / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"a": "model-2.safetensors"}})
            ),
            "model-2.safetensors",
            "missing",
        ),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_named_by_file(tmp_path, damage, place, problem):
    path = checkpoint(tmp_path, tiny_tensors())
    damage(path)
    with pytest.raises(FleetError) as caught:
        manifest(path)
    assert caught.value.where == str(path / place)
    assert problem in caught.value.problem
