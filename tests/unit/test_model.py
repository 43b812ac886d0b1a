from __future__ import annotations

import pytest
from fleet.errors import FleetError
from fleet.model import facts_from_config
from model_configs import NAMES, config, facts


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # As transformers builds them on the meta device; tests/conformance repeats the count.
        ("llama-2-7b", 6_738_415_616),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3.2-1b", 1_235_814_400),
        ("mixtral-8x7b", 46_702_792_704),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("gemma-2-9b", 9_241_705_984),
        ("gemma-3-4b", 4_300_079_472),
        ("phi-4", 14_659_507_200),
        ("falcon-180b", 178_557_088_768),
        ("deepseek-v2-lite", 15_706_484_224),
        ("deepseek-v3", 671_026_404_352),
        ("gpt-oss-20b", 20_914_757_184),
    ],
)
def test_parameters(name, parameters):
    assert facts(name).parameters == parameters


@pytest.mark.parametrize("name", NAMES)
def test_active_parameters_are_at_most_all(name):
    model = facts(name)
    assert 0 < model.active_parameters <= model.parameters


def test_experts_idle_for_most_tokens():
    assert facts("qwen3-30b-a3b").active_parameters == pytest.approx(3.0e9, rel=0.02)


@pytest.mark.parametrize(
    ("name", "sliding", "full"),
    [("gemma-2-9b", 21, 21), ("gemma-3-27b-text", 52, 10), ("gpt-oss-20b", 12, 12), ("mistral-7b-v0.1", 32, 0)],
)
def test_kinds_of_layers(name, sliding, full):
    windows = [facts(name).layer_kinds[kind].attention.sliding_window for kind in facts(name).layer_pattern]
    assert (sum(w is not None for w in windows), sum(w is None for w in windows)) == (sliding, full)


def test_qwen_names_a_window_that_it_does_not_use():
    assert facts("qwen2.5-7b").layer_kinds[0].attention.sliding_window is None


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"model_type": "wonder"}, "model_type"),
        ({"model_type": None}, "model_type"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"quantization_config": {"quant_method": "wonder"}}, "quantization_config: quant_method"),
        ({"quantization_config": {"quant_method": "awq", "bits": 3}}, "quantization_config: bits"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "quantization_config: config_groups"),
        ({"quantization_config": 4}, "quantization_config"),
    ],
)
def test_a_fault_is_named_by_file_and_key(change, place):
    with pytest.raises(FleetError) as caught:
        facts_from_config(config("llama-3-8b", **change), where="m/config.json")
    assert caught.value.where == f"m/config.json: {place}"


def test_layer_types_must_be_as_many_as_layers():
    with pytest.raises(FleetError, match="23 entries for 24 layers"):
        facts_from_config(config("gpt-oss-20b", layer_types=["sliding_attention"] * 23), where="config.json")
