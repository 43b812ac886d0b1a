"""The host that instances run on: reads and changes its files and units, and waits for its engines."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .first_request import first_request
from .instances import (
    CONFIG,
    ENVIRONMENT,
    FILES,
    ORDER,
    RECORD,
    Desired,
    Observed,
    Step,
    judge,
    listen_address,
    resources_of,
    unit_of,
)
from .systemd import Systemd, UnitState, last_error
from .text_files import read_text, replace_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_UNIT = re.compile(r"vllm@(.+)\.service")
_ENGINE = re.compile(r'^FLEET_ENGINE_DIRECTORY="?([^"\n]+)"?$', re.MULTILINE)
_POLL_S = 0.5
# An engine that has run for a while answers its health check in milliseconds.
_HEALTH_GRACE_S = 30.0
_HTTP_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Places:
    """Where things are on the host; tests move them."""

    configuration: Path = Path("/etc/l40s-fleet")
    unit_file: Path = Path("/etc/systemd/system/vllm@.service")
    boot_links: Path = Path("/etc/systemd/system/multi-user.target.wants")
    runtime: Path = Path("/run/l40s-fleet")
    # Directories that systemd makes for a DynamicUser unit: the private one and the link to it.
    left_behind: tuple[Path, ...] = (
        Path("/var/cache/l40s-fleet"),
        Path("/var/cache/private/l40s-fleet"),
        Path("/run/l40s-fleet"),
        Path("/run/private/l40s-fleet"),
    )

    @property
    def instances(self) -> Path:
        """Parent of the instances' directories."""
        return self.configuration / "instances"

    def file(self, instance_id: str, name: str) -> Path:
        """Where a file of an instance is."""
        return (self.drop_ins(instance_id) if name == ORDER else self.instances / instance_id) / name

    def previous(self, instance_id: str) -> Path:
        """Where the files from before a change are kept until the new ones serve."""
        return self.instances / instance_id / "previous"

    def drop_ins(self, instance_id: str) -> Path:
        """Directory of what is added to an instance's unit."""
        return self.unit_file.parent / f"{unit_of(instance_id)}.d"


