"""Planned against observed, row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fleet.model_work import Purpose
from fleet.verification import (
    ABSENT,
    FAILED,
    OK,
    UNPLANNED,
    WRONG,
    Planned,
    Seen,
    gpus_by_instance,
    judge,
    planned_instance,
    sharing,
    unplanned,
)

RECORD = {
    "id": "chat-1",
    "model": "chat",
    "engine": "vllm",
    "task": "generate",
    "aliases": ["gpt"],
    "shards": [{"host": "l40s-01", "gpus": ["GPU-a", "GPU-b"], "rank": 0}],
    "engine_args": {
        "model": "/models/chat",
        "served_model_name": ["chat", "gpt"],
        "max_model_len": 4096,
        "block_size": 128,
        "tensor_parallel_size": 2,
    },
    "port": 8100,
    "memory": {"kv_cache_tokens": 1000, "kv_cache_tokens_planned": 900},
}
PLANNED = planned_instance(RECORD, "l40s-01")
AS_PLANNED = Seen(
    present=True,
    active=True,
    enabled=True,
    state="active (running)",
    started_from_files=True,
    user_id=64123,
    health="",
    names=("chat", "gpt"),
    max_model_len=4096,
    kv_cache_tokens=1000,
    arguments={"model": "/models/chat", "block_size": "128"},
    work="",
    work_seconds=0.2,
    gpus=("GPU-a", "GPU-b"),
)


def test_an_instance_that_is_as_planned_is_ok() -> None:
    row = judge(PLANNED, AS_PLANNED)
    assert (row.status, row.differences) == (OK, ())


@pytest.mark.parametrize(
    ("change", "status", "what", "observed"),
    [
        ({"active": False, "state": "failed (failed)"}, FAILED, "unit", "failed (failed)"),
        ({"enabled": False}, WRONG, "start at boot", "disabled"),
        ({"files_differ": ("config.yaml",)}, WRONG, "config.yaml", "another text"),
        ({"started_from_files": False}, WRONG, "process", "runs what was configured before"),
        ({"user_id": 0}, WRONG, "user", "root"),
        ({"health": "503", "kv_cache_tokens": None}, FAILED, "/health", "503"),
        ({"work": "500: out of memory"}, FAILED, "request", "500: out of memory"),
        ({"names": ("chat",)}, WRONG, "served_model_name", "chat"),
        ({"max_model_len": 2048}, WRONG, "max_model_len", "2048"),
        ({"arguments": {"block_size": "16"}}, WRONG, "block_size", "16"),
        ({"arguments": {"model": "/models/other"}}, WRONG, "model", "/models/other"),
        ({"kv_cache_tokens": 899}, WRONG, "KV tokens", "899"),
        ({"kv_cache_tokens": None}, WRONG, "KV tokens", "not reported"),
        ({"gpus": ("GPU-a",)}, WRONG, "GPUs", "GPU-a"),
        ({"gpus": ("GPU-a", "GPU-b", "GPU-c")}, WRONG, "GPUs", "GPU-a, GPU-b, GPU-c"),
        ({"gpus": ()}, WRONG, "GPUs", "none"),
        ({"gpus": None}, WRONG, "GPUs", "not known: NVML does not answer"),
        ({"shares": ("other-1",)}, WRONG, "GPUs", "shared with other-1"),
    ],
)
def test_what_differs_is_named(change: dict[str, object], status: str, what: str, observed: str) -> None:
    row = judge(PLANNED, replace(AS_PLANNED, **change))
    assert row.status == status
    assert [(one.what, one.observed) for one in row.differences] == [(what, observed)]


def test_what_keeps_an_instance_from_serving_comes_first() -> None:
    row = judge(PLANNED, replace(AS_PLANNED, enabled=False, work="502: gone"))
    assert [one.what for one in row.differences] == ["request", "start at boot"]


@pytest.mark.parametrize(("tokens", "status"), [(900, OK), (1000, OK), (1200, OK), (899, WRONG)])
def test_measured_kv_memory_may_use_its_margin(tokens: int, status: str) -> None:
    assert judge(PLANNED, replace(AS_PLANNED, kv_cache_tokens=tokens)).status == status


@pytest.mark.parametrize(("tokens", "status"), [(999, WRONG), (1000, OK), (1001, WRONG)])
def test_given_kv_memory_leaves_nothing_to_measure(tokens: int, status: str) -> None:
    record = {**RECORD, "engine_args": {**RECORD["engine_args"], "kv_cache_memory_bytes": 1 << 20}}
    planned = planned_instance(record, "l40s-01")
    assert judge(planned, replace(AS_PLANNED, kv_cache_tokens=tokens)).status == status


def test_a_gpu_that_is_planned_to_be_shared_may_be_shared_with_these_only() -> None:
    sharing = {"ways": 2, "seat": 0, "starts_after": []}
    record = {**RECORD, "sharing": sharing}
    beside = {
        "chat-1": record,
        "small-1": {**record, "id": "small-1", "sharing": {**sharing, "seat": 1}},
        "alone-1": {**RECORD, "id": "alone-1"},
    }
    planned = planned_instance(record, "l40s-01", beside)
    assert planned.shares_with == ("small-1",)
    assert judge(planned, replace(AS_PLANNED, shares=("small-1",))).status == OK
    row = judge(planned, replace(AS_PLANNED, shares=("alone-1", "small-1")))
    assert [(one.planned, one.observed) for one in row.differences] == [
        ("shared with small-1 only", "shared with alone-1")
    ]


def test_a_unit_that_is_down_is_not_also_told_to_lack_gpus_and_memory() -> None:
    seen = Seen(present=True, enabled=True, state="inactive (dead)", gpus=())
    assert [one.what for one in judge(PLANNED, seen).differences] == ["unit"]


def test_an_instance_of_which_nothing_is_there_is_absent() -> None:
    assert judge(PLANNED, Seen()).status == ABSENT


def test_the_second_host_of_an_instance_answers_no_requests() -> None:
    shards = [
        {"host": "l40s-02", "gpus": ["GPU-c"], "rank": 1},
        {"host": "l40s-01", "gpus": ["GPU-a"], "rank": 0},
    ]
    record = {**RECORD, "shards": shards}
    leader, follower = planned_instance(record, "l40s-01"), planned_instance(record, "l40s-02")
    assert (leader.leads, leader.gpus) == (True, ("GPU-a",))
    assert (follower.leads, follower.gpus) == (False, ("GPU-c",))
    quiet = Seen(present=True, active=True, enabled=True, started_from_files=True, user_id=64123, gpus=("GPU-c",))
    assert judge(follower, quiet).status == OK


def test_an_engine_that_chooses_its_length_is_not_held_to_one() -> None:
    arguments = {"model": "/models/chat", "served_model_name": "chat", "max_model_len": "auto"}
    planned = planned_instance({**RECORD, "engine_args": arguments, "memory": {}}, "l40s-01")
    assert planned == Planned(
        id="chat-1",
        model="chat",
        purpose=Purpose(),
        names=("chat",),
        leads=True,
        gpus=("GPU-a", "GPU-b"),
        max_model_len=None,
        kv_cache_tokens=None,
        kv_cache_tokens_least=None,
        kv_cache_exact=False,
        arguments={"model": "/models/chat"},
        port=8100,
    )


def test_an_instance_outside_the_plan_is_named() -> None:
    running = unplanned("old-1", "old", Seen(present=True, active=True, state="active"))
    left = unplanned("old-2", "old", Seen(present=True, state="inactive"))
    assert (running.status, running.differences[0].observed) == (UNPLANNED, "active")
    assert left.differences[0].observed == "left behind"


def test_gpus_that_two_instances_use_are_seen() -> None:
    gpus = [
        {"uuid": "GPU-a", "processes": [{"instance": "chat-1"}, {"instance": "chat-1"}]},
        {"uuid": "GPU-b", "processes": [{"instance": "chat-1"}, {"instance": "code-1"}, {"instance": None}]},
        {"uuid": "GPU-c", "processes": []},
    ]
    used = gpus_by_instance(gpus)
    assert used == {"chat-1": ("GPU-a", "GPU-b"), "code-1": ("GPU-b",)}
    assert sharing("chat-1", used) == ("code-1",)
    assert sharing("nobody-1", used) == ()
