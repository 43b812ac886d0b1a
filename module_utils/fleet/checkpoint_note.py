"""The note in a checkpoint's directory: what each file was when its SHA-256 was right. Does I/O.

``.fleet-checkpoint.json`` holds size, time of change and inode of every file, its SHA-256, and a CRC-32 of every 64 MiB
of it. While the first three are the noted ones, nobody wrote to the file; the CRCs show what a disk did to it, without
reading all of it. Runs on managed hosts: standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

NOTE = ".fleet-checkpoint.json"
BLOBS = ".blobs"
INCOMING = ".incoming"
STAGING = ".staging-"
SCHEMA = 2
PIECE_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Sums:
    """What reading a file gave.

    Attributes:
        sha256: in hexadecimal.
        crc32: of each piece of ``PIECE_BYTES``.
    """

    sha256: str
    crc32: tuple[int, ...]


@dataclass(frozen=True)
class Stamp:
    """What shows that nobody wrote to a file: its size in bytes, its time of change in ns, its inode."""

    bytes: int
    mtime_ns: int
    inode: int


def stamp_of(path: Path) -> Stamp | None:
    """The stamp of a regular file; None when there is none."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def sums_of(descriptor: int) -> Sums:
    """Read a file from its start to its end."""
    digest = hashlib.sha256()
    pieces: list[int] = []
    position = crc = 0
    os.lseek(descriptor, 0, os.SEEK_SET)
    while chunk := os.read(descriptor, min(_CHUNK_BYTES, PIECE_BYTES - position % PIECE_BYTES)):
        digest.update(chunk)
        crc = zlib.crc32(chunk, crc)
        position += len(chunk)
        if position % PIECE_BYTES == 0:
            pieces.append(crc)
            crc = 0
    if position % PIECE_BYTES:
        pieces.append(crc)
    return Sums(digest.hexdigest(), tuple(pieces))


def sums_of_file(path: Path) -> Sums:
    """The same by path; a link is not followed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return sums_of(descriptor)
    finally:
        os.close(descriptor)


def read_note(directory: Path) -> Mapping[str, Any]:
    """Noted files by name; empty when there is no note, or none of this schema that can be read."""
    try:
        document = json.loads((directory / NOTE).read_text(encoding="utf-8"))
        files = document["files"] if document["schema"] == SCHEMA else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return files if isinstance(files, dict) else {}


def replace_entries(directory: Path, entries: Mapping[str, Any]) -> None:
    """Change what the note says of some files, and nothing else."""
    try:
        document = json.loads((directory / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    write_note(directory, document["model"], document["digest"], {**document["files"], **entries})


def distrust(directory: Path, names: Iterable[str]) -> None:
    """Have the next look read some files again, whatever their stamps are: what a disk did shows in none of them."""
    noted = read_note(directory)
    replace_entries(directory, {name: {**noted[name], "mtime_ns": 0} for name in names if name in noted})


def is_as_noted(entry: Mapping[str, Any], stamp: Stamp) -> bool:
    """Whether a file is the one that the note speaks of, by its stamp."""
    return {**entry, **stamp.__dict__} == entry


def entry_of(stamp: Stamp, sums: Sums) -> dict[str, Any]:
    """What the note says of one file."""
    return {**stamp.__dict__, "sha256": sums.sha256, "crc32": list(sums.crc32)}


def write_note(directory: Path, model: str, digest: str, files: Mapping[str, Any]) -> None:
    """Write the note, whole. Call it only when every file has been verified."""
    document = {"schema": SCHEMA, "model": model, "digest": digest, "files": dict(sorted(files.items()))}
    temporary = directory / f"{NOTE}.new"
    temporary.write_text(json.dumps(document) + "\n", encoding="utf-8")
    temporary.chmod(0o644)
    temporary.replace(directory / NOTE)
