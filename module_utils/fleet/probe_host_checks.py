"""The checks of a host. Each is a small function from what was read to a verdict; ``HOST_CHECKS`` lists them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .probe_driver_checks import dkms, driver_packages, next_kernel
from .probe_verdict import Check, Verdict, blocked, degraded, ok, unknown

if TYPE_CHECKING:
    from .probe_checkpoints import PartialCheckpoint
    from .probe_driver_checks import DriverParts
    from .probe_host import Kernel
    from .probe_instances import UnitState
    from .probe_nvml import NvmlReading
    from .probe_pci import PciGpu

_GIB = 1 << 30
# NCCL and vLLM's worker processes exchange data through /dev/shm; container runtimes give 64 MiB, which is too little.
_SHM_WANTED_BYTES = _GIB
_DISK_WANTED_BYTES = 5 * _GIB

# Bits of /proc/sys/kernel/tainted that speak of trouble (Documentation/admin-guide/tainted-kernels.rst). A proprietary,
# out-of-tree or unsigned module (0, 12, 13) is what the NVIDIA driver is, and a warning (9) stops nothing.
_TAINTS = {
    4: "a machine check exception was reported",
    5: "a page was bad",
    7: "the kernel has crashed (oops) and went on",
    14: "a CPU was stuck (soft lockup)",
}
_VGPU_GUEST = 2


@dataclass(frozen=True)
class HostView:
    """All that was read about a host.

    Args:
        required_cuda_driver_version: what the engine needs, as NVML counts (13000); 0 when nothing was asked for.
        gpus_expected: False for a host such as a gateway.
        applied_error: what is wrong with the applied plan's file; None when nothing is.
        partial_checkpoints: checkpoints that are there in part.
        quarantine_error: what is wrong with the file that holds the quarantine; None when nothing is.
        orphans: units of engines that run or failed without an instance record, by instance id.
        driver: the driver's packages and modules, as they are on disk.
    """

    nvml: NvmlReading
    pci: tuple[PciGpu, ...]
    kernel: Kernel
    required_cuda_driver_version: int
    gpus_expected: bool
    memory_total_bytes: int | None
    shm_bytes: int | None
    disk: list[dict[str, Any]]
    instances: list[dict[str, Any]]
    orphans: dict[str, UnitState]
    applied_error: str | None
    driver: DriverParts
    partial_checkpoints: list[PartialCheckpoint] = field(default_factory=list)
    quarantine_error: str | None = None


def _nvml(host: HostView) -> Verdict:
    if host.nvml.failure is None:
        simulated = ", simulated" if host.nvml.simulated else ""
        return ok(f"driver {host.nvml.driver_version}, {len(host.nvml.gpus)} GPUs{simulated}")
    if not host.pci and not host.gpus_expected:
        return ok("no NVIDIA GPU, and none is expected")
    if not host.pci:
        return blocked(
            f"{host.nvml.failure}; no NVIDIA GPU on the PCI bus", "check the cards, or take the host out of gpu_hosts"
        )
    if host.kernel.module_version is None:
        return blocked(
            host.nvml.failure, "install the driver (role nvidia_driver); after a kernel update: check dkms status"
        )
    return blocked(host.nvml.failure, "read the kernel log for NVRM lines; reboot the host")


def _driver_versions(host: HostView) -> Verdict:
    module = host.kernel.module_version
    # Without NVML the library's version is unknown, but it names the mismatch itself.
    if host.nvml.failure is not None and "mismatch" in host.nvml.failure.lower():
        return blocked(
            f"kernel module {module}; the library says: {host.nvml.failure}",
            "reboot, so that the module of the installed driver is loaded",
        )
    library = host.nvml.driver_version
    if library is None or module is None:
        return unknown(f"kernel module {module or 'not loaded'}, user space {library or 'does not answer'}")
    if library != module:
        return blocked(
            f"kernel module {module}, user space {library}",
            "reboot, so that the module of the installed driver is loaded",
        )
    kind = {True: " (open module)", False: " (proprietary module)", None: ""}[host.kernel.open_module]
    return ok(f"both {module}{kind}")


def _cuda_driver(host: HostView) -> Verdict:
    version, needed = host.nvml.cuda_driver_version, host.required_cuda_driver_version
    if version is None:
        return unknown("NVML does not answer")
    if version < needed:
        return blocked(
            f"the driver speaks CUDA {_cuda(version)}, the engine needs {_cuda(needed)}",
            "install a newer driver branch (nvidia_driver_branch), or cuda-compat beside this one",
        )
    return ok(f"CUDA {_cuda(version)}" + (f", {_cuda(needed)} is needed" if needed else ""))


def _all_gpus_answer(host: HostView) -> Verdict:
    if host.nvml.failure is not None or not host.pci:
        return unknown("nothing to compare: NVML or the PCI bus shows no GPU")
    known = {gpu.pci_bus_id for gpu in host.nvml.gpus}
    lost = [gpu.pci_bus_id for gpu in host.pci if gpu.pci_bus_id not in known]
    if lost:
        return degraded(
            f"on the PCI bus but not in NVML: {', '.join(lost)}", "read the kernel log for NVRM lines; drain and reboot"
        )
    return ok(f"{len(host.pci)} on the PCI bus, all in NVML")


def _nouveau(host: HostView) -> Verdict:
    if host.kernel.nouveau_loaded:
        return blocked("nouveau is loaded", "blacklist nouveau, rebuild the initramfs and reboot (role nvidia_driver)")
    return ok("not loaded")


def _nouveau_blacklist(host: HostView) -> Verdict:
    kernel = host.kernel
    if kernel.nouveau_blacklist is None:
        if kernel.nouveau_built:
            return degraded(
                f"not blacklisted, and kernel {kernel.release} has it: it can take the GPUs at the next boot",
                "blacklist nouveau and rebuild the initramfs (role nvidia_driver)",
            )
        return ok(f"kernel {kernel.release} has no nouveau module")
    if kernel.initramfs_stale:
        return degraded(
            f"{kernel.nouveau_blacklist} is newer than the initramfs of {kernel.release}",
            "rebuild the initramfs: update-initramfs -u, or dracut --force",
        )
    return ok(kernel.nouveau_blacklist)


def _secure_boot(host: HostView) -> Verdict:
    if not host.kernel.efi:
        return ok("no EFI firmware")
    if host.kernel.secure_boot is None:
        return unknown("the firmware's variable could not be read")
    if not host.kernel.secure_boot:
        return ok("off")
    if host.kernel.module_version is not None:
        return ok("on, and the nvidia module is loaded")
    return blocked(
        "on, and no nvidia module is loaded: an unsigned module is refused",
        "enrol the signing key (mokutil --import /var/lib/dkms/mok.pub, then confirm at the console at the next boot), "
        "or turn Secure Boot off",
    )


def _vgpu_guest(host: HostView) -> Verdict:
    if host.nvml.failure is not None:
        return unknown("NVML does not answer")
    count = sum(gpu.virtualization_mode == _VGPU_GUEST for gpu in host.nvml.gpus)
    if count:
        return blocked(f"{count} GPUs are vGPUs of a guest", "pass whole GPUs through to the guest, or run on the host")
    return ok("no vGPU")


def _kernel_taint(host: HostView) -> Verdict:
    taint = host.kernel.taint
    if taint is None:
        return unknown("could not be read")
    troubles = [words for bit, words in _TAINTS.items() if taint >> bit & 1]
    if troubles:
        return degraded(f"taint {taint}: {'; '.join(troubles)}", "read the kernel log, then drain and reboot the host")
    return ok(f"taint {taint}")


def _iommu(host: HostView) -> Verdict:
    translated = [gpu.pci_bus_id for gpu in host.pci if (gpu.iommu_type or "").startswith("DMA")]
    if translated and len(host.pci) > 1:
        return degraded(
            f"translates for {', '.join(translated)}: peer to peer may be slow or hang",
            "boot with iommu=pt, or turn the IOMMU off; until then let the link test decide",
        )
    return ok("passes through or is off" if host.pci else "no GPU on the PCI bus")


def _acs(host: HostView) -> Verdict:
    if len(host.pci) < 2:
        return ok("fewer than two GPUs")
    unread = [gpu.pci_bus_id for gpu in host.pci if gpu.redirecting_bridges is None]
    redirecting = sorted({bridge for gpu in host.pci for bridge in gpu.redirecting_bridges or ()})
    if redirecting:
        return degraded(
            f"redirects peer traffic on the bridges {', '.join(redirecting)}",
            "turn ACS off in the BIOS, or with setpci at boot; until then let the link test decide",
        )
    if unread:
        return unknown(f"the bridges above {', '.join(unread)} could not be read", "run the probe as root")
    return ok("no redirection above the GPUs")


def _host_memory(host: HostView) -> Verdict:
    if host.memory_total_bytes is None:
        return unknown("could not be read")
    gpus_bytes = sum(gpu.memory_total_bytes or 0 for gpu in host.nvml.gpus)
    sizes = f"{host.memory_total_bytes // _GIB} GiB for {gpus_bytes // _GIB} GiB of GPU memory"
    if host.nvml.simulated:
        return unknown(f"{sizes}, which is simulated")
    # A worker a GPU pins buffers and reads its part of the checkpoint: hosts with less were seen to run out of memory.
    if host.memory_total_bytes < gpus_bytes // 2:
        return degraded(
            sizes, "add memory, or start instances one at a time and leave checkpoints out of the page cache"
        )
    return ok(sizes)


def _shm(host: HostView) -> Verdict:
    if host.shm_bytes is None:
        return blocked("no /dev/shm", "mount a tmpfs at /dev/shm")
    if host.shm_bytes < _SHM_WANTED_BYTES:
        return degraded(
            f"{host.shm_bytes >> 20} MiB of shared memory", "mount -o remount,size=8G /dev/shm, and in /etc/fstab"
        )
    return ok(f"{host.shm_bytes >> 20} MiB of shared memory")


def _disk(host: HostView) -> Verdict:
    read_only = [row["path"] for row in host.disk if row["read_only"]]
    if read_only:
        return blocked(f"read-only: {', '.join(read_only)}", "check the disk, then remount it for writing")
    scarce = [
        f"{row['path']} {row['free_bytes'] / _GIB:.1f} GiB"
        for row in host.disk
        if row["free_bytes"] < _DISK_WANTED_BYTES
    ]
    if scarce:
        return degraded(f"little free: {', '.join(scarce)}", "free some space, or mount a larger file system there")
    return ok(", ".join(f"{row['path']} {row['free_bytes'] // _GIB} GiB free" for row in host.disk))


def _instance_records(host: HostView) -> Verdict:
    corrupt = [f"{record['path']}: {record['error']}" for record in host.instances if record.get("corrupt")]
    if corrupt:
        return degraded("; ".join(corrupt), "run site.yml again: it writes the records anew")
    return ok(f"{len(host.instances)} instances")


def _orphan_units(host: HostView) -> Verdict:
    if host.orphans:
        names = ", ".join(f"{identifier} ({unit.state})" for identifier, unit in sorted(host.orphans.items()))
        return degraded(
            f"units without an instance record: {names}", "run site.yml again: it removes what is not planned"
        )
    return ok("none")


def _applied_plan(host: HostView) -> Verdict:
    if host.applied_error is not None:
        return degraded(host.applied_error, "run site.yml again: it writes the file anew")
    return ok("readable or not there yet")


def _checkpoints(host: HostView) -> Verdict:
    partial = host.partial_checkpoints
    if not partial:
        return ok("none is there in part")
    shown = [
        f"{one.path}: {one.why}, {one.held_bytes / _GIB:.1f} GiB on disk"
        + (f", wanted by {', '.join(one.instances)}" if one.instances else "")
        for one in partial
    ]
    return degraded(
        "; ".join(shown), "run site.yml again (playbooks/models.yml): it finishes them, or removes what nobody wants"
    )


def _quarantine(host: HostView) -> Verdict:
    if host.quarantine_error is not None:
        return degraded(
            f"cannot be read, so that marks may be missed: {host.quarantine_error}",
            "read the journal of l40s-fleet-quarantine.service; remove the file when no GPU is to be set aside",
        )
    return ok("readable or not there yet")


HOST_CHECKS: tuple[Check[HostView], ...] = (
    Check("nvml", _nvml),
    Check("driver_versions", _driver_versions),
    Check("cuda_driver", _cuda_driver),
    Check("all_gpus_answer", _all_gpus_answer),
    Check("nouveau", _nouveau),
    Check("nouveau_blacklist", _nouveau_blacklist),
    Check("secure_boot", _secure_boot),
    Check("vgpu_guest", _vgpu_guest),
    Check("kernel_taint", _kernel_taint),
    Check("iommu", _iommu),
    Check("acs", _acs),
    Check("host_memory", _host_memory),
    Check("shm", _shm),
    Check("disk", _disk),
    Check("instance_records", _instance_records),
    Check("orphan_units", _orphan_units),
    Check("applied_plan", _applied_plan),
    Check("checkpoints", _checkpoints),
    Check("quarantine_file", _quarantine),
    Check("next_kernel", lambda host: next_kernel(host.driver)),
    Check("dkms", lambda host: dkms(host.driver)),
    Check("driver_packages", lambda host: driver_packages(host.driver)),
)


def _cuda(version: int) -> str:
    """Return NVML's integer as people write it: 13000 is 13.0."""
    return f"{version // 1000}.{version % 1000 // 10}"