class InstanceHost:
    """The instances of this host.

    Args:
        places: where things are.
        systemd: the units.
    """

    def __init__(self, places: Places | None = None, systemd: Systemd | None = None) -> None:
        self._places = places or Places()
        self._systemd = systemd or Systemd()

    def observe(self) -> dict[str, Observed]:
        """Every instance of which anything is left: a directory, a link for the next boot, or a unit in memory."""
        ids = {path.name for path in _listed(self._places.instances)}
        names = [path.name for path in _listed(self._places.boot_links)] + self._systemd.loaded("vllm@*.service")
        ids.update(match.group(1) for match in map(_UNIT.fullmatch, names) if match)
        states = self._systemd.states([unit_of(instance_id) for instance_id in sorted(ids)])
        return {name: self._observe_one(name, states[unit_of(name)]) for name in sorted(ids)}

    def _observe_one(self, instance_id: str, unit: UnitState) -> Observed:
        files = {name: text for name in FILES if (text := read_text(self._places.file(instance_id, name))) is not None}
        kept = self._places.previous(instance_id)
        previous = (
            {name: text for name in FILES if (text := read_text(kept / name)) is not None} if kept.is_dir() else None
        )
        try:
            resources = resources_of(json.loads(files.get(RECORD, "{}")))
        except (ValueError, AttributeError, TypeError):
            resources = frozenset()
        started = (read_text(self._places.runtime / instance_id / "started") or "").strip()
        return Observed(files, resources, unit, started, previous)

    def digest(self, files: Mapping[str, str]) -> str:
        """What an instance with these files would write down when it starts: see the role's vllm-record-start."""
        engine = _ENGINE.search(files[ENVIRONMENT])
        marker = Path(engine.group(1)) / ".complete" if engine else None
        around = [self._places.unit_file, self._places.configuration / "engine.env", *([marker] if marker else [])]
        parts = [read_text(path) or "" for path in around] + [files[CONFIG], files[ENVIRONMENT]]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def journal(self, instance_id: str, invocation: str, grep: str) -> str:
        """What one run of an instance's engine said, as far as it matches a regular expression."""
        return self._systemd.journal(unit_of(instance_id), invocation, grep=grep)

    def apply(self, steps: Sequence[Step], observed: Mapping[str, Observed]) -> None:
        """Carries the steps out, up to units that have been told to start.

        Removals come first: they free GPUs and ports.
        """
        self._remove([step.id for step in steps if step.action == "remove"])
        kept = [step for step in steps if step.action != "remove"]
        for step in kept:
            if step.previous is not None and not step.settles:
                self._keep(step.id, step.previous)
            for name, text in step.writes.items():
                if text:
                    _write(self._places.file(step.id, name), text)
                else:
                    self._places.file(step.id, name).unlink(missing_ok=True)
        outdated = any(observed[step.id].unit.needs_reload for step in kept if step.id in observed)
        if outdated or any(ORDER in step.writes for step in kept):
            self._systemd.daemon_reload()
        self._systemd.enable([unit_of(step.id) for step in kept if step.enable])
        self._systemd.stop([unit_of(step.id) for step in kept if step.stop_first])
        starting = [unit_of(step.id) for step in kept if step.action in ("start", "restart")]
        self._systemd.queue("restart", starting)

    def _keep(self, instance_id: str, files: Mapping[str, str]) -> None:
        """Keeps files to go back to. They are there as a whole or not at all."""
        place = self._places.previous(instance_id)
        partial = place.with_name(".previous")
        shutil.rmtree(partial, ignore_errors=True)
        for directory in (self._places.instances, partial.parent, partial):
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            directory.chmod(0o755)
        for name, text in files.items():
            _write(partial / name, text)
        partial.rename(place)

    def settle(self, ids: Sequence[str]) -> None:
        """What is configured is seen to serve, or was given up: there is nothing to go back to any more."""
        for instance_id in ids:
            place = self._places.previous(instance_id)
            if place.is_dir():
                shutil.rmtree(place.with_name(".previous"), ignore_errors=True)
                shutil.rmtree(place.rename(place.with_name(".previous")))

    def give_up(self, ids: Sequence[str]) -> None:
        """Stops instances that never served; they do not start at boot, and their files stay for the next run."""
        self._systemd.remove([unit_of(instance_id) for instance_id in ids])

    def put_back(self, instances: Sequence[Desired]) -> dict[str, Observed]:
        """Starts instances from the files that served before.

        Returns:
            The instances as they were found: for ``wait``.
        """
        found = self.observe()
        for instance in instances:
            for name in FILES:
                text = instance.files.get(name)
                if text is None:
                    self._places.file(instance.id, name).unlink(missing_ok=True)
                else:
                    _write(self._places.file(instance.id, name), text)
        if instances:
            self._systemd.daemon_reload()
        self._systemd.queue("restart", [unit_of(instance.id) for instance in instances])
        return found

    def _remove(self, ids: Sequence[str]) -> None:
        self._systemd.remove([unit_of(instance_id) for instance_id in ids])
        for instance_id in ids:
            parents = (*self._places.left_behind, self._places.instances)
            for path in (self._places.drop_ins(instance_id), *(parent / instance_id for parent in parents)):
                if path.is_symlink():
                    path.unlink()
                elif path.exists():
                    shutil.rmtree(path)
        if ids:
            for parent in (*self._places.left_behind, self._places.instances):
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()

    def wait(
        self, desired: Sequence[Desired], steps: Sequence[Step], before: Mapping[str, Observed], limit_s: float
    ) -> dict[str, str]:
        """Waits until every instance answers its health check, and those that were started a request.

        Instances that run on hosts out of reach as well are not waited for.

        Returns:
            Why not, by instance id, for those that do not: the engine's own last error where it said one.
        """
        touched = {step.id for step in steps if step.action in ("start", "restart")}
        pending = {instance.id: listen_address(instance.files[CONFIG]) for instance in desired if not instance.held}
        files = {instance.id: instance.files for instance in desired}
        turns = {instance.id: 1 + len(instance.starts_after) for instance in desired}
        failures: dict[str, str] = {}
        began = time.monotonic()
        while pending:
            states = self._systemd.states([unit_of(instance_id) for instance_id in pending])
            elapsed_s = time.monotonic() - began
            for instance_id, address in list(pending.items()):
                previous = before.get(instance_id, Observed()).unit
                state = states[unit_of(instance_id)]
                verdict = judge(state, previous, elapsed_s, touched=instance_id in touched)
                if verdict == "up" and (address is None or _healthy(*address)):
                    del pending[instance_id]
                    problem = self._first_request(files[instance_id]) if instance_id in touched else ""
                    if problem:
                        failures[instance_id] = f"is healthy, but does not answer a request: {problem}"
                    continue
                if verdict == "up" and instance_id not in touched and elapsed_s > _HEALTH_GRACE_S:
                    verdict = "runs, but does not answer /health"
                if verdict in ("up", "starting") and elapsed_s > limit_s * turns[instance_id]:
                    verdict = f"not healthy after {limit_s * turns[instance_id]:.0f} s"
                if verdict not in ("up", "starting"):
                    said = last_error(self._systemd.journal(unit_of(instance_id), state.invocation))
                    failures[instance_id] = f"{verdict}: {said}" if said else verdict
                    del pending[instance_id]
            if pending:
                time.sleep(_POLL_S)
        return failures

    def _first_request(self, files: Mapping[str, str]) -> str:
        return first_request(files, read_text(self._places.configuration / "engine.env") or "")


def _listed(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _write(path: Path, text: str) -> None:
    """Writes a file that others may read, in one step: a reader sees the old or the new contents."""
    for directory in (path.parent.parent, path.parent):
        directory.mkdir(mode=0o755, exist_ok=True)
        directory.chmod(0o755)
    replace_text(path, text)


def _healthy(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=_HTTP_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
