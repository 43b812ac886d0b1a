"""Makes the host document: what a host has, how well it is, and what runs on it. Reads only, changes nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .probe_checkpoints import read_partial_checkpoints
from .probe_driver_checks import read_driver_parts
from .probe_gpu_checks import GPU_CHECKS, GpuView, unattributed_bytes
from .probe_host import (
    Paths,
    read_applied,
    read_boot_id,
    read_disk,
    read_engines,
    read_kernel,
    read_memory,
    read_numa_nodes,
    read_shm_bytes,
    read_system,
)
from .probe_host_checks import HOST_CHECKS, HostView
from .probe_instances import (
    instance_of_unit,
    read_all_records,
    read_units,
    run_command,
    unit_of_process,
    unit_of_record,
)
from .probe_kernel_log import read_kernel_log
from .probe_links import apply_link_test, link_test_part, links_from_pci, read_links, tested_gpus, topology_key
from .probe_nvml import GpuReading, start_reading
from .probe_pci import ABSENT, PciGpu, scan_gpus
from .probe_quantized import read_quantized
from .probe_verdict import health
from .quarantine_state import Quarantine, read_state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .probe_instances import UnitState
    from .probe_kernel_log import KernelLog
    from .probe_nvml import NvmlReading

_DISK_PATHS = (Path("/var/lib/l40s-fleet"), Path("/opt"), Path("/etc"))
# States of a unit that hold or want nothing.
_AT_REST = ("inactive",)


@dataclass(frozen=True)
class ProbeOptions:
    """What to probe.

    Args:
        paths: where files are read.
        nvml_library: path of the NVML library; None for the one the loader finds.
        nvml_timeout_s: after this NVML is reported as not answering.
        required_cuda_driver_version: what the engine needs, as NVML counts (13000 is CUDA 13.0); 0 to accept any.
        gpus_expected: False for a host such as a gateway, where the absence of GPUs and driver is no fault.
        disk_paths: whose file systems are reported.
    """

    paths: Paths = field(default_factory=Paths)
    nvml_library: str | None = None
    nvml_timeout_s: float = 30.0
    required_cuda_driver_version: int = 0
    gpus_expected: bool = True
    disk_paths: tuple[Path, ...] = _DISK_PATHS


def probe_host(
    load_nvml: Callable[[], Any], options: ProbeOptions, run: Callable[[Sequence[str]], str] = run_command
) -> dict[str, Any]:
    """Return the host document.

    Args:
        load_nvml: imports pynvml; returns None when it cannot, which is reported as NVML not answering.
        options: where and what to probe.
        run: starts a program and returns its output; see ``run_command``.
    """
    paths = options.paths
    unseen: list[str] = []
    # NVML is read by another process; what does not depend on it is read beside it.
    pending = start_reading(load_nvml, options.nvml_library)
    pci = scan_gpus(paths.sysfs)
    log = read_kernel_log(paths.kernel_log)
    if log.unseen:
        unseen.append(log.unseen)
    if any(gpu.redirecting_bridges is None for gpu in pci):
        unseen.append("acs: the configuration space of the bridges above the GPUs could not be read (it needs root)")

    records = read_all_records(paths.instances, paths.triton, unseen)
    quarantine, quarantine_error = _read_quarantine(paths.quarantine, unseen)
    partial = read_partial_checkpoints(paths.models, records, unseen)
    memory_total_bytes, memory_available_bytes = read_memory(paths.procfs)
    shm_bytes = read_shm_bytes(paths.root)
    disk = [read_disk(path) for path in options.disk_paths]
    applied, applied_error = read_applied(paths.applied, unseen)
    kernel = read_kernel(paths)
    driver = read_driver_parts(paths.root, kernel.release)
    ports = sorted({record["port"] for record in records if record.get("engine") == "triton"})
    own = [record["id"] for record in records if record.get("engine") != "triton"]
    units = read_units(own, unseen, run, ports)
    reading = pending.wait(options.nvml_timeout_s)

    views, processes = _gpu_views(reading, pci, log, quarantine, paths, records=records)
    uuids = _uuids(views, quarantine)
    links = read_links(uuids, reading.pairs) if reading.failure is None else links_from_pci(uuids, pci)
    key = topology_key(reading.driver_version, links)
    link_test = apply_link_test(links, paths.link_test, key, unseen)
    tested = tested_gpus(link_test)
    views = [replace(view, tested=tested.get(uuid)) for view, uuid in zip(views, uuids, strict=True)]

    servers = {f"triton-{port}.service": units.pop(f"triton-{port}.service", None) for port in ports}
    instances = [
        _with_unit(
            record, servers[unit] if (unit := unit_of_record(record)) in servers else units.pop(record["id"], None)
        )
        for record in records
    ]
    orphans = {identifier: unit for identifier, unit in units.items() if unit.state not in _AT_REST}

    host = HostView(
        nvml=reading,
        pci=pci,
        kernel=kernel,
        required_cuda_driver_version=options.required_cuda_driver_version,
        gpus_expected=options.gpus_expected,
        memory_total_bytes=memory_total_bytes,
        shm_bytes=shm_bytes,
        disk=disk,
        instances=instances,
        orphans=orphans,
        applied_error=applied_error,
        driver=driver,
        partial_checkpoints=partial,
        quarantine_error=quarantine_error,
    )
    return {
        "hostname": os.uname().nodename,
        "system": read_system(paths.root),
        "kernel": {
            "release": kernel.release,
            "nvidia_module": kernel.module_version,
            "open_module": kernel.open_module,
        },
        "simulated": reading.simulated,
        "provisional": reading.failure is not None,
        "provisional_because": reading.failure,
        "driver_version": reading.driver_version,
        "cuda_driver_version": reading.cuda_driver_version,
        "gpus": [_gpu(view, uuid, used) for view, uuid, used in zip(views, uuids, processes, strict=True)],
        "links": links,
        "topology_key": key,
        **link_test_part(link_test),
        "numa_nodes": read_numa_nodes(paths.sysfs),
        "memory_total_bytes": memory_total_bytes,
        "memory_available_bytes": memory_available_bytes,
        "shm_bytes": shm_bytes,
        "disk": disk,
        "engines": {"vllm": read_engines(paths.engines)},
        "checkpoints_partial": [
            {"path": one.path, "held_bytes": one.held_bytes, "why": one.why, "instances": list(one.instances)}
            for one in partial
        ],
        **read_quantized(paths.models, paths.models.parent / "quantize", unseen),
        "instances": instances,
        "orphan_units": [
            {"id": identifier, "unit_state": unit.state, "main_pid": unit.main_pid}
            for identifier, unit in sorted(orphans.items())
        ],
        "applied": applied,
        "health": health(HOST_CHECKS, host),
        "unseen": unseen,
    }


def _gpu_views(
    reading: NvmlReading,
    pci: tuple[PciGpu, ...],
    log: KernelLog,
    quarantine: Quarantine,
    paths: Paths,
    *,
    records: Sequence[dict[str, Any]],
) -> tuple[list[GpuView], list[list[dict[str, Any]]]]:
    """Return what is known of every GPU, NVML's first and in NVML's order, and the processes on each."""
    numa_nodes = read_numa_nodes(paths.sysfs)
    boot_id = read_boot_id(paths.procfs)
    # What was looked at when a quarantine was lifted counts no more.
    xids = None if log.xids is None else [xid for xid in log.xids if not quarantine.is_acknowledged(xid, boot_id)]
    views, processes = [], []
    for position, (gpu, device) in enumerate(_matched(reading, pci)):
        used = _processes(gpu, paths.procfs, records)
        foreign = [process for process in used if process["instance"] is None]
        attributed_bytes = sum(process["used_bytes"] or 0 for process in used)
        bus_id = gpu.pci_bus_id or device.pci_bus_id or f"index {gpu.index}"
        views.append(
            GpuView(
                bus_id=bus_id,
                nvml=gpu,
                pci=device,
                nvml_answers=reading.failure is None,
                counted=position < len(reading.gpus),
                xids=None if xids is None else tuple(xid for xid in xids if xid.pci_bus_id == bus_id),
                quarantine=quarantine.mark_of(bus_id, gpu.uuid),
                foreign_bytes=sum(process["used_bytes"] or 0 for process in foreign)
                + unattributed_bytes(gpu.memory_used_bytes, attributed_bytes),
                foreign_pids=tuple(process["pid"] for process in foreign),
                numa_nodes=numa_nodes,
            )
        )
        processes.append(used)
    return views, processes


def _read_quarantine(path: Path, unseen: list[str]) -> tuple[Quarantine, str | None]:
    """Return the quarantine, an empty one where it cannot be read, and what is wrong with its file."""
    try:
        return read_state(path), None
    except PermissionError:
        unseen.append(f"quarantine: {path}: permission denied")
        return Quarantine(), None
    except (OSError, ValueError) as error:
        return Quarantine(), f"{path}: {error}"


def _matched(reading: NvmlReading, pci: tuple[PciGpu, ...]) -> list[tuple[GpuReading, PciGpu]]:
    """Match NVML's GPUs with those on the PCI bus; those that NVML leaves out come last, with nothing read."""
    rest = {gpu.pci_bus_id: gpu for gpu in pci}
    matched = [(gpu, rest.pop(gpu.pci_bus_id or "", ABSENT)) for gpu in reading.gpus]
    nameless = [position for position, (gpu, _) in enumerate(matched) if gpu.pci_bus_id is None]
    if len(nameless) == len(rest):
        # NVML counts in bus order, so the GPUs that it cannot describe are the remaining ones, in that order.
        for position, device in zip(nameless, rest.values(), strict=True):
            matched[position] = (matched[position][0], device)
        return matched
    return matched + [(GpuReading(index=len(matched) + more), device) for more, device in enumerate(rest.values())]


