"""The host document as a whole: what a sound host, a bare one and a half-broken one look like."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fleet.foreign_memory import start_utilization
from fleet.host_document import parse_host
from fleet.probe import ProbeOptions, probe_host
from probe_node import CHECKOUT, DRIVER_VERSION, GPUS, UUIDS, Node, check, simulated_library

if TYPE_CHECKING:
    from collections.abc import Iterator

UNITS = """\
Id=vllm@chat-0.service
LoadState=loaded
ActiveState=active
MainPID=4711

Id=vllm@old-3.service
LoadState=not-found
ActiveState=failed
MainPID=0

Id=vllm@gone-1.service
LoadState=not-found
ActiveState=inactive
MainPID=0
"""


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def process_on_gpu() -> Iterator[subprocess.Popen[bytes]]:
    """A process whose environment gives it the second GPU: the simulated NVML lists it with its real memory."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": UUIDS[1]}
    with subprocess.Popen(["sleep", "60"], env=environment) as process:
        yield process
        process.kill()


def test_the_document_of_a_sound_host(node: Node) -> None:
    document = node.probe()
    assert document["simulated"] is True
    assert document["provisional"] is False
    assert document["provisional_because"] is None
    assert document["driver_version"] == DRIVER_VERSION
    assert document["cuda_driver_version"] == 13000
    assert document["kernel"]["nvidia_module"] == DRIVER_VERSION
    assert document["memory_total_bytes"] == 263792084 * 1024
    assert document["numa_nodes"] == 2
    gpu = dict(document["gpus"][2])
    del gpu["health"]
    assert gpu == {
        "index": 2,
        "uuid": UUIDS[2],
        "name": "NVIDIA L40S",
        "memory_total_bytes": 46068 * 1024**2,
        "memory_used_bytes": 0,
        "memory_foreign_bytes": 0,
        "pci_bus_id": "0000:99:00.0",
        "pci_device_id": "10de:26b9",
        "numa_node": 1,
        "cpu_list": "1-1",
        "power_limit_watts": 350,
        "ecc": True,
        "link": {"generation": 4, "width": 16, "current_generation": 4, "max_generation": 4, "max_width": 16},
        "processes": [],
    }
    paths = {(link["a"], link["b"]): link["path"] for link in document["links"]}
    assert paths == {
        (UUIDS[0], UUIDS[1]): "PIX",
        (UUIDS[0], UUIDS[2]): "SYS",
        (UUIDS[0], UUIDS[3]): "SYS",
        (UUIDS[1], UUIDS[2]): "SYS",
        (UUIDS[1], UUIDS[3]): "SYS",
        (UUIDS[2], UUIDS[3]): "PIX",
    }
    assert {(link["p2p"], link["bytes_per_s"]) for link in document["links"]} == {("untested", None)}


def test_the_document_is_json_and_the_same_when_nothing_changed(node: Node) -> None:
    first, second = node.probe(), node.probe()
    for document in (first, second):
        for volatile in ("memory_available_bytes", "disk", "health"):
            del document[volatile]
    assert json.dumps(first) == json.dumps(second)


def test_probing_changes_nothing(node: Node) -> None:
    def state() -> dict[str, tuple[int, bytes]]:
        files = [path for path in sorted(node.directory.rglob("*")) if path.is_file()]
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files if path.name != "gpus.conf"}

    before = state()
    node.probe()
    assert state() == before


@pytest.mark.parametrize("missing", ["library", "pynvml-fails"])
def test_without_a_driver_the_gpus_come_from_the_pci_bus(node: Node, missing: str) -> None:
    node.remove("sys/module/nvidia")
    for gpu in GPUS:
        node.remove(f"sys/bus/pci/devices/{gpu.sysfs_address}/driver")
    if missing == "library":
        node.library = node.directory / "nowhere" / "libnvidia-ml.so.1"
    else:
        node.machine("fail.nvmlInit = DRIVER_NOT_LOADED")
    document = node.probe()
    assert document["provisional"] is True
    assert document["simulated"] is False
    assert ("libnvidia-ml.so.1" if missing == "library" else "Driver Not Loaded") in document["provisional_because"]
    assert [gpu["uuid"] for gpu in document["gpus"]] == [f"PCI-{gpu.sysfs_address}" for gpu in GPUS]
    assert {gpu["pci_device_id"] for gpu in document["gpus"]} == {"10de:26b9"}
    assert {gpu["memory_total_bytes"] for gpu in document["gpus"]} == {None}
    assert [gpu["numa_node"] for gpu in document["gpus"]] == [0, 0, 1, 1]
    assert document["gpus"][0]["link"]["generation"] == 4
    # A bare host is planned in check mode, so its GPUs must not be ruled out; the host itself says what is wrong.
    assert {gpu["health"]["status"] for gpu in document["gpus"]} == {"ok"}
    row = check(document["health"], "nvml")
    assert row["status"] == "blocked"
    assert "install the driver" in row["remedy"]
    assert [link["path"] for link in document["links"]] == ["PIX", "SYS", "SYS", "SYS", "SYS", "PIX"]


