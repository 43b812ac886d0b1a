"""The watch on a simulated host: real pynvml, the lab's NVML, kernel log lines, and a systemctl that writes down."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pynvml
import pytest
import yaml
from fleet.quarantine_state import read_state
from fleet.quarantine_watch import Places, Watch, main
from probe_node import CHECKOUT, GPUS, UUIDS, Node, simulated_library

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BUS_ID = GPUS[1].sysfs_address
FALLEN = f"NVRM: Xid (PCI:{BUS_ID[:-2]}): 79, GPU has fallen off the bus."


@dataclass
class Host:
    """A node, what systemctl was asked for, and what the watch said."""

    node: Node
    asked: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    shows: str = "ActiveState=active\nUnitFileState=enabled\n"

    @property
    def places(self) -> Places:
        paths = self.node.paths
        return Places(
            state=paths.quarantine,
            instances=paths.instances,
            kernel_log=paths.kernel_log,
            boot_id=paths.procfs / "sys/kernel/random/boot_id",
            nvml_library=str(simulated_library()),
        )

    def systemctl(self, arguments: Sequence[str]) -> str:
        if arguments[0] == "show":
            return self.shows
        self.asked.append(" ".join(arguments))
        return ""

    def watch(self) -> Watch:
        os.environ["L40S_LAB_GPUS"] = str(self.node.write("gpus.conf", "[gpu]".join(self.node.description)))
        return Watch(self.places, pynvml, control=self.systemctl, say=self.said.append)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    node = Node(tmp_path)
    for identifier, gpus in (("chat-0", UUIDS[:2]), ("embed-0", UUIDS[2:3])):
        node.instance(identifier, {"id": identifier, "engine": "vllm", "shards": [{"gpus": gpus}]})
    return Host(node)


def test_a_sound_host_is_left_alone(host: Host) -> None:
    assert host.watch().run().gpus == {}
    assert (host.asked, host.said) == ([], [])
    assert {known.uuid for known in read_state(host.places.state).known.values()} == set(UUIDS)


def test_a_fatal_xid_stops_the_instances_on_that_gpu_alone(host: Host) -> None:
    host.watch().run()
    host.node.log(FALLEN)
    host.node.gpu(1, "fail = GPU_IS_LOST")
    assert set(host.watch().run().gpus) == {BUS_ID}
    assert read_state(host.places.state).gpus[BUS_ID].uuid == UUIDS[1]
    assert host.asked == ["disable --quiet vllm@chat-0.service", "stop --no-block vllm@chat-0.service"]
    assert "fallen off the bus" in host.said[0]


def test_rising_rows_do_the_same(host: Host) -> None:
    host.watch().run()
    host.node.gpu(2, "remapped_rows_uncorrected = 1")
    host.watch().run()
    assert host.asked == ["disable --quiet vllm@embed-0.service", "stop --no-block vllm@embed-0.service"]


def test_what_was_stopped_is_not_stopped_again_but_what_came_back_is(host: Host) -> None:
    host.node.log(FALLEN)
    host.watch().run()
    host.asked.clear()
    host.shows = "ActiveState=inactive\nUnitFileState=disabled\n"
    host.watch().run()
    assert host.asked == []
    host.shows = "ActiveState=activating\nUnitFileState=disabled\n"
    host.watch().run()
    assert host.asked != []


def test_a_unit_that_cannot_be_stopped_does_not_undo_the_mark(host: Host) -> None:
    host.node.log(FALLEN)
    watch = host.watch()

    def refuse(_: Sequence[str]) -> str:
        raise subprocess.CalledProcessError(1, ["systemctl"])

    watch._control = refuse  # type: ignore[method-assign]
    with pytest.raises(subprocess.CalledProcessError):
        watch.run()
    assert set(read_state(host.places.state).gpus) == {BUS_ID}


def test_a_lifted_gpu_is_used_until_it_fails_again(host: Host) -> None:
    host.node.log(FALLEN)
    host.watch().run()
    assert host.watch().clear([UUIDS[1]], pretend=True) == (BUS_ID,)
    assert set(read_state(host.places.state).gpus) == {BUS_ID}
    assert host.watch().clear([UUIDS[1]]) == (BUS_ID,)
    assert host.watch().run().gpus == {}
    document = host.node.probe()
    assert document["gpus"][1]["health"]["status"] == "ok"
    # Record numbers go on from those that were acknowledged.
    with host.places.kernel_log.open("a") as log:
        log.write(f"4,99,0,-;{FALLEN}\n")
    assert set(host.watch().run().gpus) == {BUS_ID}
    assert host.node.probe()["gpus"][1]["health"]["status"] == "blocked"


def test_without_a_driver_the_kernel_log_counts_alone(host: Host) -> None:
    host.node.machine("fail.nvmlInit = DRIVER_NOT_LOADED")
    host.node.log(FALLEN)
    assert set(host.watch().run().gpus) == {BUS_ID}
    assert any("Driver Not Loaded" in line for line in host.said)
    # Which instance uses the GPU is unknown: its UUID was never seen.
    assert host.asked == []


def test_the_command_line(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.node.log(FALLEN)
    host.watch().run()
    arguments = ["--state", str(host.places.state), "--kernel-log", str(host.places.kernel_log)]
    arguments += ["--nvml-library", str(simulated_library())]
    assert main(pynvml, [*arguments, "status"]) == 0
    assert json.loads(capsys.readouterr().out)[BUS_ID]["uuid"] == UUIDS[1]
    assert main(pynvml, [*arguments, "clear", "GPU-nowhere"]) == 1
    assert capsys.readouterr().err.splitlines() == [f"{host.places.state}: GPU-nowhere is not in quarantine"]
    assert main(pynvml, [*arguments, "clear", BUS_ID]) == 0
    assert json.loads(capsys.readouterr().out) == {"lifted": [BUS_ID]}
    host.places.state.write_text("{}")
    assert main(pynvml, [*arguments, "watch"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"{host.places.state}: ")
    assert error.count("\n") == 1


def test_the_role_installs_all_that_the_program_imports(tmp_path: Path) -> None:
    variables = yaml.safe_load((CHECKOUT / "roles/quarantine/vars/main.yml").read_text())
    for name in variables["quarantine_sources"]:
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(CHECKOUT / "module_utils" / name, target)
    program = "import sys; sys.path.insert(0, sys.argv[1]); import pynvml; from fleet.quarantine_watch import main; "
    program += "sys.exit(main(pynvml, sys.argv[2:]))"
    arguments = [str(tmp_path), "--state", str(tmp_path / "quarantine.json"), "status"]
    # Isolated: nothing of this checkout or its environment is on the path.
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "{}\n", "")
