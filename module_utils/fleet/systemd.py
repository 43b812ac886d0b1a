"""Units of one host, through systemctl and journalctl."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RunCommand = tuple[int, str, str]
"""Exit status, standard output, standard error."""

_PROPERTIES = "Id,ActiveState,SubState,Result,NRestarts,UnitFileState,NeedDaemonReload,InvocationID,ExecMainStatus,Job"
# "(EngineCore pid=12) ERROR 11-24 07:54:29 [core.py:1120] " in front of what the engine has to say.
_LOG_PREFIX = re.compile(r"^(\([\w-]+ pid=\d+\) ?)?((DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:]+ \[[^\]]*\] ?)?")
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*\.)?[A-Z]\w*(Error|Exception|Exit)(\(.*\))?: \S|^[\w. -]+: error: \S")
# vLLM's parent process ends with these whatever the cause was; the cause stands above them. A RankError tells of
# another host.
_CONSEQUENCES = (
    "Engine core initialization failed",
    "WorkerProc initialization failed",
    "Executor failed",
    "RankError",
)
_MAX_LINE_LENGTH = 400


@dataclass(frozen=True)
class UnitState:
    """What systemd knows of one unit.

    Attributes:
        active_state: ``active``, ``activating``, ``inactive``, ``failed`` or ``deactivating``.
        sub_state: ``running``, ``start-post``, ``auto-restart`` ...
        result: ``success``, or how the unit last failed.
        restarts: restarts by systemd itself since the last start by hand.
        enabled: whether it starts at boot.
        needs_reload: the unit file is newer than what systemd has read.
        invocation: id of the current or last run, for the journal.
        queued: a start or stop waits for its turn.
    """

    active_state: str = "inactive"
    sub_state: str = "dead"
    result: str = "success"
    restarts: int = 0
    enabled: bool = False
    needs_reload: bool = False
    invocation: str = ""
    queued: bool = False

    @property
    def running(self) -> bool:
        """Whether the unit runs, starts, or is about to be started again."""
        return self.active_state in ("active", "activating", "reloading")


def run_command(arguments: Sequence[str]) -> RunCommand:
    """Runs a program and waits for it; a program that is not there answers 127, as a shell would."""
    try:
        result = subprocess.run(list(arguments), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return 127, "", f"{arguments[0]}: not found"
    return result.returncode, result.stdout, result.stderr


def parse_show(output: str) -> dict[str, UnitState]:
    """States by unit name, from the blocks that ``systemctl show`` prints for several units."""
    states = {}
    for block in output.split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if not values.get("Id"):
            continue
        states[values["Id"]] = UnitState(
            active_state=values.get("ActiveState", "inactive"),
            sub_state=values.get("SubState", "dead"),
            result=values.get("Result", "success"),
            restarts=int(values.get("NRestarts") or 0),
            enabled=values.get("UnitFileState") == "enabled",
            needs_reload=values.get("NeedDaemonReload") == "yes",
            invocation=values.get("InvocationID", ""),
            queued=bool(int(values.get("Job") or 0)),
        )
    return states


def last_error(journal: str) -> str:
    """The engine's own words for its failure, as one line; empty when it said nothing.

    Args:
        journal: messages of one run, oldest first, as ``journalctl --output=cat`` prints them.
    """
    lines = [_LOG_PREFIX.sub("", line, count=1).rstrip() for line in journal.splitlines()]
    lines = [line for line in lines if line.strip()]
    found = [number for number, line in enumerate(lines) if _EXCEPTION.match(line)]
    causes = [number for number in found if not is_consequence(lines[number])]
    if not causes and not found:
        return lines[-1].strip()[:_MAX_LINE_LENGTH] if lines else ""
    number = (causes or found)[-1]
    message = lines[number]
    # pydantic says "1 validation error for ModelConfig" and the reason in the indented line below.
    if "validation error" in message and number + 1 < len(lines):
        message = next((line for line in lines[number + 1 :] if line.startswith("  ")), message)
    return message.strip()[:_MAX_LINE_LENGTH]


def is_consequence(message: str) -> bool:
    """Whether a process says no more than that another one failed, whose own words are in the journal."""
    return any(text in message for text in _CONSEQUENCES)


class Systemd:
    """The units of this host.

    Args:
        run: runs a program and returns (exit status, standard output, standard error).
    """

    def __init__(self, run: Callable[[Sequence[str]], RunCommand] = run_command) -> None:
        self._run = run

    def states(self, units: Sequence[str]) -> dict[str, UnitState]:
        """What systemd knows of each unit; a host without systemd has no unit running."""
        if not units:
            return {}
        status, output, _ = self._run(["systemctl", "show", "--property", _PROPERTIES, *units])
        known = parse_show(output) if status == 0 else {}
        return {unit: known.get(unit, UnitState()) for unit in units}

    def loaded(self, pattern: str) -> list[str]:
        """Names of the units in memory that match, running or failed."""
        command = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "--full", pattern]
        status, output, _ = self._run(command)
        return [line.split()[0] for line in output.splitlines() if line.strip()] if status == 0 else []

    def daemon_reload(self) -> None:
        """Has systemd read the unit files again."""
        self._must("daemon-reload")

    def enable(self, units: Sequence[str]) -> None:
        """Has the units start at boot."""
        if units:
            self._must("enable", "--quiet", *units)

    def queue(self, verb: str, units: Sequence[str]) -> None:
        """Queues ``start`` or ``restart`` and returns at once. Failures of earlier starts do not count against it."""
        if units:
            self._run(["systemctl", "reset-failed", *units])
            self._must(verb, "--no-block", *units)

    def stop(self, units: Sequence[str]) -> None:
        """Stops the units and waits until they have drained."""
        if units:
            self._must("stop", *units)

    def remove(self, units: Sequence[str]) -> None:
        """Stops the units for good: they do not start at boot, and no failure of theirs is remembered."""
        if units:
            self.stop(units)
            self._must("disable", "--quiet", *units)
            # systemctl complains of those that are not loaded any more.
            self._run(["systemctl", "reset-failed", *units])

    def journal(self, unit: str, invocation: str, lines: int = 400, grep: str = "") -> str:
        """The last messages of one run of a unit, without time stamps; with ``grep`` those that match it."""
        command = ["journalctl", "--unit", unit, "--output=cat", "--no-pager", "--lines", str(lines)]
        if invocation:
            command.append(f"_SYSTEMD_INVOCATION_ID={invocation}")
        if grep:
            command.append(f"--grep={grep}")
        return self._run(command)[1]

    def _must(self, *arguments: str) -> None:
        status, _, error = self._run(["systemctl", *arguments])
        if status != 0:
            raise FleetError("systemctl " + " ".join(arguments), (error.strip().splitlines() or ["failed"])[-1])
