"""What the testinfra tests of all scenarios share; .config/molecule/config.yml loads it as a pytest plugin."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
LAB = os.environ.get("L40S_LAB", "test")
_RECAP = re.compile(r"^(\S+) +: ok=\d+ +changed=(\d+) ", re.MULTILINE)


def lab_command(*arguments: str) -> str:
    """Runs scripts/lab for the lab under test and returns what it printed."""
    command, *rest = arguments
    done = subprocess.run(
        [CHECKOUT / "scripts" / "lab", command, "--name", LAB, *rest], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished ansible-playbook."""

    status: int
    output: str
    seconds: float

    def changed(self) -> dict[str, int]:
        """Changed tasks by host."""
        return {found[1]: int(found[2]) for found in _RECAP.finditer(self.output)}


def run_playbook(playbook: pathlib.Path, *options: str) -> Run:
    """Runs a playbook against the lab under test, with its inventory, as its operator does."""
    command = ["ansible-playbook", f"--inventory={CHECKOUT}/inventory/lab/hosts.yml", *options, playbook]
    begun = time.monotonic()
    done = subprocess.run(
        command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return Run(done.returncode, done.stdout, time.monotonic() - begun)


@pytest.fixture
def restart_node(host: Any) -> Callable[[], None]:
    """Restarts the node under test as a reboot does; returns when it can be reached again."""
    return lambda: lab_command("restart", host.backend.host) and None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """A failed test shows what systemd of its node has to say."""
    report = yield
    host = getattr(item, "funcargs", {}).get("host")
    if call.when == "call" and report.failed and host is not None:
        for command in ("systemctl --failed --no-legend --plain", "journalctl --no-pager --lines 60"):
            report.sections.append((f"{host.backend.host}: {command}", host.run(command).stdout))
    return report
