"""Checkpoints read again piece by piece, in turn: after so many runs all of them were read. Does I/O.

A file beside the store names the piece that was read last, and the next run goes on behind it. Runs on managed hosts:
standard library only.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint_note import PIECE_BYTES, read_note

if TYPE_CHECKING:
    from collections.abc import Sequence

SAMPLE_BYTES = 256 << 20
"""What a run reads of checkpoints that nobody wrote to: a fraction of a second."""
_CHUNK_BYTES = 1 << 20
_SCHEMA = 1


def cursor_of(store: Path) -> Path:
    """The file that names the piece of a store that was read last."""
    return store.with_name(f".{store.name}-verified.json")


def damage_in_turn(
    directories: Sequence[Path], budget_bytes: int, cursor: Path, *, advance: bool
) -> set[tuple[Path, str]]:
    """Read the pieces that are next and compare them with the notes.

    Args:
        directories: checkpoints that have a note.
        budget_bytes: how much to read; everything is read where it is no more than that.
        cursor: the file that says where the last run ended. One that says nothing means the beginning.
        advance: write down where this one ended.

    Returns:
        The files with a piece that is not what was noted, as (directory, name).
    """
    pieces = sorted(
        (str(directory), name, number, crc)
        for directory in directories
        for name, entry in read_note(directory).items()
        for number, crc in enumerate(entry["crc32"])
    )
    last = _read(cursor)
    behind = [piece for piece in pieces if list(piece[:3]) > last] if last else pieces
    damaged: set[tuple[Path, str]] = set()
    for directory, name, number, crc in [*behind, *pieces[: len(pieces) - len(behind)]]:
        if budget_bytes <= 0:
            break
        found, length = _piece_crc(Path(directory, name), number)
        budget_bytes -= length
        last = [directory, name, number]
        if found != crc:
            damaged.add((Path(directory), name))
    if pieces and advance:
        temporary = cursor.with_name(f"{cursor.name}.new")
        temporary.write_text(json.dumps({"schema": _SCHEMA, "last": last}) + "\n", encoding="utf-8")
        temporary.replace(cursor)
    return damaged


def forget(cursor: Path, directories: Sequence[Path]) -> None:
    """Begin anew where the piece that was read last belongs to one of these directories, which are gone."""
    last = _read(cursor)
    if last and Path(last[0]) in directories:
        cursor.unlink(missing_ok=True)


def _read(cursor: Path) -> list[Any]:
    try:
        document = json.loads(cursor.read_text(encoding="utf-8"))
        if document["schema"] != _SCHEMA:
            return []
        directory, name, number = document["last"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [str(directory), str(name), number] if isinstance(number, int) else []


def _piece_crc(path: Path, number: int) -> tuple[int | None, int]:
    """CRC-32 of one piece as it is on the disk, and how long it is."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None, 0
    try:
        start = number * PIECE_BYTES
        # What is in memory was right when it was read; the disk is what is asked.
        os.posix_fadvise(descriptor, start, PIECE_BYTES, os.POSIX_FADV_DONTNEED)
        crc = length = 0
        while length < PIECE_BYTES and (
            chunk := os.pread(descriptor, min(_CHUNK_BYTES, PIECE_BYTES - length), start + length)
        ):
            crc = zlib.crc32(chunk, crc)
            length += len(chunk)
        return crc, length
    except OSError:
        return None, 0
    finally:
        os.close(descriptor)
