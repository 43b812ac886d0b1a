"""A node of the lab for the probe's tests: the lab's own sysfs tree, NVML description and simulated library."""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pynvml
from fleet.probe import ProbeOptions, probe_host
from fleet.probe_host import Paths

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / "scripts"))
from lab_nodes import compile_nvml  # noqa: E402
from lab_sysfs import configuration_space, write_sysfs  # noqa: E402
from lab_topology import CUDA_DRIVER_VERSION, DRIVER_VERSION, gpus_of, nvml_description  # noqa: E402

HOST = "l40s-01"
GPUS = gpus_of(HOST)
# The library shows the real processes of a UUID, and the lab may run beside the tests: these UUIDs are theirs alone.
UUIDS = [f"GPU-{uuid.uuid4()}" for _ in GPUS]
RELEASE = "6.1.0-40-amd64"
BOOT_ID = "5c1c0fd2-0b6e-4a39-8f2b-2d3c1a7d9e10"

__all__ = [
    "BOOT_ID",
    "CHECKOUT",
    "CUDA_DRIVER_VERSION",
    "DRIVER_VERSION",
    "GPUS",
    "HOST",
    "RELEASE",
    "UUIDS",
    "Node",
    "simulated_library",
]


@functools.cache
def simulated_library() -> Path:
    """Compiles the lab's NVML once a session."""
    target = Path(tempfile.mkdtemp(prefix="l40s-nvml-")) / "libnvidia-ml.so.1"
    compile_nvml(target)
    return target


@dataclass
class Node:
    """Trees and files of one sound host, methods that spoil them, and a probe of it."""

    directory: Path
    required_cuda_driver_version: int = 0
    gpus_expected: bool = True
    library: Path | None = field(default_factory=simulated_library)
    nvml_timeout_s: float = 30.0
    units: str = ""

    def __post_init__(self) -> None:
        write_sysfs(self.paths.sysfs, HOST, cpu_count=2)
        description = nvml_description(HOST, cpu_count=2)
        for gpu, own in zip(GPUS, UUIDS, strict=True):
            description = description.replace(gpu.uuid, own)
        self.description = description.split("[gpu]")
        self.write("proc/sys/kernel/osrelease", RELEASE)
        self.write("proc/sys/kernel/tainted", "12289")
        self.write("proc/meminfo", "MemTotal:       263792084 kB\nMemAvailable:   250000000 kB")
        self.write("proc/sys/kernel/random/boot_id", BOOT_ID)
        self.write("proc/cmdline", "root=/dev/vda1 ro")
        self.write("root/etc/os-release", 'ID=debian\nVERSION_ID="12"')
        self.write("root/dev/shm/keep", "")
        self.write("log", "6,0,0,-;Linux version 6.1.0")

    @property
    def paths(self) -> Paths:
        return Paths(
            sysfs=self.directory / "sys",
            procfs=self.directory / "proc",
            root=self.directory / "root",
            instances=self.directory / "instances",
            engines=self.directory / "engines",
            applied=self.directory / "applied.json",
            link_test=self.directory / "link_test.json",
            kernel_log=self.directory / "log",
            models=self.directory / "models",
            quarantine=self.directory / "quarantine.json",
        )

    def write(self, path: str, content: str) -> Path:
        target = self.directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content + "\n")
        return target

    def write_device(self, bus_id: str, name: str, content: str) -> None:
        """Replaces one attribute of a PCI device."""
        (self.paths.sysfs / "bus/pci/devices" / bus_id / name).write_text(content + "\n")

    def write_bridges(self, acs_control: int) -> None:
        """Gives every bridge a configuration space with this ACS control register."""
        space = configuration_space(acs_control)
        for device in (self.paths.sysfs / "bus/pci/devices").iterdir():
            if (device / "class").read_text().startswith("0x0604"):
                (device / "config").write_bytes(space)

    def machine(self, line: str) -> None:
        """Adds a line to the NVML description of the machine."""
        self.description[0] += line + "\n"

    def gpu(self, index: int, *lines: str) -> None:
        """Adds lines to the NVML description of one GPU."""
        self.description[1 + index] += "".join(line + "\n" for line in lines)

    def log(self, *lines: str) -> None:
        with (self.directory / "log").open("a") as log:
            log.writelines(f"4,{number},0,-;{line}\n" for number, line in enumerate(lines, start=1))

    def instance(self, identifier: str, record: Any) -> None:
        """Writes an instance's record: an object as JSON, a text as it is."""
        content = record if isinstance(record, str) else json.dumps(record)
        self.write(f"instances/{identifier}/instance.json", content)

    def remove(self, path: str) -> None:
        target = self.directory / path
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink()

    def probe(self) -> dict[str, Any]:
        os.environ["L40S_LAB_GPUS"] = str(self.write("gpus.conf", "[gpu]".join(self.description)))
        options = ProbeOptions(
            paths=self.paths,
            nvml_library=str(self.library) if self.library is not None else None,
            nvml_timeout_s=self.nvml_timeout_s,
            required_cuda_driver_version=self.required_cuda_driver_version,
            gpus_expected=self.gpus_expected,
            disk_paths=(self.directory / "var/lib/l40s-fleet",),
        )
        return probe_host(lambda: pynvml, options, run=lambda command: self.units)


def check(health: dict[str, Any], name: str) -> dict[str, str]:
    """Returns one check of a health document."""
    (found,) = [row for row in health["checks"] if row["name"] == name]
    return found
