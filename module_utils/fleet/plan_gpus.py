"""The kinds of GPU of a plan's instances: rows of the hardware table, with the links that the plan counted with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .hardware import GpuModel, gpu_by_name
from .speed_collectives import Links

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .plan_document import Plan


def links_document(models: Iterable[GpuModel]) -> dict[str, dict[str, Any]]:
    """Links of kinds of GPU that are not the default, by kind, as the plan's JSON has them."""
    return {model.kind: _document(model.links) for model in models if model.links is not None}


def gpus_of_instances(plan: Plan, *, where: str) -> dict[str, GpuModel]:
    """The kind of GPU of each instance, by id, as far as the plan names it.

    Raises:
        FleetError: the plan names a GPU that the hardware table does not have.
    """
    found: dict[str, GpuModel] = {}
    for kind, ids in plan.instance_gpus.items():
        name, _, links_of = kind.partition(GpuModel.LINKS_OF)
        gpu = gpu_by_name(name, where=f"{where}: instance_gpus")
        links = plan.gpu_links.get(kind)
        if links is not None:
            gpu = replace(gpu, links=_links(links), links_of=links_of)
        found |= dict.fromkeys(ids, gpu)
    return found


def _document(links: Links) -> dict[str, Any]:
    return {
        "all_reduce": {str(gpus): [list(point) for point in curve] for gpus, curve in links.all_reduce.items()},
        "send_bytes_per_s": links.send_bytes_per_s,
        "send_s": links.send_s,
        "source": links.source,
    }


def _links(document: Mapping[str, Any]) -> Links:
    curves = {
        int(gpus): tuple((int(size), float(seconds)) for size, seconds in curve)
        for gpus, curve in document["all_reduce"].items()
    }
    return Links(curves, document["send_bytes_per_s"], document["send_s"], document["source"])
