"""Reads what the probe reports about a host beside its GPUs: kernel, memory, file systems, engines, applied plan."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .quarantine_state import STATE_PATH

# The variable that the firmware keeps the Secure Boot state in: four bytes of attributes, then 1 or 0.
_SECURE_BOOT = "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


@dataclass(frozen=True)
class Paths:
    """Where the probe reads; tests and the lab point it at trees of their own.

    Args:
        root: holds etc, boot, lib/modules and dev/shm.
        instances: one directory an instance, each with an instance.json.
        engines: one directory an engine version, ``.complete`` in each finished one.
        applied: the plan that was applied last.
        link_test: the kept result of the link test.
        kernel_log: ``/dev/kmsg`` or a text file.
        quarantine: the GPUs that were set aside.
        models: the checkpoints, one directory each.
    """

    sysfs: Path = Path("/sys")
    procfs: Path = Path("/proc")
    root: Path = Path("/")
    instances: Path = Path("/etc/l40s-fleet/instances")
    triton: Path = Path("/etc/l40s-fleet/triton")
    engines: Path = Path("/opt/vllm")
    applied: Path = Path("/var/lib/l40s-fleet/applied.json")
    link_test: Path = Path("/var/lib/l40s-fleet/link_test.json")
    kernel_log: Path = Path("/dev/kmsg")
    quarantine: Path = STATE_PATH
    models: Path = Path("/var/lib/l40s-fleet/models")


@dataclass(frozen=True)
class Kernel:
    """The running kernel and what it says about the NVIDIA driver.

    Args:
        release: as ``uname -r`` prints it.
        module_version: version of the loaded nvidia module; None when none is loaded.
        open_module: True for NVIDIA's open kernel module, None when unknown.
        nouveau_loaded: nouveau is in the running kernel.
        nouveau_built: the running kernel has a nouveau module on disk.
        nouveau_blacklist: file or kernel argument that keeps nouveau out; None without one.
        initramfs_stale: the initramfs is older than that file; None when there is no initramfs or nothing to compare.
        secure_boot: None when the firmware does not tell or this is no EFI system.
        taint: the kernel's taint bits; None when unreadable.
    """

    release: str
    module_version: str | None
    open_module: bool | None
    nouveau_loaded: bool
    nouveau_built: bool
    nouveau_blacklist: str | None
    initramfs_stale: bool | None
    efi: bool
    secure_boot: bool | None
    taint: int | None


def read_kernel(paths: Paths) -> Kernel:
    """Read the kernel's state from sysfs, procfs and the modprobe configuration."""
    release = _text(paths.procfs / "sys/kernel/osrelease") or os.uname().release
    banner = _text(paths.procfs / "driver/nvidia/version") or ""
    version = _text(paths.sysfs / "module/nvidia/version")
    if version is None:
        match = re.search(r"NVRM version:.*?(\d+\.\d+(?:\.\d+)?)", banner)
        version = match.group(1) if match else None
    blacklist_file, blacklist = _nouveau_blacklist(paths)
    modules = paths.root / "lib/modules" / release / "kernel/drivers/gpu/drm/nouveau"
    taint = _text(paths.procfs / "sys/kernel/tainted")
    return Kernel(
        release=release,
        module_version=version,
        open_module="Open Kernel Module" in banner if banner else None,
        nouveau_loaded=(paths.sysfs / "module/nouveau").is_dir(),
        nouveau_built=any(modules.glob("nouveau.ko*")),
        nouveau_blacklist=blacklist,
        initramfs_stale=_initramfs_stale(paths.root / "boot", release, blacklist_file),
        efi=(paths.sysfs / "firmware/efi").is_dir(),
        secure_boot=_secure_boot(paths.sysfs / _SECURE_BOOT),
        taint=int(taint) if taint is not None and taint.isdigit() else None,
    )


