"""Reads the instances of a host: their records, what systemd says about their units, and which unit a process is of."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

# Units of engines. That of Triton is named by its port, and carries several instances.
_UNIT = re.compile(r"vllm@(.+)\.service")
_TRITON_UNIT = re.compile(r"triton-(\d+)\.service")
_SYSTEMCTL_TIMEOUT_S = 10


@dataclass(frozen=True)
class UnitState:
    """ActiveState and MainPID of a unit; ``main_pid`` is None when no process runs."""

    state: str
    main_pid: int | None


def run_command(command: Sequence[str]) -> str:
    """Run a program and return what it printed.

    Raises:
        OSError: it could not be started.
        subprocess.SubprocessError: it failed or took too long.
    """
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=_SYSTEMCTL_TIMEOUT_S, stdin=subprocess.DEVNULL
    ).stdout


def read_records(instances: Path, unseen: list[str]) -> list[dict[str, Any]]:
    """Return the record of every instance directory, in the order of their names.

    A record that cannot be read or understood becomes ``{"id", "path", "corrupt": True, "error"}``: the instance may
    well run and hold its GPUs, so it must not vanish from the document.
    """
    if not instances.is_dir():
        return []
    try:
        directories = sorted(
            entry for entry in instances.iterdir() if entry.is_dir() and not entry.name.startswith(".")
        )
    except PermissionError:
        unseen.append(f"instances: {instances}: permission denied")
        return []
    return [_record(directory, unseen) for directory in directories]


def read_units(
    identifiers: Sequence[str],
    unseen: list[str],
    run: Callable[[Sequence[str]], str] = run_command,
    ports: Sequence[int] = (),
) -> dict[str, UnitState]:
    """Return the state of the engines' units by instance id, also of units that have no instance record.

    One call of systemctl answers for all. The pattern adds units that systemd still knows though their record is gone.
    Triton's servers, which are asked for by their ``ports``, go by the names of their units.
    """
    units = [f"vllm@{identifier}.service" for identifier in identifiers]
    servers = [f"triton-{port}.service" for port in ports]
    properties = "--property=Id,LoadState,ActiveState,MainPID"
    try:
        shown = run(["systemctl", "show", properties, "--", "vllm@*.service", *units, *servers])
    except (OSError, subprocess.SubprocessError) as error:
        unseen.append(f"units: systemctl show: {_reason(error)}")
        return {}
    return parse_units(shown)


def parse_units(shown: str) -> dict[str, UnitState]:
    """Return the units in the output of ``systemctl show``, one block of properties each, by instance id."""
    units = {}
    for block in shown.split("\n\n"):
        properties = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        name = properties.get("Id", "")
        match = _UNIT.fullmatch(name)
        if match is None and not _TRITON_UNIT.fullmatch(name):
            continue
        pid = int(properties.get("MainPID") or 0)
        units[match.group(1) if match else name] = UnitState(properties.get("ActiveState", "unknown"), pid or None)
    return units


def unit_of_process(procfs: Path, pid: int) -> str | None:
    """Return the systemd unit that a process belongs to, by its control group; None when it has none or has ended."""
    try:
        groups = (procfs / str(pid) / "cgroup").read_text(encoding="utf-8")
    except OSError:
        return None
    for line in groups.splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        # Version 2's only hierarchy is number 0; on version 1 systemd's own is called name=systemd.
        if hierarchy == "0" or controllers == "name=systemd":
            for part in reversed(path.split("/")):
                if part.endswith((".service", ".scope")):
                    return part
    return None


def instance_of_unit(unit: str | None, gpu: str | None = None, records: Sequence[dict[str, Any]] = ()) -> str | None:
    """Return the instance that a unit's process on a GPU belongs to; None for a unit of someone else.

    Args:
        unit: of the process.
        gpu: UUID of the GPU. Which of its models a Triton server runs there is told by the records.
        records: of the host's instances.
    """
    match = _UNIT.fullmatch(unit or "")
    if match is not None:
        return match.group(1)
    for record in records:
        if unit_of_record(record) == unit and any(gpu in shard["gpus"] for shard in record.get("shards", ())):
            return str(record["id"])
    return None


def unit_of_record(record: dict[str, Any]) -> str:
    """The name of the unit that carries an instance."""
    return (
        f"triton-{record.get('port')}.service" if record.get("engine") == "triton" else f"vllm@{record['id']}.service"
    )


def read_all_records(instances: Path, triton: Path, unseen: list[str]) -> list[dict[str, Any]]:
    """Return the records of vLLM's instances, and of those in the servers of Triton."""
    records = read_records(instances, unseen)
    for server in sorted(triton.iterdir()) if triton.is_dir() else ():
        records += read_records(server / "instances", unseen)
    return sorted(records, key=lambda record: str(record["id"]))


def _record(directory: Path, unseen: list[str]) -> dict[str, Any]:
    path = directory / "instance.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return _corrupt(directory, "the file is missing")
    except PermissionError:
        unseen.append(f"instances: {path}: permission denied")
        return _corrupt(directory, "permission denied")
    except (OSError, ValueError) as error:
        return _corrupt(directory, str(error))
    if not isinstance(record, dict):
        return _corrupt(directory, "not a JSON object")
    if record.get("id") != directory.name:
        return _corrupt(directory, f"its id is {record.get('id')!r}, its directory {directory.name!r}")
    return record


def _corrupt(directory: Path, error: str) -> dict[str, Any]:
    return {"id": directory.name, "path": str(directory / "instance.json"), "corrupt": True, "error": error}


def _reason(error: Exception) -> str:
    output = getattr(error, "stderr", None)
    lines = output.strip().splitlines() if isinstance(output, str) else []
    return lines[0] if lines else str(error)
