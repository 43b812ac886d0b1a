"""The services of a host that fetch and serve checkpoints, started and watched through systemd. Does I/O.

Jobs hold tokens, so they are written to a directory in memory that root and the services' user alone can read, and are
removed when the work is done. Runs on managed hosts: standard library only.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint_note import read_note
from .errors import FleetError
from .systemd import Systemd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .checkpoint_store import CheckpointStore
    from .fetch_job import Job

FETCH_UNIT = "l40s-fleet-fetch.service"
SERVE_UNIT = "l40s-fleet-peer.service"
USER = "l40s-models"
JOBS = Path("/run/l40s-fleet-jobs")
PROGRESS = Path("/run/l40s-fleet-fetch/progress.json")
_LISTENING_WITHIN_S = 10.0


def start_fetch(store: CheckpointStore, job: Job, systemd: Systemd | None = None) -> bool:
    """Have the host fetch files; returns at once.

    A job for the same files that an earlier run left running is taken over instead: it fetches on while nobody watches.
    One that copies from other hosts is not: their services ended with that run.

    Returns:
        Whether anything was started.

    Raises:
        FleetError: the role has not prepared this host.
    """
    systemd = systemd or Systemd()
    document = job.to_document()
    path = JOBS / "fetch.json"
    unit = systemd.states([FETCH_UNIT])[FETCH_UNIT]
    peers = any(name == "peer" for one in job.files for _, name in one.locations)
    if unit.running and not peers and _files_of(_read(path)) == _files_of(document):
        return False
    systemd.stop([FETCH_UNIT])
    user = _user()
    store.prepare_incoming((user.pw_uid, user.pw_gid))
    _write_secret(path, json.dumps(document))
    PROGRESS.unlink(missing_ok=True)
    _start(systemd, FETCH_UNIT)
    return True


def poll_fetch(systemd: Systemd | None = None) -> dict[str, Any]:
    """How far the job is.

    Returns:
        ``state`` (``running``, ``done`` or ``failed``), ``bytes``, ``total_bytes``, ``bytes_per_s``, ``error``. What a
        job needed is removed once it is over.
    """
    systemd = systemd or Systemd()
    unit = systemd.states([FETCH_UNIT])[FETCH_UNIT]
    found = {"state": "running", "bytes": 0, "total_bytes": 0, "bytes_per_s": 0, "error": "", **_read(PROGRESS)}
    if unit.running:
        return {**found, "state": "running"}
    (JOBS / "fetch.json").unlink(missing_ok=True)
    if found["state"] == "done":
        return found
    words = systemd.journal(FETCH_UNIT, unit.invocation, 1).strip().splitlines()
    error = found["error"] or (words[-1] if words else f"{FETCH_UNIT} ended ({unit.result})")
    return {**found, "state": "failed", "error": error}


def stop_fetch(systemd: Systemd | None = None) -> None:
    """End the job, if there is one."""
    (systemd or Systemd()).stop([FETCH_UNIT])
    (JOBS / "fetch.json").unlink(missing_ok=True)


def start_serving(
    store: CheckpointStore,
    directories: Sequence[str],
    settings: Mapping[str, Any],
    certificate: str,
    systemd: Systemd | None = None,
) -> None:
    """Serve the files of some checkpoints to other hosts.

    Args:
        store: the store.
        directories: names of checkpoints; each must be there.
        settings: ``address``, ``port``, ``token`` and ``idle_s``.
        certificate: PEM of certificate and key.
        systemd: of this host.

    Raises:
        FleetError: the service does not listen.
    """
    systemd = systemd or Systemd()
    files = {
        str(entry["sha256"]): str(store.root / directory / name)
        for directory in directories
        for name, entry in read_note(store.root / directory).items()
    }
    _write_secret(JOBS / "peer.pem", certificate)
    _write_secret(JOBS / "peer.json", json.dumps({**settings, "files": files, "certificate": "peer.pem"}))
    systemd.stop([SERVE_UNIT])
    _start(systemd, SERVE_UNIT)
    limit = time.monotonic() + _LISTENING_WITHIN_S
    while not _listens(settings["address"], settings["port"]):
        state = systemd.states([SERVE_UNIT])[SERVE_UNIT]
        if time.monotonic() > limit or state.active_state == "failed":
            words = systemd.journal(SERVE_UNIT, state.invocation, 1).strip() or "it says nothing"
            stop_serving(systemd)
            raise FleetError(f"{settings['address']}:{settings['port']}", f"{SERVE_UNIT} does not listen ({words})")
        time.sleep(0.1)


def stop_serving(systemd: Systemd | None = None) -> bool:
    """End the service, if it runs; returns whether it did. Token and key go with it."""
    systemd = systemd or Systemd()
    running = systemd.states([SERVE_UNIT])[SERVE_UNIT].running
    systemd.stop([SERVE_UNIT])
    for name in ("peer.json", "peer.pem"):
        (JOBS / name).unlink(missing_ok=True)
    return running


def _start(systemd: Systemd, unit: str) -> None:
    if systemd.states([unit])[unit].needs_reload:
        systemd.daemon_reload()
    systemd.queue("start", [unit])


def _files_of(document: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What tells jobs apart: tokens and addresses of peers change with every run, files do not."""
    return sorted((one["sha256"], one["bytes"]) for one in document.get("files", ()))


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        raise FleetError(f"user {USER}", "is not on this host; the role model_store makes it") from None


def _write_secret(path: Path, text: str) -> None:
    """Write what only root and the services' user may read, whole."""
    group = _user().pw_gid
    path.parent.mkdir(mode=0o700, exist_ok=True)
    os.chown(path.parent, 0, group)
    path.parent.chmod(0o750)
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchown(file.fileno(), 0, group)
        os.fchmod(file.fileno(), 0o640)
        file.write(text)
    temporary.replace(path)


def _listens(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=1.0):
            return True
    except OSError:
        return False