def _uuids(views: Sequence[GpuView], quarantine: Quarantine) -> list[str]:
    """Return the GPUs' UUIDs: NVML's, else the one that the watch saw in that slot, else a stand-in for the slot."""
    told = {view.nvml.uuid for view in views}
    seen = {bus: known.uuid for bus, known in quarantine.known.items() if known.uuid not in told}
    return [view.nvml.uuid or seen.get(view.bus_id) or f"PCI-{view.bus_id}" for view in views]


def _processes(gpu: GpuReading, procfs: Path, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    used = []
    for process in gpu.processes or ():
        unit = unit_of_process(procfs, process.pid)
        used.append(
            {
                "pid": process.pid,
                "used_bytes": process.used_bytes,
                "unit": unit,
                "instance": instance_of_unit(unit, gpu.uuid, records),
            }
        )
    return used


def _gpu(view: GpuView, uuid: str, processes: list[dict[str, Any]]) -> dict[str, Any]:
    gpu, device = view.nvml, view.pci
    pci_device_id = gpu.pci_device_id or device.pci_device_id or None
    return {
        "index": gpu.index,
        "uuid": uuid,
        "name": gpu.name or f"NVIDIA GPU {pci_device_id or 'unknown'}",
        "memory_total_bytes": gpu.memory_total_bytes,
        "memory_used_bytes": gpu.memory_used_bytes,
        "memory_foreign_bytes": view.foreign_bytes,
        "pci_bus_id": view.bus_id,
        "pci_device_id": pci_device_id,
        "numa_node": device.numa_node,
        "cpu_list": device.cpu_list,
        "power_limit_watts": None if gpu.power_limit_mw is None else gpu.power_limit_mw // 1000,
        "ecc": None if gpu.ecc_mode is None else bool(gpu.ecc_mode),
        "link": {
            "generation": view.link_generation,
            "width": view.link_width,
            "current_generation": view.link_current_generation,
            "max_generation": view.link_card_generation,
            "max_width": view.link_max_width,
        },
        "health": health(GPU_CHECKS, view),
        "processes": processes,
    }


def _with_unit(record: dict[str, Any], unit: UnitState | None) -> dict[str, Any]:
    return {
        **record,
        "unit_state": unit.state if unit is not None else None,
        "main_pid": unit.main_pid if unit is not None else None,
    }
