"""The sysfs tree of a node: what a PCI scan reads where no driver is loaded, and the topology above the GPUs."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from lab_topology import DRIVER_VERSION, Gpu, cpu_ranges, gpus_of

if TYPE_CHECKING:
    from pathlib import Path

BRIDGE_CLASS = "0x060400"
# A bridge's configuration space: behind the first extended capability (0x100, Advanced Error Reporting) comes Access
# Control Services (0x148), whose control register is 6 bytes on. Source validation alone is on: no redirection.
ACS_CONTROL_OFFSET = 0x14E
ACS_SOURCE_VALIDATION = 0x0001
LINK = {"current_link_speed": "16.0 GT/s PCIe", "current_link_width": "16"}


def write_sysfs(root: Path, node: str, cpu_count: int) -> None:
    """Writes the tree anew, so that a fault which a test left in it is gone."""
    if root.exists():
        shutil.rmtree(root)
    ranges = cpu_ranges(cpu_count)
    for numa_node, (first, last) in enumerate(ranges):
        _write(root / f"devices/system/node/node{numa_node}", {"cpulist": f"{first}-{last}"})
    (root / "bus/pci/devices").mkdir(parents=True)
    (root / "kernel/iommu_groups").mkdir(parents=True)
    gpus = gpus_of(node)
    if not gpus:
        return
    _write(root / "module/nvidia", {"version": DRIVER_VERSION})
    (root / "bus/pci/drivers/nvidia").mkdir(parents=True)
    for numa_node, (first, last) in enumerate(ranges):
        places = {"numa_node": str(numa_node), "local_cpulist": f"{first}-{last}"}
        _write_switch(root, [gpu for gpu in gpus if gpu.numa_node == numa_node], places)


def _write_switch(root: Path, gpus: list[Gpu], places: dict[str, str]) -> None:
    """A root port, a switch with one downstream port per GPU, and the GPUs; buses are numbered as firmware does."""
    first_bus = gpus[0].bus
    complex_ = root / f"devices/pci0000:{first_bus - 3:02x}"
    root_port = complex_ / f"0000:{first_bus - 3:02x}:01.0"
    upstream = root_port / f"0000:{first_bus - 2:02x}:00.0"
    for bridge, vendor, device in ((root_port, "0x8086", "0x352a"), (upstream, "0x1000", "0xc030")):
        _write_bridge(root, bridge, {"vendor": vendor, "device": device, **places})
    for port, gpu in enumerate(gpus):
        downstream = upstream / f"0000:{first_bus - 1:02x}:{port:02x}.0"
        _write_bridge(root, downstream, {"vendor": "0x1000", "device": "0xc030", **places})
        directory = downstream / gpu.sysfs_address
        identity = {
            "vendor": "0x10de",
            "device": "0x26b9",
            "class": "0x030200",
            "subsystem_vendor": "0x10de",
            "subsystem_device": "0x1851",
            "revision": "0xa1",
        }
        _write_device(root, directory, {**identity, **places})
        depth = len(directory.relative_to(root).parts)
        (directory / "driver").symlink_to("../" * depth + "bus/pci/drivers/nvidia")


def configuration_space(acs_control: int) -> bytes:
    """The 4,096 bytes that root reads of a bridge, as far as the probe looks at them."""
    space = bytearray(4096)
    space[0x100:0x104] = (0x0001 | 1 << 16 | 0x148 << 20).to_bytes(4, "little")
    space[0x148:0x14C] = (0x000D | 1 << 16).to_bytes(4, "little")
    space[ACS_CONTROL_OFFSET : ACS_CONTROL_OFFSET + 2] = acs_control.to_bytes(2, "little")
    return bytes(space)


def _write_bridge(root: Path, directory: Path, files: dict[str, str]) -> None:
    _write_device(root, directory, {**files, "class": BRIDGE_CLASS})
    (directory / "config").write_bytes(configuration_space(ACS_SOURCE_VALIDATION))


def _write_device(root: Path, directory: Path, files: dict[str, str]) -> None:
    maximum = {name.replace("current", "max"): value for name, value in LINK.items()}
    _write(directory, {**files, **LINK, **maximum, "enable": "1"})
    target = directory.relative_to(root)
    (root / "bus/pci/devices" / directory.name).symlink_to(f"../../../{target}")


def _write(directory: Path, files: dict[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_text(content + "\n")
