"""What the planner makes is what the real vLLM (CPU build) accepts, and parameter counts are those of transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fleet.engine_options import options_from_engine_args
from fleet.errors import FleetError
from fleet.hardware import gpu_by_name
from fleet.memory import estimate_memory
from fleet.model import facts_from_config

sys.path.insert(0, str(Path(__file__).resolve().parent))

import engine_python
from argument_sets import CONFIGS, impossible_sets, planned_sets

PLANNED = planned_sets()
IMPOSSIBLE = impossible_sets()


@pytest.fixture(scope="module")
def verdicts():
    return engine_python.answers([*PLANNED, *IMPOSSIBLE])


def test_there_are_enough_sets():
    assert len(PLANNED) >= 60
    assert len(IMPOSSIBLE) >= 20


def test_every_planned_set_is_accepted(verdicts):
    assert {item["name"]: verdicts[item["name"]] for item in PLANNED if verdicts[item["name"]] is not None} == {}


def test_every_impossible_set_is_refused_by_the_engine(verdicts):
    assert [item["name"] for item in IMPOSSIBLE if verdicts[item["name"]] is None] == []


@pytest.mark.parametrize("item", IMPOSSIBLE, ids=lambda item: item["name"])
def test_every_impossible_set_is_refused_by_us(item):
    with pytest.raises(FleetError):
        check(item)


def check(item):
    model = facts_from_config(item["config"], where=item["name"])
    options = options_from_engine_args(item["engine_args"], where="engine_args")
    if "draft_config" in item:
        draft = facts_from_config(item["draft_config"], where="draft")
        options = replace(options, speculative=replace(options.speculative, draft=draft))
    estimate_memory(model, gpu_by_name("L40S", where="test"), options)


def test_parameter_counts_are_those_of_transformers():
    paths = sorted(str(path) for path in CONFIGS.glob("*.json"))
    script = Path(__file__).with_name("count_parameters.py")
    done = subprocess.run(
        [*engine_python.engine_python(), str(script), *paths], capture_output=True, text=True, check=True
    )
    counted = json.loads(done.stdout)
    assert len(counted) >= 15
    ours = {path: facts_from_config(json.loads(Path(path).read_text()), where=path).parameters for path in paths}
    assert ours == counted
