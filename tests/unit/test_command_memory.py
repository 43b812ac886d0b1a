from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fleet.cli import main
from fleet.engine_options import EngineOptions, LoraOptions, engine_args_document, options_from_engine_args
from fleet.errors import FleetError
from fleet.hardware import gpu_by_name, gpu_by_pci_id
from model_configs import CONFIGS


def run(capsys, *arguments):
    code = main(["memory", "--gpu", "L40S", *arguments])
    return code, capsys.readouterr()


def test_yes_is_0_with_the_whole_answer(capsys):
    code, output = run(capsys, "--config", str(CONFIGS / "llama-3-8b.json"), "--json")
    assert code == 0
    assert json.loads(output.out)["fits"] is True


def test_no_is_2_with_the_reason_and_what_would_work(capsys):
    code, output = run(
        capsys,
        "--config",
        str(CONFIGS / "llama-3-70b.json"),
        "--tensor-parallel",
        "2",
        "--utilization",
        "0.9",
        "--json",
    )
    document = json.loads(output.out)
    assert code == 2
    assert document["constraint"] == "weights"
    assert document["nearest_changes"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--config", "/nonexistent/config.json"),
        ("--config", str(Path(__file__))),
        ("--config", str(CONFIGS / "llama-3-8b.json"), "--tensor-parallel", "3"),
        ("--config", str(CONFIGS / "llama-3-8b.json"), "--max-num-seqs", "0"),
        ("--config", str(CONFIGS / "llama-3-8b.json"), "--gpu", "TPU"),
    ],
)
def test_bad_input_is_1_in_one_line(capsys, arguments):
    code, output = run(capsys, *arguments)
    assert code == 1
    assert output.out == ""
    assert len(output.err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["memory"], ["wonder"], [], ["memory", "--config", "x", "--max-model-len", "y"]])
def test_a_mistyped_command_is_1_and_not_argparses_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 1
    assert len(capsys.readouterr().err.splitlines()) <= 3


def test_memory_imports_neither_pydantic_nor_a_solver():
    program = (
        "import sys; from fleet.cli import main;"
        f"main(['memory', '--gpu', 'L40S', '--config', {str(CONFIGS / 'llama-3-8b.json')!r}]);"
        "sys.exit(bool({'pydantic', 'ortools', 'yaml', 'numpy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_engine_args_are_vllms_names_and_leave_defaults_and_checkpoint_quantization_out():
    options = EngineOptions(
        max_model_len=8192, quantization="fp8", kv_cache_dtype="fp8", lora=LoraOptions(2, 32), engine_version="0.24.0"
    )
    assert engine_args_document(options) == {
        "max_model_len": 8192,
        "quantization": "fp8",
        "kv_cache_dtype": "fp8",
        "enable_lora": True,
        "max_loras": 2,
        "max_lora_rank": 32,
    }
    assert "quantization" not in engine_args_document(EngineOptions(quantization="awq"))


def test_options_survive_the_way_through_engine_args():
    options = EngineOptions(
        dtype="bfloat16", max_model_len=4096, max_num_seqs=64, tensor_parallel_size=2, enforce_eager=True, block_size=32
    )
    assert options_from_engine_args(engine_args_document(options), where="test") == options


@pytest.mark.parametrize(
    ("engine_args", "where"),
    [
        ({"max_model_len": "8k"}, "x.max_model_len"),
        ({"gpu_memory_utilization": 1.2}, "x.gpu_memory_utilization"),
        ({"kv-cache-dtype": "fp9"}, "x.kv-cache-dtype"),
        ({"enable_lora": True, "max_lora_rank": 17}, "x.max_lora_rank"),
        ({"speculative_config": {"method": "ngram"}}, "x.speculative_config.num_speculative_tokens"),
        ({"limit_mm_per_prompt": {"image": -1}}, "x.limit_mm_per_prompt.image"),
    ],
)
def test_a_wrong_value_is_named(engine_args, where):
    with pytest.raises(FleetError) as caught:
        options_from_engine_args(engine_args, where="x")
    assert caught.value.where == where


def test_unrelated_engine_args_are_left_alone():
    assert options_from_engine_args({"enable_auto_tool_choice": True}, where="x") == EngineOptions()


def test_gpus_are_found_by_nvmls_name_and_pci_id():
    assert gpu_by_name("NVIDIA L40S", where="test").torch_visible_bytes == 47_663_399_567
    assert gpu_by_name("NVIDIA H100 80GB HBM3", where="test").name == "H100"
    assert gpu_by_pci_id("10DE:26B9").name == "L40S"
    assert gpu_by_pci_id("10de:0000") is None
    with pytest.raises(FleetError, match="unknown GPU"):
        gpu_by_name("NVIDIA L40", where="test")
