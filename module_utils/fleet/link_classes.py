"""GPUs that differ only in how they reach one another: kinds of their own for the planner.

Hosts whose measured curves are alike form one class, counted with the slowest of them, so that a thousand hosts make a
few classes and not a thousand. A GPU whose link runs below what its card can do is in another class than its
neighbours: alone it serves as well as they do, in a tensor group it would hold them up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log
from typing import TYPE_CHECKING

from .host_links import links_between
from .speed_collectives import Links, default_links

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .host_document import Gpu, HostDocument

# Times that differ by less than about this factor are alike.
_ALIKE = 1.25
# Where curves are compared: decode steps, small chunks, whole chunks of prompts.
_COMPARED_BYTES = (1 << 16, 1 << 20, 1 << 24)


@dataclass(frozen=True, slots=True)
class _Group:
    """GPUs of one kind on one host whose links are equally good."""

    host: str
    name: str
    uuids: frozenset[str]
    links: Links


def with_link_classes(hosts: Sequence[HostDocument]) -> tuple[HostDocument, ...]:
    """The hosts with the links of each GPU in its row of the hardware table, where they are not the default.

    Raises:
        FleetError: a measured curve has a time that is not above zero.
    """
    classes: dict[tuple[str, tuple[int, ...] | None], list[_Group]] = {}
    for host in sorted(hosts, key=lambda host: host.name):
        for group in _groups(host):
            classes.setdefault((group.name, _signature(group.links)), []).append(group)
    names = [name for name, _ in classes]
    found: dict[tuple[str, str], tuple[Links, str]] = {}
    for (name, signature), groups in classes.items():
        if signature is None:
            continue
        links_of = groups[0].host if names.count(name) > 1 else ""
        slowest = _slowest([group.links for group in groups])
        found |= {(group.host, uuid): (slowest, links_of) for group in groups for uuid in group.uuids}
    return tuple(
        replace(host, gpus=tuple(_with_links(host, gpu, found) for gpu in host.gpus)) if found else host
        for host in hosts
    )


def _with_links(host: HostDocument, gpu: Gpu, found: dict[tuple[str, str], tuple[Links, str]]) -> Gpu:
    known = found.get((host.name, gpu.uuid))
    if known is None or gpu.model is None:
        return gpu
    return replace(gpu, model=replace(gpu.model, links=known[0], links_of=known[1]))


def _groups(host: HostDocument) -> Iterator[_Group]:
    by_quality: dict[tuple[str, int | None, int | None], list[Gpu]] = {}
    for gpu in host.gpus:
        if gpu.model is not None:
            # A measurement of the whole host has seen what each link does.
            width, generation = (None, None) if host.all_reduce else (gpu.link.width, gpu.link.generation)
            by_quality.setdefault((gpu.model.name, width, generation), []).append(gpu)
    for (name, _, _), gpus in by_quality.items():
        uuids = [gpu.uuid for gpu in gpus]
        yield _Group(host.name, name, frozenset(uuids), links_between(host, uuids))


def _signature(links: Links) -> tuple[int, ...] | None:
    """Equal for links that are alike; None for the default ones."""
    if links in (default_links(nvlink=False), default_links(nvlink=True)):
        return None
    times = [links.all_reduce_s(gpus, size) for gpus in sorted(links.all_reduce) for size in _COMPARED_BYTES]
    times += [links.send_between_stages_s(size) for size in _COMPARED_BYTES]
    return tuple(round(log(seconds) / log(_ALIKE)) for seconds in times)


def _slowest(links: Sequence[Links]) -> Links:
    if len(links) == 1:
        return links[0]
    curves = {}
    for gpus in sorted({size for one in links for size in one.all_reduce}):
        sizes = sorted({size for one in links for size, _ in one.all_reduce.get(gpus, ())})
        curves[gpus] = tuple((size, max(one.all_reduce_s(gpus, size) for one in links)) for size in sizes)
    return Links(
        curves,
        send_bytes_per_s=min(one.send_bytes_per_s for one in links),
        send_s=max(one.send_s for one in links),
        source=links[0].source,
    )
