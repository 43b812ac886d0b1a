"""Jobs on one host: files, judgement and store are real; systemd is the recorder below."""

from __future__ import annotations

import json
import os

import pytest
from fleet.checkpoint_note import read_note
from fleet.checkpoint_store import CheckpointStore
from fleet.checkpoint_wanted import Wanted, WantedFile
from fleet.errors import FleetError
from fleet.probe_quantized import read_quantized
from fleet.quantize_host import QuantizeHost
from fleet.quantize_job import Places, parse_job
from fleet.quantize_recipes import recipe
from fleet.systemd import Systemd

KEY, SOURCE = "1" * 64, "2" * 64
GOOD = {"source_perplexity": 10.0, "perplexity": 10.3, "agreement": 0.95, "tokens": 4096}
BAD = GOOD | {"perplexity": 30.0, "agreement": 0.3}


class Recorder:
    """Answers systemctl and journalctl as told; keeps what it was asked."""

    def __init__(self):
        self.active_state, self.needs_reload, self.journal, self.asked = "inactive", "no", "", []

    def __call__(self, arguments):
        program, verb, *rest = arguments
        if program == "journalctl":
            return 0, self.journal, ""
        if verb == "show":
            return 0, f"Id={rest[-1]}\nActiveState={self.active_state}\nNeedDaemonReload={self.needs_reload}\n", ""
        self.asked.append(" ".join([verb, *rest]))
        return 0, "", ""


@pytest.fixture
def places(tmp_path):
    made = Places(
        configuration=tmp_path / "etc",
        state=tmp_path / "state",
        store=tmp_path / "models",
        records=tmp_path / "quantize",
        quantizers=tmp_path / "quantizers",
        text=tmp_path / "text.txt",
        meminfo=tmp_path / "meminfo",
    )
    made.meminfo.write_text("MemTotal:  2000 kB\nMemAvailable:  1000 kB\n")
    source = made.store / f"m-{SOURCE[:12]}"
    source.mkdir(parents=True)
    (source / ".fleet-checkpoint.json").write_text("{}")
    environment = made.quantizers / "llmcompressor-1.0"
    environment.mkdir(parents=True)
    (environment / ".complete").touch()
    return made


@pytest.fixture
def systemd():
    return Recorder()


@pytest.fixture
def host(places, systemd):
    return QuantizeHost(places, Systemd(systemd))


def job(**changes):
    return parse_job(
        {
            "model": "m",
            "key": KEY,
            "source_digest": SOURCE,
            "recipe": recipe("awq").to_document(),
            "limits": {"max_perplexity_ratio": 1.1, "min_agreement": 0.85},
            "tool": "llmcompressor-1.0",
            "gpu": "GPU-1",
            "judged": {"tokens": 4096, "sequence_length": 2048},
        }
        | changes
    )


def work(places, figures=None, **changes):
    """What the unit leaves behind."""
    directory = places.state / job().id
    made = directory / "checkpoint"
    (made / "sub").mkdir(parents=True)
    (made / "model.safetensors").write_bytes(b"weights")
    (made / "sub" / "config.json").write_text("{}")
    (directory / "baseline.json").write_text(json.dumps({"name": "3" * 64, "greedy": [1]}))
    result = {
        "key": KEY,
        "figures": figures or GOOD,
        "versions": {"llmcompressor": "1.0"},
        "seconds": {"quantize": 3.0},
        "layer_by_layer": False,
        "peak_host_bytes": 5,
        "peak_gpu_bytes": 0,
    }
    (directory / "result.json").write_text(json.dumps(result | changes))
    return directory


def test_an_accepted_result_is_in_the_store_with_its_recipe(host, places):
    directory = work(places)
    assert host.verdict(job()).outcome == "absent"
    verdict = host.finish(job())
    assert (verdict.outcome, sorted(verdict.files)) == (
        "accepted",
        ["model.safetensors", "recipe.json", "sub/config.json"],
    )
    stored = places.store / f"m-{KEY[:12]}"
    assert (stored / "model.safetensors").read_bytes() == b"weights"
    record = json.loads((stored / "recipe.json").read_text())
    assert record["recipe"]["method"] == "awq"
    assert record["figures"]["perplexity_ratio"] == 1.03
    assert record["versions"] == {"llmcompressor": "1.0"}
    assert (record["source_digest"], record["limits"]["min_agreement"]) == (SOURCE, 0.85)
    assert sorted(read_note(stored)) == sorted(verdict.files)
    assert host.verdict(job()) == verdict
    assert (places.baselines / f"{'3' * 64}.json").exists()
    assert not directory.exists()
    assert not (places.configuration / job().id).exists()


def noted(stored):
    files = {name: WantedFile(one["bytes"], one["sha256"]) for name, one in read_note(stored).items()}
    return Wanted("m", KEY, files)


def test_one_with_a_flipped_bit_counts_as_absent_and_is_made_again(host, places):
    work(places)
    right = host.finish(job()).files["model.safetensors"]
    stored, store = places.store / f"m-{KEY[:12]}", CheckpointStore(places.store)
    path = stored / "model.safetensors"
    stamp = path.stat()
    path.write_bytes(b"weightz")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert "quantized" in read_quantized(places.store, places.records, []), "its stamp tells nothing"
    store.inspect_all([noted(stored)], "sampled")
    assert read_quantized(places.store, places.records, []) == {}
    assert host.verdict(job()).outcome == "absent"
    work(places)
    assert host.finish(job()).files["model.safetensors"] == right
    assert store.inspect(noted(stored), full=True).whole
    assert "quantized" in read_quantized(places.store, places.records, [])


