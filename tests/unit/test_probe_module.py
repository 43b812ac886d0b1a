"""The module fleet_probe, shipped and run by Ansible: pynvml travels with it, and Python 3.10 is enough."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from probe_node import CHECKOUT, GPUS, UUIDS, Node, simulated_library


def oldest_python() -> str:
    """An interpreter of the oldest version that managed hosts may have; this one where there is none."""
    found = [path for path in (shutil.which("python3.10"),) if path and works(path)]
    pyenv = sorted((Path.home() / ".pyenv/versions").glob("3.10.*/bin/python"))
    return next(iter([*found, *map(str, pyenv)]), sys.executable)


def works(python: str) -> bool:
    return subprocess.run([python, "-c", ""], check=False, capture_output=True).returncode == 0


def test_the_module_returns_the_host_document_in_check_mode(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.instance("chat-0", {"id": "chat-0", "model": "chat"})
    node.probe()  # writes the description that the library reads
    options = {
        "sysfs_root": str(node.paths.sysfs),
        "kernel_log": str(node.paths.kernel_log),
        "nvml_library": str(simulated_library()),
        "instances_dir": str(node.paths.instances),
        "engines_dir": str(node.paths.engines),
        "applied_path": str(node.paths.applied),
        "link_test_path": str(node.paths.link_test),
    }
    command = ["ansible", "localhost", "-C", "-i", "localhost,", "-c", "local", "-m", "fleet_probe"]
    done = subprocess.run(
        [*command, "-a", json.dumps(options)],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PATH": f"{CHECKOUT / '.venv/bin'}:{os.environ['PATH']}",
            "ANSIBLE_LIBRARY": str(CHECKOUT / "library"),
            "ANSIBLE_MODULE_UTILS": str(CHECKOUT / "module_utils"),
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            "ANSIBLE_PYTHON_INTERPRETER": oldest_python(),
            "L40S_LAB_GPUS": str(tmp_path / "gpus.conf"),
        },
    )
    _, _, text = done.stdout.partition("localhost | SUCCESS => ")
    assert text, done.stdout + done.stderr
    result = json.loads(text)
    assert result["changed"] is False
    host = result["host"]
    assert host["simulated"] is True
    assert host["provisional"] is False
    assert [gpu["uuid"] for gpu in host["gpus"]] == UUIDS
    assert [gpu["pci_bus_id"] for gpu in host["gpus"]] == [gpu.sysfs_address for gpu in GPUS]
    assert host["instances"][0]["model"] == "chat"
