"""What becomes of instances that do not serve after a change."""

from __future__ import annotations

import json

from fleet.instances import CONFIG, ENVIRONMENT, RECORD, Observed, decide, parse_desired
from fleet.put_back import failure_lines, retreat
from fleet.systemd import UnitState

RUNNING = UnitState(active_state="active", sub_state="running", enabled=True, invocation="a")


def item(name: str = "chat-1", port: int = 8100, gpu: str = "GPU-a", length: int = 1024) -> dict:
    record = {"id": name, "model": "chat", "port": port, "shards": [{"host": "h", "gpus": [gpu], "rank": 0}]}
    config = f"port: {port}\nmax-model-len: {length}\n"
    return {"id": name, "config_yaml": config, "environment": f"G={gpu}\n", "record": record}


def running(*items: dict, previous=None) -> dict[str, Observed]:
    return {
        one.id: Observed(dict(one.files), one.resources, RUNNING, "digest", previous) for one in parse_desired(items)
    }


def after(items: list[dict], before: dict[str, Observed], failures: dict[str, str]):
    desired = parse_desired(items)
    steps = decide(desired, before, {one.id: "new" for one in desired})
    return retreat(failures, steps, before, desired)


def test_an_instance_goes_back_to_the_files_that_it_served_with():
    before = running(item())
    choice = after([item(length=99999)], before, {"chat-1": "died"})
    (back,) = choice.put_back
    assert dict(back.files) == dict(before["chat-1"].files)
    assert back.resources == before["chat-1"].resources
    assert not choice.given_up


def test_an_instance_that_never_served_is_given_up():
    choice = after([item()], {}, {"chat-1": "died"})
    assert choice.put_back == ()
    assert failure_lines({"chat-1": "died"}, choice, {}) == [
        "vllm@chat-1.service died; it has never served and is stopped"
    ]


def test_an_instance_whose_files_are_as_they_were_keeps_trying():
    before = running(item())
    choice = after([item()], before, {"chat-1": "died"})
    assert (choice.put_back, dict(choice.given_up)) == ((), {})
    assert failure_lines({"chat-1": "died"}, choice, {}) == ["vllm@chat-1.service died"]


def test_a_run_that_was_killed_leaves_what_the_next_one_goes_back_to():
    """The files on the host are the broken ones by then; those that served are beside them."""
    good = {one.id: one for one in parse_desired([item()])}["chat-1"]
    broken = item(length=99999)
    before = running(broken, previous=dict(good.files))
    (back,) = after([broken], before, {"chat-1": "died"}).put_back
    assert dict(back.files) == dict(good.files)


def test_a_third_configuration_does_not_replace_what_served():
    good = {one.id: one for one in parse_desired([item()])}["chat-1"]
    before = running(item(length=99999), previous=dict(good.files))
    desired = parse_desired([item(length=77777)])
    (step,) = decide(desired, before, {"chat-1": "new"})
    assert (dict(step.previous), step.settles) == (dict(good.files), True)


def test_a_new_instance_of_a_killed_run_is_still_one_that_never_served():
    choice = after([item()], running(item(), previous={}), {"chat-1": "died"})
    assert "never served" in choice.given_up["chat-1"]


def test_a_gpu_that_another_has_by_now_is_not_given_twice():
    before = running(item(gpu="GPU-a"), item("other-1", 8101, "GPU-b"))
    wanted = [item(gpu="GPU-c"), item("other-1", 8101, "GPU-a")]
    choice = after(wanted, before, {"chat-1": "died"})
    assert choice.put_back == ()
    assert "other-1 holds GPU-a now" in choice.given_up["chat-1"]


def test_a_gpu_that_both_shared_before_stays_shared():
    before = running(item(), item("other-1", 8101, "GPU-a"))
    choice = after([item(length=99999), item("other-1", 8101, "GPU-a")], before, {"chat-1": "died"})
    assert [one.id for one in choice.put_back] == ["chat-1"]


def test_lines_say_what_became_of_it():
    choice = after([item(length=99999)], running(item()), {"chat-1": "died while starting: ValueError: too long"})
    failures = {"chat-1": "died while starting: ValueError: too long"}
    (line,) = failure_lines(failures, choice, {})
    assert line == "vllm@chat-1.service died while starting; what ran before serves again"
    (line,) = failure_lines(failures, choice, {"chat-1": "failed to start"})
    assert line.endswith("what ran before does not serve either: failed to start")


def test_a_step_says_what_it_goes_back_to_only_where_a_start_has_to_show_something():
    (one,) = parse_desired([item()])
    changed = item()
    changed["record"]["reasons"] = ["because"]
    (step,) = decide(parse_desired([changed]), running(item()), {"chat-1": "digest"})
    assert list(step.writes) == [RECORD]
    assert step.previous is None
    assert not step.reconfigures
    (step,) = decide([one], {}, {"chat-1": "digest"})
    assert step.previous == {}
    assert step.reconfigures
    assert {CONFIG, ENVIRONMENT} <= set(step.writes)
    assert json.loads(step.writes[RECORD])["model"] == "chat"
