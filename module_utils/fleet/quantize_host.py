"""Quantization on one host: a job's files, its unit, and what becomes of its result. Does I/O.

A job is ``fleet-quantize@<model>-<key12>.service``. It runs without rights and writes into a directory of its own; what
it made is judged here, by root, and goes into the store of checkpoints under its key, or is removed with a record of
why. Runs on managed hosts: standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint_note import read_note, sums_of_file
from .checkpoint_promote import promote
from .checkpoint_store import INCOMING, NOTE, CheckpointStore, State, Wanted, WantedFile
from .errors import FleetError
from .quantize_gate import figures_from, figures_words, why_rejected
from .quantize_job import DIGEST, Job, Places, Verdict
from .systemd import Systemd, UnitState, last_error

if TYPE_CHECKING:
    from collections.abc import Mapping

RECIPE = "recipe.json"
SCHEMA = 1
_POLL_S = 0.5
_RUNNING = ("active", "activating", "reloading")


class QuantizeHost:
    """The jobs of this host."""

    def __init__(self, places: Places | None = None, systemd: Systemd | None = None) -> None:
        self._places = places or Places()
        self._systemd = systemd or Systemd()
        self._store = CheckpointStore(self._places.store)

    def verdict(self, job: Job) -> Verdict:
        """What is known of a job: its checkpoint is there, or was rejected under these limits, or neither.

        Records keep figures, not verdicts, so that other limits judge anew.
        """
        directory = self._places.store / job.id
        record = _read(directory / RECIPE)
        if record.get("key") == job.key and self._is_whole(job):
            figures = figures_from(record["figures"], where=str(directory / RECIPE))
            why = why_rejected(figures, job.limits)
            if why:
                return Verdict("rejected", why, figures)
            return Verdict("accepted", figures_words(figures), figures, _noted_files(directory))
        record = _read(self._places.rejected / f"{job.id}.json")
        if record.get("key") == job.key:
            figures = figures_from(record["figures"], where=str(self._places.rejected / f"{job.id}.json"))
            why = why_rejected(figures, job.limits)
            if why:
                return Verdict("rejected", why, figures)
        return Verdict("absent", "is not there")

    def check(self, job: Job) -> None:
        """Refuses what could not be made here: no source, no environment, too little memory or disk.

        Raises:
            FleetError: with the figures.
        """
        source = self._places.store / job.source
        if not (source / NOTE).exists():
            raise FleetError(str(source), f"is not there, and {job.model} is to be quantized from it")
        if not (self._places.quantizers / job.tool / ".complete").exists():
            raise FleetError(str(self._places.quantizers / job.tool), "is not installed")
        available = _available_bytes(self._places.meminfo)
        needed = int(job.cost.get("host_bytes", 0))
        if needed > available:
            problem = f"quantizing {job.model} takes {_gib(needed)} of memory, {_gib(available)} are available"
            raise FleetError("memory", problem)
        existing = next(path for path in (self._places.state, *self._places.state.parents) if path.exists())
        free, wanted = shutil.disk_usage(existing).free, int(job.cost.get("disk_bytes", 0))
        if wanted > free:
            raise FleetError(str(existing), f"quantizing {job.model} takes {_gib(wanted)}, {_gib(free)} are free")

    def start(self, job: Job) -> None:
        """Starts a job, or goes on with one that was cut off; does nothing where it runs.

        Raises:
            FleetError: systemd does not start it.
        """
        state = self._state(job)
        if state.active_state in _RUNNING:
            return
        if state.needs_reload:
            self._systemd.daemon_reload()
        directory = self._places.configuration / job.id
        self._places.baselines.mkdir(parents=True, exist_ok=True)
        document = {
            "schema": SCHEMA,
            "key": job.key,
            "tool": job.tool.rpartition("-")[0],
            "source_path": str(self._places.store / job.source),
            "source_digest": job.source_digest,
            "recipe": dict(job.recipe),
            "judged": dict(job.judged),
            "text": job.text or str(self._places.text),
            "baselines": str(self._places.baselines),
            # What is left is for what the libraries take beside the weights.
            "host_bytes": int(_available_bytes(self._places.meminfo) * 0.8),
        }
        environment = f"FLEET_QUANTIZER={self._places.quantizers / job.tool}\nCUDA_VISIBLE_DEVICES={job.gpu}\n"
        _replace(directory / "environment", environment)
        _replace(directory / "job.json", json.dumps(document, indent=1) + "\n")
        self._systemd.queue("start", [job.unit])

    def watch(self, job: Job, seen: float, wait_s: float) -> dict[str, Any]:
        """Waits until a job says something new or ends.

        Args:
            job: the job.
            seen: ``updated_at`` of what was seen last.
            wait_s: returns after so long in any case.

        Returns:
            ``running``, and ``status`` as the job wrote it.
        """
        deadline = time.monotonic() + wait_s
        while True:
            running = self._state(job).active_state in _RUNNING
            status = _read(self._places.state / job.id / "status.json")
            new = status.get("updated_at", 0.0) > seen
            if not running or new or time.monotonic() >= deadline:
                return {"running": running, "status": status}
            time.sleep(_POLL_S)

    def finish(self, job: Job) -> Verdict:
        """Judges the result of a job that has ended and puts it where it belongs.

        Raises:
            FleetError: the job ended without a result.
        """
        directory = self._places.state / job.id
        result = _read(directory / "result.json")
        if result.get("key") != job.key:
            status = _read(directory / "status.json")
            said = last_error(self._systemd.journal(job.unit, self._state(job).invocation))
            why = status.get("failed") or said or "it ended without a word"
            raise FleetError(job.unit, str(why))
        figures = figures_from(result["figures"], where=str(directory / "result.json"))
        why = why_rejected(figures, job.limits)
        record = {
            "schema": SCHEMA,
            "model": job.model,
            "key": job.key,
            "source_digest": job.source_digest,
            "recipe": dict(job.recipe),
            "tool": job.tool,
            "versions": result["versions"],
            "figures": figures.to_document(),
            "limits": job.limits.to_document(),
            "layer_by_layer": result["layer_by_layer"],
            "seconds": result["seconds"],
            "estimated_seconds": job.cost.get("seconds"),
            "peak_host_bytes": result["peak_host_bytes"],
            "peak_gpu_bytes": result["peak_gpu_bytes"],
        }
        baseline = directory / "baseline.json"
        if baseline.exists():
            name = str(_read(baseline).get("name"))
            if DIGEST.fullmatch(name):
                _replace(self._places.baselines / f"{name}.json", baseline.read_text(encoding="utf-8"))
        rejected = self._places.rejected / f"{job.id}.json"
        if why:
            _replace(rejected, json.dumps({**record, "why": why}, indent=1) + "\n")
        else:
            self._promote(job, directory / "checkpoint", record)
            rejected.unlink(missing_ok=True)
        self.forget(job)
        if why:
            return Verdict("rejected", why, figures)
        return Verdict("accepted", figures_words(figures), figures, _noted_files(self._places.store / job.id))

    def forget(self, job: Job) -> None:
        """Removes what a job needed while it ran."""
        shutil.rmtree(self._places.configuration / job.id, ignore_errors=True)
        # The unit's state directory is a link into a directory that only root may enter.
        state = self._places.state / job.id
        shutil.rmtree(state.resolve(), ignore_errors=True)
        if state.is_symlink():
            state.unlink()

    def _promote(self, job: Job, made: Path, record: Mapping[str, Any]) -> None:
        recipe = json.dumps(record, indent=1) + "\n"
        incoming = self._places.store / INCOMING
        incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
        files: dict[str, WantedFile] = {}
        for path in _regular_files(made):
            sha256 = sums_of_file(path).sha256
            files[path.relative_to(made).as_posix()] = WantedFile(path.stat().st_size, sha256)
            shutil.copyfile(path, incoming / sha256, follow_symlinks=False)
        digest = hashlib.sha256(recipe.encode()).hexdigest()
        files[RECIPE] = WantedFile(len(recipe.encode()), digest)
        (incoming / digest).write_text(recipe, encoding="utf-8")
        directory = self._places.store / job.id
        if directory.exists():
            # Damaged, or it would not have been made again.
            shutil.rmtree(directory)
        promote(self._store, Wanted(job.model, job.key, files), State(tuple(files), (), (), noted=False))
        if not any(incoming.iterdir()):
            incoming.rmdir()

    def note(self, job: Job) -> None:
        """Brings the note of a checkpoint that is right up to date: until then it is read at every look."""
        wanted = self._noted(job)
        state = self._store.inspect(wanted)
        if state.whole and not state.noted:
            promote(self._store, wanted, state)

    def _noted(self, job: Job) -> Wanted:
        """The checkpoint as its note has it."""
        noted = read_note(self._places.store / job.id)
        files = {name: WantedFile(entry["bytes"], entry["sha256"]) for name, entry in noted.items()}
        return Wanted(job.model, job.key, files)

    def _is_whole(self, job: Job) -> bool:
        wanted = self._noted(job)
        return bool(wanted.files) and self._store.inspect(wanted).whole

    def _state(self, job: Job) -> UnitState:
        return self._systemd.states([job.unit])[job.unit]


def _noted_files(directory: Path) -> dict[str, dict[str, Any]]:
    noted = read_note(directory)
    return {name: {"bytes": entry["bytes"], "sha256": entry["sha256"]} for name, entry in noted.items()}


def _regular_files(directory: Path) -> list[Path]:
    """Every regular file below a directory. Links that a job without rights wrote are not followed."""
    found = [Path(parent, name) for parent, _, names in os.walk(directory) for name in names]
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def _available_bytes(meminfo: Path) -> int:
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise FleetError(str(meminfo), "does not say what memory is available")
    return int(found[1]) * 1024


def _gib(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none that can be read."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(0o644)
    temporary.replace(path)
