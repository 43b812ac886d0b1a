"""Filters between the plan, the quantization of its checkpoints, and their copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DOCUMENTATION = r"""
name: fleet_quantize
short_description: What the quality gate refused, and which hosts copy what was made
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


def fleet_quantize_copies(
    copies: Mapping[str, Sequence[Mapping[str, str]]], made: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """The checkpoints that the role model_store is given on each host: on those that copy, and on those that have them.

    Args:
        copies: of the plan, by host.
        made: by host.
    """
    accepted = {
        (host, one["item"]["key"]): one
        for host, results in made.items()
        for one in results
        if one.get("outcome") == "accepted" and one.get("files")
    }
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for host, wanted in copies.items():
        for copy in wanted:
            one = accepted.get((copy["maker"], copy["digest"]))
            if one is None:
                continue
            checkpoint = {
                "name": copy["name"],
                "digest": copy["digest"],
                "source_path": "",
                "base_url": "",
                "credential": "",
                "total_bytes": sum(file["bytes"] for file in one["files"].values()),
                "files": one["files"],
            }
            for place in (host, copy["maker"]):
                found.setdefault(place, {})[copy["digest"]] = checkpoint
    return {host: list(by_digest.values()) for host, by_digest in found.items()}


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Filters by name."""
        return {"fleet_quantize_refused": fleet_quantize_refused, "fleet_quantize_copies": fleet_quantize_copies}
