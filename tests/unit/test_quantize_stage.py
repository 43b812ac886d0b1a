"""The plan stage with a real checkpoint in full precision: what hosts fetch, make and copy, from run to run."""

from __future__ import annotations

import json

import pytest
from fleet.errors import FleetError
from fleet.plan_document import plan_to_document
from fleet.plan_stage import StageInput, run_stage, validate
from lab_code import tiny_models
from plan_samples import ENGINE, facts, models_text

GOOD = {"source_perplexity": 10.0, "perplexity": 10.2, "agreement": 0.97, "tokens": 8192}
BAD = GOOD | {"perplexity": 40.0}
FILES = {"model.safetensors": {"bytes": 10, "sha256": "c" * 64}}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint") / "tiny-llama"
    tiny_models.write(tiny_models.LLAMA, directory)
    return directory


def stage(tmp_path, source, records=None, *, applied=None, running=None, **changes):
    quantize = {"min_agreement": 0.5} | changes.pop("quantize", {})
    entry = {"name": "m", "source": f"file:{source}", "quantization": "awq", "quantize": quantize}
    entry |= {"replicas": {"min": 2}, "max_model_len": 1024}
    (tmp_path / "models.yml").write_text(models_text(entry))
    document = facts("a", "b")
    for name, one in document["hosts"].items():
        one.update((records or {}).get(name, {}))
        one["instances"] = (running or {}).get(name, [])
    return StageInput(
        models_file=str(tmp_path / "models.yml"),
        policies={"a": {}, "b": {}},
        inventory_hosts=["a", "b"],
        hosts=document["hosts"],
        applied=[applied],
        engine_version=ENGINE,
        engine_port_base=8100,
        **changes,
    )


def test_from_the_source_to_two_copies_and_then_nothing(tmp_path, source):
    first = run_stage(stage(tmp_path, source))
    ((job,),) = first.quantize_jobs.values()
    assert list(first.quantize_jobs) == list(first.checkpoints) == ["a"]
    assert first.checkpoints["a"][0]["digest"] == job["source_digest"]
    record = {"quantized": [{"key": job["key"], "figures": GOOD, "files": FILES}]}
    second = run_stage(
        stage(
            tmp_path, source, {"a": record, "b": record}, applied=first.applied_document, running=dict(first.per_host)
        )
    )
    assert second.plan.instances == first.plan.instances
    assert second.applied_document == first.applied_document
    assert second.quantize_jobs == {}
    # Both verify it, each with the other to mend it from; the source is not fetched again.
    assert {host: [one["digest"] for one in listed] for host, listed in second.checkpoints.items()} == {
        "a": [job["key"]],
        "b": [job["key"]],
    }
    assert second.checkpoints["a"][0]["files"] == FILES


def test_once_it_is_made_the_same_plan_has_it_copied(tmp_path, source):
    first = run_stage(stage(tmp_path, source))
    record = {"quantized": [{"key": first.quantize_jobs["a"][0]["key"], "figures": GOOD, "files": FILES}]}
    again = run_stage(stage(tmp_path, source, {"a": record}))
    assert plan_to_document(again.plan) == plan_to_document(first.plan)
    assert again.quantize_jobs == {}
    assert again.checkpoints["a"] == again.checkpoints["b"]
    assert (again.checkpoints["b"][0]["source_path"], again.checkpoints["b"][0]["base_url"]) == ("", "")


def test_the_report_tells_of_a_copy_in_the_run_that_makes_it(tmp_path, source):
    """Otherwise the next run, which changes nothing else, would write the page anew."""
    job = run_stage(stage(tmp_path, source)).quantize_jobs["a"][0]
    record = {name: job[name] for name in ("key", "model", "recipe", "tool", "source_digest")}
    record |= {"figures": GOOD, "files": FILES, "versions": {}, "limits": job["limits"], "seconds": {}}
    before = run_stage(stage(tmp_path, source, {"a": {"quantized": [record]}})).quantized
    after = run_stage(stage(tmp_path, source, {name: {"quantized": [record]} for name in ("a", "b")})).quantized
    assert before == after
    assert [one.hosts for one in before] == [("a", "b")]


def test_a_refusal_brings_the_source_to_every_host(tmp_path, source):
    first = run_stage(stage(tmp_path, source))
    key = first.quantize_jobs["a"][0]["key"]
    again = run_stage(stage(tmp_path, source, {"a": {"quantize_rejected": [{"key": key, "figures": BAD}]}}))
    assert again.quantize_jobs == {}
    assert {host: len(listed) for host, listed in again.checkpoints.items()} == {"a": 1, "b": 1}
    assert again.checkpoints["b"][0]["source_path"] == str(source)
    assert any("the quality gate refused it" in notice for notice in again.notices)


def test_a_text_of_the_users_own_makes_another_checkpoint(tmp_path, source):
    result = run_stage(stage(tmp_path, source, quantize={}, accelerator="cpu"))
    assert result.quantize_jobs["a"][0]["gpu"] == ""
    (tmp_path / "text.txt").write_text("words\n" * 100)
    own = run_stage(stage(tmp_path, source, quantize={"calibration": "text.txt"}))
    job = own.quantize_jobs["a"][0]
    assert job["text_source"] == str(tmp_path / "text.txt")
    assert job["text"].endswith(f"/{job['recipe']['text']}.txt")
    assert job["key"] != result.quantize_jobs["a"][0]["key"]


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "no such file or directory"), (b"\xff\xfe\xfa", "is no UTF-8 text")]
)
def test_a_text_that_cannot_be_read_is_told_before_any_host_is_asked(tmp_path, source, content, problem):
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(FleetError, match=rf"models\.yml: models\[0\]\.quantize\.calibration: .*{problem}"):
        validate(stage(tmp_path, source, quantize={"calibration": "text.txt"}))


def test_jobs_can_be_written_down(tmp_path, source):
    jobs = run_stage(stage(tmp_path, source)).quantize_jobs
    assert json.loads(json.dumps(jobs)) == jobs


@pytest.mark.parametrize("refused", [False, True])
def test_the_next_run_writes_the_same_plan(tmp_path, source, refused):
    key = run_stage(stage(tmp_path, source)).quantize_jobs["a"][0]["key"]
    figures = BAD if refused else GOOD
    kind = "quantize_rejected" if refused else "quantized"
    records = {name: {kind: [{"key": key, "figures": figures, "files": FILES}]} for name in ("a", "b")}
    first = run_stage(stage(tmp_path, source, records if refused else None))
    running = dict(first.per_host)
    second = run_stage(stage(tmp_path, source, records, applied=first.applied_document, running=running))
    assert plan_to_document(second.plan) == plan_to_document(first.plan)
