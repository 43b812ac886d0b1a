"""Filters of the serving role."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ansible.errors import AnsibleFilterError
from fleet.engine_files import engine_files
from fleet.errors import FleetError
from fleet.ranks import peers_of
from fleet.rolling import waves

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

DOCUMENTATION = r"""
name: serving
short_description: Items of fleet_instances, the order in which they change, and who runs them together
description:
  - Turn an instance of the plan into an item of M(fleet_instances), whole or by its name alone.
  - Put what the hosts have deferred into waves.
  - Name the hosts that run instances together.
"""


def serving_engine_files(instance: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """See ``fleet.engine_files.engine_files``. Ansible's values carry tags, which the YAML writer does not know."""
    try:
        return engine_files(json.loads(json.dumps(instance)), **json.loads(json.dumps(options)))
    except FleetError as error:
        raise AnsibleFilterError(str(error)) from error


def serving_instance_id(instance: Mapping[str, Any]) -> dict[str, Any]:
    """An instance by its name alone."""
    return {"id": instance["id"]}


def serving_failed(hosts: Sequence[str], hostvars: Mapping[str, Any]) -> list[str]:
    """The hosts on which an instance failed that was new, or did not run."""
    return [host for host, result in _results(hosts, hostvars) if result.get("failed")]


def serving_waves(hosts: Sequence[str], hostvars: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The waves of ``fleet.rolling.waves``, each with a line that says what it does."""
    order = waves({host: result.get("instances") or [] for host, result in _results(hosts, hostvars)})
    return [
        {
            "ids": [one.id for one in wave.instances],
            "hosts": list(wave.hosts),
            "instances": [{"id": one.id, "port": one.port} for one in wave.instances],
            "line": f"{number} of {len(order)}: {wave.words}",
        }
        for number, wave in enumerate(order, start=1)
    ]


def _results(hosts: Sequence[str], hostvars: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for host in hosts:
        variables = hostvars[host]
        if "serving_result" in variables:
            yield host, json.loads(json.dumps(variables["serving_result"]))


def serving_peers(instances: list[Mapping[str, Any]], host: str, addresses: Mapping[str, str]) -> list[str]:
    """Addresses of the other hosts that run an instance together with this one."""
    return [addresses.get(peer, peer) for peer in peers_of(instances, host)]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Filters by name."""
        return {
            "serving_engine_files": serving_engine_files,
            "serving_failed": serving_failed,
            "serving_instance_id": serving_instance_id,
            "serving_peers": serving_peers,
            "serving_waves": serving_waves,
        }
