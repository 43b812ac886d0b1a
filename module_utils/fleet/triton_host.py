"""The host that Triton servers run on: reads and changes their units and repositories, and has Triton load models."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .openai_client import Answer
from .openai_client import Server as Client
from .systemd import Systemd, UnitState, is_consequence, last_error
from .text_files import read_text, replace_text
from .triton_models import Found, Model, Server, ServerStep, record_text, unit_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_RECORD = "instance.json"
_POLL_S = 0.5
_ASK_TIMEOUT_S = 10.0
# A unit that is started shows itself at once.
_START_GRACE_S = 5.0


@dataclass(frozen=True)
class TritonPlaces:
    """Where things are on the host; tests move them.

    Attributes:
        root: parent of the servers' directories, which are named by port.
        units: directory of the unit files.
        suffix: of a unit file: ``.service``, or ``.container`` for Quadlet.
        runtime: where a unit keeps the text that it was started from, ``<port>.unit``.
    """

    root: Path = Path("/etc/l40s-fleet/triton")
    units: Path = Path("/etc/systemd/system")
    suffix: str = ".service"
    runtime: Path = Path("/run/l40s-fleet-triton")

    def unit(self, port: int) -> Path:
        """The unit file of a server."""
        return self.units / f"triton-{port}{self.suffix}"

    def repository(self, port: int) -> Path:
        """The model repository of a server."""
        return self.root / str(port) / "repository"

    def records(self, port: int) -> Path:
        """The instance records of a server: one directory an instance."""
        return self.root / str(port) / "instances"


class TritonApi:
    """Triton's HTTP, with the repository extension.

    Args:
        port: of a server on this host.
        load_timeout_s: how long loading one model may take.
    """

    def __init__(self, port: int, load_timeout_s: float) -> None:
        url = f"http://127.0.0.1:{port}"
        self._ask = Client(url, None, _ASK_TIMEOUT_S)
        self._wait = Client(url, None, load_timeout_s)

    def states(self) -> dict[str, tuple[str, str]] | None:
        """State and reason of every model in the repository; None where the server does not answer."""
        answer = self._ask("POST", "/v2/repository/index", {})
        entries = answer.document if answer.status == HTTPStatus.OK else None
        if not isinstance(entries, list):
            return None
        return {str(one["name"]): (str(one.get("state", "")), str(one.get("reason", ""))) for one in entries}

    def loaded(self) -> dict[str, str] | None:
        """Digests of the models that are ready; None where the server does not answer."""
        states = self.states()
        if states is None:
            return None
        return {name: self._digest(name) for name, (state, _) in states.items() if state == "READY"}

    def _digest(self, name: str) -> str:
        document = self._ask("GET", f"/v2/models/{name}/config").document
        parameters = document.get("parameters", {}) if isinstance(document, dict) else {}
        return str(parameters.get("l40s_fleet_digest", {}).get("string_value", ""))

    def load(self, name: str) -> str:
        """Loads a model and waits for it. Returns why it could not be, in one line."""
        return _problem(self._wait("POST", f"/v2/repository/models/{name}/load", {}))

    def unload(self, name: str) -> str:
        """Unloads a model, and waits until its requests have ended and its engine is gone."""
        problem = _problem(self._wait("POST", f"/v2/repository/models/{name}/unload", {"parameters": {}}))
        while not problem:
            states = self.states()
            if states is None or states.get(name, ("UNAVAILABLE", ""))[0] == "UNAVAILABLE":
                break
            time.sleep(_POLL_S)
        return problem


def _problem(answer: Answer) -> str:
    return "" if answer.status == HTTPStatus.OK else _first_line(answer.problem)


def _first_line(reason: str) -> str:
    """What a Python exception says, of the traceback that Triton hands on."""
    return re.split(r"\n| At: ", reason.strip())[0].strip()[:400] or "no reason given"


class TritonHost:
    """The Triton servers of this host.

    Args:
        places: where things are.
        systemd: the units.
        load_timeout_s: how long a server may take to start, or a model to load.
    """

    def __init__(
        self, places: TritonPlaces | None = None, systemd: Systemd | None = None, load_timeout_s: float = 900.0
    ) -> None:
        self._places = places or TritonPlaces()
        self._systemd = systemd or Systemd()
        self._limit_s = load_timeout_s

    def observe(self) -> dict[int, Found]:
        """Every server of which anything is left, by port."""
        names = {path.name for path in _listed(self._places.root)}
        pattern = re.compile(rf"triton-(\d+){re.escape(self._places.suffix)}")
        names |= {match.group(1) for path in _listed(self._places.units) if (match := pattern.fullmatch(path.name))}
        ports = sorted(int(name) for name in names if name.isdigit())
        states = self._systemd.states([unit_of(port) for port in ports])
        return {port: self._found(port, states.get(unit_of(port), UnitState())) for port in ports}

    def _found(self, port: int, state: UnitState) -> Found:
        records = {
            str(record.get("model")): record
            for path in _listed(self._places.records(port))
            if isinstance(record := _json(path / _RECORD), dict)
        }
        models = {
            path.name: Model(path.name, _tree(path), records.get(path.name, {}))
            for path in _listed(self._places.repository(port))
            if path.is_dir()
        }
        # A record whose files are gone still says what has to be removed.
        models |= {name: Model(name, {}, one) for name, one in records.items() if name not in models}
        loaded = TritonApi(port, self._limit_s).loaded() if state.active_state == "active" else None
        started = read_text(self._places.runtime / f"{port}.unit") or ""
        return Found(read_text(self._places.unit(port)) or "", started, state, models, loaded)

    def apply(
        self, steps: Sequence[ServerStep], desired: Mapping[int, Server], found: Mapping[int, Found]
    ) -> dict[str, str]:
        """Carries the steps out, what frees GPUs first.

        Returns:
            Why not, by ``unit`` or ``unit: model``, for those that do not serve as they should. A model whose new
            configuration could not be loaded serves with the one before, if that loads.
        """
        with self._locked():
            return self._apply(steps, desired, found)

    def _apply(
        self, steps: Sequence[ServerStep], desired: Mapping[int, Server], found: Mapping[int, Found]
    ) -> dict[str, str]:
        failures: dict[str, str] = {}
        self._remove([step.port for step in steps if step.action == "remove"])
        kept = [step for step in steps if step.action != "remove"]
        starting = [step for step in kept if step.action != "none"]
        self._systemd.stop([unit_of(step.port) for step in starting if found.get(step.port, Found()).unit])
        for step in kept:
            for one in step.models:
                if one.action == "unload":
                    if step.action == "none":
                        TritonApi(step.port, self._limit_s).unload(one.name)
                    self._drop(step.port, one.name, found[step.port].models[one.name])
        for step in starting:
            self._write_server(desired[step.port])
        if starting:
            self._systemd.daemon_reload()
            # What Quadlet generates is enabled by its own [Install] section.
            if self._places.suffix == ".service":
                self._systemd.enable([unit_of(step.port) for step in starting])
            self._systemd.queue("restart", [unit_of(step.port) for step in starting])
        for step in starting:
            failures |= self._wait(desired[step.port])
        for step in kept:
            if step.action == "none":
                failures |= self._change_models(step, desired[step.port], found[step.port])
        return failures

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps the role's triton-keep-loaded from loading a model that this run has unloaded."""
        self._places.runtime.mkdir(mode=0o755, exist_ok=True)
        with (self._places.runtime / "changing").open("w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _remove(self, ports: Sequence[int]) -> None:
        for port in ports:
            self._systemd.stop([unit_of(port)])
            if self._places.suffix == ".service":
                self._systemd.remove([unit_of(port)])
            self._places.unit(port).unlink(missing_ok=True)
            (self._places.runtime / f"{port}.unit").unlink(missing_ok=True)
            shutil.rmtree(self._places.root / str(port), ignore_errors=True)
        if ports:
            self._systemd.daemon_reload()

    def _change_models(self, step: ServerStep, server: Server, now: Found) -> dict[str, str]:
        api, failures = TritonApi(step.port, self._limit_s), {}
        for one in step.models:
            if one.action not in ("load", "reload", "record"):
                continue
            model, before = server.models[one.name], now.models.get(one.name)
            if one.action != "record":
                # A card does not hold two of it: the old one goes first.
                if one.action == "reload":
                    api.unload(one.name)
                self._write_model(step.port, model)
                problem = api.load(one.name)
                if problem:
                    where = f"{unit_of(step.port)}: {one.name}"
                    failures[where] = self._cause(unit_of(step.port), problem) + self._put_back(
                        api, step.port, model, before
                    )
                    continue
            self._write_record(step.port, model)
        return failures

    def _cause(self, unit: str, problem: str) -> str:
        """What the engine process said, where its parent says only that it failed."""
        if not is_consequence(problem):
            return problem
        state = self._systemd.states([unit])[unit]
        return last_error(self._systemd.journal(unit, state.invocation)) or problem

    def _put_back(self, api: TritonApi, port: int, model: Model, before: Model | None) -> str:
        if before is None or before.files == model.files:
            return ""
        self._write_model(port, before)
        problem = api.load(before.name)
        return (
            f"; what ran before could not be loaded either: {problem}" if problem else "; what ran before serves again"
        )

    def _wait(self, server: Server) -> dict[str, str]:
        """Waits until a server that was started has loaded its models."""
        unit, api, began = unit_of(server.port), TritonApi(server.port, self._limit_s), time.monotonic()
        while True:
            elapsed_s = time.monotonic() - began
            state = self._systemd.states([unit])[unit]
            states = api.states() if state.active_state == "active" else None
            ready = {name for name, (what, _) in (states or {}).items() if what == "READY"}
            # Triton opens its ports when every model was tried; an ensemble that lacks a model has no state at all.
            pending = states is None or any(what in ("LOADING", "UNLOADING") for what, _ in states.values())
            if not pending and states is not None:
                missing = [name for name in server.models if name not in ready]
                return {f"{unit}: {name}": _first_line(states.get(name, ("", ""))[1]) for name in missing}
            gone = not state.queued and state.active_state in ("failed", "inactive") and elapsed_s > _START_GRACE_S
            if gone or state.restarts > 0 or elapsed_s > self._limit_s:
                said = last_error(self._systemd.journal(unit, state.invocation))
                verdict = f"not ready after {elapsed_s:.0f} s" if not gone else f"failed to start ({state.result})"
                return {unit: f"{verdict}: {said}" if said else verdict}
            time.sleep(_POLL_S)

    def _write_server(self, server: Server) -> None:
        for model in server.models.values():
            self._write_model(server.port, model)
            self._write_record(server.port, model)
        _write(self._places.unit(server.port), server.unit)

    def _write_model(self, port: int, model: Model) -> None:
        """Puts the files of a model in the place of what is there, in one step."""
        target = self._places.repository(port) / model.name
        _make(target.parent)
        # Beside the repository, so that Triton never sees a half.
        new, old = (self._places.root / str(port) / f".{kind}-{model.name}" for kind in ("new", "old"))
        for path in (new, old):
            shutil.rmtree(path, ignore_errors=True)
        for name, text in model.files.items():
            _write(new / name, text)
        if target.exists():
            target.rename(old)
        new.rename(target)
        shutil.rmtree(old, ignore_errors=True)

    def _write_record(self, port: int, model: Model) -> None:
        if model.record:
            for path in _listed(self._places.records(port)):
                record = _json(path / _RECORD)
                if isinstance(record, dict) and record.get("model") == model.name and path.name != model.record["id"]:
                    shutil.rmtree(path, ignore_errors=True)
            _write(self._places.records(port) / str(model.record["id"]) / _RECORD, record_text(model.record))

    def _drop(self, port: int, name: str, model: Model) -> None:
        shutil.rmtree(self._places.repository(port) / name, ignore_errors=True)
        if model.record:
            shutil.rmtree(self._places.records(port) / str(model.record["id"]), ignore_errors=True)


def _listed(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _tree(directory: Path) -> dict[str, str]:
    # Python compiles a step beside its source, where it may write.
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.parent.name != "__pycache__"]
    return {str(path.relative_to(directory)): path.read_text(encoding="utf-8", errors="replace") for path in files}


def _json(path: Path) -> Any:
    try:
        return json.loads(read_text(path) or "null")
    except ValueError:
        return None


def _make(directory: Path) -> None:
    """Makes a directory that Triton may read, and its parents."""
    missing: Iterable[Path] = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(list(missing)):
        path.mkdir(exist_ok=True)
        path.chmod(0o755)


def _write(path: Path, text: str) -> None:
    """Writes a file that others may read, in one step: a reader sees the old or the new contents."""
    _make(path.parent)
    replace_text(path, text)
