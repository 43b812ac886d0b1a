"""Reads NVIDIA GPUs and the bridges above them from sysfs: it works without a driver, and without root but for ACS."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_NVIDIA_VENDOR = "0x10de"
# Base class 03 (display): 00 is a VGA controller, 02 a 3D controller; 80 and others are no compute GPUs.
_GPU_CLASSES = ("0x0300", "0x0302")
_GENERATION_BY_SPEED_GT_S = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}
_BUS_ID = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")
_ROOT = re.compile(r"pci[0-9a-f]{4,}:[0-9a-f]{2}")

# PCI Express extended capabilities begin at offset 256, each with a 32-bit header: 16 bits of id, 4 of version, 12 of
# the next offset. Access Control Services is id 0x000D, its control register lies 6 bytes on (PCI Express Base
# Specification).
_EXTENDED_OFFSET = 0x100
_ACS_ID = 0x000D
_ACS_CONTROL = 6
# P2P Request Redirect and P2P Completion Redirect: both send peer traffic up to the root complex.
_ACS_REDIRECT = 0x0004 | 0x0008


@dataclass(frozen=True)
class PciGpu:
    """An NVIDIA GPU as sysfs shows it. A field is None when sysfs does not tell.

    Args:
        pci_bus_id: in the kernel's spelling, ``0000:3b:00.0``.
        pci_device_id: vendor and device, ``10de:26b9``.
        driver: kernel driver that is bound to it, such as ``nvidia``, ``nouveau`` or ``vfio-pci``.
        numa_node: None when the firmware names none.
        cpu_list: the CPUs near it, as ``0-15,64-79``.
        bridges: bus ids of the bridges above it, from the root port downwards.
        root: name of its PCI root, ``pci0000:3a``.
        iommu_type: ``DMA``, ``DMA-FQ`` (both translate), ``identity``; None without an IOMMU.
        redirecting_bridges: bridges above it with ACS redirection on; None when that could not be read.
    """

    pci_bus_id: str
    pci_device_id: str
    driver: str | None = None
    numa_node: int | None = None
    cpu_list: str | None = None
    link_generation: int | None = None
    link_width: int | None = None
    link_max_generation: int | None = None
    link_max_width: int | None = None
    root: str | None = None
    bridges: tuple[str, ...] = ()
    iommu_type: str | None = None
    redirecting_bridges: tuple[str, ...] | None = None


# Stands for a GPU that sysfs does not show.
ABSENT = PciGpu(pci_bus_id="", pci_device_id="")


def normalized_bus_id(bus_id: str) -> str:
    """Return a PCI bus id in the kernel's spelling (``0000:3b:00.0``), from NVML's or the kernel log's.

    Raises:
        ValueError: the text is no PCI bus id.
    """
    match = _BUS_ID.fullmatch(bus_id.strip().lower())
    if match is None:
        raise ValueError(f"no PCI bus id: {bus_id!r}")
    domain, bus, device, function = match.groups()
    return f"{int(domain or '0', 16):04x}:{bus}:{device}.{function}"


def scan_gpus(sysfs_root: Path) -> tuple[PciGpu, ...]:
    """Return the NVIDIA GPUs of the host in bus order; empty when sysfs shows no PCI bus."""
    devices = sysfs_root / "bus/pci/devices"
    if not devices.is_dir():
        return ()
    acs: dict[str, bool | None] = {}
    return tuple(
        _gpu(device, acs, devices)
        for device in sorted(devices.iterdir())
        if _text(device / "vendor") == _NVIDIA_VENDOR and (_text(device / "class") or "")[:6] in _GPU_CLASSES
    )


def path_between(a: PciGpu, b: PciGpu) -> str | None:
    """Return the class of the way between two GPUs as NVML names it (PIX, PXB, PHB, NODE, SYS); None when unknown."""
    if a.root is None or b.root is None:
        return None
    if a.root != b.root:
        if a.numa_node is None or b.numa_node is None:
            return None
        return "NODE" if a.numa_node == b.numa_node else "SYS"
    shared = 0
    for bridge_a, bridge_b in zip(a.bridges, b.bridges, strict=False):
        if bridge_a != bridge_b:
            break
        shared += 1
    if shared == 0:
        return "PHB"
    # Below the upstream port of a common switch each GPU has one downstream port; more means another switch between.
    return "PIX" if max(len(a.bridges), len(b.bridges)) - shared <= 1 else "PXB"


def _gpu(device: Path, acs: dict[str, bool | None], devices: Path) -> PciGpu:
    root, bridges = _ancestors(device)
    for bridge in bridges:
        if bridge not in acs:
            acs[bridge] = _redirects(devices / bridge / "config")
    states = [acs[bridge] for bridge in bridges]
    return PciGpu(
        pci_bus_id=device.name,
        pci_device_id=f"{_hex(device / 'vendor')}:{_hex(device / 'device')}",
        driver=(device / "driver").resolve().name if (device / "driver").exists() else None,
        numa_node=_numa_node(device / "numa_node"),
        cpu_list=_text(device / "local_cpulist") or None,
        link_generation=_generation(device / "current_link_speed"),
        link_width=_number(device / "current_link_width"),
        link_max_generation=_generation(device / "max_link_speed"),
        link_max_width=_number(device / "max_link_width"),
        root=root,
        bridges=bridges,
        iommu_type=_text(device / "iommu_group/type"),
        redirecting_bridges=(
            None
            if None in states
            else tuple(bridge for bridge, redirects in zip(bridges, states, strict=True) if redirects)
        ),
    )


def _ancestors(device: Path) -> tuple[str | None, tuple[str, ...]]:
    """Return the PCI root and the bridges above a device, read off where its link in sysfs leads."""
    parts = device.resolve().parts
    for position, part in enumerate(parts):
        if _ROOT.fullmatch(part):
            return part, tuple(parts[position + 1 : -1])
    return None, ()


def _redirects(config: Path) -> bool | None:
    """Return whether a bridge redirects peer traffic; None when its configuration space cannot be read whole."""
    try:
        space = config.read_bytes()
    except OSError:
        return None
    if len(space) <= _EXTENDED_OFFSET:
        # Without CAP_SYS_ADMIN the kernel shows 64 bytes; a bridge with 256 is conventional PCI, which has no ACS.
        return False if len(space) == _EXTENDED_OFFSET else None
    offset, visited = _EXTENDED_OFFSET, set()
    while offset and offset not in visited and offset + _ACS_CONTROL + 2 <= len(space):
        visited.add(offset)
        header = int.from_bytes(space[offset : offset + 4], "little")
        if header & 0xFFFF == _ACS_ID:
            control = int.from_bytes(space[offset + _ACS_CONTROL : offset + _ACS_CONTROL + 2], "little")
            return bool(control & _ACS_REDIRECT)
        offset = header >> 20
    return False


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _hex(path: Path) -> str:
    return (_text(path) or "0x0000").removeprefix("0x")


def _number(path: Path) -> int | None:
    text = _text(path) or ""
    # The kernel prints 255 or "Unknown" for a link that is down.
    return int(text) if text.isdigit() and text != "255" else None


def _numa_node(path: Path) -> int | None:
    text = _text(path) or ""
    return int(text) if text.isdigit() else None


def _generation(path: Path) -> int | None:
    match = re.match(r"[0-9.]+(?= GT/s)", _text(path) or "")
    return _GENERATION_BY_SPEED_GT_S.get(float(match.group())) if match else None
