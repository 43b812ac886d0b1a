"""SHA-256 of files that have not changed since they were last read, so that 140 GB are read once. Does I/O."""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_CHUNK_BYTES = 1 << 20
_SCHEMA = 1
# A file that was written so short a time ago may be written again without its time of change showing it.
_SETTLED_NS = 2 * 10**9


class ManifestCache:
    """The sums of the files of one directory.

    A sum counts while a file's size, time of change and inode are what they were when it was read.

    Args:
        cache: directory of the cache; None keeps nothing.
        root: the directory whose files are asked for.
    """

    def __init__(self, cache: Path | None, root: Path) -> None:
        key = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:32]
        self._path = cache / "manifests" / f"{key}.json" if cache is not None else None
        self._known = self._read()
        self._used: dict[str, list[int | str]] = {}

    def sha256(self, path: Path) -> str:
        """The SHA-256 of a file, in hexadecimal."""
        status = path.stat()
        key, stamp = str(path), [status.st_size, status.st_mtime_ns, status.st_ino]
        known = self._known.get(key)
        found = str(known[3]) if known is not None and known[:3] == stamp else sha256_of(path)
        if time.time_ns() - status.st_mtime_ns > _SETTLED_NS:
            self._used[key] = [*stamp, found]
        return found

    def save(self) -> None:
        """Keep the sums of the files that were asked for. A cache that cannot be written is no loss but time."""
        if self._path is None or self._used == self._known:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(".new")
            temporary.write_text(json.dumps({"schema": _SCHEMA, "files": self._used}), encoding="utf-8")
            temporary.replace(self._path)
        except OSError:
            return

    def _read(self) -> dict[str, list[int | str]]:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8")) if self._path else {}
            return dict(document["files"]) if document.get("schema") == _SCHEMA else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
