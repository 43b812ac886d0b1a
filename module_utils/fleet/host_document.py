"""The host document that the probe returns, parsed and checked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from .document_checks import MachineDocument, check_document, faults_error, labels_as_tuple, list_as_tuple, shown
from .errors import FleetError
from .hardware import GpuModel, gpu_by_name, gpu_by_pci_id
from .host_policy import HostPolicy, missing_gpu_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SCHEMA = 1
MODELS_DIRECTORY = "/var/lib/l40s-fleet/models"
"""Where a host keeps its checkpoints."""


@dataclass(frozen=True, slots=True)
class PcieLink:
    """The PCIe link of a GPU under load; None where it is not known."""

    generation: int | None = None
    width: int | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of a host.

    Args:
        model: its row of the hardware table; None when the table does not know it.
        blocked: why it must not be used, by the health checks; None when it may.
        degraded: names of the health checks that it fails though it works.
        foreign_bytes: memory that processes outside the fleet hold.
        link: its PCIe link.
    """

    index: int
    uuid: str
    name: str
    numa_node: int | None
    model: GpuModel | None
    blocked: str | None
    degraded: tuple[str, ...] = ()
    foreign_bytes: int = 0
    link: PcieLink = PcieLink()

    @property
    def label(self) -> str:
        """The GPU as it is named to people."""
        return f"GPU {self.index}"


@dataclass(frozen=True, slots=True)
class Link:
    """The way between two GPUs of a host, by UUID. ``bytes_per_s`` is one direction's, where it was measured."""

    a: str
    b: str
    path: str | None
    p2p: Literal["verified", "failed", "untested"]
    bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class HostDocument:
    """One host, as far as the plan depends on it.

    Args:
        instances: records of what runs there, as they were read; ``plan_document`` understands them.
        provisional: the GPUs are known from a PCI scan only, because no driver answered.
        closed: a check of the whole host failed, and which; what runs there stays, nothing new is put there.
        degraded: names of the checks of the whole host that it fails though it works.
        all_reduce: measured seconds by group size and bytes of the reduced tensor; empty until a link test measured
            them on GPUs. ``host_links`` makes of them what the speed model takes.
        memory_total_bytes: of the host; None when the probe does not say.
        disk_free_bytes: on the file system of the checkpoints; None when the probe does not say.
    """

    name: str
    gpus: tuple[Gpu, ...]
    links: tuple[Link, ...]
    policy: HostPolicy
    instances: tuple[Mapping[str, Any], ...]
    provisional: bool
    closed: str | None = None
    degraded: tuple[str, ...] = ()
    all_reduce: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    memory_total_bytes: int | None = None
    disk_free_bytes: int | None = None

    def excluded_uuids(self) -> frozenset[str]:
        """UUIDs of the GPUs that the operator excludes.

        Raises:
            FleetError: the host has no such GPU.
        """
        by_name: dict[int | str, str] = {gpu.index: gpu.uuid for gpu in self.gpus}
        by_name |= {gpu.uuid: gpu.uuid for gpu in self.gpus}
        for position, wanted in enumerate(self.policy.exclude_gpus):
            if wanted not in by_name:
                known = [(gpu.index, gpu.uuid) for gpu in self.gpus]
                raise missing_gpu_error(self.name, position, wanted, known)
        return frozenset(by_name[wanted] for wanted in self.policy.exclude_gpus)


_Words = Annotated[tuple[str, ...], BeforeValidator(labels_as_tuple)]


class _Check(MachineDocument):
    name: str = ""
    status: str | None = None
    evidence: str | None = None


class _Health(MachineDocument):
    status: Literal["ok", "degraded", "blocked"] = "ok"
    checks: Annotated[tuple[_Check, ...], BeforeValidator(list_as_tuple)] = ()


class _PcieLink(MachineDocument):
    generation: int | None = None
    width: int | None = None


class _Gpu(MachineDocument):
    index: int = Field(ge=0)
    uuid: str | None = Field(default=None, min_length=1)
    name: str | None = None
    memory_total_bytes: int | None = Field(default=None, gt=0)
    pci_bus_id: str | None = None
    pci_device_id: str | None = None
    numa_node: int | None = None
    memory_foreign_bytes: int | None = Field(default=None, ge=0)
    link: _PcieLink | None = None
    health: _Health | None = None


class _Link(MachineDocument):
    a: str
    b: str
    path: Literal["PIX", "PXB", "PHB", "NODE", "SYS"] | None = None
    p2p: Literal["verified", "failed", "untested"] = "untested"
    bytes_per_s: float | None = Field(default=None, gt=0)


class _Point(MachineDocument):
    gpus: int = Field(ge=2)
    bytes: int = Field(gt=0)
    seconds: float = Field(gt=0)


class _LinkTest(MachineDocument):
    backend: str | None = None


