from __future__ import annotations

import pytest
from fleet.errors import FleetError
from fleet.quantization_config import quantization_from_config


def scheme(weights, inputs=None):
    return {
        "quant_method": "compressed-tensors",
        "ignore": ["lm_head", "re:.*mlp.gate$"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}},
    }


def weights(bits, kind, strategy, group=None, *, symmetric=True):
    return {"num_bits": bits, "type": kind, "strategy": strategy, "group_size": group, "symmetric": symmetric}


@pytest.mark.parametrize(
    ("document", "weight_format", "group_size", "zero_points"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, "int4", 128, True),
        ({"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True}, "int4", 64, False),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1, "sym": True}, "int8", -1, False),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8", 0, False),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block", 128, False),
        ({"quant_method": "mxfp4"}, "mxfp4", 32, False),
        (scheme(weights(8, "float", "channel"), weights(8, "float", "token")), "fp8", -1, False),
        (scheme(weights(8, "int", "channel"), weights(8, "int", "token")), "int8", -1, False),
        (scheme(weights(4, "int", "group", 128, symmetric=False)), "int4", 128, True),
    ],
)
def test_what_checkpoints_say(document, weight_format, group_size, zero_points):
    facts = quantization_from_config(document, where="config.json: quantization_config")
    assert (facts.weight_format, facts.group_size, facts.zero_points) == (weight_format, group_size, zero_points)


def test_modules_left_in_full_precision_are_matched_by_name_and_pattern():
    facts = quantization_from_config(scheme(weights(4, "int", "group", 128)), where="q")
    assert facts.skips(("lm_head",))
    assert facts.skips(("model.layers.0.mlp.gate",))
    assert not facts.skips(("model.layers.0.mlp.gate_proj",))


def test_gptq_from_a_configuration_alone_quantizes_no_linear_module():
    """The engine looks them up in the checkpoint's tensors, and finds none."""
    facts = quantization_from_config({"quant_method": "gptq", "bits": 4, "group_size": 128}, where="q")
    assert facts.skips(("self_attn.q_proj",))


def test_gptq_may_name_its_modules():
    facts = quantization_from_config(
        {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": 128,
            "modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.down_proj"]],
        },
        where="q",
    )
    assert not facts.skips(("self_attn.q_proj",))
    assert facts.skips(("self_attn.o_proj",))


@pytest.mark.parametrize(
    "document",
    [
        {"quant_method": "awq", "bits": 8},
        {"quant_method": "gptq", "bits": 3, "group_size": 128},
        scheme(weights(4, "float", "group", 16)),
        {"quant_method": "bitsandbytes"},
    ],
)
def test_what_no_engine_on_sm89_serves_is_refused(document):
    with pytest.raises(FleetError):
        quantization_from_config(document, where="q")
