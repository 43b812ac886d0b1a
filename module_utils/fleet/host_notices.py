"""What the operator has to be told about hosts beside the plan: what is not used, what is used though degraded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .foreign_memory import start_utilization

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .host_document import Gpu, HostDocument


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
                continue
            limit = start_utilization(gpu) if gpu.model is not None else None
            if limit == 0.0:
                lines.append(f"{host.name} {gpu.label} gets nothing new: {_held(gpu)}.")
                continue
            if gpu.degraded:
                lines.append(f"{host.name} {gpu.label} is used though degraded: {', '.join(gpu.degraded)}.")
            if limit is not None:
                lines.append(f"{host.name} {gpu.label} is planned with {limit:.0%} of its memory: {_held(gpu)}.")
    return lines


def _held(gpu: Gpu) -> str:
    return f"foreign_memory: {gpu.foreign_bytes >> 20} MiB are held from outside the fleet"
