"""What the operator has to be told about hosts beside the plan: what is not used, what is used though degraded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .host_document import HostDocument


def notices_of(hosts: Iterable[HostDocument]) -> list[str]:
    """Return one line for each thing, host by host; the probe's checks have evidence and remedy."""
    lines = []
    for host in hosts:
        if host.closed is not None:
            lines.append(f"{host.name} gets nothing new: {host.closed}.")
        if host.degraded:
            lines.append(f"{host.name} is degraded: {', '.join(host.degraded)}.")
        for gpu in host.gpus:
            if gpu.blocked is not None:
                lines.append(f"{host.name} {gpu.label} is not used: {gpu.blocked}.")
            elif gpu.degraded:
                lines.append(f"{host.name} {gpu.label} is used though degraded: {', '.join(gpu.degraded)}.")
    return lines
