"""The plan stage with models that are on a hub, by the real huggingface_hub against a simulated hub."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fleet.errors import FleetError
from fleet.fetch_description import SourceOptions
from fleet.plan_stage import run_stage, validate
from plan_samples import facts
from simulated_hub_code import SimulatedHub
from test_checkpoint import checkpoint, tiny_tensors
from test_plan_stage import at


@pytest.fixture
def hub(tmp_path):
    directory = tmp_path / "repository"
    directory.mkdir()
    checkpoint(directory, tiny_tensors())
    with SimulatedHub() as simulated:
        simulated.commit = simulated.add("org/m", directory)
        yield simulated


@pytest.fixture
def stage(hub, tmp_path):
    sources = SourceOptions(tmp_path / "cache", hub.url)
    return at(tmp_path, facts("a"), {"name": "m", "source": "hf:org/m", "max_model_len": 64}, sources=sources)


def test_a_model_of_a_hub_is_planned_with_its_checkpoint(hub, stage):
    validate(stage)
    result = run_stage(stage)
    (one,) = result.plan.instances
    (needed,) = result.checkpoints["a"]
    assert one.engine_args["model"] == f"/var/lib/l40s-fleet/models/m-{needed['digest'][:12]}"
    assert one.checkpoint.digest == needed["digest"]
    assert needed["base_url"] == f"{hub.url}/org/m/resolve/{hub.commit}/"
    assert (needed["credential"], needed["source_path"]) == ("hub", "")
    assert hub.commit in result.sources_lock


def test_a_hub_that_cannot_be_reached_stops_what_could_not_be_served(stage, tmp_path):
    entry = {"name": "m", "source": "hf:org/m", "config": str(tmp_path / "repository" / "config.json")}
    away = replace(
        at(tmp_path, facts("a"), {**entry, "max_model_len": 64}),
        sources=SourceOptions(tmp_path / "cache", "http://127.0.0.1:9"),
    )
    for call in (validate, run_stage):
        with pytest.raises(
            FleetError, match=r"models\[0\]\.source: hf:org/m: http://127\.0\.0\.1:9 cannot be reached"
        ) as caught:
            call(away)
        assert "\n" not in str(caught.value)
    result = run_stage(replace(away, allow_unavailable=True))
    assert result.plan.instances[0].checkpoint is None
    assert result.notices[0].endswith("; planned by its config.")


def test_what_was_planned_before_needs_no_network(hub, stage, tmp_path):
    first = run_stage(stage)
    (tmp_path / "models.lock.json").write_text(first.sources_lock)
    asked = len(hub.requests)
    second = run_stage(stage)
    assert len(hub.requests) == asked
    assert second.plan == first.plan
    assert second.sources_lock is None
