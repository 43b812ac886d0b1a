"""The simulated NVML, seen through the real nvidia-ml-py, each time in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid

import pytest
from lab_code import CHECKOUT, lab_nodes, lab_topology

GPU_COUNT = 4


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    directory = tmp_path_factory.mktemp("nvml")
    lab_nodes.compile_nvml(directory / "libnvidia-ml.so.1")
    return directory


@pytest.fixture
def description(tmp_path):
    """A node's description with UUIDs of its own: the lab's engines may run on this machine."""
    text = lab_topology.nvml_description("l40s-01", cpu_count=2)
    for gpu in lab_topology.gpus_of("l40s-01"):
        text = text.replace(gpu.uuid, f"GPU-{uuid.uuid4()}")
    path = tmp_path / "gpus.conf"
    path.write_text(text)
    return path


@pytest.fixture
def see(library, description):
    """Evaluates an expression over pynvml, with `gpu` for the handles, to its value or the name of its NVML error."""

    def evaluate(expression):
        program = (
            "import json, pynvml as n\n"
            "try:\n"
            "    n.nvmlInit()\n"
            "    gpu = [n.nvmlDeviceGetHandleByIndex(i) for i in range(n.nvmlDeviceGetCount())]\n"
            f"    print(json.dumps({expression}))\n"
            "except n.NVMLError as error:\n"
            "    print(json.dumps(type(error).__name__))\n"
        )
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(library),
            "L40S_LAB_GPUS": str(description),
            "PYTHONPATH": str(CHECKOUT / "module_utils"),
        }
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return evaluate


def append(description, section, *lines):
    """Adds lines to a section: 0 is the machine, 1 the first GPU."""
    sections = description.read_text().split("[gpu]\n")
    sections[section] += "\n".join(lines) + "\n"
    description.write_text("[gpu]\n".join(sections))


def test_it_says_that_it_is_simulated(see):
    assert see("n.nvmlSystemGetDriverVersion()").endswith("-simulated")
    assert see("n.nvmlSystemGetCudaDriverVersion_v2()") == 13000
    marker = "n._nvmlGetFunctionPointer('l40sFleetSimulatedNvml')"
    assert see(f"(lambda f: (setattr(f, 'restype', n.c_char_p), f())[1].decode())({marker})").endswith("-simulated")


def test_an_l40s_as_the_data_sheet_has_it(see):
    values = see(
        "[n.nvmlDeviceGetName(gpu[0]), n.nvmlDeviceGetArchitecture(gpu[0]) == n.NVML_DEVICE_ARCH_ADA,"
        " n.nvmlDeviceGetCudaComputeCapability(gpu[0]), n.nvmlDeviceGetMaxPcieLinkGeneration(gpu[0]),"
        " n.nvmlDeviceGetMaxPcieLinkWidth(gpu[0]), n.nvmlDeviceGetPowerManagementLimit(gpu[0]),"
        " n.nvmlDeviceGetMemoryInfo(gpu[0], version=n.nvmlMemory_v2).total, n.nvmlDeviceGetPciInfo(gpu[0]).pciDeviceId,"
        " n.nvmlDeviceGetMemoryBusWidth(gpu[0])]"
    )
    assert values == ["NVIDIA L40S", True, [8, 9], 4, 16, 350000, 46068 * 2**20, 0x26B910DE, 384]


def test_handles_by_uuid_and_by_either_spelling_of_the_bus(see):
    assert see(
        "[n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByUUID(n.nvmlDeviceGetUUID(gpu[2]))),"
        " n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByPciBusId('0000:9a:00.0')),"
        " n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByPciBusId(n.nvmlDeviceGetPciInfo(gpu[1]).busId))]"
    ) == [2, 3, 1]
    assert see("n.nvmlDeviceGetHandleByUUID('GPU-none')") == "NVMLError_NotFound"


def test_topology_switch_then_numa_node_then_system(see, description):
    levels = "[n.nvmlDeviceGetTopologyCommonAncestor(gpu[0], other) for other in gpu]"
    assert see(levels) == [0, 10, 50, 50]
    append(description, 1, "pci_switch = 7", "path.3 = PHB")
    assert see(levels) == [0, 40, 50, 30]
    assert see("n.nvmlDeviceGetTopologyCommonAncestor(gpu[3], gpu[0])") == 30
    assert see("[n.nvmlDeviceGetIndex(g) for g in n.nvmlDeviceGetTopologyNearestGpus(gpu[2], 10)]") == [3]


def test_peer_to_peer(see, description):
    capabilities = "(n.NVML_P2P_CAPS_INDEX_PCI, n.NVML_P2P_CAPS_INDEX_NVLINK)"
    status = f"[n.nvmlDeviceGetP2PStatus(gpu[0], gpu[1], capability) for capability in {capabilities}]"
    assert see(status) == [0, 5]
    append(description, 2, "p2p = 1")
    assert see(status) == [1, 5]


def test_affinity_is_the_numa_node_of_the_gpu(see):
    assert see("[list(n.nvmlDeviceGetCpuAffinity(g, 1))[0] for g in gpu]") == [1, 1, 2, 2]
    assert see("[list(n.nvmlDeviceGetMemoryAffinity(g, 1, 0))[0] for g in gpu]") == [1, 1, 2, 2]


def test_what_an_l40s_does_not_have(see, description):
    for call in (
        "n.nvmlDeviceGetMigMode(gpu[0])",
        "n.nvmlDeviceGetNvLinkState(gpu[0], 0)",
        "n.nvmlDeviceGetFanSpeed(gpu[0])",
    ):
        assert see(call) == "NVMLError_NotSupported"
    append(description, 1, "mig_current = 1")
    assert see("n.nvmlDeviceGetMigMode(gpu[0])") == [1, 1]


def test_errors_of_memory(see, description):
    append(description, 1, "ecc_uncorrected_volatile = 3", "remapped_rows_pending = 1", "remapped_rows_uncorrected = 2")
    assert see("n.nvmlDeviceGetRemappedRows(gpu[0])") == [0, 2, 1, 0]
    assert see("n.nvmlDeviceGetTotalEccErrors(gpu[0], n.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, n.NVML_VOLATILE_ECC)") == 3
    fields = "n.nvmlDeviceGetFieldValues(gpu[0], [n.NVML_FI_DEV_REMAPPED_PENDING, n.NVML_FI_DEV_NVLINK_SPEED_MBPS_L0])"
    assert see(f"[[v.nvmlReturn, v.value.ullVal] for v in {fields}]") == [[0, 1], [3, 0]]
    append(description, 1, "ecc_current = 0")
    assert see("n.nvmlDeviceGetTotalEccErrors(gpu[0], 1, 0)") == "NVMLError_NotSupported"


FAULTS = [
    (0, "fail.nvmlInit = DRIVER_NOT_LOADED", "1", "NVMLError_DriverNotLoaded"),
    (0, "fail.nvmlInit = LIB_RM_VERSION_MISMATCH", "1", "NVMLError_LibRmVersionMismatch"),
    (1, "fail = GPU_IS_LOST", "n.nvmlDeviceGetName(gpu[0])", "NVMLError_GpuIsLost"),
    (1, "fail.nvmlDeviceGetMemoryInfo = UNKNOWN", "n.nvmlDeviceGetMemoryInfo(gpu[0]).total", "NVMLError_Unknown"),
    (1, "fail.nvmlDeviceGetMemoryInfo = UNKNOWN", "n.nvmlDeviceGetName(gpu[0])", "NVIDIA L40S"),
    (2, "fail.nvmlDeviceGetName = GPU_IS_LOST", "n.nvmlDeviceGetName(gpu[0])", "NVIDIA L40S"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault[1]}-{fault[3]}")
def test_faults_reach_the_calls_they_name(see, description, fault):
    section, line, expression, seen = fault
    append(description, section, line)
    assert see(expression) == seen


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("nonsense\n", ":1: expected"), (f"key = {'x' * 300}\n", ":1: too long"), ("[gpu]\n" * 17, ":17: too many GPUs")],
)
def test_a_wrong_file_is_an_error_that_names_its_line(library, description, text, complaint):
    description.write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", "import ctypes; print(ctypes.CDLL('libnvidia-ml.so.1').nvmlInit_v2())"],
        env={**os.environ, "LD_LIBRARY_PATH": str(library), "L40S_LAB_GPUS": str(description)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "999\n"
    assert f"{description}{complaint}" in done.stderr


def test_a_gpu_given_twice_shows_both_processes(see, description):
    uuids = see("[n.nvmlDeviceGetUUID(g) for g in gpu]")
    lists = [uuids[1], f"{uuids[0]},{uuids[1]}", uuids[2][:12], "0", ""]
    users = [
        subprocess.Popen(
            [sys.executable, "-c", "print(1, flush=True); input()"],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": value},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for value in lists
    ]
    try:
        for user in users:
            assert user.stdout.read(1) == b"1"
        seen = see("[sorted(p.pid for p in n.nvmlDeviceGetComputeRunningProcesses(g)) for g in gpu]")
        used = see("[n.nvmlDeviceGetMemoryInfo(g, version=n.nvmlMemory_v2).used for g in gpu]")
        sums = see("[sum(p.usedGpuMemory for p in n.nvmlDeviceGetComputeRunningProcesses(g)) for g in gpu]")
    finally:
        for user in users:
            user.communicate(b"\n")
    pids = [user.pid for user in users]
    assert seen == [[pids[1]], sorted(pids[:2]), [pids[2]], []]
    assert used == sums
    assert used[1] > used[0] > 0 == used[3]


def test_an_idle_link_may_be_slower(see, description):
    append(description, 1, "link_generation_idle = 1")
    generation = "n.nvmlDeviceGetCurrPcieLinkGeneration(gpu[0])"
    assert see(generation) == 1
    uuid_ = see("n.nvmlDeviceGetUUID(gpu[0])")
    user = subprocess.Popen(["sleep", "60"], env={**os.environ, "CUDA_VISIBLE_DEVICES": uuid_})
    try:
        assert see(generation) == 4
    finally:
        user.kill()
        user.wait()
