from __future__ import annotations

import dataclasses

import pytest
from fleet.errors import FleetError
from fleet.instances import (
    ORDER,
    Desired,
    Observed,
    decide,
    diff_of,
    judge,
    listen_address,
    parse_desired,
    removals,
    unit_of,
)
from fleet.systemd import UnitState

RUNNING = UnitState(active_state="active", sub_state="running", enabled=True, invocation="a")


def item(name: str = "chat-1", port: int = 8100, gpus: tuple[str, ...] = ("GPU-a",)) -> dict:
    return {
        "id": name,
        "config_yaml": f"model: /m\nport: {port}\n",
        "environment": "A=1\n",
        "record": {"port": port, "shards": [{"host": "h", "gpus": list(gpus), "rank": 0}]},
    }


def desired(*items: dict) -> tuple[Desired, ...]:
    return parse_desired(items)


def observed(one: Desired, unit: UnitState = RUNNING, started: str = "digest") -> dict[str, Observed]:
    return {one.id: Observed(dict(one.files), one.resources, unit, started)}


def digests(*instances: Desired) -> dict[str, str]:
    return {one.id: "digest" for one in instances}


def test_nothing_to_do_when_all_is_as_it_should_be():
    (one,) = desired(item())
    (step,) = decide([one], observed(one), digests(one))
    assert not step.changes
    assert diff_of([step], observed(one), "/etc") == []


def test_new_instance_is_written_enabled_and_started():
    (one,) = desired(item())
    (step,) = decide([one], {}, digests(one))
    assert (step.action, step.enable, set(step.writes)) == ("start", True, set(one.files))
    headers = [document["after_header"] for document in diff_of([step], {}, "/etc/i")]
    assert headers == [*(f"/etc/i/chat-1/{name}" for name in one.files), unit_of("chat-1")]


@pytest.mark.parametrize(
    ("unit", "started", "action"),
    [
        (dataclasses.replace(RUNNING, active_state="failed"), "digest", "start"),
        (dataclasses.replace(RUNNING, active_state="inactive"), "", "start"),
        (RUNNING, "another digest", "restart"),
        (RUNNING, "", "restart"),
        (dataclasses.replace(RUNNING, active_state="activating", sub_state="start-post"), "digest", "none"),
    ],
)
def test_action_by_state_of_the_unit(unit, started, action):
    (one,) = desired(item())
    (step,) = decide([one], observed(one, unit, started), digests(one))
    assert (step.action, dict(step.writes)) == (action, {})


def test_a_unit_that_does_not_start_at_boot_is_enabled_and_not_restarted():
    (one,) = desired(item())
    (step,) = decide([one], observed(one, dataclasses.replace(RUNNING, enabled=False)), digests(one))
    assert (step.action, step.enable, step.changes) == ("none", True, True)


def test_a_changed_record_is_written_without_a_restart():
    (before,) = desired(item())
    changed = item()
    changed["record"]["reasons"] = ["because"]
    (after,) = desired(changed)
    (step,) = decide([after], observed(before), digests(after))
    assert (step.action, list(step.writes)) == ("none", ["instance.json"])


def test_definitions_that_would_change_restart_in_check_mode():
    (one,) = desired(item())
    (step,) = decide([one], observed(one), digests(one), definitions_changed=True)
    assert step.action == "restart"


@pytest.mark.parametrize("old", [item("old-1", 8100, ("GPU-b",)), item("old-1", 8101, ("GPU-a",))])
def test_an_unlisted_instance_in_the_way_is_removed_first(old):
    (new,) = desired(item())
    (gone,) = desired(old)
    first, second = decide([new], observed(gone), digests(new))
    assert (first.id, first.action, second.id, second.action) == ("old-1", "remove", "chat-1", "start")


def test_an_unlisted_instance_in_nobodys_way_stays():
    (new,) = desired(item())
    (other,) = desired(item("old-1", 8101, ("GPU-b",)))
    assert [step.id for step in decide([new], observed(other), digests(new))] == ["chat-1"]


def test_instances_that_swap_gpus_both_stop_before_either_starts():
    before = desired(item("a-1", 8100, ("GPU-a",)), item("b-1", 8101, ("GPU-b",)))
    after = desired(item("a-1", 8100, ("GPU-b",)), item("b-1", 8101, ("GPU-a",)))
    state = observed(before[0], started="x") | observed(before[1], started="x")
    steps = decide(after, state, digests(*after))
    assert [(step.action, step.stop_first) for step in steps] == [("restart", True)] * 2


def test_removal_shows_in_the_diff():
    (one,) = desired(item())
    documents = diff_of(removals(["chat-1"], "is not in the plan"), observed(one), "/etc/i")
    assert {document["after"] for document in documents} == {"", "not there\n"}
    assert len(documents) == len(one.files) + 1