def test_without_pynvml_the_document_says_what_to_do() -> None:
    document = probe_host(lambda: None, ProbeOptions(), run=lambda command: "")
    assert "scripts/setup" in document["provisional_because"]


def test_a_host_that_should_have_no_gpu_is_not_blamed_for_having_none(node: Node) -> None:
    node.gpus_expected = False
    node.library = node.directory / "libnvidia-ml.so.1"
    node.remove("sys/bus")
    document = node.probe()
    assert document["gpus"] == []
    assert check(document["health"], "nvml")["status"] == "ok"
    assert document["health"]["status"] == "ok"


def test_a_gpu_that_nvml_no_longer_counts_is_in_the_document_and_blocked(node: Node) -> None:
    node.description.pop(2)
    gpus = node.probe()["gpus"]
    assert [gpu["uuid"] for gpu in gpus] == [UUIDS[0], UUIDS[2], UUIDS[3], f"PCI-{GPUS[1].sysfs_address}"]
    assert [gpu["index"] for gpu in gpus] == [0, 1, 2, 3]
    assert [gpu["health"]["status"] for gpu in gpus] == ["ok", "ok", "ok", "blocked"]


def test_a_gpu_without_a_handle_keeps_its_index_and_is_found_on_the_bus(node: Node) -> None:
    node.gpu(1, "fail.nvmlDeviceGetHandleByIndex = GPU_IS_LOST")
    document = node.probe()
    assert [gpu["index"] for gpu in document["gpus"]] == [0, 1, 2, 3]
    assert document["gpus"][1]["pci_bus_id"] == GPUS[1].sysfs_address
    assert document["gpus"][1]["health"]["status"] == "blocked"
    assert len(document["links"]) == 3


def test_records_come_with_what_systemd_says(node: Node) -> None:
    node.units = UNITS
    node.instance("chat-0", {"id": "chat-0", "model": "chat", "port": 8100})
    node.instance("embed-0", {"id": "embed-0", "model": "embed"})
    document = node.probe()
    assert document["instances"] == [
        {"id": "chat-0", "model": "chat", "port": 8100, "unit_state": "active", "main_pid": 4711},
        {"id": "embed-0", "model": "embed", "unit_state": None, "main_pid": None},
    ]
    assert document["orphan_units"] == [{"id": "old-3", "unit_state": "failed", "main_pid": None}]
    assert "old-3 (failed)" in check(document["health"], "orphan_units")["evidence"]


@pytest.mark.parametrize(
    ("content", "error"),
    [('{"id": "chat-0", ', "line 2"), ("", "Expecting value"), ("7", "not a JSON object"), (None, "missing")],
)
def test_a_corrupt_record_is_reported_and_the_others_are_read(node: Node, content: str | None, error: str) -> None:
    node.units = UNITS
    node.instance("embed-0", {"id": "embed-0"})
    node.instance("chat-0", content or "")
    if content is None:
        node.remove("instances/chat-0/instance.json")
    chat, embed = node.probe()["instances"]
    assert chat["corrupt"] is True
    assert chat["path"].endswith("instances/chat-0/instance.json")
    assert error in chat["error"]
    assert chat["main_pid"] == 4711
    assert embed["id"] == "embed-0"
    assert "corrupt" not in embed


def test_a_process_of_an_instance_is_ours(node: Node, process_on_gpu: subprocess.Popen[bytes]) -> None:
    node.write(f"proc/{process_on_gpu.pid}/cgroup", "0::/system.slice/system-vllm.slice/vllm@chat-0.service")
    gpus = node.probe()["gpus"]
    (process,) = gpus[1]["processes"]
    assert process["pid"] == process_on_gpu.pid
    assert process["used_bytes"] > 0
    assert (process["unit"], process["instance"]) == ("vllm@chat-0.service", "chat-0")
    assert gpus[1]["memory_foreign_bytes"] == 0
    assert gpus[1]["memory_used_bytes"] == process["used_bytes"]
    assert gpus[1]["health"]["status"] == "ok"
    assert gpus[0]["processes"] == []