class _Policy(MachineDocument):
    exclude_gpus: Annotated[tuple[Any, ...], BeforeValidator(list_as_tuple)] = ()
    labels: _Words = ()


class _Disk(MachineDocument):
    path: str = Field(min_length=1)
    free_bytes: int | None = Field(default=None, ge=0)


class _Host(MachineDocument):
    gpus: Annotated[tuple[_Gpu, ...], BeforeValidator(list_as_tuple)]
    links: Annotated[tuple[_Link, ...], BeforeValidator(list_as_tuple)] | None = None
    policy: _Policy | None = None
    instances: Annotated[tuple[dict[str, Any], ...], BeforeValidator(list_as_tuple)] | None = None
    provisional: bool = False
    health: _Health | None = None
    all_reduce: Annotated[tuple[_Point, ...], BeforeValidator(list_as_tuple)] | None = None
    link_test: _LinkTest | None = None
    driver_version: str | None = None
    cuda_driver_version: int | None = None
    memory_total_bytes: int | None = Field(default=None, gt=0)
    disk: Annotated[tuple[_Disk, ...], BeforeValidator(list_as_tuple)] | None = None


def parse_hosts(document: object, *, where: str) -> tuple[HostDocument, ...]:
    """Read ``{"schema": 1, "hosts": {NAME: host document}}``.

    Args:
        document: the parsed JSON.
        where: the file's name as errors show it.

    Returns:
        The hosts, by name.

    Raises:
        FleetError: one line for each fault, with file and path.
    """
    if not isinstance(document, dict):
        raise FleetError(where, f"must be a mapping with schema and hosts, got {shown(document)}")
    if document.get("schema", None) != SCHEMA or isinstance(document["schema"], bool):
        raise FleetError(f"{where}: schema", f"must be {SCHEMA}, got {shown(document.get('schema'))}")
    hosts = document.get("hosts")
    if not isinstance(hosts, dict):
        raise FleetError(f"{where}: hosts", f"must be a mapping of host names, got {shown(hosts)}")
    parsed = tuple(parse_host(name, host, where=where, path=f"hosts.{name}") for name, host in sorted(hosts.items()))
    _refuse_shared_gpus(parsed, where)
    return parsed


def parse_host(name: str, document: object, *, where: str, path: str = "") -> HostDocument:
    """Read one host document.

    Raises:
        FleetError: one line for each fault, with file and path.
    """
    host = check_document(_Host, document, where=where, path=path)
    prefix = f"{where}: {path}." if path else f"{where}: "
    gpus = tuple(
        _gpu(gpu, f"{prefix}gpus[{index}]", provisional=host.provisional) for index, gpu in enumerate(host.gpus)
    )
    # Processes on CPUs that stood for GPUs measured nothing.
    measured = host.link_test is None or host.link_test.backend != "gloo"
    faults = []
    for attribute in ("index", "uuid"):
        seen: dict[object, int] = {}
        for position, gpu in enumerate(gpus):
            value = getattr(gpu, attribute)
            if value in seen:
                faults.append(
                    (f"{prefix}gpus[{position}].{attribute}", f"{value!r} is that of gpus[{seen[value]}] too")
                )
            seen.setdefault(value, position)
    policy = host.policy or _Policy()
    for position, excluded in enumerate(policy.exclude_gpus):
        if isinstance(excluded, bool) or not isinstance(excluded, int | str):
            problem = f"must be the index or the UUID of a GPU, got {shown(excluded)}"
            faults.append((f"{prefix}policy.exclude_gpus[{position}]", problem))
        elif excluded not in {gpu.index for gpu in gpus} | {gpu.uuid for gpu in gpus}:
            faults.append((f"{prefix}policy.exclude_gpus[{position}]", f"the host has no GPU {excluded!r}"))
    uuids = {gpu.uuid for gpu in gpus}
    for position, link in enumerate(host.links or ()):
        for end, uuid in (("a", link.a), ("b", link.b)):
            if uuid not in uuids:
                faults.append((f"{prefix}links[{position}].{end}", f"the host has no GPU {uuid!r}"))
    if faults:
        raise faults_error(faults)
    return HostDocument(
        name=name,
        gpus=tuple(sorted(gpus, key=lambda gpu: gpu.index)),
        links=tuple(
            sorted((_link(link, measured=measured) for link in host.links or ()), key=lambda link: (link.a, link.b))
        ),
        policy=HostPolicy(exclude_gpus=policy.exclude_gpus, labels=tuple(sorted(policy.labels))),
        instances=host.instances or (),
        provisional=host.provisional,
        # A host without a driver is closed by that alone; it is planned provisionally all the same.
        closed=None if host.provisional else _blocked(host.health),
        degraded=_degraded(host.health),
        all_reduce=_curves(host.all_reduce or ()) if measured else {},
        memory_total_bytes=host.memory_total_bytes,
        disk_free_bytes=_free_for_checkpoints(host.disk or ()),
    )


