"""Fetches the files of a job, several at a time, and keeps a note of how far it is. Does I/O.

Runs on managed hosts as a service of its own, so that a lost connection to the controller does not end it, and on a
controller that fetches for hosts without a way out: ``python3 -m fleet.fetch_job JOB.json PROGRESS.json``, where ``-``
is a job from standard input. Standard library only. Exit status: 0 all there, 3 refused (another try would not help),
1 broken off.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FleetError
from .fetch_http import Fetcher, Location, Patience

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SCHEMA = 1
REFUSED = 3
_NOTE_EVERY_S = 0.5
# The rate is the mean over this long: short enough to show a stall, long enough to tell the time left.
_RATE_OVER_S = 15.0


@dataclass(frozen=True)
class JobFile:
    """A file to fetch.

    Attributes:
        sha256: its SHA-256 in hexadecimal, and its name in the job's directory.
        bytes: its size.
        label: checkpoint and file name, for people.
        locations: where it can be had, the best first: ``(url, credential)``, the credential being the name of one of
            the job's tokens or empty. Those of ``peer`` go to hosts of the fleet, without a proxy.
    """

    sha256: str
    bytes: int
    label: str
    locations: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Job:
    """What to fetch and how.

    Attributes:
        directory: where the files gather.
        files: the files.
        tokens: by name; never shown.
        proxy: proxy for everything but hosts of the fleet; empty for none.
        certificate: PEM that hosts of the fleet show; empty when none is asked.
        parallel: files at a time.
    """

    directory: str
    files: tuple[JobFile, ...]
    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    proxy: str = ""
    certificate: str = ""
    parallel: int = 4
    patience: Patience = field(default_factory=Patience)

    def to_document(self) -> dict[str, Any]:
        """The job as JSON can hold it. It contains the tokens: for files that only their reader can read."""
        return {
            "schema": SCHEMA,
            "directory": self.directory,
            "files": [
                {
                    "sha256": one.sha256,
                    "bytes": one.bytes,
                    "label": one.label,
                    "locations": [list(x) for x in one.locations],
                }
                for one in self.files
            ],
            "tokens": dict(self.tokens),
            "proxy": self.proxy,
            "certificate": self.certificate,
            "parallel": self.parallel,
            "patience": {name: getattr(self.patience, name) for name in Patience.__dataclass_fields__},
        }


def job_from_document(document: Mapping[str, Any], *, where: str) -> Job:
    """Read a job.

    Raises:
        FleetError: it is none, or of another schema.
    """
    try:
        if document["schema"] != SCHEMA:
            raise FleetError(f"{where}: schema", f"must be {SCHEMA}, got {document['schema']!r}")
        return Job(
            directory=str(document["directory"]),
            files=job_files(document["files"]),
            tokens=dict(document["tokens"]),
            proxy=str(document["proxy"]),
            certificate=str(document["certificate"]),
            parallel=int(document["parallel"]),
            patience=Patience(**document["patience"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FleetError(where, f"is no job ({type(error).__name__}: {error})") from None


def job_files(items: Iterable[Mapping[str, Any]]) -> tuple[JobFile, ...]:
    """The files of a job from dictionaries, as modules are given them."""
    return tuple(
        JobFile(
            str(one["sha256"]),
            int(one["bytes"]),
            str(one["label"]),
            tuple((str(url), str(credential)) for url, credential in one["locations"]),
        )
        for one in items
    )


class Progress:
    """How far a job is, written down for those who watch.

    Args:
        path: the note, replaced whole each time.
        total_bytes: of all files.
        have_bytes: there already.
    """

    def __init__(self, path: Path, total_bytes: int, have_bytes: int) -> None:
        self._path = path
        self._total = total_bytes
        self._bytes = have_bytes
        self._lock = threading.Lock()
        self._history = [(time.monotonic(), have_bytes)]
        self._written = 0.0

    def add(self, count: int) -> None:
        """So many bytes more (or fewer)."""
        with self._lock:
            self._bytes += count
            now = time.monotonic()
            if now - self._written >= _NOTE_EVERY_S:
                self._history.append((now, self._bytes))
                self._write("running", "", now)

    def finish(self, state: str, error: str = "") -> None:
        """The last word: ``done``, ``refused`` or ``broken``."""
        with self._lock:
            self._write(state, error, time.monotonic())

    def _write(self, state: str, error: str, now: float) -> None:
        while len(self._history) > 2 and now - self._history[0][0] > _RATE_OVER_S:
            self._history.pop(0)
        then, before = self._history[0]
        rate = max(0.0, (self._bytes - before) / (now - then)) if now > then else 0.0
        document = {
            "state": state,
            "error": error,
            "bytes": self._bytes,
            "total_bytes": self._total,
            "bytes_per_s": round(rate),
        }
        temporary = self._path.with_name(f"{self._path.name}.new")
        temporary.write_text(json.dumps(document) + "\n", encoding="utf-8")
        temporary.replace(self._path)
        self._written = now


def run_job(job: Job, progress_path: Path) -> None:
    """Fetch all files of a job.

    Raises:
        FleetError: one of them cannot be had; the others are left where they are.
    """
    directory = Path(job.directory)
    have = sum(min(one.bytes, _size(directory / one.sha256)) for one in job.files)
    progress = Progress(progress_path, sum(one.bytes for one in job.files), have)
    progress.add(0)
    ended = threading.Event()

    def pause(seconds: float) -> None:
        if ended.wait(seconds):
            raise FleetError(job.directory, "another file could not be fetched")

    fetcher = Fetcher(
        patience=job.patience,
        proxy=job.proxy,
        certificate=job.certificate or None,
        report=progress.add,
        wait=pause,
    )

    def fetch(one: JobFile) -> None:
        if ended.is_set():
            return
        places = [Location(url, job.tokens.get(name, ""), direct=name == "peer") for url, name in one.locations]
        try:
            fetcher.fetch(directory / one.sha256, one.bytes, one.sha256, places)
        except FleetError as error:
            raise FleetError(one.label, str(error)) from None

    try:
        with ThreadPoolExecutor(max_workers=max(1, job.parallel)) as pool:
            # Large ones first: what is left at the end is short.
            waiting = [pool.submit(fetch, one) for one in sorted(job.files, key=lambda one: -one.bytes)]
            done, _ = wait(waiting, return_when=FIRST_EXCEPTION)
            failure = next((error for error in (future.exception() for future in done) if error), None)
            if failure is not None:
                ended.set()
                pool.shutdown(cancel_futures=True)
                raise failure
    except FleetError as error:
        progress.finish("refused", str(error))
        raise
    except OSError as error:
        progress.finish("broken", f"{error.filename or job.directory}: {error.strerror or error}")
        raise
    progress.finish("done")


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def main(arguments: list[str]) -> int:
    """Run the job that a file describes."""
    where, progress_path = arguments
    os.umask(0o077)
    try:
        # A job from standard input is in no file, and its tokens neither.
        text = sys.stdin.read() if where == "-" else Path(where).read_text(encoding="utf-8")
        job = job_from_document(json.loads(text), where=where)
        run_job(job, Path(progress_path))
    except FleetError as error:
        sys.stderr.write(f"{error}\n")
        return REFUSED
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{where}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
