"""From what a host's probe and link test say to the links that the speed model counts with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .speed_collectives import Links, default_links, measured_links

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .host_document import Gpu, HostDocument

# A lane carries twice as much with each generation (PCI Express Base Specification).
_RATE_OF_A_GENERATION = 2


def links_between(host: HostDocument, uuids: Sequence[str]) -> Links:
    """How these GPUs of a host reach one another: as measured, else the default, slower where their links are.

    Args:
        host: the host, all of whose GPUs in ``uuids`` are known to the hardware table.
        uuids: the GPUs of one instance.

    Raises:
        FleetError: a measured curve has a time that is not above zero.
        ValueError: a GPU is not on this host, or not known to the hardware table.
    """
    gpus = [gpu for gpu in host.gpus if gpu.uuid in uuids]
    models = [gpu.model for gpu in gpus if gpu.model is not None]
    if len(models) != len(uuids):
        msg = f"{host.name}: {len(models)} of {len(uuids)} GPUs are known"
        raise ValueError(msg)
    rates = [
        link.bytes_per_s for link in host.links if link.a in uuids and link.b in uuids and link.bytes_per_s is not None
    ]
    slowest = min(rates, default=None)
    nvlink = any(model.nvlink for model in models)
    if host.all_reduce and not nvlink:
        return measured_links(host.all_reduce, send_bytes_per_s=slowest, where=f"{host.name}: all_reduce")
    links = default_links(nvlink=nvlink)
    slowdown = max((_slowdown(gpu) for gpu in gpus), default=1.0)
    if slowdown > 1.0 and not nvlink:
        links = replace(
            links,
            all_reduce={
                size: tuple((size_bytes, seconds * slowdown) for size_bytes, seconds in curve)
                for size, curve in links.all_reduce.items()
            },
            send_bytes_per_s=links.send_bytes_per_s / slowdown,
            source=f"{links.source}, {slowdown:g} times slower for a link below the card's",
        )
    return replace(links, send_bytes_per_s=slowest) if slowest is not None else links


def _slowdown(gpu: Gpu) -> float:
    """How many times slower the GPU's link is than its card's."""
    if gpu.model is None or gpu.link.width is None or gpu.link.generation is None:
        return 1.0
    lanes = gpu.model.pcie_width / max(1, gpu.link.width)
    generations = gpu.model.pcie_generation - gpu.link.generation
    return float(max(1.0, lanes * _RATE_OF_A_GENERATION**generations))
