"""What the tests of this scenario share: playbooks, the nodes' files, and connections from node to node."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from typing import TYPE_CHECKING

from lab_support import CHECKOUT, LAB

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

ADDRESSES = json.loads((CHECKOUT / "build/lab" / LAB / "addresses.json").read_text())
STATE = "/var/lib/l40s-fleet/quarantine.json"
PROGRAM = "/usr/local/lib/l40s-fleet/quarantine/l40s-fleet-quarantine"
CONNECT = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3).close()"


def node_file(node: str, name: str) -> pathlib.Path:
    """A file of a node's simulated hardware."""
    return CHECKOUT / "build/lab" / LAB / "nodes" / node / name


def play(playbook: str, *arguments: str, expect: int = 0) -> str:
    """Runs a playbook on the lab under test and returns what it printed."""
    command = ["ansible-playbook", "--inventory", CHECKOUT / "inventory/lab/hosts.yml", *arguments, CHECKOUT / playbook]
    environment = {**os.environ, "L40S_LAB": LAB, "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg")}
    environment |= {"ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == expect, done.stdout[-6000:] + done.stderr
    return done.stdout


def changed(output: str) -> set[int]:
    """How many tasks changed something, of every host of a playbook."""
    return {int(count) for count in re.findall(r"changed=(\d+)", output)}


def run_on(node: str, *command: str) -> int:
    """Runs a command on a node, and returns its exit status."""
    return subprocess.run(["podman", "exec", f"{LAB}-{node}", *command], capture_output=True, check=False).returncode


def connects(origin: str, node: str, port: int) -> bool:
    """Whether a connection from one node to another is accepted."""
    return run_on(origin, "python3", "-c", CONNECT, ADDRESSES[node], str(port)) == 0


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Waits for what a timer or a stopping unit brings about."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.5)
