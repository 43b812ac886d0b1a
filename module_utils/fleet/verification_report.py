"""The verdict on the whole fleet, as text that a person reads in a terminal."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .plan_document import id_order
from .plan_table import table
from .verification import ABSENT, OK, UNPLANNED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

WIDTH = 112
"""Columns: Ansible's default output indents text by eight, and a terminal has 120."""

_COLUMNS = ("MODEL", "INSTANCE", "HOST", "GPUS", "QUANTIZATION", "CONTEXT", "KV PLANNED", "KV OBSERVED", "STATUS")
_CLIPPED = (0, 1, 2, 3, 4)
_LEAST_WIDTH = 8
_WORDS = {ABSENT: "not there"}
_NOT_REACHED = "not reached"


@dataclass(frozen=True)
class Report:
    """What verification found.

    Attributes:
        text: table, problems and a line to try.
        problems: what differs, one line each.
        nothing_runs: no planned instance is there and no gateway answers, as before the first run.
    """

    text: str
    problems: tuple[str, ...]
    nothing_runs: bool


def make_report(
    plan: Mapping[str, Any],
    hosts: Mapping[str, Mapping[str, Any]],
    gateways: Sequence[Mapping[str, Any]],
    *,
    key_reference: str,
    checkpoints: Mapping[str, Iterable[Mapping[str, Any]]] = MappingProxyType({}),
) -> Report:
    """Put the findings of all hosts and gateways together.

    Args:
        plan: plan.json.
        hosts: ``rows`` and ``gpu_indices`` as fleet_verify returned them, by host; hosts that were not reached are left
            out.
        gateways: ``gateway`` (name), ``url``, and ``findings`` as fleet_verify_gateway returned them; ``findings`` is
            ``None`` where the gateway could not be logged in to.
        key_reference: shell text that gives a client's key, for the line to try.
        checkpoints: what fleet_checkpoint found of them, by host.
    """
    verdicts = {(row["id"], host): row for host, found in hosts.items() for row in found["rows"]}
    quantizations = _quantizations(plan)
    cells, statuses = [], set()
    for instance in sorted(plan["instances"], key=lambda one: (one["model"], id_order(one["id"]))):
        for shard in instance["shards"]:
            row = verdicts.pop((instance["id"], shard["host"]), None)
            status = row["status"] if row else _NOT_REACHED
            statuses.add(status)
            cells.append(
                _cells(
                    instance,
                    shard,
                    seen=row["seen"] if row else {},
                    status=status,
                    indices=hosts.get(shard["host"], {}).get("gpu_indices", {}),
                    quantizations=quantizations,
                )
            )
    for (name, host), row in sorted(verdicts.items()):
        statuses.add(row["status"])
        cells.append([row["model"], name, host, *[""] * 5, row["status"]])

    problems = [*_host_problems(hosts), *_checkpoint_problems(checkpoints), *_gateway_problems(gateways)]
    answering = any(_answers(one) for one in gateways)
    nothing_runs = statuses <= {ABSENT, _NOT_REACHED} and not answering
    if nothing_runs and plan["instances"]:
        lines = ["Nothing runs yet.", "", *_table(cells)]
    else:
        lines = [*(_table(cells) if cells else ["No instances."]), "", *_gateway_lines(gateways), *_drafting(hosts)]
        if problems:
            lines += ["", "Differences:", *(f"  {problem}" for problem in problems)]
        lines += _line_to_try(plan, gateways, key_reference) if answering else []
    return Report("\n".join(lines), tuple(problems), nothing_runs)


def _cells(
    instance: Mapping[str, Any],
    shard: Mapping[str, Any],
    *,
    seen: Mapping[str, Any],
    status: str,
    indices: Mapping[str, int],
    quantizations: Mapping[tuple[Any, ...], str],
) -> list[str]:
    arguments = instance["engine_args"]
    known = all(gpu in indices for gpu in shard["gpus"])
    gpus = ",".join(str(indices[gpu]) for gpu in shard["gpus"]) if known else f"({len(shard['gpus'])})"
    quantization = arguments.get("quantization") or quantizations.get(
        _shape(instance["model"], arguments), "checkpoint"
    )
    return [
        instance["model"],
        f"{instance['id']} rank {shard['rank']}" if len(instance["shards"]) > 1 else instance["id"],
        shard["host"],
        gpus,
        quantization,
        _number(arguments.get("max_model_len")),
        _number(instance.get("memory", {}).get("kv_cache_tokens")),
        _number(seen.get("kv_cache_tokens")),
        _WORDS.get(status, status),
    ]


def _shape(model: str, arguments: Mapping[str, Any]) -> tuple[Any, ...]:
    sizes = ("tensor_parallel_size", "pipeline_parallel_size")
    return (model, *(arguments.get(name, 1) for name in sizes), arguments.get("kv_cache_dtype", "auto"))


