"""What the testinfra tests of all scenarios share; .config/molecule/config.yml loads it as a pytest plugin."""

from __future__ import annotations

import os
import pathlib
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
LAB = os.environ.get("L40S_LAB", "test")


def lab_command(*arguments: str) -> str:
    """Runs scripts/lab for the lab under test and returns what it printed."""
    command, *rest = arguments
    done = subprocess.run(
        [CHECKOUT / "scripts" / "lab", command, "--name", LAB, *rest], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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