def test_a_process_of_someone_else_is_foreign(node: Node, process_on_gpu: subprocess.Popen[bytes]) -> None:
    node.write(f"proc/{process_on_gpu.pid}/cgroup", "0::/user.slice/user-1000.slice/session-3.scope")
    gpu = node.probe()["gpus"][1]
    assert [process["instance"] for process in gpu["processes"]] == [None]
    assert gpu["processes"][0]["unit"] == "session-3.scope"
    assert gpu["memory_foreign_bytes"] == gpu["processes"][0]["used_bytes"]
    row = check(gpu["health"], "foreign_memory")
    assert row["status"] == "degraded"
    assert str(process_on_gpu.pid) in row["evidence"]


def test_a_kept_link_test_counts_until_driver_or_topology_change(node: Node) -> None:
    key = node.probe()["topology_key"]
    kept: dict[str, Any] = {
        "schema": 1,
        "key": key,
        "pairs": [{"a": UUIDS[1], "b": UUIDS[0], "p2p": "failed", "bytes_per_s": None}],
        "all_reduce": [{"gpus": 2, "bytes": 1024, "seconds": 0.00002}],
    }
    node.write("link_test.json", json.dumps(kept))
    document = node.probe()
    assert document["links"][0]["p2p"] == "failed"
    assert {link["p2p"] for link in document["links"][1:]} == {"untested"}
    assert document["all_reduce"] == kept["all_reduce"]

    node.machine("driver_version = 590.44.01-simulated")
    document = node.probe()
    assert {link["p2p"] for link in document["links"]} == {"untested"}
    assert document["all_reduce"] == []


def test_a_broken_link_test_is_named_as_unseen(node: Node) -> None:
    node.write("link_test.json", '{"schema": 1}')
    assert any("link_test.json" in line for line in node.probe()["unseen"])


def test_engines_count_when_their_installation_was_finished(node: Node) -> None:
    node.write("engines/0.32.0/.complete", "")
    node.write("engines/0.33.0/bin/python", "")
    assert node.probe()["engines"] == {"vllm": ["0.32.0"]}


def test_the_applied_plan_is_returned_as_it_is(node: Node) -> None:
    applied = {"schema": 1, "revision": 7, "plan": {"instances": []}}
    assert node.probe()["applied"] is None
    node.write("applied.json", json.dumps(applied))
    assert node.probe()["applied"] == applied


def test_disk_is_that_of_the_nearest_directory_that_exists(node: Node) -> None:
    (disk,) = node.probe()["disk"]
    state = os.statvfs(node.directory)
    assert disk["path"] == str(node.directory / "var/lib/l40s-fleet")
    assert disk["total_bytes"] == state.f_frsize * state.f_blocks
    assert os.path.ismount(disk["mount"])


