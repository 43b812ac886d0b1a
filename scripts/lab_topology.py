"""What a lab consists of: nodes, addresses, and the GPUs that each node shows."""

from __future__ import annotations

import re
import uuid
import zlib
from dataclasses import dataclass

from lab_host import LabError

GPU_HOSTS = ("l40s-01", "l40s-02", "l40s-03")
GATEWAYS = ("gw-01",)
NODES = (*GPU_HOSTS, *GATEWAYS)
DRIVER_VERSION = "580.95.05-simulated"
CUDA_DRIVER_VERSION = 13000


@dataclass(frozen=True)
class Lab:
    """A lab by name; several can run side by side."""

    name: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9]{0,15}", self.name):
            raise LabError(f"--name {self.name}: a lab's name is a small letter and up to 15 letters or digits")

    @property
    def network(self) -> str:
        """The name of its podman network."""
        return f"l40s-{self.name}"

    @property
    def prefix(self) -> str:
        """The first three parts of its addresses.

        198.18.0.0/15 is reserved for tests of network devices, so no real network that this machine talks to is hidden.
        """
        known = {"demo": 41, "test": 42}
        return f"198.18.{known.get(self.name, 50 + zlib.crc32(self.name.encode()) % 200)}"

    def container(self, node: str) -> str:
        """The name of a node's container."""
        return f"{self.name}-{node}"

    def address(self, node: str) -> str:
        """The fixed address of a node."""
        last = 11 + GPU_HOSTS.index(node) if node in GPU_HOSTS else 101 + GATEWAYS.index(node)
        return f"{self.prefix}.{last}"

    def mac_address(self, node: str) -> str:
        """The fixed MAC address of a node: its neighbours go on reaching it after a restart, as they do a real host."""
        parts = [int(part) for part in self.address(node).split(".")]
        return "02:00:" + ":".join(f"{part:02x}" for part in parts)


@dataclass(frozen=True)
class Gpu:
    """One simulated L40S: where it sits."""

    index: int
    uuid: str
    serial: str
    bus: int
    numa_node: int
    pci_switch: int

    @property
    def sysfs_address(self) -> str:
        """The PCI address as sysfs spells it."""
        return f"0000:{self.bus:02x}:00.0"

    @property
    def nvml_bus_id(self) -> str:
        """The PCI address as NVML spells it."""
        return f"00000000:{self.bus:02X}:00.0"


def gpus_of(node: str) -> tuple[Gpu, ...]:
    """Four GPUs: two PCIe switches, each under its own NUMA node. Gateways have none."""
    if node not in GPU_HOSTS:
        return ()
    buses = (0x17, 0x18, 0x99, 0x9A)
    return tuple(
        Gpu(
            index=index,
            uuid=f"GPU-{uuid.uuid5(uuid.NAMESPACE_DNS, f'{index}.{node}.lab.l40s-fleet')}",
            serial=f"16516230{10 * GPU_HOSTS.index(node) + index:05d}",
            bus=bus,
            numa_node=index // 2,
            pci_switch=index // 2,
        )
        for index, bus in enumerate(buses)
    )


def cpu_ranges(cpu_count: int) -> tuple[tuple[int, int], ...]:
    """The CPUs of the two NUMA nodes that a node shows, first and last: halves of what this machine has."""
    half = max(1, cpu_count // 2)
    return ((0, half - 1), (min(half, cpu_count - 1), cpu_count - 1))


def nvml_description(node: str, cpu_count: int) -> str:
    """The text that the simulated NVML of a node reads (lab/simulated_nvml/description.h)."""
    lines = [
        f"# The GPUs of {node}. Read at every nvmlInit; lab/simulated_nvml says which keys and faults there are.",
        f"driver_version = {DRIVER_VERSION}",
        f"cuda_driver_version = {CUDA_DRIVER_VERSION}",
    ]
    for gpu in gpus_of(node):
        first, last = cpu_ranges(cpu_count)[gpu.numa_node]
        lines += [
            "",
            "[gpu]",
            f"uuid = {gpu.uuid}",
            f"serial = {gpu.serial}",
            "name = NVIDIA L40S",
            f"pci_bus_id = {gpu.nvml_bus_id}",
            "pci_device_id = 0x26b910de",
            f"pci_switch = {gpu.pci_switch}",
            f"numa_node = {gpu.numa_node}",
            f"cpu_set = {first}-{last}",
            "link_generation = 4",
            "link_width = 16",
            "memory_total_mib = 46068",
            "memory_reserved_mib = 541",
            "ecc_current = 1",
            "power_limit_mw = 350000",
            f"temperature_c = {33 + gpu.index}",
            "persistence_mode = 1",
        ]
    return "\n".join(lines) + "\n"
