"""The filter that puts the verdict on the fleet together."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DOCUMENTATION = r"""
name: fleet_verification
short_description: Put the findings of all hosts and gateways together
description: Takes the plan; returns C(text) for a terminal, C(problems), one line each, and C(nothing_runs).
"""


def fleet_verification(
    plan: Mapping[str, Any],
    hosts: Mapping[str, Mapping[str, Any]],
    gateways: Iterable[Mapping[str, Any]],
    key_reference: str,
    checkpoints: Mapping[str, Iterable[Mapping[str, Any]]] | None = None,
) -> dict[str, Any]:
    """See ``fleet.verification_report.make_report``; ``gateways`` are the results of a loop over gateways."""
    # Ansible imports every filter plugin in every worker; only the one that calls this needs the report.
    from fleet.verification_report import make_report  # noqa: PLC0415

    asked = [
        {"gateway": one["item"]["name"], "url": one["item"]["url"], "findings": one.get("findings")} for one in gateways
    ]
    return asdict(make_report(plan, hosts, asked, key_reference=key_reference, checkpoints=checkpoints or {}))


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Filters by name."""
        return {"fleet_verification": fleet_verification}
