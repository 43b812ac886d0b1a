"""The closing table."""

from __future__ import annotations

from typing import Any

import pytest
from fleet.verification_report import WIDTH, make_report


def instance(name: str, model: str, host: str, gpus: list[str], **arguments: Any) -> dict[str, Any]:
    return {
        "id": name,
        "model": model,
        "task": "generate",
        "shards": [{"host": host, "gpus": gpus, "rank": 0}],
        "engine_args": {"max_model_len": 4096, **arguments},
        "memory": {"kv_cache_tokens": 131072},
    }


def row(
    name: str, status: str = "ok", tokens: int | None = 131072, differences: tuple[dict[str, str], ...] = ()
) -> Any:
    return {"id": name, "model": name.rpartition("-")[0], "status": status, "seen": {"kv_cache_tokens": tokens}} | {
        "differences": list(differences)
    }


def difference(what: str, planned: str, observed: str) -> dict[str, str]:
    return {"what": what, "planned": planned, "observed": observed}


def gateway(*findings: tuple[str, str, str]) -> dict[str, Any]:
    listed = [{"what": what, "model": model, "problem": problem, "seconds": 0.2} for what, model, problem in findings]
    return {"gateway": "gw-01", "url": "http://192.0.2.9:8080", "findings": listed}


PLAN = {
    "instances": [
        instance("chat-1", "chat", "l40s-01", ["GPU-a", "GPU-b"]),
        instance("chat-2", "chat", "l40s-02", ["GPU-c"], quantization="fp8"),
    ],
    "candidates": [{"model": "chat", "config": {"quantization": "awq", "kv_cache_dtype": "auto"}}],
}
HOSTS = {
    "l40s-01": {"rows": [row("chat-1")], "gpu_indices": {"GPU-a": 2, "GPU-b": 3}},
    "l40s-02": {"rows": [row("chat-2")], "gpu_indices": {"GPU-c": 0}},
}
ANSWERS = gateway(("model chat", "chat", ""), ("wrong key", "", ""))


def report(hosts: dict[str, Any] = HOSTS, gateways: tuple[Any, ...] = (ANSWERS,), plan: dict[str, Any] = PLAN) -> Any:
    return make_report(plan, hosts, gateways, key_reference="$FLEET_CLIENT_KEY")


def test_a_fleet_as_planned() -> None:
    found = report()
    assert found.problems == ()
    assert not found.nothing_runs
    assert found.text.splitlines() == [
        "MODEL  INSTANCE  HOST     GPUS  QUANTIZATION  CONTEXT  KV PLANNED  KV OBSERVED  STATUS",
        "chat   chat-1    l40s-01  2,3   awq           4,096    131,072     131,072      ok",
        "chat   chat-2    l40s-02  0     fp8           4,096    131,072     131,072      ok",
        "",
        "Gateway gw-01 (http://192.0.2.9:8080): 1 of 1 model names answered, the slowest in 0.20 s.",
        "  As it should be: wrong key.",
        "",
        "Try it:",
        '  curl -sS http://192.0.2.9:8080/v1/chat/completions -H "Authorization: Bearer $FLEET_CLIENT_KEY" \\',
        "    -H 'Content-Type: application/json' \\",
        '    -d \'{"model": "chat", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}\'',
    ]


def test_a_host_that_was_not_reached_is_said_and_is_no_problem() -> None:
    found = report({"l40s-01": HOSTS["l40s-01"]})
    assert "chat   chat-2    l40s-02  (1)   fp8           4,096    131,072     -            not reached" in found.text
    assert found.problems == ()


