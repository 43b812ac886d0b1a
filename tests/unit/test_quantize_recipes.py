"""Recipes, the gate's arithmetic, and what a job costs."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import pytest
from fleet.engine_options import EngineOptions
from fleet.errors import FleetError
from fleet.hardware import gpu_by_name
from fleet.memory import estimate_memory
from fleet.quantize_costs import estimate_cost, output_bytes
from fleet.quantize_gate import Figures, Limits, figures_from, why_rejected
from fleet.quantize_plan import quantized_as
from fleet.quantize_recipes import (
    PRECISIONS,
    TEXT_SHA256,
    TOOL_VERSIONS,
    Recipe,
    recipe,
    result_key,
    why_not_served,
    words,
)
from model_configs import facts
from plan_samples import ROOT

ROLE = ROOT / "roles" / "quantize" / "files"
SOURCE = "a" * 64
L40S = gpu_by_name("L40S", where="test")


@pytest.mark.parametrize(
    ("method", "given", "expected"),
    [
        ("awq", {}, Recipe("awq", bits=4, group_size=128, samples=128, sequence_length=2048)),
        ("gptq", {"group_size": 64, "seed": 7}, Recipe("gptq", group_size=64, seed=7)),
        ("gptq", {"samples": None}, Recipe("gptq")),
        ("int8", {}, Recipe("int8", bits=8, group_size=0)),
        ("fp8_static", {"samples": 16}, Recipe("fp8_static", bits=8, group_size=0, samples=16)),
        ("fp8_dynamic", {"samples": 16}, Recipe("fp8_dynamic", bits=8, group_size=0, samples=0, sequence_length=0)),
    ],
)
def test_a_recipe_has_the_defaults_of_its_method(method, given, expected):
    assert recipe(method, **given) == expected


@pytest.mark.parametrize(
    ("method", "given", "where"),
    [
        ("autoawq", {}, "quantize.method"),
        ("awq", {"desc_act": True}, "quantize.desc_act"),
        ("gptq", {"samples": 0}, "quantize.samples"),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_place(method, given, where):
    with pytest.raises(FleetError) as caught:
        recipe(method, **given)
    assert caught.value.where == where


def test_the_key_changes_with_everything_that_decides_the_result():
    base = result_key(SOURCE, recipe("awq"))
    others = [
        result_key("b" * 64, recipe("awq")),
        result_key(SOURCE, recipe("gptq")),
        result_key(SOURCE, recipe("awq", group_size=64)),
        result_key(SOURCE, recipe("awq", seed=1)),
        result_key(SOURCE, recipe("awq", text="c" * 64)),
    ]
    assert len({base, *others}) == 6
    assert base == result_key(SOURCE, recipe("awq"))


def test_what_a_method_ignores_does_not_change_the_key():
    assert result_key(SOURCE, recipe("fp8_dynamic", samples=7)) == result_key(SOURCE, recipe("fp8_dynamic"))


def test_every_tool_has_its_lock_files_and_the_text_is_the_one_that_keys_name():
    for tool, version in TOOL_VERSIONS.items():
        assert f"{tool}=={version} " in (ROLE / f"requirements-{tool}-{version}-tool.txt").read_text()
        for part in ("", "-torch", "-torch-cpu"):
            assert "--hash=sha256:" in (ROLE / f"requirements-{tool}-{version}{part}.txt").read_text()
    assert hashlib.sha256((ROLE / "text" / "python-reference.txt").read_bytes()).hexdigest() == TEXT_SHA256


def test_engines_that_refuse_g_idx_are_not_given_it():
    assert why_not_served("gptq_g_idx", "0.24.0") is None
    assert "0.33.0 no longer loads" in str(why_not_served("gptq_g_idx", "0.33.0"))
    assert {method for method in PRECISIONS if why_not_served(method, "0.32.0")} == {"gptq_g_idx"}


@pytest.mark.parametrize(
    ("perplexity", "agreement", "problem"),
    [
        (10.5, 0.95, None),
        (11.0, 0.85, None),
        (11.01, 0.95, "perplexity is 1.101 times"),
        (10.5, 0.849, "84.9 % of the places, 85.0 % is required"),
        (math.inf, 0.95, "perplexity is inf times"),
        (math.nan, 0.95, "perplexity is nan times"),
        (10.5, math.nan, "nan % of the places"),
        (99.0, 0.1, "1.100 is allowed, and it chooses"),
    ],
)
def test_the_gate(perplexity, agreement, problem):
    why = why_rejected(Figures(10.0, perplexity, agreement, 1000), Limits(1.1, 0.85))
    assert why is None if problem is None else problem in str(why)


def test_figures_survive_being_written_down():
    figures = Figures(10.0, 10.5, 0.9, 4096)
    assert figures_from(figures.to_document(), where="x") == figures


@pytest.mark.parametrize("change", [{"tokens": 0}, {"source_perplexity": 0.0}, {"agreement": None}, {"tokens": True}])
def test_what_was_not_measured_is_no_figure(change):
    with pytest.raises(FleetError):
        figures_from(Figures(10.0, 10.5, 0.9, 4096).to_document() | change, where="x")


def test_a_70b_needs_its_source_in_host_memory_and_one_layer_on_the_gpu():
    cost = estimate_cost(facts("llama-3-70b"), recipe("gptq"), L40S, held_out_tokens=8192)
    assert 141e9 < cost.host_bytes < 160e9
    assert cost.gpu_bytes < L40S.torch_visible_bytes / 2
    assert cost.layer_by_layer
    assert cost.disk_bytes > 2 * cost.output_bytes
    assert not estimate_cost(facts("llama-3-8b"), recipe("gptq"), L40S, held_out_tokens=8192).layer_by_layer


def test_awq_takes_longer_than_gptq_and_fp8_least():
    by_method = {
        method: estimate_cost(facts("llama-3-8b"), recipe(method), L40S, held_out_tokens=8192).seconds
        for method in ("awq", "gptq", "fp8_static", "fp8_dynamic")
    }
    assert sorted(by_method, key=by_method.__getitem__) == ["fp8_dynamic", "fp8_static", "gptq", "awq"]


@pytest.mark.parametrize("method", sorted(PRECISIONS))
@pytest.mark.parametrize("name", ["llama-3-8b", "qwen3-30b-a3b", "qwen2.5-7b"])
def test_the_result_is_as_large_as_the_engine_loads(name, method):
    """The size on disk against what the memory model counts for the same checkpoint, slack and padding apart."""
    chosen = recipe(method)
    quantized = replace(facts(name), quantization=quantized_as(chosen), checkpoint=None)
    loaded = estimate_memory(quantized, L40S, EngineOptions(max_model_len=1024)).weights_bytes
    assert output_bytes(facts(name), chosen) == pytest.approx(loaded, rel=0.03)


def test_words_say_method_and_calibration():
    assert words(recipe("awq")) == "AWQ, 4 bits, groups of 128, 128 samples of 2048 tokens"
    assert words(recipe("fp8_dynamic")) == "FP8, scales of activations at run time"
