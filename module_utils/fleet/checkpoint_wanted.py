"""Checkpoints as they should be, and what was found of them. Runs on managed hosts: standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from .checkpoint_note import NOTE
from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class WantedFile:
    """A file of a checkpoint: its size and its SHA-256 in hexadecimal."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Wanted:
    """A checkpoint as it should be.

    Attributes:
        name: the model that it belongs to.
        digest: SHA-256 of its manifest, in hexadecimal.
        files: by path relative to the directory.
    """

    name: str
    digest: str
    files: Mapping[str, WantedFile]

    @property
    def directory(self) -> str:
        """Name of its directory in the store."""
        return f"{self.name}-{self.digest[:12]}"


@dataclass(frozen=True)
class State:
    """What is there of a checkpoint.

    Attributes:
        missing: files that are not there.
        damaged: files that are not what they should be.
        unexpected: files that do not belong to it; an engine would load them.
        noted: the note is up to date, so that the next look need not read any file.
    """

    missing: tuple[str, ...]
    damaged: tuple[str, ...]
    unexpected: tuple[str, ...]
    noted: bool

    @property
    def whole(self) -> bool:
        """Every file is there and right, and no other."""
        return not (self.missing or self.damaged or self.unexpected)


@dataclass(frozen=True)
class Needed:
    """A file that has to be fetched. ``have_bytes`` of it are there from a run that was cut off."""

    sha256: str
    bytes: int
    have_bytes: int
    model: str
    name: str


def parse_wanted(checkpoints: Sequence[Mapping[str, Any]]) -> tuple[Wanted, ...]:
    """The module's argument, checked.

    Raises:
        FleetError: a digest that is none, or a path that leaves its directory.
    """
    wanted = []
    for number, item in enumerate(checkpoints):
        where = f"checkpoints[{number}]"
        if not _DIGEST.fullmatch(item["digest"]):
            raise FleetError(f"{where}.digest", f"must be 64 hexadecimal digits, got {item['digest']!r}")
        files = {}
        for name, file in item["files"].items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or name == NOTE:
                raise FleetError(f"{where}.files", f"{name!r} is no path inside the checkpoint")
            if not _DIGEST.fullmatch(str(file["sha256"])):
                raise FleetError(f"{where}.files[{name}].sha256", "must be 64 hexadecimal digits")
            files[name] = WantedFile(int(file["bytes"]), str(file["sha256"]))
        wanted.append(Wanted(item["name"], item["digest"], files))
    return tuple(wanted)
