"""The link test: what is tested and kept, when it is not run; and its processes, which are killed when they hang."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from fleet import link_worker
from fleet.link_runner import Engine, Outcome, run_task
from fleet.link_test import (
    LinkGpu,
    Settings,
    clique,
    curve_sizes,
    disjoint_rounds,
    gpus_to_test,
    read_kept,
    run_link_test,
    why_not_now,
    write_kept,
)
from probe_node import CHECKOUT, UUIDS, Node

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GPUS = tuple(LinkGpu(index, f"GPU-{index}", f"0000:{index:02x}:00.0") for index in range(8))
SETTINGS = Settings("0.33.0", largest_bytes=1 << 20)


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    """The host document of a sound lab node with four GPUs."""
    return Node(tmp_path).probe()


@dataclass
class Recorder:
    """Stands for the processes: says what was asked for, and fails where it is told to."""

    failing: Sequence[set[int]] = ()
    asked: list[tuple[str, list[int]]] = field(default_factory=list)

    def __call__(
        self, engine: Engine, task: Mapping[str, Any], uuids: Sequence[str], timeout_s: float, *, hang: bool
    ) -> Outcome:
        indices = [UUIDS.index(uuid) for uuid in uuids]
        self.asked.append((str(task["task"]), indices))
        if set(indices) in self.failing:
            return Outcome(failure=f"no answer within {timeout_s:g} s: it hangs")
        points = [{"bytes": size, "seconds": 1e-5} for size in task.get("sizes", ())]
        results: dict[str, dict[str, Any]] = {
            "single": {"copy_bytes_per_s": 2.4e10, "link_speed": "16.0 GT/s PCIe"},
            "pair": {"bytes_per_s": 2e10, "copy_bytes_per_s": 2.2e10, "peer_access": True},
            "group": {"all_reduce": points},
        }
        return Outcome(results[str(task["task"])])


def result_of(document: dict[str, Any], failing: Sequence[set[int]] = ()) -> tuple[dict[str, Any], Recorder]:
    recorder = Recorder(failing)
    return run_link_test(document, Engine("python", "", "nccl"), SETTINGS, recorder), recorder


def test_every_gpu_every_pair_and_groups_of_two_and_four(document: dict[str, Any]) -> None:
    result, recorder = result_of(document)
    assert sorted(gpus for task, gpus in recorder.asked if task == "single") == [[0], [1], [2], [3]]
    pairs = sorted(gpus for task, gpus in recorder.asked if task == "pair")
    assert pairs == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert [gpus for task, gpus in recorder.asked if task == "group"] == [[0, 1], [0, 1, 2, 3]]
    assert {gpu["link_generation"] for gpu in result["gpus"]} == {4}
    assert {pair["p2p"] for pair in result["pairs"]} == {"verified"}
    assert {point["gpus"] for point in result["all_reduce"]} == {2, 4}
    assert (result["key"], result["simulated"]) == (document["topology_key"], False)


def test_a_pair_that_hangs_is_failed_and_in_no_group(document: dict[str, Any]) -> None:
    result, recorder = result_of(document, [{0, 1}])
    (failed,) = [pair for pair in result["pairs"] if pair["p2p"] == "failed"]
    assert {failed["a"], failed["b"]} == set(UUIDS[:2])
    assert failed["reason"] == "no answer within 60 s: it hangs"
    assert [gpus for task, gpus in recorder.asked if task == "group"] == [[0, 2]]


def test_a_gpu_that_fails_alone_is_in_no_pair(document: dict[str, Any]) -> None:
    result, recorder = result_of(document, [{2}])
    assert [gpu["status"] for gpu in result["gpus"]] == ["verified", "verified", "failed", "verified"]
    assert all(2 not in gpus for task, gpus in recorder.asked if task != "single")


def test_a_group_that_hangs_leaves_no_curve_of_its_size(document: dict[str, Any]) -> None:
    result, _ = result_of(document, [{0, 1, 2, 3}])
    assert {point["gpus"] for point in result["all_reduce"]} == {2}
    assert [group["failure"] is None for group in result["groups"]] == [True, False]


def test_what_was_kept_is_what_the_probe_and_the_plan_read(tmp_path: Path) -> None:
    node = Node(tmp_path)
    result, _ = result_of(node.probe(), [{0, 1}])
    write_kept(node.paths.link_test, result)
    document = node.probe()
    assert document["link_test"] == {"backend": "nccl", "engine": "0.33.0", "driver_version": "580.95.05-simulated"}
    assert sorted(link["p2p"] for link in document["links"]) == ["failed", *["verified"] * 5]
    kept = read_kept(node.paths.link_test, document["topology_key"], gpus_to_test(document), "nccl")
    assert kept == json.loads(json.dumps(result))
    assert (node.paths.link_test.stat().st_mode & 0o777) == 0o644


@pytest.mark.parametrize("change", ["key", "backend", "gpu", "schema", "damaged", "none"])
def test_another_driver_topology_gpu_or_backend_is_tested_anew(
    document: dict[str, Any], tmp_path: Path, change: str
) -> None:
    path = tmp_path / "kept.json"
    result, _ = result_of(document)
    key, gpus, backend = document["topology_key"], gpus_to_test(document), "nccl"
    if change != "none":
        write_kept(path, result | ({"schema": 2} if change == "schema" else {}))
    assert (read_kept(path, key, gpus, backend) is None) == (change in ("schema", "none"))
    if change == "damaged":
        path.write_text("{")
    key = "another" if change == "key" else key
    backend = "gloo" if change == "backend" else backend
    gpus = (*gpus, GPUS[5]) if change == "gpu" else gpus
    assert read_kept(path, key, gpus, backend) is None


def test_not_beside_instances_other_processes_or_without_a_driver(document: dict[str, Any]) -> None:
    assert why_not_now(document) is None
    process = {"pid": 4711, "used_bytes": 1, "unit": None, "instance": None}
    for changed, words in (
        ({"instances": [{"id": "chat-1", "unit_state": "active"}]}, "chat-1 (active); drain it first"),
        ({"orphan_units": [{"id": "old-1", "unit_state": "activating"}]}, "old-1 (activating)"),
        ({"gpus": [{"processes": [process]}]}, "other processes use its GPUs: 4711"),
        ({"provisional": True, "provisional_because": "Driver Not Loaded"}, "Driver Not Loaded"),
    ):
        assert words in str(why_not_now({**document, **changed}))
    assert why_not_now({**document, "instances": [{"id": "chat-1", "unit_state": "inactive"}]}) is None


def test_a_blocked_gpu_takes_no_part_unless_an_earlier_test_blocked_it(document: dict[str, Any]) -> None:
    for index, name in ((1, "xid"), (2, "write_and_verify")):
        document["gpus"][index]["health"]["checks"].append({"name": name, "status": "blocked"})
    assert [gpu.index for gpu in gpus_to_test(document)] == [0, 2, 3]


def test_rounds_hold_every_pair_once_and_no_gpu_twice() -> None:
    rounds = disjoint_rounds(GPUS)
    pairs = [frozenset((a.index, b.index)) for one in rounds for a, b in one]
    assert len(pairs) == len(set(pairs)) == 28
    for one in rounds:
        assert len({gpu.index for pair in one for gpu in pair}) == 2 * len(one)
    assert len(rounds) <= 9


def test_a_clique_is_all_verified() -> None:
    verified = {frozenset((a.uuid, b.uuid)) for a in GPUS for b in GPUS if a is not b and (a.index + b.index) % 2 == 0}
    assert [gpu.index for gpu in clique(GPUS, verified, 4) or ()] == [0, 2, 4, 6]
    assert clique(GPUS, verified, 5) is None


def test_the_curve_goes_from_one_kib_to_the_largest() -> None:
    assert curve_sizes(256 << 20) == [*(1024 * 4**power for power in range(9)), 256 << 20]
    assert curve_sizes(1024) == [1024]


def engine(tmp_path: Path, text: str) -> Engine:
    """Runs a program of the test in place of the worker."""
    return Engine(sys.executable, text.replace("MARK", repr(link_worker.MARK)), "gloo")


ANSWER = "import json,sys; print(MARK + json.dumps({'result': {'rank': json.loads(sys.argv[1])['rank']}}))"


def test_the_result_is_that_of_rank_0(tmp_path: Path) -> None:
    assert run_task(engine(tmp_path, ANSWER), {"task": "pair"}, ["a", "b"], 20).result == {"rank": 0}


def test_a_process_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    # The child ignores SIGTERM and keeps the output open.
    program = f"""
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path({str(tmp_path / "child")!r}).write_text(str(child.pid))
time.sleep(600)
"""
    begun = time.monotonic()
    outcome = run_task(engine(tmp_path, program), {"task": "single"}, ["a"], 2)
    assert outcome.failure == "no answer within 2 s: it hangs"
    assert time.monotonic() - begun < 8
    pid = int((tmp_path / "child").read_text())
    for _ in range(50):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    os.kill(pid, 9)
    pytest.fail("a child outlived its process group")


@pytest.mark.parametrize(
    ("program", "failure"),
    [
        (
            "import json,sys,time; rank = json.loads(sys.argv[1])['rank'];"
            " print(MARK + json.dumps({'error': 'ValueError: wrong'})) if rank else time.sleep(60);"
            " sys.exit(1)",
            "rank 1: ValueError: wrong",
        ),
        ("import sys; sys.exit('ImportError: libnccl.so.2')", "rank 0 ended with status 1: ImportError: libnccl.so.2"),
        ("import os; os.kill(os.getpid(), 11)", "rank 0 failed"),
    ],
)
def test_a_failure_is_told_in_one_line_and_soon(tmp_path: Path, program: str, failure: str) -> None:
    begun = time.monotonic()
    outcome = run_task(engine(tmp_path, program), {"task": "pair"}, ["a", "b"], 30)
    assert time.monotonic() - begun < 10
    assert str(outcome.failure).startswith(failure) or "ended with status" in str(outcome.failure)
    assert "\n" not in str(outcome.failure)


def test_a_worker_sees_its_gpus_and_none_of_the_callers_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    program = "import json,os; print(MARK + json.dumps({'result': dict(os.environ)}))"
    seen = run_task(engine(tmp_path, program), {"task": "pair"}, ["GPU-a", "GPU-b"], 20).result
    assert seen["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    assert "NCCL_P2P_DISABLE" not in seen


def test_the_worker_runs_on_old_pythons_and_says_what_it_lacks() -> None:
    text = Path(link_worker.__file__).read_text()
    ast.parse(text, feature_version=(3, 10))
    request = json.dumps({"task": "single", "backend": "gloo", "rank": 0, "world": 1, "store": "/nowhere"})
    done = subprocess.run(
        [sys.executable, "-S", "-c", text, request], capture_output=True, text=True, check=False, cwd=CHECKOUT
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(link_worker.MARK)]
    assert json.loads(line.removeprefix(link_worker.MARK)) == {"error": "ModuleNotFoundError: No module named 'torch'"}


def test_links_are_tested_between_the_draft_of_the_plan_and_the_plan() -> None:
    stages = [play["ansible.builtin.import_playbook"] for play in yaml.safe_load((CHECKOUT / "site.yml").read_text())]
    order = [f"playbooks/{name}.yml" for name in ("preflight", "drivers", "engines", "probe", "plan", "serve")]
    assert [stage for stage in stages if stage in order] == order
    # Preflight drafts the plan, which the probe's condition reads: both by the name that the role registers.
    draft = yaml.safe_load((CHECKOUT / "playbooks/preflight.yml").read_text())[-1]
    assert draft["roles"] == [{"role": "plan", "vars": {"plan_draft": True}}]
    assert "register: plan_result" in (CHECKOUT / "roles/plan/tasks/main.yml").read_text()
    (probe,) = yaml.safe_load((CHECKOUT / "playbooks/probe.yml").read_text())
    (task,) = probe["tasks"]
    assert "plan_result.per_host[inventory_hostname]" in task["when"]
    assert "probe_result.host.link_test is none" in task["when"]
