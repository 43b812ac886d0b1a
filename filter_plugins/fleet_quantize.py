"""Filters between the plan and the quantization of its checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DOCUMENTATION = r"""
name: fleet_quantize
short_description: What the quality gate refused
description: >-
  Pure functions. C(made) is what the module fleet_quantize said on each host, with the job of each result as C(item).
"""


def fleet_quantize_refused(
    jobs: Mapping[str, Sequence[Mapping[str, Any]]], made: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[str]:
    """A line for each job of the plan whose result was refused.

    Args:
        jobs: of the plan, by host. What was made in an earlier round, for another plan, does not count.
        made: by host.
    """
    keys = {job["key"] for listed in jobs.values() for job in listed}
    return [
        f"{host}: {one['item']['model']}, {one['item']['words']}: {one['words']}"
        for host, results in sorted(made.items())
        for one in results
        if one.get("outcome") == "rejected" and one["item"]["key"] in keys
    ]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Filters by name."""
        return {"fleet_quantize_refused": fleet_quantize_refused}
