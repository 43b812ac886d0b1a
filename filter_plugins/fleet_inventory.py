"""Filters that gather what the stages registered on other hosts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

DOCUMENTATION = r"""
name: fleet_inventory
short_description: Gather variables of several hosts
description: Filters over C(hostvars); each takes the list of hosts first.
"""


def fleet_extract(hosts: Iterable[str], hostvars: Mapping[str, Any], *path: str) -> dict[str, Any]:
    """``{host: hostvars[host][path[0]][path[1]]...}``; a host where the path ends early is left out."""
    found: dict[str, Any] = {}
    for host in hosts:
        value: Any = hostvars[host]
        for name in path:
            if not isinstance(value, Mapping) or name not in value:
                break
            value = value[name]
        else:
            found[host] = value
    return found


def fleet_policies(hosts: Iterable[str], hostvars: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The ``fleet_*`` variables of each host, secrets left out: the plan stage checks and uses them."""
    secret = {"fleet_engine_api_key", "fleet_client_keys", "fleet_hub_token", "fleet_hub_proxy"}
    return {
        host: {
            name: hostvars[host][name]
            for name in sorted(hostvars[host])
            if name.startswith("fleet_") and name not in secret
        }
        for host in hosts
    }


def fleet_addresses(hosts: Iterable[str], hostvars: Mapping[str, Any]) -> dict[str, str]:
    """Address at which the gateways reach each host: ``fleet_address``, ``ansible_host``, or its name."""
    return {host: hostvars[host].get("fleet_address") or hostvars[host].get("ansible_host") or host for host in hosts}


def fleet_with_become_password(hosts: Iterable[str], hostvars: Mapping[str, Any]) -> list[str]:
    """The hosts for which Ansible was given a password for sudo."""
    names = ("ansible_become_password", "ansible_become_pass", "ansible_sudo_pass")
    return [host for host in hosts if any(name in hostvars[host] for name in names)]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Filters by name."""
        return {
            "fleet_addresses": fleet_addresses,
            "fleet_extract": fleet_extract,
            "fleet_policies": fleet_policies,
            "fleet_with_become_password": fleet_with_become_password,
        }