AS_NOBODY = """
import json, os, sys
from pathlib import Path
import pynvml
from fleet.host_document import parse_host
from fleet.probe import ProbeOptions, probe_host
from fleet.probe_host import Paths
base = Path(sys.argv[1])
paths = Paths(sysfs=base / "sys", procfs=base / "proc", root=base / "root", instances=base / "instances",
              applied=base / "applied.json", link_test=base / "link_test.json", kernel_log=base / "log")
options = ProbeOptions(paths=paths, nvml_library=str(base / "libnvidia-ml.so.1"), disk_paths=())
os.setgid(65534)
os.setuid(65534)
print(json.dumps(probe_host(lambda: pynvml, options, run=lambda command: "")))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become someone else")
def test_without_root_it_says_what_it_could_not_see() -> None:
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        base.chmod(0o755)
        node = Node(base)
        node.write_bridges(0)
        node.instance("chat-0", {"id": "chat-0"})
        node.write("applied.json", "{}")
        node.probe()
        shutil.copy(simulated_library(), base)
        hidden = [base / name for name in ("log", "applied.json", "instances/chat-0/instance.json")]
        for path in [*hidden, *(node.paths.sysfs / "bus/pci/devices").glob("*/config")]:
            path.chmod(0o600)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, directory],
            capture_output=True,
            text=True,
            check=True,
            env={
                **os.environ,
                "L40S_LAB_GPUS": str(base / "gpus.conf"),
                "PYTHONPATH": str(CHECKOUT / "module_utils"),
            },
        )
    document = json.loads(done.stdout)
    assert document["provisional"] is False
    assert len(document["gpus"]) == len(GPUS)
    said = "\n".join(document["unseen"])
    for part in ("kernel log", "acs", "chat-0/instance.json: permission denied", "applied.json: permission denied"):
        assert part in said
    assert check(document["gpus"][0]["health"], "xid")["status"] == "unknown"
    assert check(document["health"], "acs")["status"] == "unknown"
    # An instance that cannot be read still holds its GPUs.
    assert document["instances"][0]["corrupt"] is True


@pytest.mark.parametrize(
    ("recorded", "not_seen"), [("h100.json", []), ("h100_busy.json", []), ("h100_module.json", ["write_and_verify"])]
)
def test_a_recorded_host_and_the_simulated_one_tell_the_same_things(
    node: Node, recorded: str, not_seen: list[str]
) -> None:
    """What this probe returned on a real H100: idle, with 8 GiB held by a process, and as Ansible ships it."""
    real = json.loads((CHECKOUT / "tests/data/probe" / recorded).read_text())
    simulated = node.probe()
    assert real.keys() <= simulated.keys()
    assert real["gpus"][0].keys() <= simulated["gpus"][0].keys()
    for a, b in ((real, simulated), (real["gpus"][0], simulated["gpus"][0])):
        assert {row["name"] for row in a["health"]["checks"]} <= {row["name"] for row in b["health"]["checks"]}
    unknown = [row["name"] for row in real["gpus"][0]["health"]["checks"] if row["status"] == "unknown"]
    assert unknown == not_seen


def test_what_a_real_process_holds_on_a_real_gpu_is_foreign_and_degrades_it() -> None:
    real = json.loads((CHECKOUT / "tests/data/probe/h100_busy.json").read_text())
    (gpu,) = real["gpus"]
    assert gpu["memory_foreign_bytes"] > 8 << 30
    assert gpu["health"]["status"] == "degraded"
    assert check(gpu["health"], "foreign_memory")["status"] == "degraded"


def spoiled(node: Node, fault: str) -> dict[str, Any]:
    if fault == "no driver":
        node.machine("fail.nvmlInit = DRIVER_NOT_LOADED")
    elif fault == "lost":
        node.gpu(1, "fail = GPU_IS_LOST")
    elif fault == "no handle":
        node.gpu(1, "fail.nvmlDeviceGetHandleByIndex = GPU_IS_LOST")
    elif fault == "not counted":
        node.description.pop(2)
    return node.probe()


@pytest.mark.parametrize("fault", ["none", "no driver", "lost", "no handle", "not counted"])
def test_the_plan_stage_takes_every_document_that_the_probe_returns(node: Node, fault: str) -> None:
    host = parse_host("l40s-01", spoiled(node, fault), where="facts.json")
    assert len(host.gpus) == len(GPUS)
    assert host.provisional is (fault == "no driver")
    assert sum(gpu.blocked is not None for gpu in host.gpus) == (fault in {"lost", "no handle", "not counted"})
    assert {gpu.model.name for gpu in host.gpus if gpu.model and gpu.blocked is None} == {"L40S"}


@pytest.mark.parametrize(
    ("recorded", "utilization"),
    [
        ("h100.json", None),
        ("h100_module.json", None),
        ("h100_busy.json", 0.85),
        ("h100_foreign.json", 0.85),
        ("h200.json", None),
    ],
)
def test_the_plan_stage_takes_the_documents_of_a_real_host(recorded: str, utilization: float | None) -> None:
    real = json.loads((CHECKOUT / "tests/data/probe" / recorded).read_text())
    (gpu,) = parse_host("h100", real, where="facts.json").gpus
    assert gpu.model is not None
    assert gpu.blocked is None
    assert start_utilization(gpu) == utilization


def test_the_plan_stage_takes_two_real_gpus_and_their_link_test() -> None:
    """Two H100 of one host (NVLink), probed before the link test, and what the test then kept."""
    real, kept = (
        json.loads((CHECKOUT / "tests/data/probe" / name).read_text())
        for name in ("h100_two.json", "h100_two_link_test.json")
    )
    gpus = parse_host("h100", real, where="facts.json").gpus
    assert [gpu.blocked for gpu in gpus] == [None, None]
    assert [link["p2p"] for link in real["links"]] == ["untested"]
    assert {gpu.uuid for gpu in gpus} == {kept["pairs"][0]["a"], kept["pairs"][0]["b"]}
    assert (kept["pairs"][0]["p2p"], kept["simulated"]) == ("verified", False)
    points = [(point["bytes"], point["seconds"]) for point in kept["all_reduce"]]
    assert (points[0][0], points[-1][0]) == (1 << 10, 256 << 20)
    assert points[-1][1] > 2 * points[0][1] > 0
