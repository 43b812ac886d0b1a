"""What runs in the quantizers' environments as far as it needs no library of theirs, and the files around it."""

from __future__ import annotations

import importlib.util
import json
import re

import jinja2
import pytest
import yaml
from plan_samples import ROOT

ROLE = ROOT / "roles" / "quantize"


def program(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


texts = program(ROLE / "files" / "program" / "texts.py")
progress = program(ROLE / "files" / "program" / "progress.py")
action = program(ROLE / "action_plugins" / "fleet_quantize.py")
filters = program(ROOT / "filter_plugins" / "fleet_quantize.py")


def test_the_last_tenth_is_held_out_at_the_end_of_a_line():
    text = "".join(f"line {number}\n" for number in range(1000))
    calibration, held_out = texts.split(text)
    assert calibration + held_out == text
    assert calibration.endswith("\n")
    assert held_out.startswith("line 9")
    assert len(held_out) == pytest.approx(len(text) / 10, rel=0.01)


def test_windows_do_not_overlap_where_there_is_enough_text():
    found = texts.windows(list(range(1000)), 10, 50, seed=3)
    assert len(found) == 50
    assert len({token for window in found for token in window}) == 500
    assert found == texts.windows(list(range(1000)), 10, 50, seed=3)
    assert found != texts.windows(list(range(1000)), 10, 50, seed=4)


def test_a_short_text_gives_overlapping_windows_of_full_length():
    found = texts.windows(list(range(100)), 64, 8, seed=0)
    assert [len(window) for window in found] == [64] * 8
    assert texts.windows([1, 2, 3], 64, 8, seed=0) == [[1, 2, 3]]


def test_pieces_are_consecutive_and_limited():
    assert texts.consecutive(list(range(10)), 4, 9) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert texts.consecutive([7], 4, 9) == []


def test_progress_counts_the_time_left_from_what_is_done(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "time", lambda: now[0])
    told = progress.Progress(tmp_path / "status.json", {"first": 0.25, "second": 0.75})
    told.at("first")
    assert json.loads((tmp_path / "status.json").read_text())["left_s"] is None
    now[0] = 110.0
    told.at("second", 1, 3, "layers")
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["fraction"], status["elapsed_s"], status["left_s"]) == (0.5, 10.0, 10.0)
    assert action.progress_words(status) == "second, 1 of 3 layers, 10 s so far, about 10 s left"
    told.failed("no memory")
    assert json.loads((tmp_path / "status.json").read_text())["failed"] == "no memory"


def test_durations_are_told_as_people_do():
    assert [action.duration(value) for value in (5, 600, 7200)] == ["5 s", "10 min", "2.0 h"]


def made(host, outcome, key="k", **more):
    return {host: [{"outcome": outcome, "words": "why", "item": {"key": key, "model": "m", "words": "AWQ"}, **more}]}


def test_only_refusals_of_this_plan_count():
    jobs = {"a": [{"key": "k"}]}
    assert filters.fleet_quantize_refused(jobs, made("a", "rejected")) == ["a: m, AWQ: why"]
    assert filters.fleet_quantize_refused(jobs, made("a", "rejected", key="of an earlier round")) == []
    assert filters.fleet_quantize_refused(jobs, made("a", "accepted")) == []


@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
def test_the_unit_has_no_rights_and_no_network(accelerator):
    variables = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())
    devices = variables["quantize_devices_by_accelerator"][accelerator]
    template = (ROLE / "templates" / "fleet-quantize@.service.j2").read_text()
    unit = jinja2.Environment(trim_blocks=True, autoescape=False).from_string(template)  # noqa: S701 (a unit file)
    lines = unit.render(vllm_accelerator=accelerator, quantize_devices=devices, ansible_managed="").splitlines()
    assert {"DynamicUser=yes", "PrivateNetwork=yes", "CapabilityBoundingSet=", "ProtectSystem=strict"} <= set(lines)
    assert ("DeviceAllow=char-nvidia-uvm rw" in lines) is (accelerator == "cuda")
    assert ("PrivateDevices=yes" in lines) is (accelerator == "cpu")
    assert ("LimitMEMLOCK=infinity" in lines) is (accelerator == "cuda")


def test_one_digest_says_what_an_environment_was_built_from():
    """The role looks for the name that the installer writes."""
    installer = (ROLE / "files" / "quantizer-install").read_text()
    (revision,) = re.findall(r"^LAYOUT_REVISION = (\d+)$", installer, re.MULTILINE)
    assert (
        f"('{revision} ' ~ item ~ '\\n' ~ quantize_lock) | hash('sha256')" in (ROLE / "tasks" / "make.yml").read_text()
    )
    assert 'f"{LAYOUT_REVISION} {name}\\n"' in installer
