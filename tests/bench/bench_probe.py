"""Prints the probe's own time on a host with 8 GPUs, against the simulated NVML.

Each run is a fresh process, as on a managed host: importing the core and pynvml from source counts as well, because
Ansible ships them uncompiled. pynvml is imported by the process that reads NVML, beside the rest.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / "scripts"))
from lab_nodes import compile_nvml  # noqa: E402
from lab_sysfs import write_sysfs  # noqa: E402
from lab_topology import gpus_of, nvml_description  # noqa: E402

RUNS = 15
LIMIT_MS = 250

PROGRAM = """
import importlib, json, os, sys, time
started_s = time.perf_counter()
sys.dont_write_bytecode = True
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fleet.probe import ProbeOptions, probe_host
from fleet.probe_host import Paths
imported_s = time.perf_counter()
base = Path(sys.argv[2])
options = ProbeOptions(paths=Paths(sysfs=base / "sys"), nvml_library=str(base / "libnvidia-ml.so.1"))
document = probe_host(lambda: importlib.import_module("pynvml"), options)
ended_s = time.perf_counter()
assert len(document["gpus"]) == 8 and len(document["links"]) == 28 and not document["provisional"], document
assert all(gpu["numa_node"] is not None and gpu["health"]["status"] != "blocked" for gpu in document["gpus"]), document
cpu_s = sum(os.times()[:4])
print(json.dumps([(imported_s - started_s) * 1000, (ended_s - imported_s) * 1000, cpu_s * 1000]))
"""


def moved(address: str) -> str:
    """A free PCI address for the second four GPUs: buses 17, 18, 99, 9a become 57, 58, d9, da."""
    return address.lower().replace(":1", ":5").replace(":9", ":d")


def eight_gpus(base: Path) -> str:
    """The description of two lab nodes in one host, and its sysfs tree."""
    write_sysfs(base / "sys", "l40s-01", 2)
    head, *first = nvml_description("l40s-01", 2).split("[gpu]")
    _, *second = nvml_description("l40s-02", 2).split("[gpu]")
    devices = base / "sys/bus/pci/devices"
    for position, gpu in enumerate(gpus_of("l40s-01")):
        source = (devices / gpu.sysfs_address).resolve()
        copy = shutil.copytree(source, source.with_name(moved(gpu.sysfs_address)), symlinks=True)
        (devices / copy.name).symlink_to(copy)
        second[position] = second[position].replace(gpu.nvml_bus_id, moved(gpu.nvml_bus_id).upper())
    return "[gpu]".join([head, *first, *second])


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        compile_nvml(base / "libnvidia-ml.so.1")
        (base / "gpus.conf").write_text(eight_gpus(base))
        # A copy without __pycache__, so that every run compiles what Ansible would ship.
        subprocess.run(["cp", "-r", CHECKOUT / "module_utils", base / "module_utils"], check=True)
        subprocess.run(
            ["find", base / "module_utils", "-name", "__pycache__", "-exec", "rm", "-r", "{}", "+"], check=True
        )
        times = []
        for _ in range(RUNS):
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, str(base / "module_utils"), directory],
                check=True,
                capture_output=True,
                text=True,
                env={**os.environ, "L40S_LAB_GPUS": str(base / "gpus.conf"), "PYTHONPATH": ""},
            )
            times.append(json.loads(done.stdout))
    imports_ms, probes_ms, cpu_ms = (sorted(column) for column in zip(*times, strict=True))
    totals_ms = sorted(imports + probe for imports, probe, _ in times)
    # On a busy machine the processor time of all its processes says more than the clock.
    rows = (("imports", imports_ms), ("probe", probes_ms), ("together", totals_ms), ("CPU", cpu_ms))
    for name, values in rows:
        median = statistics.median(values)
        print(f"{name:<9} best {values[0]:6.1f} ms   median {median:6.1f} ms   worst {values[-1]:6.1f} ms")
    load = os.getloadavg()[0]
    print(f"limit {LIMIT_MS} ms, 8 GPUs, {RUNS} runs, Python {sys.version.split()[0]}, load {load:.1f}")
    # The best run is the one that others on this machine disturbed least.
    sys.exit(totals_ms[0] > LIMIT_MS)


if __name__ == "__main__":
    main()
