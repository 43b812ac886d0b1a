"""The parts of the probe by themselves: what they make of the texts and trees that they read."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pynvml
import pytest
from fleet.probe_instances import UnitState, instance_of_unit, parse_units, unit_of_process
from fleet.probe_kernel_log import KernelLog, Xid, find_xids, read_kernel_log
from fleet.probe_nvml import read_nvml
from fleet.probe_pci import PciGpu, normalized_bus_id, path_between, scan_gpus
from fleet.probe_verdict import worst


@pytest.mark.parametrize(
    ("spelt", "bus_id"),
    [
        ("00000000:3B:00.0", "0000:3b:00.0"),
        ("0000:3b:00.0", "0000:3b:00.0"),
        ("00010000:01:00.0", "10000:01:00.0"),
        ("3B:00.0", "0000:3b:00.0"),
    ],
)
def test_bus_ids_of_nvml_and_kernel_become_the_same(spelt: str, bus_id: str) -> None:
    assert normalized_bus_id(spelt) == bus_id


@pytest.mark.parametrize("text", ["", "GPU-1", "0000:3b:00", "0000:3b:00.9"])
def test_what_is_no_bus_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no PCI bus id"):
        normalized_bus_id(text)


def test_xids_are_found_in_the_spellings_of_old_and_new_drivers() -> None:
    log = """\
