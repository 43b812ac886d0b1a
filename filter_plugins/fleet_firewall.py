"""Filters of the roles that keep the firewall before the engines' ports."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

from ansible.errors import AnsibleFilterError

if TYPE_CHECKING:
    from collections.abc import Iterable

DOCUMENTATION = r"""
name: fleet_firewall
short_description: Addresses as nftables takes them
description: Sorts addresses, networks and names into those of IPv4 and of IPv6.
"""


def fleet_numeric_addresses(sources: Iterable[str], name: str) -> dict[str, list[str]]:
    """Addresses and networks by family, without repetition and in order.

    Args:
        sources: addresses, networks or host names, which are looked up here: a firewall that is loaded at boot cannot
            ask a name server.
        name: what the sources are, for errors.

    Raises:
        AnsibleFilterError: a name that is not known.
    """
    found: dict[str, set[str]] = {"ipv4": set(), "ipv6": set()}
    for source in sources:
        for text in _numeric(str(source), name):
            network = ipaddress.ip_network(text, strict=False)
            single = network.prefixlen == network.max_prefixlen
            found[f"ipv{network.version}"].add(str(network.network_address) if single else str(network))
    return {family: sorted(addresses) for family, addresses in found.items()}


def _numeric(source: str, name: str) -> list[str]:
    try:
        ipaddress.ip_network(source, strict=False)
    except ValueError:
        try:
            answers = socket.getaddrinfo(source, None, type=socket.SOCK_STREAM)
        except OSError as error:
            msg = f"{name}: {source} is neither an address nor a known name: {error.strerror}"
            raise AnsibleFilterError(msg) from error
        # A link-local address carries its interface behind a percent sign, which means nothing on another host.
        return [str(answer[4][0]) for answer in answers if "%" not in str(answer[4][0])]
    return [source]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, object]:
        """Filters by name."""
        return {"fleet_numeric_addresses": fleet_numeric_addresses}