def test_every_difference_is_a_problem() -> None:
    hosts = {
        "l40s-01": {
            **HOSTS["l40s-01"],
            "rows": [row("chat-1", "wrong", 100, (difference("KV tokens", "131,072", "100"),))],
        },
        "l40s-02": {
            **HOSTS["l40s-02"],
            "rows": [row("old-1", "unplanned", None, (difference("unit", "not in the plan", "active"),))],
        },
    }
    found = report(hosts, (gateway(("model chat", "chat", "503: not ready"), ("/v1/models", "", "")),))
    assert found.problems == (
        "chat-1 on l40s-01: KV tokens: planned 131,072, observed 100",
        "old-1 on l40s-02: unit: not in the plan, found active",
        "gateway gw-01: model chat: 503: not ready",
    )
    assert all(f"  {problem}" in found.text.splitlines() for problem in found.problems)
    assert "0 of 1 model names answered." in found.text
    assert "curl" not in found.text


def test_before_the_first_run_nothing_runs() -> None:
    hosts = {name: {**found, "rows": [row(found["rows"][0]["id"], "absent", None)]} for name, found in HOSTS.items()}
    found = report(hosts, (gateway(("gateway", "", "does not answer: refused")),))
    assert found.nothing_runs
    assert found.text.startswith("Nothing runs yet.\n")
    assert "not there" in found.text


def test_a_gateway_that_answers_means_that_something_runs() -> None:
    assert not report({}).nothing_runs


def test_a_gateway_that_was_not_reached_is_said() -> None:
    found = report(gateways=({**ANSWERS, "findings": None},))
    assert "Gateway gw-01 (http://192.0.2.9:8080): not reached." in found.text
    assert found.problems == ()


def test_an_empty_plan_has_a_report() -> None:
    found = report({}, (gateway(("/v1/models", "", "")),), {"instances": [], "candidates": []})
    assert found.text.startswith("No instances.\n")
    assert found.problems == ()


@pytest.mark.parametrize("length", [20, 48])
def test_long_names_are_cut_so_that_lines_fit(length: int) -> None:
    model = "m" * length
    plan = {"instances": [instance(f"{model}-{n}", model, "h" * 30, [f"GPU-{n}"]) for n in (1, 2)], "candidates": []}
    found = report({}, (ANSWERS,), plan)
    rows = found.text.splitlines()[:3]
    assert max(map(len, rows)) <= WIDTH
    assert [line.index("not reached") for line in rows[1:]] == [rows[0].index("STATUS")] * 2


def test_ranks_of_an_instance_over_several_hosts_are_told_apart():
    wide = instance("wide-1", "wide", "l40s-01", ["GPU-a"])
    wide["shards"].append({"host": "l40s-02", "gpus": ["GPU-c"], "rank": 1})
    hosts = {
        host: {"rows": [row("wide-1", tokens=tokens)], "gpu_indices": {}}
        for host, tokens in (("l40s-01", 131072), ("l40s-02", None))
    }
    text = make_report({"instances": [wide]}, hosts, [gateway()], key_reference="").text
    assert [line.split()[1:5] for line in text.splitlines()[1:3]] == [
        ["wide-1", "rank", "0", "l40s-01"],
        ["wide-1", "rank", "1", "l40s-02"],
    ]


def test_what_came_of_drafted_tokens_is_shown() -> None:
    drafting = {"drafts": 400, "draft_tokens": 1200, "accepted_tokens": 500}
    rows = [row("chat-1")]
    rows[0]["seen"]["drafting"] = drafting
    text = report({**HOSTS, "l40s-01": {**HOSTS["l40s-01"], "rows": rows}}).text
    assert "Drafted tokens since the start of the engine:\n" in text
    assert "  chat-1 on l40s-01: 500 of 1,200 accepted (42%), 2.25 tokens a step.\n" in text
    rows[0]["seen"]["drafting"] = {"drafts": 0, "draft_tokens": 0, "accepted_tokens": 0}
    assert "Drafted" not in report({**HOSTS, "l40s-01": {**HOSTS["l40s-01"], "rows": rows}}).text


def test_checkpoints_that_are_damaged_are_differences():
    stored = {"h1": [{"path": "/m/a", "missing": [], "damaged": []}, {"path": "/m/b", "missing": [], "damaged": ["w"]}]}
    report = make_report({"instances": []}, {}, [], key_reference="$K", checkpoints=stored)
    assert report.problems == ("/m/b on h1: w damaged; the next run of the stage models brings it anew",)
