"""Waves over several hosts, from what each host says of its steps."""

from __future__ import annotations

import dataclasses

import pytest
from fleet.instances import CONFIG, ENVIRONMENT, Desired, Observed, decide, parse_desired
from fleet.rolling import describe, waves
from fleet.systemd import UnitState

RUNNING = UnitState(active_state="active", sub_state="running", enabled=True, invocation="a")
CRASHING = UnitState(active_state="activating", sub_state="auto-restart", enabled=True)


def item(name: str, gpu: str = "", port: int = 0, *, ways: int = 1, hosts: tuple[str, ...] = ("h",), length=1) -> dict:
    model, _, number = name.rpartition("-")
    port = port or 8100 + int(number) + 10 * sum(map(ord, model))
    shards = [{"host": host, "gpus": [gpu or f"GPU-{name}"], "rank": rank} for rank, host in enumerate(hosts)]
    record = {"id": name, "model": model, "port": port, "shards": shards}
    if ways > 1:
        record["sharing"] = {"ways": ways, "seat": 0, "starts_after": []}
    config = f"port: {port}\nlen: {length}\nways: {ways}\n"
    return {"id": name, "config_yaml": config, "environment": f"G={gpu}\n", "record": record}


def digest(one: Desired) -> str:
    return one.files[CONFIG] + one.files[ENVIRONMENT]


def host(wanted: list[dict], before: list[dict], units: dict[str, UnitState] | None = None) -> tuple[dict, ...]:
    """What a host says: each instance of before runs, with the digest of its own files."""
    desired, old = parse_desired(wanted), parse_desired(before)
    observed = {
        one.id: Observed(dict(one.files), one.resources, (units or {}).get(one.id, RUNNING), digest(one)) for one in old
    }
    steps = decide(desired, observed, {one.id: digest(one) for one in desired})
    return describe(steps, observed, desired)


def deferred(steps) -> list[str]:
    return [one["id"] for one in steps if one["deferred"]]


def ids(order) -> list[list[str]]:
    return [[one.id for one in wave.instances] for wave in order]


def changed(*names: str, **options) -> tuple[dict, ...]:
    return host([item(name, length=2, **options) for name in names], [item(name, **options) for name in names])


def test_nothing_is_deferred_where_nothing_changes():
    steps = host([item("a-1")], [item("a-1")])
    assert deferred(steps) == []
    assert waves({"h": steps}) == ()


def test_what_is_new_or_does_not_serve_starts_at_once():
    steps = host(
        [item("a-1"), item("b-1", length=2), item("c-1", length=2)],
        [item("b-1"), item("c-1")],
        {"b-1": CRASHING},
    )
    assert deferred(steps) == ["c-1"]


def test_replicas_change_one_after_the_other_and_models_side_by_side():
    order = waves({"h1": changed("a-1", "b-1"), "h2": changed("a-2", "b-2"), "h3": changed("a-3")})
    assert ids(order) == [["a-1", "b-1"], ["a-2", "b-2"], ["a-3"]]
    assert order[0].hosts == ("h1",)
    assert [wave.alone for wave in order] == [(), (), ()]


def test_replicas_of_one_host_take_turns_too():
    assert ids(waves({"h": changed("a-1", "a-2")})) == [["a-1"], ["a-2"]]


def test_the_only_instance_of_a_model_is_named():
    order = waves({"h1": changed("a-1", "b-1"), "h2": host([item("a-2")], [item("a-2")])})
    assert ids(order) == [["a-1", "b-1"]]
    assert order[0].alone == ("b-1",)
    assert "b-1, which does not answer until it is back" in order[0].words


def test_a_replica_that_does_not_serve_does_not_stand_in():
    order = waves({"h1": changed("a-1"), "h2": host([item("a-2")], [item("a-2")], {"a-2": CRASHING})})
    assert order[0].alone == ("a-1",)


def test_an_instance_over_several_hosts_changes_on_all_of_them_together():
    two = {"hosts": ("h1", "h2")}
    order = waves({"h1": changed("wide-1", **two), "h2": changed("wide-1", **two)})
    assert ids(order) == [["wide-1"]]
    assert order[0].hosts == ("h1", "h2")


def test_an_instance_over_several_hosts_that_is_new_starts_in_one_wave():
    """On one of its hosts something has to make room first; the other one would wait for it in vain."""
    wide = item("wide-1", "GPU-x", hosts=("h1", "h2"))
    first = host([wide, item("a-1", "GPU-y")], [item("a-1", "GPU-x")])
    second = host([wide], [])
    assert deferred(second) == ["wide-1"]
    assert ids(waves({"h1": first, "h2": second})) == [["a-1"], ["wide-1"]]


def test_a_newcomer_on_a_shared_gpu_waits_for_the_one_that_shrinks():
    steps = host([item("a-1", "GPU-x", ways=2), item("b-1", "GPU-x", ways=2)], [item("a-1", "GPU-x")])
    assert deferred(steps) == ["a-1", "b-1"]
    assert ids(waves({"h": steps})) == [["a-1"], ["b-1"]]


def test_a_newcomer_on_a_shared_gpu_starts_at_once_where_nobody_has_to_shrink():
    steps = host([item("a-1", "GPU-x", ways=2), item("b-1", "GPU-x", ways=2)], [item("a-1", "GPU-x", ways=2)])
    assert deferred(steps) == []


def test_those_that_shrink_come_before_those_that_grow():
    steps = host(
        [item("a-1", "GPU-x", ways=2), item("b-1", "GPU-x", ways=3)],
        [item("a-1", "GPU-x", ways=3), item("b-1", "GPU-x", ways=2)],
    )
    assert ids(waves({"h": steps})) == [["b-1"], ["a-1"]]


def test_sharers_that_only_change_otherwise_need_not_wait_for_one_another():
    steps = changed("a-1", "b-1", gpu="GPU-x", ways=2)
    assert ids(waves({"h": steps})) == [["a-1", "b-1"]]


def test_two_replicas_that_swap_gpus_change_together():
    steps = host(
        [item("a-1", "GPU-y"), item("a-2", "GPU-x")],
        [item("a-1", "GPU-x"), item("a-2", "GPU-y")],
    )
    order = waves({"h": steps})
    assert ids(order) == [["a-1", "a-2"]]
    assert order[0].alone == ("a-1", "a-2")


def test_what_is_in_the_way_leaves_before_what_needs_its_place():
    steps = host([item("b-1", "GPU-x")], [item("a-1", "GPU-x")])
    assert ids(waves({"h": steps})) == [["a-1"], ["b-1"]]


@pytest.mark.parametrize("state", ["inactive", "failed"])
def test_what_is_in_the_way_and_does_not_run_leaves_at_once(state):
    unit = dataclasses.replace(RUNNING, active_state=state)
    steps = host([item("b-1", "GPU-x")], [item("a-1", "GPU-x")], {"a-1": unit})
    assert deferred(steps) == []


def test_every_deferred_instance_is_in_exactly_one_wave():
    names = [f"{model}-{number}" for model in "abc" for number in range(1, 5)]
    order = waves({f"h{number}": changed(*names[number::3]) for number in range(3)})
    assert sorted(name for wave in ids(order) for name in wave) == names
    for wave in order:
        assert len({one.model for one in wave.instances}) == len(wave.instances)
