"""A GPU with a fatal error: marked, drained, left out of the plan, and used again when somebody says so.

The tests run in the order of this file.
"""

from __future__ import annotations

import json

import pytest
from host_lab import PROGRAM, STATE, changed, node_file, play, wait_until

testinfra_hosts = ["ansible://l40s-01"]

FALLEN = "4,{sequence},0,-;NVRM: Xid (PCI:0000:17:00): 79, pid=4711, GPU has fallen off the bus.\n"
BUS_ID = "0000:17:00.0"


def marks(host):
    return json.loads(host.check_output(f"{PROGRAM} status"))


def append(name: str, text: str) -> None:
    with node_file("l40s-01", name).open("a") as file:
        file.write(text)


def test_the_watch_is_confined_and_content(host):
    assert host.service("l40s-fleet-quarantine.timer").is_enabled
    assert host.service("l40s-fleet-quarantine.timer").is_running
    wait_until(lambda: host.file(STATE).exists)
    assert marks(host) == {}
    verdict = host.check_output("systemd-analyze security --no-pager l40s-fleet-quarantine.service").splitlines()[-1]
    assert float(verdict.split("service: ")[1].split()[0]) <= 2.0


def test_a_fatal_xid_drains_the_instance_on_that_gpu_alone(host):
    append("kmsg", FALLEN.format(sequence=1))
    wait_until(lambda: not host.service("vllm@simulated-1").is_running)
    wait_until(lambda: "drained" in host.check_output("journalctl --unit=vllm@simulated-1 --output=cat --no-pager"))
    assert not host.service("vllm@simulated-1").is_enabled
    assert host.service("vllm@simulated-2").is_running
    (mark,) = marks(host).values()
    assert mark["reason"].startswith("Xid 79: the GPU has fallen off the bus")


def test_rising_remapped_rows_do_the_same(host):
    path = node_file("l40s-01", "gpus.conf")
    sound = path.read_text()
    head, first, second, *rest = sound.split("[gpu]")
    path.write_text("[gpu]".join([head, first, second + "remapped_rows_uncorrected = 1\n", *rest]))
    try:
        wait_until(lambda: not host.service("vllm@simulated-2").is_running)
        assert marks(host)["0000:18:00.0"]["reason"] == "remapped rows rose from 0 to 1"
    finally:
        path.write_text(sound)


def test_the_next_plan_leaves_the_gpus_out(host):
    output = " ".join(play("playbooks/plan.yml").split())
    for gpu, reason in ((0, "Xid 79"), (1, "remapped rows rose from 0 to 1")):
        sentence = output.split(f"l40s-01 GPU {gpu} is not used: ")[1]
        assert reason in sentence[:200]
        assert "in quarantine since" in sentence[:400]


def test_the_marks_stay_over_a_restart(host, restart_node):
    before = marks(host)
    restart_node()
    assert marks(host) == before
    for unit in ("vllm@simulated-1", "vllm@simulated-2"):
        assert not host.service(unit).is_running


def test_a_damaged_state_is_told_and_not_overwritten(host):
    kept = host.check_output(f"cat {STATE}")
    host.check_output(f"echo '{{' > {STATE}")
    try:
        assert host.run("systemctl start l40s-fleet-quarantine.service").rc != 0
        assert host.check_output(f"cat {STATE}") == "{"
    finally:
        host.check_output("printf %%s %s > %s", kept, STATE)
        host.run("systemctl reset-failed l40s-fleet-quarantine.service")
    assert json.loads(host.check_output(f"cat {STATE}")) == json.loads(kept)


@pytest.mark.parametrize(
    ("gpu", "problem"),
    [(None, "name a GPU by its PCI bus id or UUID, or all"), ("GPU-nowhere", "GPU-nowhere is not in quarantine")],
)
def test_a_gpu_has_to_be_named_to_be_lifted(gpu, problem):
    extra = () if gpu is None else ("--extra-vars", f"quarantine_gpu={gpu}")
    output = play("playbooks/clear_quarantine.yml", "--limit", "l40s-01", *extra, expect=2)
    assert problem in " ".join(output.split())


def test_only_the_explicit_command_lifts_it(host):
    arguments = ("--limit", "l40s-01", "--extra-vars", f"quarantine_gpu={BUS_ID}")
    assert changed(play("playbooks/clear_quarantine.yml", *arguments, "--check")) == {1}
    assert BUS_ID in marks(host)
    assert changed(play("playbooks/clear_quarantine.yml", *arguments)) == {1}
    assert set(marks(host)) == {"0000:18:00.0"}
    assert changed(play("playbooks/clear_quarantine.yml", "-e", "quarantine_gpu=all")) == {0, 1}
    # The records of before the lifting stay in the log, and are not counted again.
    host.check_output("systemctl start l40s-fleet-quarantine.service")
    assert marks(host) == {}
    assert "is not used" not in play("playbooks/plan.yml")


def test_a_new_error_after_the_lifting_counts(host):
    append("kmsg", FALLEN.format(sequence=2))
    host.check_output("systemctl start l40s-fleet-quarantine.service")
    assert set(marks(host)) == {BUS_ID}
    host.check_output(f"{PROGRAM} --kernel-log /etc/l40s-lab/kmsg clear all")
    assert marks(host) == {}
