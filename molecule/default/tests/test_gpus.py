"""GPU hosts show four simulated L40S through the real nvidia-ml-py, an engine that is shared, and the same on sysfs."""

from __future__ import annotations

import json
import subprocess

import pytest
from lab_support import CHECKOUT, LAB

testinfra_hosts = ["ansible://gpu_hosts"]

PYNVML = CHECKOUT / "module_utils" / "pynvml.py"
REMOTE = "/run/lab-test"
LOOK = """
import ctypes, json, pynvml
pynvml.nvmlInit()
marker = ctypes.CDLL("libnvidia-ml.so.1").l40sFleetSimulatedNvml
marker.restype = ctypes.c_char_p
def look(index):
    gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(gpu, version=pynvml.nvmlMemory_v2)
    return {
        "name": pynvml.nvmlDeviceGetName(gpu),
        "uuid": pynvml.nvmlDeviceGetUUID(gpu),
        "bus_id": pynvml.nvmlDeviceGetPciInfo(gpu).busId,
        "device_id": pynvml.nvmlDeviceGetPciInfo(gpu).pciDeviceId,
        "total": memory.total,
        "used": memory.used,
        "pids": [process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)],
    }
print(json.dumps({
    "simulated": marker().decode(),
    "driver": pynvml.nvmlSystemGetDriverVersion(),
    "gpus": [look(index) for index in range(pynvml.nvmlDeviceGetCount())],
}))
"""


@pytest.fixture(scope="module")
def look(host, tmp_path_factory):
    """What the real nvidia-ml-py sees on the node, each time it is called."""
    script = tmp_path_factory.mktemp("look") / "look.py"
    script.write_text(LOOK)
    host.check_output(f"install -d -o ops {REMOTE}")
    ssh_config = CHECKOUT / "build" / "lab" / LAB / "ssh" / "config"
    subprocess.run(["scp", "-q", "-F", ssh_config, PYNVML, script, f"{host.backend.host}:{REMOTE}"], check=True)
    yield lambda: json.loads(host.check_output(f"python3 {REMOTE}/look.py"))
    host.check_output(f"rm -r {REMOTE}")


def test_four_l40s_that_say_they_are_simulated(look):
    seen = look()
    assert "simulated" in seen["simulated"]
    assert seen["driver"].endswith("-simulated")
    assert [gpu["name"] for gpu in seen["gpus"]] == ["NVIDIA L40S"] * 4
    assert {gpu["device_id"] for gpu in seen["gpus"]} == {0x26B910DE}
    assert {gpu["total"] for gpu in seen["gpus"]} == {46068 * 2**20}
    assert len({gpu["uuid"] for gpu in seen["gpus"]}) == 4


def test_processes_are_those_that_run(host, look):
    uuid = look()["gpus"][1]["uuid"]
    host.check_output(f"systemd-run --unit=lab-test-user --setenv=CUDA_VISIBLE_DEVICES={uuid} sleep 60")
    try:
        pid = int(host.check_output("systemctl show --property=MainPID --value lab-test-user"))
        gpus = look()["gpus"]
    finally:
        host.check_output("systemctl stop lab-test-user")
    assert [gpu["pids"] for gpu in gpus] == [[], [pid], [], []]
    assert gpus[1]["used"] > gpus[0]["used"] == 0
    assert look()["gpus"][1]["pids"] == []


def test_sysfs_shows_the_same_cards(host, look):
    root = "/etc/l40s-lab/sys/bus/pci/devices"
    for gpu in look()["gpus"]:
        device = f"{root}/{gpu['bus_id'][4:].lower()}"
        assert host.check_output(f"cat {device}/vendor {device}/device").split() == ["0x10de", "0x26b9"]
        assert host.check_output(f"cat {device}/current_link_width") == "16"


def test_engines_are_whole_shared_and_read_only(host):
    # The store of the machine may hold further versions: the vllm and rolling scenarios add one.
    versions = host.check_output("ls /opt/vllm").split()
    assert versions
    for version in versions:
        assert host.file(f"/opt/vllm/{version}/.complete").exists
        assert host.run(f"touch /opt/vllm/{version}/lab-test").failed
        if host.backend.host == "l40s-01":
            assert host.check_output(f"/opt/vllm/{version}/bin/vllm --version").startswith(version)
