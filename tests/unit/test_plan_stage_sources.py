"""The plan stage with models that are on a hub, by the real huggingface_hub against a simulated hub."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fleet.errors import FleetError
from fleet.fetch_description import SourceOptions
from fleet.plan_stage import run_stage, validate
from plan_samples import facts
from simulated_hub_code import SimulatedHub
from test_checkpoint import checkpoint, tiny_tensors
from test_plan_stage import applied, at


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


def test_a_draft_model_is_brought_like_a_model_and_named_to_the_engine(hub, stage, tmp_path):
    draft = tmp_path / "draft"
    draft.mkdir()
    checkpoint(draft, tiny_tensors(), num_hidden_layers=1)
    hub.add("org/draft", draft)
    speculative = {"method": "draft_model", "model": "hf:org/draft", "num_speculative_tokens": 3}
    with_draft = at(
        tmp_path,
        facts("a"),
        {"name": "m", "source": "hf:org/m", "max_model_len": 64, "speculative": speculative},
        sources=stage.sources,
    )
    result = run_stage(with_draft)
    (one,) = result.plan.instances
    own, drafts = result.checkpoints["a"]
    assert (own["name"], drafts["name"]) == ("m", "m_draft")
    assert drafts["base_url"].startswith(f"{hub.url}/org/draft/")
    path = f"/var/lib/l40s-fleet/models/m_draft-{drafts['digest'][:12]}"
    assert one.engine_args["speculative_config"] == {**speculative, "model": path}
    assert [each.digest for each in one.further_checkpoints] == [drafts["digest"]]
    assert set(json.loads(result.sources_lock)["sources"]) == {"hf:org/m@main", "hf:org/draft@main"}
    again = applied(result, with_draft)
    assert run_stage(again).plan == result.plan
    assert run_stage(again).applied_document == result.applied_document


def test_a_draft_on_the_controller_is_found_from_the_models_file(stage, tmp_path):
    draft = tmp_path / "draft"
    draft.mkdir()
    checkpoint(draft, tiny_tensors(), num_hidden_layers=1)
    entry = {"name": "m", "source": "file:repository", "max_model_len": 64}
    speculative = {"method": "draft_model", "model": "file:draft", "num_speculative_tokens": 3}
    result = run_stage(at(tmp_path, facts("a"), {**entry, "speculative": speculative}, sources=stage.sources))
    assert [one["source_path"] for one in result.checkpoints["a"]] == [str(tmp_path / "repository"), str(draft)]
    missing = at(tmp_path, facts("a"), {**entry, "speculative": {**speculative, "model": "file:nothing"}})
    with pytest.raises(FleetError, match=r"models\[0\]\.speculative\.model: .*/nothing does not exist"):
        run_stage(missing)
