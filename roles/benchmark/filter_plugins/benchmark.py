"""Filters of the benchmark role."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ansible.errors import AnsibleFilterError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DOCUMENTATION = r"""
name: benchmark
short_description: What is benchmarked, and what came of it
description: Choose an instance of the plan, size the steps of the sweep, and make the documents that are kept.
"""


def benchmark_target(plan: Mapping[str, Any], wanted: str, **options: Any) -> dict[str, Any]:
    """The instance and the requests, see ``fleet.benchmark.choose``, as the role's tasks need them.

    Ansible keeps the argument name ``instance`` to itself.
    """
    from fleet.benchmark import choose  # noqa: PLC0415
    from fleet.errors import FleetError  # noqa: PLC0415
    from fleet.plan_document import parse_plan  # noqa: PLC0415

    try:
        found = choose(parse_plan(_plain(plan), where="plan"), instance=wanted, **_plain(options))
    except FleetError as error:
        raise AnsibleFilterError(str(error)) from error
    one = found.instance
    arguments = _plain(dict(one.engine_args))
    return {
        "id": one.id,
        "model": one.model,
        "host": one.hosts[0],
        "port": one.port,
        "served_model_name": (arguments.get("served_model_name") or [one.model])[0],
        "tokenizer": arguments.get("tokenizer") or arguments["model"],
        "trust_remote_code": bool(arguments.get("trust_remote_code")),
        "others": list(found.others),
        "prompt_tokens": found.prompt_tokens,
        "output_tokens": found.output_tokens,
    }


def benchmark_requests(concurrency: int, steps: Sequence[Mapping[str, Any]], **options: Any) -> int:
    """How many requests a step sends, see ``fleet.benchmark.requests_of_step``."""
    from fleet.benchmark import requests_of_step  # noqa: PLC0415

    return requests_of_step(concurrency, steps, **options)


def benchmark_result(
    plan: Mapping[str, Any],
    target: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    hosts: Mapping[str, Any],
    *,
    engine: Mapping[str, str],
    at: str,
) -> dict[str, Any]:
    """The result as ``document``, as ``page``, and as ``lines`` to show."""
    from fleet.benchmark import choose, predict, result_document, result_lines  # noqa: PLC0415
    from fleet.benchmark_page import render_page  # noqa: PLC0415
    from fleet.errors import FleetError  # noqa: PLC0415
    from fleet.host_document import parse_hosts  # noqa: PLC0415
    from fleet.plan_document import parse_plan  # noqa: PLC0415

    try:
        parsed = parse_plan(_plain(plan), where="plan")
        lengths = {name: target[name] for name in ("prompt_tokens", "output_tokens")}
        chosen = choose(parsed, instance=target["id"], force=True, **lengths)
        documents = parse_hosts({"schema": 1, "hosts": _plain(hosts)}, where="probe") if hosts else None
        measured = _plain(steps)
        prediction = predict(parsed, chosen, [step["concurrency"] for step in measured], documents)
    except FleetError as error:
        raise AnsibleFilterError(str(error)) from error
    document = result_document(chosen, measured, prediction, engine=_plain(engine), at=at)
    return {"document": document, "page": render_page(document), "lines": result_lines(document)}


def _plain(value: Any) -> Any:
    """Ansible's values carry tags, which the core does not know."""
    return json.loads(json.dumps(value))


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Filters by name."""
        return {
            "benchmark_target": benchmark_target,
            "benchmark_requests": benchmark_requests,
            "benchmark_result": benchmark_result,
        }
