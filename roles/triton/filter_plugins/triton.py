"""Filters of the Triton role."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ansible.errors import AnsibleFilterError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DOCUMENTATION = r"""
name: triton
short_description: Servers and models of Triton from instances of the plan
description: Pure functions from instances of the plan to what the module M(fleet_triton_models) is given.
"""


def triton_servers(instances: Sequence[Mapping[str, Any]], **options: Any) -> list[dict[str, Any]]:
    """See ``fleet.triton_repository.triton_servers``. Ansible's values carry tags, which have no place in files."""
    from fleet.errors import FleetError  # noqa: PLC0415 - every Ansible worker loads this file
    from fleet.triton_repository import triton_servers as servers  # noqa: PLC0415

    try:
        return servers(json.loads(json.dumps(instances)), **json.loads(json.dumps(options)))
    except FleetError as error:
        raise AnsibleFilterError(str(error)) from error


def triton_displaced(
    running: Sequence[Mapping[str, Any]], instances: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Instances of vLLM that hold a GPU of Triton's models, or were what is now on Triton, by name alone."""
    wanted = {gpu for one in instances for shard in one["shards"] for gpu in shard["gpus"]}
    names = {one["id"] for one in instances}
    return [
        {"id": one["id"]}
        for one in running
        if one.get("engine") == "vllm"
        and (one["id"] in names or any(gpu in wanted for shard in one.get("shards", ()) for gpu in shard["gpus"]))
    ]


def triton_gpus(instances: Sequence[Mapping[str, Any]], host: str) -> list[str]:
    """UUIDs of the GPUs that instances hold on a host."""
    return sorted(
        {gpu for one in instances for shard in one["shards"] if shard["host"] == host for gpu in shard["gpus"]}
    )


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Filters by name."""
        return {
            "triton_displaced": triton_displaced,
            "triton_gpus": triton_gpus,
            "triton_servers": triton_servers,
        }
