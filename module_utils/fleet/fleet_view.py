"""The hosts of one plan: which GPUs may be used, which not and why, and how a place is named to people."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from .foreign_memory import as_started
from .host_means import disk_for_checkpoints, memory_for_engines
from .placement_problem import GpuRoom, HostRoom
from .speed_collectives import Links, default_links

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .hardware import GpuModel
    from .host_document import Gpu, HostDocument
    from .placement_problem import Cause
    from .plan_document import Instance
    from .requests import ModelRequest

# GPUs that these paths join hang below one PCIe switch, or a few in a row, without a host bridge in between.
_SWITCH_PATHS = ("PIX", "PXB")
# A host that may not be there for long, or that may come back from its next boot without its GPUs. Other degradations
# of hosts are the same everywhere, or come and go with what the fleet does itself.
_RANKS_LAST = frozenset(
    ("all_gpus_answer", "kernel_taint", "nouveau_blacklist", "next_kernel", "dkms", "driver_packages")
)
# Where links are compared: a chunk of prompts.
_COMPARED_BYTES = 1 << 20


class FleetView:
    """The hosts of one plan, by name.

    Args:
        hosts: host documents, those of frozen hosts included as far as they are known.
        frozen: hosts that were not reached.

    Raises:
        FleetError: a host variable excludes a GPU that the host does not have.
    """

    def __init__(self, hosts: Sequence[HostDocument], frozen: frozenset[str]) -> None:
        self.hosts = {host.name: host for host in sorted(hosts, key=lambda host: host.name)}
        self.frozen = frozen
        self._excluded = {name: host.excluded_uuids() for name, host in self.hosts.items()}
        self._gpus = {(host.name, gpu.uuid): gpu for host in self.hosts.values() for gpu in host.gpus}
        self._usable = {host.name: self._usable_of(host) for host in self.hosts.values()}
        self.rooms = {name: self._room(host) for name, host in self.hosts.items() if name not in frozen}

    def gpu(self, host: str, uuid: str) -> Gpu | None:
        """A GPU, or None when the host has no such one."""
        return self._gpus.get((host, uuid))

    def model_as_run(self, one: Instance) -> GpuModel | None:
        """What an instance runs on, as the hardware table has it; None when its GPUs are not of one product.

        Links and what others leave free may have changed on some of its GPUs since: the slowest links count, and the
        memory that it was started with is its own.
        """
        gpus = [self.gpu(host, uuid) for host, uuid in one.gpus]
        models = [gpu.model for gpu in gpus if gpu is not None and gpu.model is not None]
        if len(models) != len(gpus) or len({model.name for model in models}) != 1:
            return None
        slowest = max(models, key=lambda model: _links(model).all_reduce_s(2, _COMPARED_BYTES))
        return as_started(slowest, one.memory)

    def model_of(self, host: str, uuid: str, kind: str, before: Instance | None) -> GpuModel | None:
        """The row of a GPU under one of the kinds that it is known by: for what comes, and for what stays there."""
        gpu = self.gpu(host, uuid)
        if gpu is not None and gpu.model is not None and gpu.model.kind == kind:
            return gpu.model
        return self.model_as_run(before) if before is not None else None

    def may_get_more(self, host: HostDocument) -> bool:
        """Whether anything new may be put on the host."""
        return host.name not in self.frozen and host.closed is None

    def usable_gpus(self, hosts: Sequence[HostDocument]) -> tuple[dict[str, GpuModel], dict[str, int]]:
        """Kinds of usable GPUs on these hosts by name, and the most of each kind on one host."""
        kinds: dict[str, GpuModel] = {}
        most: dict[str, int] = {}
        for host in hosts:
            for kind, (model, count) in self._usable[host.name].items():
                kinds[kind] = model
                most[kind] = max(most.get(kind, 0), count)
        return kinds, most

    def why_unusable(self, host: str, uuid: str) -> tuple[Cause | None, str]:
        """Why an instance cannot go on using a GPU; no cause when it can."""
        gpu = self.gpu(host, uuid)
        if host not in self.hosts:
            return "lost", f"{host} is gone"
        if gpu is None:
            return "lost", f"{uuid} is no longer on {host}"
        if gpu.blocked is not None:
            return "unhealthy", f"{gpu.label} of {host} is blocked ({gpu.blocked})"
        if uuid in self._excluded[host]:
            return "excluded", f"{gpu.label} of {host} is in fleet_exclude_gpus"
        if gpu.model is None:
            return "configuration", f"the hardware table does not know {gpu.name!r}"
        return None, ""

    def place_words(self, host: str, uuids: Sequence[str]) -> str:
        """A place as it is told to people: indices where they are known."""
        gpus = [self.gpu(host, uuid) for uuid in uuids]
        names = [str(gpu.index) if gpu else uuid for gpu, uuid in zip(gpus, uuids, strict=True)]
        return f"{host} GPU{'s' if len(names) > 1 else ''} {', '.join(names)}"

    def notes(self) -> tuple[str, ...]:
        """What a reader of the plan has to know about the hosts."""
        notes = []
        for host in self.hosts.values():
            notes += [
                f"{host.name} {gpu.label} is not used: the hardware table does not know {gpu.name!r}."
                for gpu in host.gpus
                if gpu.model is None
            ]
            if host.provisional:
                notes.append(f"{host.name} is planned from a PCI scan, before its driver confirmed the GPUs.")
        return tuple(notes)

    def _usable_of(self, host: HostDocument) -> dict[str, tuple[GpuModel, int]]:
        """Kinds of usable GPUs of a host, and how many of each."""
        models = [
            gpu.model
            for gpu in host.gpus
            if gpu.model is not None and gpu.model.start_utilization != 0.0 and self._is_usable(host, gpu)
        ]
        by_kind = {model.kind: model for model in models}
        counts = Counter(model.kind for model in models)
        return {kind: (model, counts[kind]) for kind, model in by_kind.items()}

    def _is_usable(self, host: HostDocument, gpu: Gpu) -> bool:
        return gpu.blocked is None and gpu.model is not None and gpu.uuid not in self._excluded[host.name]

    def _room(self, host: HostDocument) -> HostRoom:
        switches = {gpu.uuid: position for position, gpu in enumerate(host.gpus)}
        for link in host.links:
            if link.path in _SWITCH_PATHS:
                low, high = sorted((switches[link.a], switches[link.b]))
                switches = {uuid: low if switch == high else switch for uuid, switch in switches.items()}
        return HostRoom(
            name=host.name,
            gpus=tuple(
                GpuRoom(gpu.uuid, gpu.index, gpu.model.kind, switches[gpu.uuid], gpu.numa_node or 0, bool(gpu.degraded))
                for gpu in host.gpus
                if gpu.model is not None and self._is_usable(host, gpu)
            ),
            failed_pairs=frozenset(frozenset((link.a, link.b)) for link in host.links if link.p2p == "failed"),
            verified_pairs=frozenset(frozenset((link.a, link.b)) for link in host.links if link.p2p == "verified"),
            memory_bytes=memory_for_engines(host.memory_total_bytes),
            disk_bytes=disk_for_checkpoints(host.disk_free_bytes),
            degraded=not _RANKS_LAST.isdisjoint(host.degraded),
        )


def _links(model: GpuModel) -> Links:
    return model.links or default_links(nvlink=model.nvlink)


def why_ineligible(request: ModelRequest, host: HostDocument) -> str | None:
    """Why a model's placement does not allow a host, or None."""
    placement = request.placement
    if placement.hosts is not None and host.name not in placement.hosts:
        return f"placement.hosts does not name {host.name}"
    missing = [label for label in placement.labels if label not in host.policy.labels]
    return f"{host.name} does not carry the label {missing[0]}" if missing else None
