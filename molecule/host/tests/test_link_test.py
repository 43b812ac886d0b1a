"""The link test with the lab's torch on CPUs: the real code path, the time-out, and when it is not run.

The tests run in the order of this file. l40s-03 is left two of its GPUs, so that one pair and one group are tested.
"""

from __future__ import annotations

import json
import time

import pytest
from host_lab import changed, node_file, play, run_on

testinfra_hosts = ["ansible://l40s-03"]

KEPT = "/var/lib/l40s-fleet/link_test.json"
RUN = ("playbooks/probe.yml", "--limit", "l40s-03", "-e", "fleet_link_test=true")
TASK = "Test the links between the GPUs"


@pytest.fixture(scope="module", autouse=True)
def two_gpus():
    path = node_file("l40s-03", "gpus.conf")
    whole = path.read_text()
    path.write_text("[gpu]".join(whole.split("[gpu]")[:3]))
    yield
    path.write_text(whole)


def planned(node, tensor_parallel_size):
    """The probe as a stage of a run whose plan, as preflight drafted it, has an instance on this node."""
    instance = {"engine_args": {"tensor_parallel_size": tensor_parallel_size}}
    return ("playbooks/probe.yml", "--limit", node, "-e", json.dumps({"plan_result": {"per_host": {node: [instance]}}}))


def kept(host):
    return json.loads(host.check_output(f"cat {KEPT}"))


def workers(host):
    return host.run("pgrep --full [L]INK-TEST-RESULT").stdout.split()


def test_a_plan_without_tensor_parallelism_needs_none(host):
    output = play(*planned("l40s-03", 1))
    assert TASK not in output
    assert not host.file(KEPT).exists


def test_before_a_first_placement_a_pair_that_hangs_is_given_up_and_the_run_goes_on(host):
    begun = time.monotonic()
    output = play(
        *planned("l40s-03", 2), "-e", "probe_link_test_timeout_s=15", "-e", '{"probe_simulated_hangs": ["0-1"]}'
    )
    assert time.monotonic() - begun < 60
    assert changed(output) == {1}
    (pair,) = kept(host)["pairs"]
    assert (pair["p2p"], pair["reason"]) == ("failed", "no answer within 15 s: it hangs")
    assert kept(host)["all_reduce"] == []
    assert workers(host) == []


def test_what_is_kept_is_not_tested_again(host):
    before = host.file(KEPT).mtime
    assert TASK not in play(*planned("l40s-03", 2))
    assert changed(play(*RUN)) == {0}
    assert host.file(KEPT).mtime == before


def test_sound_links_are_verified_and_measured(host):
    assert changed(play(*RUN, "-e", "probe_link_test_force=true")) == {1}
    result = kept(host)
    assert (result["backend"], result["simulated"], result["engine"]) == ("gloo", True, "0.32.0")
    assert [gpu["status"] for gpu in result["gpus"]] == ["verified", "verified"]
    assert [pair["p2p"] for pair in result["pairs"]] == ["verified"]
    assert result["pairs"][0]["bytes_per_s"] > 0
    sizes = [point["bytes"] for point in result["all_reduce"]]
    assert sizes[0] == 1024
    assert sizes[-1] == 1048576
    assert {point["gpus"] for point in result["all_reduce"]} == {2}
    assert workers(host) == []


def test_another_driver_or_topology_is_tested_anew(host):
    path = node_file("l40s-03", "gpus.conf")
    before = path.read_text()
    path.write_text(before.replace("[gpu]", "driver_version = 590.44.01-simulated\n[gpu]", 1))
    try:
        assert changed(play(*RUN, "--check")) == {1}
        assert kept(host)["driver_version"] == "580.95.05-simulated"
    finally:
        path.write_text(before)
    assert changed(play(*RUN, "--check")) == {0}


def test_it_is_refused_beside_a_serving_instance():
    assert run_on("l40s-01", "systemctl", "enable", "--now", "vllm@simulated-1") == 0
    output = " ".join(play("playbooks/probe.yml", "--limit", "l40s-01", "-e", "fleet_link_test=true", expect=2).split())
    assert "link test: instances run on this host: simulated-1 (active)" in output
    assert "Traceback" not in output
    # What is placed there is no first placement, so that nobody asks for one.
    output = play(*planned("l40s-01", 2))
    assert TASK not in output
    assert changed(output) == {0}
