from __future__ import annotations

import json

import pytest
from fleet.cli import main
from fleet.speed_collectives import PCIE_ALL_REDUCE
from model_configs import CONFIGS
from plan_samples import facts

LLAMA = str(CONFIGS / "llama-3-8b.json")
LARGE = str(CONFIGS / "llama-3-70b.json")


def run(capsys, *arguments):
    code = main(["speed", "--gpu", "L40S", "--prompt-tokens", "512", *arguments])
    return code, capsys.readouterr()


def rows(capsys, *arguments):
    code, output = run(capsys, "--json", *arguments)
    assert code == 0
    return {row["batch"]: row for row in json.loads(output.out)["rows"]}


def test_a_row_for_each_batch_and_what_bounds_it(capsys):
    found = rows(capsys, "--config", LLAMA, "--batch", "1,16,128")
    assert list(found) == [1, 16, 128]
    assert found[1]["bound"] == "memory"
    assert found[1]["tpot_ms"] < found[16]["tpot_ms"] < found[128]["tpot_ms"]
    assert found[1]["decode_tokens_per_s"] == pytest.approx(1e3 / found[1]["tpot_ms"], rel=1e-3)
    assert all(row["prefill_s"] > 0 for row in found.values())


def test_tensor_parallel_over_pcie_halves_a_lonely_decode_step_less_than_in_two(capsys):
    one = rows(capsys, "--config", LLAMA, "--batch", "1")[1]["tpot_ms"]
    two = rows(capsys, "--config", LLAMA, "--batch", "1", "--tensor-parallel", "2")[1]["tpot_ms"]
    assert one / 2 < two < one


def test_the_links_that_a_host_measured_count(capsys, tmp_path):
    document = facts("a", "b")
    document["hosts"]["a"]["all_reduce"] = [
        {"gpus": 2, "bytes": size, "seconds": 10 * seconds} for size, seconds in PCIE_ALL_REDUCE[2]
    ]
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(document))
    arguments = ("--config", LLAMA, "--batch", "8", "--tensor-parallel", "2", "--facts", str(path), "--host")
    measured, default = (rows(capsys, *arguments, name)[8] for name in ("a", "b"))
    assert measured["tpot_ms"] > 1.2 * default["tpot_ms"]
    code, output = run(capsys, *arguments, "c")
    assert code == 1
    assert output.err.splitlines() == [f"fleet speed: --host: {path} has a, b, not c"]


def test_what_the_cache_does_not_hold_is_said(capsys):
    found = rows(capsys, "--config", LARGE, "--quantization", "fp8", "--tensor-parallel", "2", "--batch", "1,256")
    assert found[1]["kv_cache_holds_it"] is True
    assert found[256]["kv_cache_holds_it"] is False


def test_speculation_says_until_which_batch_it_pays(capsys):
    arguments = ("--config", LARGE, "--quantization", "fp8", "--tensor-parallel", "2", "--draft", LLAMA)
    code, output = run(capsys, *arguments, "--speculative-tokens", "3", "--batch", "1,256", "--json")
    answer = json.loads(output.out)["speculative"]
    assert code == 0
    assert answer["method"] == "draft_model"
    assert 1.0 < answer["tokens_per_step"] < 4.0
    assert 1 <= answer["pays_until_batch"] < 256
    speedups = {row["batch"]: row["speedup"] for row in answer["rows"]}
    assert speedups[1] > 1.0 > speedups[256]
    code, output = run(capsys, *arguments, "--speculative-tokens", "3", "--batch", "1")
    assert code == 0
    assert f"pays up to batch {answer['pays_until_batch']}" in output.out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--config", "/nonexistent/config.json"), "/nonexistent/config.json"),
        (("--config", LLAMA, "--batch", "1,two"), "--batch"),
        (("--config", LLAMA, "--batch", "0"), "--batch"),
        (("--config", LLAMA, "--output-tokens", "0"), "--output-tokens"),
        (("--config", LLAMA, "--tensor-parallel", "3"), "tensor_parallel"),
        (("--config", LLAMA, "--gpu", "RTX 9090"), "--gpu"),
        (("--config", LARGE, "--draft", LLAMA), "--speculative-tokens"),
        (("--config", LLAMA, "--host", "a"), "--facts"),
        (("--config", LLAMA, "--facts", "/nonexistent/facts.json", "--host", "a"), "/nonexistent/facts.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(capsys, arguments, named):
    code, output = run(capsys, *arguments)
    assert code == 1
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    assert named in output.err