def read_boot_id(procfs: Path) -> str:
    """Return the kernel's id of this boot; empty when it cannot be read."""
    return _text(procfs / "sys/kernel/random/boot_id") or ""


def read_memory(procfs: Path) -> tuple[int | None, int | None]:
    """Return total and available memory of the host in bytes."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _text(procfs / "meminfo") or "", flags=re.MULTILINE))
    return tuple(int(found[key]) * 1024 if key in found else None for key in ("MemTotal", "MemAvailable"))  # type: ignore[return-value]


def read_shm_bytes(root: Path) -> int | None:
    """Return the size of /dev/shm in bytes; None when there is none."""
    try:
        state = os.statvfs(root / "dev/shm")
    except OSError:
        return None
    return state.f_frsize * state.f_blocks


def read_disk(path: Path) -> dict[str, Any]:
    """Return the free and total bytes of the file system that holds a path or will hold it once it is made."""
    existing = path
    while not existing.exists():
        existing = existing.parent
    mount = existing.resolve()
    while not mount.is_mount():
        mount = mount.parent
    state = os.statvfs(existing)
    return {
        "path": str(path),
        "mount": str(mount),
        "free_bytes": state.f_frsize * state.f_bavail,
        "total_bytes": state.f_frsize * state.f_blocks,
        "read_only": bool(state.f_flag & os.ST_RDONLY),
    }


def read_engines(engines: Path) -> list[str]:
    """Return the engine versions whose installation was finished, in the order of their names."""
    if not engines.is_dir():
        return []
    return sorted(entry.name for entry in engines.iterdir() if (entry / ".complete").is_file())


def read_system(root: Path) -> dict[str, str | None]:
    """Return the distribution as /etc/os-release names it, and the machine."""
    found = dict(re.findall(r'^(\w+)="?(.*?)"?$', _text(root / "etc/os-release") or "", flags=re.MULTILINE))
    return {
        "id": found.get("ID"),
        "version_id": found.get("VERSION_ID"),
        "architecture": os.uname().machine,
    }


def read_numa_nodes(sysfs: Path) -> int:
    """Return how many NUMA nodes the host has; 1 when the kernel does not tell."""
    return max(1, len(list((sysfs / "devices/system/node").glob("node[0-9]*"))))


def read_applied(path: Path, unseen: list[str]) -> tuple[Any, str | None]:
    """Return the plan that was applied last, or None, and what is wrong with the file."""
    try:
        applied = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, None
    except PermissionError:
        unseen.append(f"applied plan: {path}: permission denied")
        return None, None
    except (OSError, ValueError) as error:
        return None, f"{path}: {error}"
    if not isinstance(applied, dict):
        return None, f"{path}: not a JSON object"
    return applied, None


def _nouveau_blacklist(paths: Paths) -> tuple[Path | None, str | None]:
    arguments = (_text(paths.procfs / "cmdline") or "").split()
    for argument in arguments:
        if argument in ("nouveau.modeset=0", "module_blacklist=nouveau", "modprobe.blacklist=nouveau"):
            return None, f"kernel argument {argument}"
    line = re.compile(r"^\s*(?:blacklist\s+nouveau|install\s+nouveau\s+/\S*(?:true|false))\s*$", re.MULTILINE)
    for directory in ("etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d"):
        for file in sorted((paths.root / directory).glob("*.conf")):
            if line.search(_text(file) or ""):
                return file, str(file)
    return None, None


def _initramfs_stale(boot: Path, release: str, blacklist: Path | None) -> bool | None:
    if blacklist is None:
        return None
    for name in (f"initrd.img-{release}", f"initramfs-{release}.img"):
        try:
            return (boot / name).stat().st_mtime < blacklist.stat().st_mtime
        except OSError:
            continue
    return None


def _secure_boot(path: Path) -> bool | None:
    try:
        state = path.read_bytes()
    except OSError:
        return None
    return state[-1] == 1 if len(state) == 5 else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
