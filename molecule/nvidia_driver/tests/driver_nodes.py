"""The two nodes of the scenario: commands on them, plays over them, and all that a failed change must leave alone."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CHECKOUT = pathlib.Path(__file__).resolve().parents[3]
LAB = os.environ.get("L40S_LAB", "drivers")
NODES = ("l40s-01", "l40s-02")
INVENTORIES = (
    CHECKOUT / "inventory" / "lab" / "hosts.yml",
    CHECKOUT / "molecule" / "nvidia_driver" / "inventory" / "hosts.yml",
)
ROLE = CHECKOUT / "molecule" / "nvidia_driver" / "converge.yml"
# Packages with their states and holds, marks, and everything in the directories that the role writes to.
STATE = r"""
dpkg-query -W -f '${Package} ${Version} ${Status}\n' | grep -v ' not-installed$'
apt-mark showmanual
find /etc/apt /etc/modprobe.d /etc/systemd/system /boot -type f -exec sha256sum {} + 2>/dev/null | sort
"""


class Play:
    """The outcome of a playbook."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.ok = done.returncode == 0
        self.output = done.stdout + done.stderr
        self.words = " ".join(self.output.split())

    @property
    def changed(self) -> int:
        """How many tasks changed something, on all nodes together."""
        recap = self.output.rpartition("PLAY RECAP")[2]
        return sum(int(word.removeprefix("changed=")) for word in recap.split() if word.startswith("changed="))


def play(*arguments: str, playbook: pathlib.Path = ROLE, **variables: object) -> Play:
    """Runs a playbook on both nodes."""
    command = [CHECKOUT / ".venv" / "bin" / "ansible-playbook", "--limit", "drivers"]
    command += [f"--inventory={inventory}" for inventory in INVENTORIES]
    command += ["--extra-vars", json.dumps(variables), *arguments, playbook]
    environment = {**os.environ, "L40S_LAB": LAB, "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg")}
    environment |= {"ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"}
    return Play(subprocess.run(command, capture_output=True, text=True, env=environment, check=False))


def on(node: str, command: str, *, check: bool = True) -> str:
    """Runs a command as root on a node and returns what it printed."""
    config = CHECKOUT / "build" / "lab" / LAB / "ssh" / "config"
    done = subprocess.run(
        ["ssh", "-F", config, node, "sudo", "sh", "-s"], input=command, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done.stdout


def on_all(command: str) -> dict[str, str]:
    """Runs a command on both nodes at once."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(NODES, pool.map(lambda node: on(node, command), NODES), strict=True))


def state() -> dict[str, list[str]]:
    """All that a failed change must leave as it was, by node."""
    return {node: text.splitlines() for node, text in on_all(STATE).items()}


def versions(node: str) -> dict[str, str]:
    """Version of every installed package of a node, with a star in front when it is held."""
    lines = on(node, r"dpkg-query -W -f '${Package} ${Version} ${Status}\n'").splitlines()
    found = {}
    for line in lines:
        name, version, want, _, status = line.split()
        if status == "installed":
            found[name] = f"*{version}" if want == "hold" else version
    return found


def restart_when_down(node: str, mend: Callable[[], object] = lambda: None) -> threading.Thread:
    """Waits in the background until a node has shut down, lets something be mended, and starts it again.

    A container's reboot ends it: the lab stands for the machine that starts it anew.
    """

    def run() -> None:
        # `wait` returns when the container has stopped.
        environment = {**os.environ, "CONTAINERS_CONF": str(CHECKOUT / "build" / "lab" / "containers.conf")}
        subprocess.run(
            ["podman", "wait", f"{LAB}-{node}"], env=environment, check=True, timeout=120, stdout=subprocess.DEVNULL
        )
        mend()
        lab = [CHECKOUT / "scripts" / "lab", "restart", "--name", LAB, node]
        subprocess.run(lab, check=True, stdout=subprocess.DEVNULL)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread
