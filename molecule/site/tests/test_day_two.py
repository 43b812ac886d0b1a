"""What an operator does on the second day, on a fleet that site.yml set up from nothing.

The tests run in the order of this file: each leaves the fleet as the lab's own inventory describes it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from typing import TYPE_CHECKING

import pytest
import yaml
from fleet_lab import GPU_HOSTS, Fleet, RequestLoop, settled

if TYPE_CHECKING:
    import pathlib


def names(fleet: Fleet) -> list[str]:
    return [model["name"] for model in fleet.models()]


def assert_no_gpu_twice(instances: dict[str, dict]) -> None:
    used = [gpu for instance in instances.values() for gpu in instance["gpus"]]
    assert len(used) == len(set(used)), used


def test_every_model_answers_through_the_gateway(lab: Fleet) -> None:
    for model in lab.models():
        for name in (model["name"], *model.get("aliases", [])):
            assert lab.complete(name) == model["name"]


def test_a_second_run_changes_nothing(lab: Fleet) -> None:
    before = lab.pids()
    run = lab.run()
    print(f"second run: {run.seconds:.1f} s, tasks {run.tasks()}")
    assert run.changed() == dict.fromkeys((*GPU_HOSTS, "gw-01"), 0), run.output[-4000:]
    assert lab.pids() == before
    assert max(run.tasks().values()) <= 100
    assert run.seconds <= 60


def test_check_mode_sees_no_difference(lab: Fleet) -> None:
    before = lab.pids()
    run = lab.run("--check", "--diff")
    assert set(run.changed().values()) == {0}, run.output[-4000:]
    assert "\n+++ " not in run.output
    assert lab.pids() == before


@pytest.mark.parametrize("stage", ["gateway", "verify"])
def test_a_stage_run_alone_changes_nothing(lab: Fleet, stage: str) -> None:
    before = lab.pids()
    run = lab.run(playbook=f"playbooks/{stage}.yml")
    assert set(run.changed().values()) == {0}, run.output[-4000:]
    assert lab.pids() == before


def test_excluding_a_gpu_moves_only_what_is_on_it(lab: Fleet) -> None:
    before = settled(lab)
    moved, victim = next((name, found) for name, found in sorted(before.items()) if found["host"] == "l40s-01")
    variables_path = lab.inventory / "host_vars" / "l40s-01.yml"
    variables = yaml.safe_load(variables_path.read_text()) if variables_path.exists() else {}
    variables_path.parent.mkdir(exist_ok=True)
    variables_path.write_text(yaml.safe_dump({**(variables or {}), "fleet_exclude_gpus": sorted(victim["gpus"])}))

    run = lab.run()
    after = settled(lab)
    assert_no_gpu_twice(after)
    assert not any(victim["gpus"] & instance["gpus"] for instance in after.values())
    assert len(after) == len(before)
    others = set(before) - {moved}
    assert {name: after[name]["pid"] for name in others} == {name: before[name]["pid"] for name in others}
    untouched = set(GPU_HOSTS) - {"l40s-01", *(after[name]["host"] for name in set(after) - others)}
    for host in untouched:
        # The record of the applied plan is on every host: it is the one thing that may change there.
        assert run.changed()[host] <= 1, run.output[-6000:]
    for name in names(lab):
        lab.complete(name)


def test_the_excluded_gpu_comes_back_without_moving_anything(lab: Fleet) -> None:
    before = settled(lab)
    lab.run()
    after = settled(lab)
    assert {name: found["pid"] for name, found in after.items()} == {
        name: found["pid"] for name, found in before.items()
    }


def test_limit_leaves_the_other_hosts_alone(lab: Fleet) -> None:
    before = settled(lab)
    with RequestLoop(lab, names(lab)) as loop:
        lab.run("--limit", "l40s-02")
    assert lab.pids() == {name: found["pid"] for name, found in before.items()}
    assert loop.done > 0
    assert loop.failures == []


def test_a_host_without_ssh_keeps_its_engines_and_routes(lab: Fleet) -> None:
    before = settled(lab)
    node = lab.nodes["l40s-03"]
    # Sessions that are shared between runs outlive their listener; a host that is cut off has none.
    node.sh("systemctl stop ssh.service ssh.socket; pkill -KILL -x sshd || true")
    try:
        with RequestLoop(lab, names(lab)) as loop:
            run = lab.run(expect=None)
    finally:
        node.sh("systemctl start ssh.service")
    assert run.recap["l40s-03"]["unreachable"] == 1
    assert all(counts["failed"] == 0 for counts in run.recap.values()), run.output[-4000:]
    assert {host: count for host, count in run.changed().items() if count} == {}, run.output[-4000:]
    assert "l40s-03" in run.output.split("PLAY RECAP")[0]
    after = settled(lab)
    assert {name: found["pid"] for name, found in after.items()} == {
        name: found["pid"] for name, found in before.items()
    }
    assert_no_gpu_twice(after)
    assert loop.done > 0
    assert loop.failures == []


def test_a_removed_model_leaves_nothing_behind(lab: Fleet) -> None:
    before = settled(lab)
    *kept, removed = lab.models()
    lab.write_models(kept)
    lab.run()
    after = settled(lab)
    assert {found["record"]["model"] for found in after.values()} == {model["name"] for model in kept}
    assert {name: after[name]["pid"] for name in after} == {name: before[name]["pid"] for name in after}
    for host in GPU_HOSTS:
        node = lab.nodes[host]
        places = "/etc/l40s-fleet /var/lib/l40s-fleet /var/lib/private /var/cache/private /etc/systemd /run/systemd"
        assert node.sh(f"find {places} -name '*{removed['name']}*' 2>/dev/null", check=False) == ""
        assert node.sh(f"systemctl list-units --all --plain --no-legend 'vllm@{removed['name']}*'") == ""
        assert node.sh(f"grep -rl -- {removed['name']} /etc/l40s-fleet /var/lib/l40s-fleet", check=False) == ""
    assert lab.nodes["gw-01"].sh(f"grep -rl -- {removed['name']} /etc/haproxy", check=False) == ""
    status, answer = lab.request("/v1/models")
    assert status == 200
    assert removed["name"] not in json.dumps(answer)
    assert lab.request("/v1/chat/completions", {"model": removed["name"], "messages": []})[0] == 404
    for model in kept:
        lab.complete(model["name"])


def test_a_killed_run_started_again_converges(lab: Fleet) -> None:
    """The removed model comes back; the run that brings it is killed at a random moment."""
    seed = int(os.environ.get("FLEET_KILL_SEED", random.SystemRandom().randrange(10**6)))
    after_s = random.Random(seed).uniform(8, 60)  # noqa: S311 (a moment, not a secret)
    print(f"FLEET_KILL_SEED={seed}: SIGKILL after {after_s:.1f} s")
    process = lab.start()
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    lab.run()
    instances = settled(lab)
    assert_no_gpu_twice(instances)
    planned = {instance["id"] for instance in lab.plan()["instances"]}
    assert set(instances) == planned
    run = lab.run("--check")
    assert set(run.changed().values()) == {0}, run.output[-4000:]
    for name in names(lab):
        lab.complete(name)


def test_an_engine_that_is_killed_comes_back(lab: Fleet) -> None:
    name, victim = sorted(settled(lab).items())[0]
    lab.nodes[victim["host"]].sh(f"kill -9 {victim['pid'][1]}")
    limit = time.monotonic() + 90
    while lab.pids()[name] == victim["pid"] and time.monotonic() < limit:
        time.sleep(1)
    revived = settled(lab)[name]
    assert revived["pid"] != victim["pid"]
    lab.complete(victim["record"]["model"])


def test_a_node_that_restarts_serves_again(lab: Fleet) -> None:
    before = settled(lab)
    host = sorted(found["host"] for found in before.values())[0]
    lab.nodes[host].restart()
    time.sleep(2)
    after = settled(lab)
    assert set(after) == set(before)
    for name in names(lab):
        lab.complete(name)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        pytest.param(lambda model: model.update(max_model_length=4), ("max_model_length",), id="unknown key"),
        pytest.param(lambda model: model.update(replicas={"min": "two"}), ("replicas.min",), id="wrong type"),
        pytest.param(lambda model: model.update(source="file:/nowhere"), ("/nowhere",), id="no checkpoint"),
        pytest.param(lambda model: model.update(tensor_parallel=16), ("tensor_parallel",), id="fits nowhere"),
    ],
)
def test_bad_models_stop_the_run_before_any_change(lab: Fleet, edit, words: tuple[str, ...]) -> None:
    models = lab.models()
    edit(models[0])
    lab.write_models(models)
    run = lab.run(expect=2)
    assert set(run.changed().values()) <= {0}
    assert all(word in run.output for word in words), run.output[-3000:]
    assert "Traceback" not in run.output


def test_an_excluded_gpu_that_does_not_exist_stops_the_run(lab: Fleet) -> None:
    path = lab.inventory / "host_vars" / "l40s-02.yml"
    variables = yaml.safe_load(path.read_text()) if path.exists() else {}
    path.write_text(yaml.safe_dump({**(variables or {}), "fleet_exclude_gpus": [17]}))
    run = lab.run(expect=2)
    assert set(run.changed().values()) <= {0}
    assert "l40s-02" in run.output
    assert "fleet_exclude_gpus[0]" in run.output


def test_an_unknown_host_variable_stops_the_run(lab: Fleet) -> None:
    path = lab.inventory / "host_vars" / "l40s-02.yml"
    path.write_text(yaml.safe_dump({"fleet_exclude_gpu": [0]}))
    run = lab.run(expect=2)
    assert set(run.changed().values()) <= {0}
    assert "fleet_exclude_gpu" in run.output
    assert "fleet_exclude_gpus" in run.output, "the known name nearest to it"


def test_two_models_of_one_name_stop_the_run(lab: Fleet) -> None:
    models = lab.models()
    lab.write_models([*models, models[0]])
    run = lab.run(expect=2)
    assert set(run.changed().values()) <= {0}
    assert f"models[{len(models)}].name" in run.output


def test_a_truncated_checkpoint_stops_the_run(lab: Fleet, tmp_path: pathlib.Path) -> None:
    models = lab.models()
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(models[0]["source"].removeprefix("file:"), checkpoint)
    weights = next(checkpoint.glob("*.safetensors"))
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size - 1)
    models[0]["source"] = f"file:{checkpoint}"
    lab.write_models(models)
    run = lab.run(expect=2)
    assert set(run.changed().values()) <= {0}
    assert weights.name in run.output


def test_no_sudo_stops_the_run_before_any_change(lab: Fleet) -> None:
    node = lab.nodes["l40s-01"]
    rule = node.sh("grep -rl ops /etc/sudoers.d | head -1")
    node.sh(f"mv {rule} /root/sudo-rule")
    try:
        run = lab.run(expect=2)
    finally:
        node.sh(f"mv /root/sudo-rule {rule}")
    assert set(run.changed().values()) <= {0}
    assert "sudo" in run.output
    assert "l40s-01" in run.output


def test_an_unsupported_system_stops_the_run_before_any_change(lab: Fleet) -> None:
    node = lab.nodes["gw-01"]
    node.sh("cp --dereference /etc/os-release /root/os-release && sed -i s/=debian/=plan9/ /usr/lib/os-release")
    try:
        run = lab.run(expect=2)
    finally:
        node.sh("cp /root/os-release /usr/lib/os-release && rm /root/os-release")
    assert set(run.changed().values()) <= {0}
    assert "gw-01" in run.output
    assert "plan9" in run.output


def test_too_little_disk_stops_the_run_before_any_change(lab: Fleet) -> None:
    node = lab.nodes["l40s-03"]
    node.sh("mkdir -p /var/lib/l40s-fleet && mount -t tmpfs -o size=64k none /var/lib/l40s-fleet")
    try:
        run = lab.run(expect=2)
    finally:
        node.sh("umount /var/lib/l40s-fleet")
    assert set(run.changed().values()) <= {0}
    assert "l40s-03" in run.output
    assert "/var/lib" in run.output