def with_policy(host: HostDocument, policy: HostPolicy) -> HostDocument:
    """The same host under the policy of the inventory, which the probe does not know.

    Raises:
        FleetError: the policy excludes a GPU that the host does not have.
    """
    changed = replace(host, policy=policy)
    changed.excluded_uuids()
    return changed


def stable_part(document: Mapping[str, Any], policy: HostPolicy) -> dict[str, Any]:
    """What is kept of a host document beside the applied plan: nothing that changes while the host does not.

    Args:
        document: a host document that ``parse_host`` accepts.
        policy: the policy that the plan was made with.
    """
    gpu_keys = ("index", "uuid", "name", "memory_total_bytes", "pci_bus_id", "pci_device_id", "numa_node")
    link_keys = ("a", "b", "path", "p2p")
    return {
        "gpus": [{key: gpu[key] for key in gpu_keys if key in gpu} for gpu in document["gpus"]],
        "links": [{key: link[key] for key in link_keys if key in link} for link in document.get("links") or ()],
        "policy": {"exclude_gpus": list(policy.exclude_gpus), "labels": list(policy.labels)},
        **({"provisional": True} if document.get("provisional") else {}),
        **{key: document[key] for key in ("driver_version", "cuda_driver_version") if document.get(key) is not None},
    }


def _free_for_checkpoints(disks: tuple[_Disk, ...]) -> int | None:
    """What is free below the nearest directory above the checkpoints that was looked at."""
    above = [disk for disk in disks if f"{MODELS_DIRECTORY}/".startswith(f"{disk.path.rstrip('/')}/")]
    nearest = max(above, key=lambda disk: len(disk.path), default=None)
    return nearest.free_bytes if nearest is not None else None


def _gpu(gpu: _Gpu, where: str, *, provisional: bool) -> Gpu:
    # Of a GPU that has fallen off the bus, or that no driver answers for, little is known; a blocked one is not used.
    blocked = _blocked(gpu.health)
    sketchy = provisional or blocked is not None
    uuid = gpu.uuid
    if uuid is None:
        if not sketchy:
            raise FleetError(f"{where}.uuid", "is required")
        if gpu.pci_bus_id is None:
            raise FleetError(f"{where}.pci_bus_id", "is required where there is no uuid")
        uuid = f"pci:{gpu.pci_bus_id}"
    if not gpu.name and gpu.pci_device_id is None and not sketchy:
        raise FleetError(f"{where}.name", "is required")
    if gpu.memory_total_bytes is None and not sketchy:
        raise FleetError(f"{where}.memory_total_bytes", "is required")
    return Gpu(
        index=gpu.index,
        uuid=uuid,
        name=gpu.name or "",
        numa_node=gpu.numa_node,
        model=_gpu_model(gpu),
        blocked=blocked,
        degraded=_degraded(gpu.health),
        foreign_bytes=gpu.memory_foreign_bytes or 0,
        link=PcieLink(gpu.link.generation, gpu.link.width) if gpu.link is not None else PcieLink(),
    )


def _link(link: _Link, *, measured: bool) -> Link:
    a, b = sorted((link.a, link.b))
    return Link(a=a, b=b, path=link.path, p2p=link.p2p, bytes_per_s=link.bytes_per_s if measured else None)


def _curves(points: Iterable[_Point]) -> dict[int, dict[int, float]]:
    curves: dict[int, dict[int, float]] = {}
    for point in points:
        curves.setdefault(point.gpus, {})[point.bytes] = point.seconds
    # One point is no curve.
    return {gpus: curve for gpus, curve in sorted(curves.items()) if len(curve) > 1}


def _gpu_model(gpu: _Gpu) -> GpuModel | None:
    if gpu.pci_device_id is not None:
        found = gpu_by_pci_id(gpu.pci_device_id)
        if found is not None:
            return found
    try:
        return gpu_by_name(gpu.name or "", where="")
    except FleetError:
        return None


def _blocked(health: _Health | None) -> str | None:
    if health is None or health.status != "blocked":
        return None
    failed = [check for check in health.checks if check.status in ("blocked", "failed")]
    named = [f"{check.name}: {check.evidence}" if check.evidence else check.name for check in failed]
    return "; ".join(named) or "no check says why"


def _degraded(health: _Health | None) -> tuple[str, ...]:
    return tuple(check.name for check in health.checks if check.status == "degraded") if health is not None else ()


def _refuse_shared_gpus(hosts: tuple[HostDocument, ...], where: str) -> None:
    owners: dict[str, str] = {}
    for host in hosts:
        if host.provisional:
            continue
        for position, gpu in enumerate(host.gpus):
            owner = owners.setdefault(gpu.uuid, host.name)
            if owner != host.name:
                problem = f"{gpu.uuid} is on host {owner} as well; is it one machine under two names?"
                raise FleetError(f"{where}: hosts.{host.name}.gpus[{position}].uuid", problem)