@pytest.mark.parametrize(
    ("items", "problem"),
    [
        ([item("../etc")], r"instances\[0\].id: must match"),
        ([item("Chat")], r"instances\[0\].id: must match"),
        ([item(), item()], r"instances\[1\].id: chat-1 is listed twice"),
        ([item(), item("chat-2", 8100)], r"instances\[1\].record.port: chat-2 and chat-1 both have port 8100"),
    ],
)
def test_bad_input_names_its_place(items, problem):
    with pytest.raises(FleetError, match=problem):
        parse_desired(items)


@pytest.mark.parametrize(
    ("config", "address"),
    [
        ("host: 0.0.0.0\nport: 8100\n", ("127.0.0.1", 8100)),
        ("host: '::'\nport: 8100\n", ("::1", 8100)),
        ("host: 10.0.0.7\nport: 8100\n", ("10.0.0.7", 8100)),
        ("port: 8100\nx:\n  port: 1\n", ("127.0.0.1", 8100)),
        ("headless: true\nport: 8100\n", None),
    ],
)
def test_listen_address(config, address):
    assert listen_address(config) == address


@pytest.mark.parametrize(
    ("state", "elapsed_s", "verdict"),
    [
        (UnitState(active_state="active", invocation="b"), 0, "up"),
        (UnitState(active_state="activating", sub_state="start-post", invocation="b"), 500, "starting"),
        (UnitState(active_state="inactive", invocation="a"), 1, "starting"),
        (UnitState(active_state="deactivating", invocation="a"), 60, "starting"),
        (UnitState(active_state="inactive", invocation="a"), 20, "did not start"),
        (UnitState(active_state="activating", sub_state="auto-restart", invocation="b"), 5, "died while starting"),
        (
            UnitState(active_state="activating", sub_state="start-post", restarts=1, invocation="c"),
            5,
            "died while starting",
        ),
        (UnitState(active_state="failed", result="exit-code", invocation="b"), 5, "failed to start (exit-code)"),
    ],
)
def test_verdict_on_a_unit_that_was_told_to_start(state, elapsed_s, verdict):
    assert judge(state, UnitState(invocation="a"), elapsed_s, touched=True) == verdict


def test_restarts_of_long_ago_are_not_held_against_a_unit_that_was_left_alone():
    before = dataclasses.replace(RUNNING, restarts=3)
    assert judge(before, before, 1, touched=False) == "up"
    assert judge(dataclasses.replace(before, restarts=4), before, 1, touched=False) == "died while starting"


def shared(name: str, port: int, *starts_after: str) -> dict:
    one = item(name, port)
    one["record"]["sharing"] = {"ways": 2, "seat": len(starts_after), "starts_after": list(starts_after)}
    return one


def test_engines_on_one_gpu_start_one_after_the_other():
    first, second = desired(shared("a-1", 8100), shared("b-1", 8101, "a-1"))
    assert ORDER not in first.files
    assert "After=vllm@a-1.service" in second.files[ORDER].splitlines()
    steps = decide([first, second], {}, digests(first, second))
    assert ORDER in steps[1].writes


def test_an_instance_that_no_longer_shares_its_gpu_waits_for_nobody():
    (before,) = desired(shared("b-1", 8101, "a-1"))
    (after,) = desired(item("b-1", 8101))
    (step,) = decide([after], observed(before), digests(after))
    assert step.writes[ORDER] == ""
    assert step.action == "none"
    documents = {document["after_header"]: document for document in diff_of([step], observed(before), "/etc/i")}
    assert documents[f"/etc/i/b-1/{ORDER}"]["after"] == ""


def test_a_start_that_waits_for_its_turn_is_not_given_up():
    before = UnitState()
    assert judge(UnitState(queued=True), before, 100.0, touched=True) == "starting"
    assert judge(UnitState(), before, 100.0, touched=True) == "did not start"


def test_an_instance_that_runs_out_of_reach_too_stays_as_it_is():
    (one,) = desired(item() | {"held": True})
    other = dataclasses.replace(one, files=dict(one.files) | {"config.yaml": "port: 1\n"})
    (step,) = decide([one], observed(other, UnitState(active_state="activating")), digests(one))
    assert not step.changes
    (step,) = decide([one], {}, digests(one))
    assert step.action == "start"


def test_ports_of_ranks_belong_to_their_instance():
    (one,) = desired(item() | {"record": item()["record"] | {"engine_args": {"master_port": 29500}}})
    assert {"port 8100", "port 29500", "port 29501"} <= one.resources