4,100,5,-;NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
4,101,5,-;NVRM: Xid (PCI:0000:AF:00): 31, pid=812, name=python3, Ch 00000008, intr 00000000. MMU Fault
4,102,5,-;NVRM: Xid (0000:3b:00): 62, 0f9f(2f1c) 00000000 00000000
4,103,5,-;NVRM: Xid (PCI:0000:3b:00.0): 120
6,104,5,-;NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.95.05
"""
    assert [(xid.pci_bus_id, xid.number) for xid in find_xids(log)] == [
        ("0000:3b:00.0", 79),
        ("0000:af:00.0", 31),
        ("0000:3b:00.0", 62),
        ("0000:3b:00.0", 120),
    ]
    assert find_xids(log)[0].text.endswith("GPU has fallen off the bus.")


def test_a_log_whose_beginning_was_overwritten_says_so(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    log.write_text("6,2741,99,-;NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.\n")
    read = read_kernel_log(log)
    assert read.xids == (Xid("0000:3b:00.0", 79, "GPU has fallen off the bus.", 2741),)
    assert "2741 older records" in read.unseen


def test_the_kernel_log_of_this_machine_can_be_read_or_is_named_as_unseen(tmp_path: Path) -> None:
    read = read_kernel_log(Path("/dev/kmsg"))
    assert read.xids is not None or read.unseen
    assert read_kernel_log(tmp_path / "kmsg") == KernelLog(None, f"kernel log: {tmp_path}/kmsg does not exist")


def test_units_are_read_from_one_answer_of_systemctl() -> None:
    shown = (
        "Id=vllm@chat-0.service\nLoadState=loaded\nActiveState=activating\nMainPID=812\n\n"
        "Id=triton-8000.service\nActiveState=failed\nMainPID=0\n\n"
        "Id=ssh.service\nActiveState=active\nMainPID=1\n"
    )
    assert parse_units(shown) == {
        "chat-0": UnitState("activating", 812),
        "triton-8000.service": UnitState("failed", None),
    }
    assert parse_units("") == {}


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/system-vllm.slice/vllm@chat-0.service", "vllm@chat-0.service"),
        ("0::/system.slice/system-vllm.slice/vllm@chat-0.service/worker", "vllm@chat-0.service"),
        ("0::/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        ("1:name=systemd:/system.slice/ssh.service\n0::/", "ssh.service"),
        ("4:memory:/system.slice/ssh.service\n0::/", None),
        ("0::/", None),
    ],
)
def test_the_unit_of_a_process_is_read_from_its_control_group(tmp_path: Path, cgroup: str, unit: str | None) -> None:
    (tmp_path / "812").mkdir()
    (tmp_path / "812" / "cgroup").write_text(cgroup + "\n")
    assert unit_of_process(tmp_path, 812) == unit
    assert unit_of_process(tmp_path, 813) is None


def test_only_units_of_engines_belong_to_an_instance() -> None:
    assert instance_of_unit("vllm@chat-0.service") == "chat-0"
    assert instance_of_unit("vllm.service") is None
    assert instance_of_unit("myvllm@chat-0.service") is None
    assert instance_of_unit(None) is None


def test_which_model_a_triton_server_runs_on_a_gpu_is_told_by_the_records() -> None:
    records = [
        {"id": "a-1", "engine": "triton", "port": 8000, "shards": [{"host": "h", "gpus": ["GPU-0"], "rank": 0}]},
        {"id": "b-1", "engine": "triton", "port": 8000, "shards": [{"host": "h", "gpus": ["GPU-1"], "rank": 0}]},
        {"id": "c-1", "engine": "vllm", "port": 8100, "shards": [{"host": "h", "gpus": ["GPU-0"], "rank": 0}]},
    ]
    assert instance_of_unit("triton-8000.service", "GPU-1", records) == "b-1"
    assert instance_of_unit("triton-8003.service", "GPU-1", records) is None
    assert instance_of_unit("triton-8000.service", "GPU-2", records) is None


def gpu(*, root: str, bridges: tuple[str, ...], numa_node: int | None = 0) -> PciGpu:
    return PciGpu("0000:01:00.0", "10de:26b9", root=root, bridges=bridges, numa_node=numa_node)


@pytest.mark.parametrize(
    ("a", "b", "path"),
    [
        (gpu(root="pci0000:00", bridges=("r", "u", "d1")), gpu(root="pci0000:00", bridges=("r", "u", "d2")), "PIX"),
        (
            gpu(root="pci0000:00", bridges=("r", "u", "d1", "u1", "d3")),
            gpu(root="pci0000:00", bridges=("r", "u", "d2", "u2", "d4")),
            "PXB",
        ),
        (gpu(root="pci0000:00", bridges=("r1",)), gpu(root="pci0000:00", bridges=("r2",)), "PHB"),
        (gpu(root="pci0000:00", bridges=("r1",)), gpu(root="pci0000:40", bridges=("r2",)), "NODE"),
        (gpu(root="pci0000:00", bridges=()), gpu(root="pci0000:80", bridges=(), numa_node=1), "SYS"),
        (gpu(root="pci0000:00", bridges=()), gpu(root="pci0000:80", bridges=(), numa_node=None), None),
    ],
)
def test_the_way_between_two_gpus_follows_from_the_pci_tree(a: PciGpu, b: PciGpu, path: str | None) -> None:
    assert path_between(a, b) == path
    assert path_between(b, a) == path


def test_only_nvidia_display_controllers_are_gpus(tmp_path: Path) -> None:
    devices = tmp_path / "bus/pci/devices"
    for address, vendor, kind in [
        ("0000:01:00.0", "0x10de", "0x030200"),
        ("0000:01:00.1", "0x10de", "0x040300"),
        ("0000:02:00.0", "0x1a03", "0x030000"),
        ("0000:03:00.0", "0x10de", "0x068000"),
    ]:
        (devices / address).mkdir(parents=True)
        for name, content in [("vendor", vendor), ("class", kind), ("device", "0x26b9")]:
            (devices / address / name).write_text(content + "\n")
    assert [found.pci_bus_id for found in scan_gpus(tmp_path)] == ["0000:01:00.0"]
    assert scan_gpus(tmp_path / "nowhere") == ()


def library_that(tmp_path: Path, body: str) -> str:
    source, library = tmp_path / "nvml.c", tmp_path / "libnvidia-ml.so.1"
    source.write_text(f"#include <signal.h>\n#include <unistd.h>\nint nvmlInitWithFlags(unsigned flags) {{ {body} }}\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    return str(library)


def test_a_driver_that_hangs_is_given_up(tmp_path: Path) -> None:
    library = library_that(tmp_path, "for (;;) { sleep(1); }")
    started_s = time.monotonic()
    reading = read_nvml(pynvml, library, timeout_s=0.3)
    assert reading.failure == "NVML did not answer within 0.3 s"
    assert time.monotonic() - started_s < 5


def test_a_library_that_crashes_takes_only_the_reading_down(tmp_path: Path) -> None:
    assert read_nvml(pynvml, library_that(tmp_path, "raise(SIGKILL);"), 30).failure == "reading NVML ended with SIGKILL"


def test_a_library_that_lacks_a_function_is_a_failure_in_words(tmp_path: Path) -> None:
    failure = read_nvml(pynvml, library_that(tmp_path, "return 0;"), 30).failure
    assert failure is not None
    assert "Function Not Found" in failure


def test_the_worst_status_is_the_health_and_unknown_does_not_lower_it() -> None:
    assert worst([]) == "ok"
    assert worst(["ok", "unknown"]) == "ok"
    assert worst(["ok", "degraded", "unknown"]) == "degraded"
    assert worst(["degraded", "blocked"]) == "blocked"