def test_one_that_is_right_after_all_is_noted_and_not_made_again(host, places):
    work(places)
    host.finish(job())
    stored = places.store / f"m-{KEY[:12]}"
    os.utime(stored / "model.safetensors", ns=(1, 1))
    assert read_quantized(places.store, places.records, []) == {}
    assert host.verdict(job()).outcome == "accepted"
    host.note(job())
    assert "quantized" in read_quantized(places.store, places.records, [])


def test_the_probe_reports_it(host, places):
    work(places)
    host.finish(job())
    found = read_quantized(places.store, places.records, [])
    (one,) = found["quantized"]
    assert (one["model"], one["key"], one["figures"]["agreement"]) == ("m", KEY, 0.95)
    assert "quantize_rejected" not in found


def test_a_damaged_one_counts_as_absent_and_is_made_again(host, places):
    work(places)
    host.finish(job())
    weights = places.store / f"m-{KEY[:12]}" / "model.safetensors"
    weights.write_bytes(b"WEIGHTS")
    os.utime(weights, ns=(1, 1))
    assert read_quantized(places.store, places.records, []) == {}
    assert host.verdict(job()).outcome == "absent"
    work(places)
    assert host.finish(job()).outcome == "accepted"
    assert weights.read_bytes() == b"weights"


def test_a_refused_result_leaves_a_record_and_no_checkpoint(host, places):
    work(places, BAD)
    verdict = host.finish(job())
    assert verdict.outcome == "rejected"
    assert verdict.words.startswith("its perplexity is 3.000 times the source's, at most 1.100 is allowed")
    assert not (places.store / f"m-{KEY[:12]}").exists()
    (one,) = read_quantized(places.store, places.records, [])["quantize_rejected"]
    assert one["figures"]["perplexity"] == 30.0
    assert host.verdict(job()).outcome == "rejected"
    lax = job(limits={"max_perplexity_ratio": 4.0, "min_agreement": 0.1})
    assert host.verdict(lax).outcome == "absent"


def test_a_job_that_failed_says_why_and_is_gone_on_with(host, places, systemd):
    directory = places.state / job().id
    directory.mkdir(parents=True)
    systemd.journal = "Traceback (most recent call last):\nMemoryError: cannot allocate\n"
    with pytest.raises(FleetError, match="MemoryError: cannot allocate"):
        host.finish(job())
    (directory / "status.json").write_text(json.dumps({"failed": "ValueError: no text"}))
    with pytest.raises(FleetError, match=r"fleet-quantize@m-1{12}.service: ValueError: no text"):
        host.finish(job())
    assert directory.exists()


def test_the_result_of_another_job_does_not_count(host, places):
    work(places, key="9" * 64)
    with pytest.raises(FleetError):
        host.finish(job())


def test_links_that_a_job_made_are_not_followed(host, places, tmp_path):
    directory = work(places)
    secret = tmp_path / "secret"
    secret.write_text("root only")
    (directory / "checkpoint" / "linked").symlink_to(secret)
    (directory / "checkpoint" / "linked_directory").symlink_to(tmp_path)
    assert sorted(host.finish(job()).files) == ["model.safetensors", "recipe.json", "sub/config.json"]


def test_start_writes_the_job_and_queues_its_unit(host, places, systemd):
    systemd.needs_reload = "yes"
    host.start(job())
    unit = f"fleet-quantize@m-{KEY[:12]}.service"
    assert systemd.asked == ["daemon-reload", f"reset-failed {unit}", f"start --no-block {unit}"]
    directory = places.configuration / job().id
    written = json.loads((directory / "job.json").read_text())
    assert written["source_path"] == str(places.store / f"m-{SOURCE[:12]}")
    assert (written["tool"], written["text"], written["host_bytes"]) == ("llmcompressor", str(places.text), 819200)
    assert "CUDA_VISIBLE_DEVICES=GPU-1\n" in (directory / "environment").read_text()


def test_a_job_that_runs_is_left_alone(host, places, systemd):
    systemd.active_state = "activating"
    host.start(job())
    assert systemd.asked == []
    assert not places.configuration.exists()


def test_watch_returns_what_is_new_and_whether_it_runs(host, places, systemd):
    systemd.active_state = "activating"
    directory = places.state / job().id
    directory.mkdir(parents=True)
    assert host.watch(job(), 0.0, 0.0) == {"running": True, "status": {}}
    (directory / "status.json").write_text('{"updated_at": 5.0}')
    assert host.watch(job(), 4.0, 60.0)["status"]["updated_at"] == 5.0
    systemd.active_state = "inactive"
    assert host.watch(job(), 5.0, 60.0)["running"] is False


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"cost": {"host_bytes": 2_000_000}}, "memory: quantizing m takes 0.0 GiB of memory, 0.0 GiB are available"),
        ({"cost": {"disk_bytes": 1 << 60}}, "GiB are free"),
        ({"source_digest": "4" * 64}, "m-444444444444: is not there, and m is to be quantized from it"),
        ({"tool": "gptqmodel-1.0"}, "gptqmodel-1.0: is not installed"),
    ],
)
def test_what_cannot_be_made_here_is_refused_before_it_starts(host, changes, problem):
    with pytest.raises(FleetError) as caught:
        host.check(job(**changes))
    assert problem in str(caught.value)


def test_what_can_be_made_is_not_refused(host):
    host.check(job(cost={"host_bytes": 1000, "disk_bytes": 1000}))


@pytest.mark.parametrize("changes", [{"key": "../x"}, {"source_digest": ""}, {"model": "../m"}, {"model": ""}])
def test_a_job_without_a_proper_name_is_refused(changes):
    with pytest.raises(FleetError):
        job(**changes)