def _quantizations(plan: Mapping[str, Any]) -> dict[tuple[Any, ...], str]:
    """What the plan says of checkpoints that are quantized already, whose instances need no argument for it."""
    found: dict[tuple[Any, ...], str] = {}
    for candidate in plan.get("candidates", ()):
        config = candidate["config"]
        if config.get("quantization"):
            found.setdefault(_shape(candidate["model"], config), config["quantization"])
    return found


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value or "-")


def _table(cells: Sequence[Sequence[str]]) -> list[str]:
    """Align the rows, and cut the widest names until a line fits."""
    rows = [list(row) for row in cells]
    while True:
        lines = table(_COLUMNS, rows)
        excess = max(map(len, lines)) - WIDTH
        widths = {column: max(len(row[column]) for row in rows) for column in _CLIPPED}
        widest = max(widths, key=lambda column: widths[column])
        if excess <= 0 or widths[widest] <= _LEAST_WIDTH:
            return lines
        runner_up = max(width for column, width in widths.items() if column != widest)
        width = max(_LEAST_WIDTH, widths[widest] - excess, min(runner_up, widths[widest] - 1))
        for row in rows:
            if len(row[widest]) > width:
                row[widest] = row[widest][: width - 1] + "…"


def _drafting(hosts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What came of drafted tokens since the engines started, one line an instance that drafts."""
    found = []
    for host, one in sorted(hosts.items()):
        for row in sorted(one["rows"], key=lambda row: id_order(row["id"])):
            counted = row["seen"].get("drafting")
            if counted and counted["drafts"]:
                accepted, drafted = counted["accepted_tokens"], counted["draft_tokens"]
                each = 1 + accepted / counted["drafts"]
                found.append(
                    f"  {row['id']} on {host}: {accepted:,} of {drafted:,} accepted ({accepted / drafted:.0%}),"
                    f" {each:.2f} tokens a step."
                )
    return ["Drafted tokens since the start of the engine:", *found] if found else []


def _host_problems(hosts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    problems = []
    for host, found in sorted(hosts.items()):
        for row in sorted(found["rows"], key=lambda one: id_order(one["id"])):
            if row["status"] == OK:
                continue
            problems += [
                f"{row['id']} on {host}: {one['what']}: {one['planned']}, found {one['observed']}"
                if row["status"] == UNPLANNED
                else f"{row['id']} on {host}: {one['what']}: planned {one['planned']}, observed {one['observed']}"
                for one in row["differences"]
            ]
    return problems


def _checkpoint_problems(checkpoints: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[str]:
    return [
        f"{one['path']} on {host}: {', '.join(one[kind])} {words}; the next run of the stage models brings it anew"
        for host, found in sorted(checkpoints.items())
        for one in found
        for kind, words in (("missing", "missing"), ("damaged", "damaged"))
        if one[kind]
    ]


def _gateway_problems(gateways: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"gateway {one['gateway']}: {finding['what']}: {finding['problem']}"
        for one in gateways
        for finding in one["findings"] or ()
        if finding["problem"]
    ]


def _answers(gateway: Mapping[str, Any]) -> bool:
    return bool(gateway["findings"]) and all(finding["what"] != "gateway" for finding in gateway["findings"])


def _gateway_lines(gateways: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for one in gateways:
        findings = one["findings"]
        if findings is None:
            lines.append(f"Gateway {one['gateway']} ({one['url']}): not reached.")
            continue
        models = [finding for finding in findings if finding["model"]]
        answered = [finding for finding in models if not finding["problem"]]
        words = f"{len(answered)} of {len(models)} model names answered" if models else "no model was asked for"
        if answered:
            words += f", the slowest in {max(finding['seconds'] for finding in answered):.2f} s"
        lines.append(f"Gateway {one['gateway']} ({one['url']}): {words}.")
        right = [finding["what"] for finding in findings if not finding["model"] and not finding["problem"]]
        lines += [f"  As it should be: {', '.join(right)}."] if right else []
    return lines


def _line_to_try(plan: Mapping[str, Any], gateways: Sequence[Mapping[str, Any]], key_reference: str) -> list[str]:
    url = next(one["url"] for one in gateways if _answers(one))
    answered = {finding["model"] for one in gateways for finding in one["findings"] or () if not finding["problem"]}
    generating = [one for one in plan["instances"] if one.get("task", "generate") == "generate"]
    models = sorted({one["model"] for one in generating if one.get("engine") != "triton"} & answered)
    on_triton = sorted({one["model"] for one in generating if one.get("engine") == "triton"} & answered)
    if not models and not on_triton:
        return []
    path = "/v1/chat/completions" if models else f"/v2/models/{on_triton[0]}/generate"
    body: dict[str, Any] = {"text_input": "Hello", "max_tokens": 32}
    if models:
        body = {"model": models[0], "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
    return [
        "",
        "Try it:",
        f'  curl -sS {url}{path} -H "Authorization: Bearer {key_reference}" \\',
        "    -H 'Content-Type: application/json' \\",
        f"    -d {shlex.quote(json.dumps(body))}",
    ]
