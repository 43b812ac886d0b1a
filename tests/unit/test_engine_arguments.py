from dataclasses import replace

import pytest
from fleet.engine_arguments import (
    DECIDED_ELSEWHERE,
    ENGINE_ARGUMENTS,
    SERVER_ARGUMENTS,
    TWINS,
    argument_faults,
    instance_engine_args,
)
from fleet.engine_options import EngineOptions
from fleet.requests import ModelRequest


def request(**changes):
    return ModelRequest.model_validate({"name": "m", "source": "org/m", **changes})


def test_every_argument_that_we_speak_of_exists():
    known = ENGINE_ARGUMENTS | SERVER_ARGUMENTS
    assert set(DECIDED_ELSEWHERE) <= known
    assert set(TWINS) <= ENGINE_ARGUMENTS
    assert set(TWINS.values()) <= set(ModelRequest.model_fields)


@pytest.mark.parametrize("name", sorted(DECIDED_ELSEWHERE))
def test_what_the_plan_decides_is_refused_with_what_to_write_instead(name):
    ((where, problem),) = argument_faults({name: "x"}, {})
    assert where == name
    assert problem.startswith("contradicts the plan: ")


def test_anything_else_of_vllm_passes():
    passed = {"chat_template": "x", "trust_remote_code": True, "reasoning_parser": "qwen3", "hf_overrides": {"a": 1}}
    assert argument_faults(passed, {}) == []


def test_the_users_arguments_stand_beside_those_of_the_plan():
    options = EngineOptions(max_model_len=100, tensor_parallel_size=2, quantization="fp8", kv_cache_dtype="fp8")
    document = instance_engine_args(request(engine_args={"seed": 1}, aliases=["x"]), options, "/models/m")
    assert document == {
        "gpu_memory_utilization": 0.92,
        "kv_cache_dtype": "fp8",
        "max_model_len": 100,
        "max_num_batched_tokens": 2048,
        "max_num_seqs": 256,
        "model": "/models/m",
        "pipeline_parallel_size": 1,
        "quantization": "fp8",
        "seed": 1,
        "served_model_name": ["m", "x"],
        "tensor_parallel_size": 2,
    }
    assert list(document) == sorted(document)


def test_given_kv_memory_leaves_utilization_out():
    options = replace(EngineOptions(), kv_cache_memory_bytes=2**30)
    document = instance_engine_args(request(), options, "/models/m")
    assert document["kv_cache_memory_bytes"] == 2**30
    assert "gpu_memory_utilization" not in document
    both = instance_engine_args(request(engine_args={"gpu_memory_utilization": 0.3}), options, "/models/m")
    assert both["gpu_memory_utilization"] == 0.3


def test_a_revision_goes_with_the_repository_only():
    assert instance_engine_args(request(source="org/m@v2"), EngineOptions(), "org/m")["revision"] == "v2"
    assert "revision" not in instance_engine_args(request(source="org/m@v2"), EngineOptions(), "/models/m-1")
