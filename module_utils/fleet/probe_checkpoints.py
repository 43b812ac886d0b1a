"""Looks for checkpoints that are there in part: copies that were cut off, and directories without a note."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .checkpoint_note import INCOMING, NOTE, STAGING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

# How huggingface_hub and others name a file that is not whole yet.
_UNFINISHED_SUFFIXES = (".incomplete", ".part", ".partial", ".tmp", ".download")


@dataclass(frozen=True)
class PartialCheckpoint:
    """A checkpoint that is not whole.

    Args:
        path: its directory.
        held_bytes: what it takes on disk so far.
        why: what is missing, in words.
        instances: ids of the instances that are to run it.
    """

    path: str
    held_bytes: int
    why: str
    instances: tuple[str, ...] = ()


def read_partial_checkpoints(
    models: Path, records: Iterable[Mapping[str, Any]], unseen: list[str]
) -> list[PartialCheckpoint]:
    """Return the checkpoints of a host that are there in part, by path.

    Args:
        models: the directory that holds them.
        records: of the instances, whose ``engine_args.model`` is a path.
        unseen: takes a line for what could not be read.
    """
    wanted: dict[str, list[str]] = {}
    for record in records:
        arguments = record.get("engine_args")
        path = arguments.get("model") if isinstance(arguments, dict) else None
        if isinstance(path, str) and path.startswith(f"{models}/"):
            wanted.setdefault(path, []).append(str(record.get("id")))
    found = []
    try:
        directories = sorted(entry for entry in models.iterdir() if entry.is_dir()) if models.is_dir() else []
        for directory in directories:
            why = _why_partial(directory)
            if why:
                ids = tuple(sorted(wanted.get(str(directory), [])))
                found.append(PartialCheckpoint(str(directory), _held_bytes(directory), why, ids))
    except OSError as error:
        unseen.append(f"checkpoints: {error.filename}: {error.strerror}")
        return found
    missing = sorted(set(wanted) - {str(directory) for directory in directories})
    return found + [PartialCheckpoint(path, 0, "it is not there", tuple(sorted(wanted[path]))) for path in missing]


def _why_partial(directory: Path) -> str | None:
    if directory.name == INCOMING:
        files = sum(1 for path in directory.iterdir() if path.is_file())
        return f"{files} files that were fetched in part" if files else None
    if directory.name.startswith("."):
        # Other hidden ones hold whole files, which checkpoints share.
        return "it was not put together to its end" if directory.name.startswith(STAGING) else None
    unfinished = sorted(path.name for path in directory.rglob("*") if path.name.endswith(_UNFINISHED_SUFFIXES))
    if unfinished:
        return f"{unfinished[0]} was not finished"
    if not (directory / NOTE).is_file():
        return "it was never verified"
    return None


def _held_bytes(directory: Path) -> int:
    # Blocks, since what downloads reserves the whole length of a file in advance.
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())
