"""The module fleet_plan, run by Ansible itself."""

import json
import os
import subprocess
import sys

import pytest
from fleet.plan_document import plan_from_json
from fleet.quantize_recipes import recipe
from plan_samples import ENGINE, ROOT, facts, model, models_text

FIGURES = {"source_perplexity": 10.0, "perplexity": 10.4, "agreement": 0.96, "tokens": 8188}
QUANTIZED = {
    "model": "m",
    "key": "a" * 64,
    "source_digest": "5" * 64,
    "recipe": recipe("awq").to_document(),
    "tool": "llmcompressor-0.14.0.1",
    "versions": {"llmcompressor": "0.14.0.1"},
    "figures": FIGURES,
    "limits": {"max_perplexity_ratio": 1.1, "min_agreement": 0.85},
    "seconds": {"quantize": 12.5},
    "files": {},
}

TASKS = """
- hosts: localhost
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  tasks:
    - fleet_plan: "{{ item }}"
      loop: "{{ lookup('ansible.builtin.file', cases) | from_json }}"
      ignore_errors: true
      register: result
    - ansible.builtin.copy:
        content: "{{ result.results | to_json }}"
        dest: "{{ cases }}.out"
      check_mode: false
"""


@pytest.fixture
def run(tmp_path):
    def run(*cases, check=False):
        (tmp_path / "play.yml").write_text(TASKS)
        (tmp_path / "cases.json").write_text(json.dumps(list(cases)))
        done = subprocess.run(
            [
                os.path.join(os.path.dirname(sys.executable), "ansible-playbook"),
                "--diff",
                *(["--check"] if check else []),
                "-i",
                "localhost,",
                "-c",
                "local",
                "-e",
                f"cases={tmp_path}/cases.json",
                str(tmp_path / "play.yml"),
            ],
            env=os.environ
            | {
                "ANSIBLE_LIBRARY": str(ROOT / "library"),
                "ANSIBLE_MODULE_UTILS": str(ROOT / "module_utils"),
                "ANSIBLE_LOCAL_TEMP": str(tmp_path / "tmp"),
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads((tmp_path / "cases.json.out").read_text())

    return run


def case(tmp_path, entries, **changes):
    number = len(list(tmp_path.glob("models*.yml")))
    path = tmp_path / f"models{number}.yml"
    path.write_text(models_text(*entries))
    document = facts("a", "b")
    return {
        "models_file": str(path),
        "inventory_hosts": ["a", "b"],
        "policies": {"a": {"fleet_labels": ["x"]}, "b": {}},
        "hosts": document["hosts"],
        "applied": [None, ""],
        "accelerator": "cpu",
        # Nobody listens there: the models are planned by their config.
        "hub_endpoint": "http://127.0.0.1:9",
        "allow_unavailable": True,
        "cache_dir": str(tmp_path / "cache"),
        "engine_version": ENGINE,
        "output": str(tmp_path / "state" / "plan.json"),
        **changes,
    }


def test_writes_once_and_tells_the_truth(run, tmp_path):
    entries = [model("m", replicas={"min": 2})]
    first, second = run(case(tmp_path, entries), case(tmp_path, entries))
    assert first["changed"]
    assert first["diff"]["before"] == ""
    assert "m-1:\n  a: GPU-a-0\n" in first["diff"]["after"]
    assert first["applied_document"]["revision"] == 1
    assert first["per_host"]["b"][0]["id"] == "m-2"
    assert not second["changed"]
    assert second["diff"]["before"] == second["diff"]["after"] == first["diff"]["after"]
    written = plan_from_json((tmp_path / "state" / "plan.json").read_text(), where="plan.json")
    assert [one.id for one in written.instances] == ["m-1", "m-2"]


def test_check_mode_says_what_would_change_and_writes_nothing(run, tmp_path):
    (result,) = run(case(tmp_path, [model("m")]), check=True)
    assert result["changed"]
    assert result["diff"]["after"]
    assert not (tmp_path / "state").exists()


def test_failures_are_clear_lines_and_write_nothing(run, tmp_path):
    too_many = [model("m", replicas={"min": 99}), model("n", tensor_parallel=8)]
    typo = case(tmp_path, [model("m")], policies={"a": {"fleet_exclude_gpu": [0]}})
    mistakes = case(tmp_path, [model("m", task="chat")], validate_only=True)
    partial, refused, typo, mistakes, valid = run(
        case(tmp_path, too_many, allow_partial=True, output=None),
        case(tmp_path, too_many),
        typo,
        mistakes,
        case(tmp_path, [model("m")], validate_only=True, hosts={}),
    )
    assert not partial["failed"]
    assert [one["model"] for one in partial["plan"]["refused"]] == ["m", "n"]
    assert refused["failed"]
    head, *lines = refused["msg"].splitlines()
    assert head == "plan: some models cannot be placed"
    assert len(lines) == 2
    assert all("Nearest change: " in line for line in lines)
    assert typo["msg"] == "host_vars a: fleet_exclude_gpu: unknown variable, did you mean 'fleet_exclude_gpus'?"
    assert mistakes["msg"].endswith("models[0].task: must be one of generate, embed, score, got 'chat'")
    assert not valid["failed"]
    assert not valid["changed"]
    assert not (tmp_path / "state").exists()


def test_the_report_is_written_with_the_plan(run, tmp_path):
    report = tmp_path / "state" / "report.html"
    entries = [model("m")]
    first, second = run(*[case(tmp_path, entries, report=str(report)) for _ in range(2)])
    assert first["changed"]
    assert first["report"] == str(report)
    assert not second["changed"]
    text = report.read_text()
    assert "m-1" in text
    # The page of a plan that was applied is compared with it.
    later = case(tmp_path, [model("m"), model("n")], report=str(report), applied=[first["applied_document"]])
    (checked,) = run(later, check=True)
    assert checked["changed"]
    assert report.read_text() == text
    (changed,) = run(later)
    assert changed["changed"]
    assert "Instances: 1 added." in report.read_text()
    report.unlink()
    (again,) = run(case(tmp_path, [model("m"), model("n")], report=str(report)))
    assert again["changed"]
    assert report.is_file()


def test_the_report_is_written_again_when_another_checkpoint_was_quantized(run, tmp_path):
    report = tmp_path / "state" / "report.html"
    plain = case(tmp_path, [model("m")], report=str(report))
    judged = {**plain, "hosts": {name: {**one, "quantized": [QUANTIZED]} for name, one in plain["hosts"].items()}}
    first, made, again = run(plain, judged, judged)
    assert [one["changed"] for one in (first, made, again)] == [True, True, False]
    assert first["plan"] == made["plan"], "the figures are in the report and not in the plan"
    text = report.read_text()
    assert "10.40 / 10.00 = 1.040 (at most 1.10)" in text
    # Of a host that did not answer nothing is known: its figures stay on the page.
    (frozen,) = run({**judged, "hosts": {}, "applied": [first["applied_document"]]})
    assert not frozen["changed"]
    assert report.read_text() == text
    (gone,) = run(plain)
    assert gone["changed"]
    assert 'id="quantized"' not in report.read_text()
