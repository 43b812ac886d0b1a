from __future__ import annotations

import json

import numpy as np
import pytest
from lab_code import tiny_models, tiny_parts
from safetensors import safe_open
from tokenizers import Tokenizer

MODELS = [tiny_models.LLAMA, tiny_models.QWEN]


@pytest.fixture(scope="module", params=MODELS, ids=lambda model: model.name)
def checkpoint(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint") / request.param.name
    tiny_models.write(request.param, directory)
    return request.param, directory


def test_the_same_bytes_every_time(checkpoint, tmp_path):
    model, directory = checkpoint
    tiny_models.write(model, tmp_path / "again")
    names = sorted(path.name for path in directory.iterdir())
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == names
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (directory / name).read_bytes(), name


def test_safetensors_reads_every_tensor(checkpoint):
    model, directory = checkpoint
    with safe_open(directory / "model.safetensors", framework="numpy") as file:
        slices = {name: file.get_slice(name) for name in file.offset_keys()}
        found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
        assert file.metadata() == {"format": "pt"}
    assert found == {name: ("BF16", shape) for name, shape in tiny_models.shapes(model).items()}


def test_bfloat16_rounds_to_nearest():
    values = np.array([1.0, -2.5, 1.0 + 2**-8, 1.0 + 3 * 2**-9], dtype=np.float32)
    halves = np.frombuffer(tiny_parts.bfloat16_bytes(values), dtype="<u2").astype("<u4") << 16
    assert halves.view("<f4").tolist() == [1.0, -2.5, 1.0078125, 1.0078125]


def test_every_text_survives_the_tokenizer(checkpoint):
    _, directory = checkpoint
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    for text in ("Hello, fleet!", "  spaces\n\ttabs", "日本語 Größe €", "\x00\x7f"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_configuration_agrees_with_the_tokenizer(checkpoint):
    model, directory = checkpoint
    config = json.loads((directory / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert config["architectures"] == [model.architecture]
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    assert tokenizer.id_to_token(config["eos_token_id"]) == model.eos
    generation = json.loads((directory / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [config["eos_token_id"]]


def test_architectures_differ_in_what_a_planner_looks_at():
    assert len({model.architecture for model in MODELS}) == len(MODELS)
    assert {model.tie_word_embeddings for model in MODELS} == {True, False}
    assert {model.template_in_own_file for model in MODELS} == {True, False}
