"""Checkpoints of one host: what is there whole, what is missing, and how a new one comes to its final name.

A checkpoint is a directory ``<name>-<digest12>``, with a note (``.fleet-checkpoint.json``) of the size and time of
every file at the moment when its SHA-256 was right. While a file's size and time are the noted ones it is taken to be
whole; otherwise, or when a full check is asked for, it is read again. New files gather in
``.staging-<name>-<digest12>``; the directory takes its final name when every file in it has been verified. Files of a
damaged checkpoint are replaced one by one, each verified first, so that an engine that has them open goes on with
what it opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

NOTE = ".fleet-checkpoint.json"
_STAGING = ".staging-"
_CHUNK_BYTES = 1 << 20
# Left free for the rest of the system.
_RESERVE_BYTES = 1 << 30
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
        source_path: where it lies on the controller; empty when it does not.
        files: by path relative to the directory.
    """

    name: str
    digest: str
    source_path: str
    files: Mapping[str, WantedFile]

    @property
    def directory(self) -> str:
        """Name of its directory in the store."""
        return f"{self.name}-{self.digest[:12]}"

    @property
    def total_bytes(self) -> int:
        """Sum of its files."""
        return sum(file.bytes for file in self.files.values())


@dataclass(frozen=True)
class State:
    """What is there of a checkpoint.

    Attributes:
        missing: files that have to be copied, because they are not there.
        damaged: files that have to be copied, because they are not what they should be.
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
        wanted.append(Wanted(item["name"], item["digest"], item.get("source_path") or "", files))
    return tuple(wanted)


class CheckpointStore:
    """The checkpoints of this host.

    Args:
        root: the directory that holds them.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, wanted: Wanted) -> Path:
        """Its final name."""
        return self._root / wanted.directory

    def staging(self, wanted: Wanted) -> Path:
        """Where its files gather."""
        return self._root / f"{_STAGING}{wanted.directory}"

    def inspect(self, wanted: Wanted, *, full: bool = False) -> State:
        """What is there under the final name.

        Args:
            wanted: the checkpoint.
            full: read every file again, whatever the note says.
        """
        directory = self.path(wanted)
        noted = _read_note(directory)
        missing, damaged, all_noted = [], [], True
        for name, file in wanted.files.items():
            path = directory / name
            stamp = _stamp(path)
            if stamp is None:
                missing.append(name)
            elif stamp[0] != file.bytes:
                damaged.append(name)
            else:
                unchanged = noted.get(name) == {"bytes": stamp[0], "mtime_ns": stamp[1], "sha256": file.sha256}
                all_noted = all_noted and unchanged
                if (full or not unchanged) and _sha256(path) != file.sha256:
                    damaged.append(name)
        unexpected = tuple(name for name in _walk(directory) if name not in wanted.files and name != NOTE)
        return State(tuple(missing), tuple(damaged), unexpected, all_noted)

    def to_copy(self, wanted: Wanted, state: State) -> tuple[str, ...]:
        """The files that have to be brought: what is not right and not yet staged in its full size."""
        staging = self.staging(wanted)
        needed = (*state.missing, *state.damaged)
        sizes = {name: stamp[0] for name in needed if (stamp := _stamp(staging / name)) is not None}
        return tuple(name for name in needed if sizes.get(name) != wanted.files[name].bytes)

    def prepare_staging(self, wanted: Wanted, names: Sequence[str]) -> None:
        """Makes the directories that files will be copied into."""
        for name in names:
            _make_directory((self.staging(wanted) / name).parent)

    def check_space(self, needed_bytes: int) -> None:
        """Refuses what does not fit on the disk.

        Raises:
            FleetError: with both figures.
        """
        existing = next(path for path in (self._root, *self._root.parents) if path.exists())
        free_bytes = shutil.disk_usage(existing).free
        if needed_bytes and needed_bytes + _RESERVE_BYTES > free_bytes:
            problem = (
                f"{_gib(needed_bytes)} to copy and {_gib(_RESERVE_BYTES)} to leave, but only {_gib(free_bytes)} free"
            )
            raise FleetError(str(self._root), problem)

    def promote(self, wanted: Wanted, state: State) -> None:
        """Verifies what was staged and puts it in place.

        Raises:
            FleetError: a staged file is missing, or is wrong; then it is removed, so that the next run brings it again.
        """
        directory, staging = self.path(wanted), self.staging(wanted)
        needed = (*state.missing, *state.damaged)
        for name in needed:
            file, path = wanted.files[name], staging / name
            stamp = _stamp(path)
            if stamp is None:
                raise FleetError(str(path), "was not copied")
            if stamp[0] != file.bytes or _sha256(path) != file.sha256:
                path.unlink()
                raise FleetError(str(path), f"is not the file that was planned (SHA-256 {file.sha256[:12]}...)")
            path.chmod(0o644)
        if not directory.exists():
            for name in [name for name in _walk(staging) if name not in wanted.files]:
                (staging / name).unlink()
            _write_note(staging, wanted)
            for name in _walk(staging):
                _sync(staging / name)
            staging.rename(directory)
        else:
            for name in needed:
                _make_directory((directory / name).parent)
                (staging / name).replace(directory / name)
            for name in state.unexpected:
                (directory / name).unlink()
            _write_note(directory, wanted)
        _sync(self._root)

    def abandoned(self, wanted: Sequence[Wanted]) -> tuple[Path, ...]:
        """Staging directories that no wanted checkpoint will be made from, or not any more."""
        needed = {self.staging(one) for one in wanted if not self.path(one).exists()}
        found = sorted(self._root.glob(f"{_STAGING}*"))
        return tuple(path for path in found if path not in needed)

    def forgotten(self, known_models: Sequence[str]) -> tuple[Path, ...]:
        """Checkpoints, whole or half, of models that the inventory does not know any more."""
        found = []
        for path in sorted(self._root.iterdir()) if self._root.is_dir() else []:
            match = re.fullmatch(rf"({re.escape(_STAGING)})?(.+)-[0-9a-f]{{12}}", path.name)
            if path.is_dir() and match and match.group(2) not in known_models:
                found.append(path)
        return tuple(found)

    @staticmethod
    def remove(paths: Sequence[Path]) -> None:
        """Removes checkpoints."""
        for path in paths:
            shutil.rmtree(path)


def _make_directory(path: Path) -> None:
    """Makes a directory and its parents, readable for the engines' users whatever the umask."""
    if not path.is_dir():
        _make_directory(path.parent)
        path.mkdir()
        path.chmod(0o755)


def _gib(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size in bytes and time of change in ns of a file; None when there is no such file."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (status.st_size, status.st_mtime_ns) if path.is_file() else None


def _walk(directory: Path) -> Iterator[str]:
    """Paths of all files below a directory, relative to it."""
    for parent, _, names in os.walk(directory):
        for name in sorted(names):
            yield Path(parent, name).relative_to(directory).as_posix()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _read_note(directory: Path) -> Mapping[str, Any]:
    """Noted files by name; empty when there is no note or none that can be read."""
    try:
        files = json.loads((directory / NOTE).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return files if isinstance(files, dict) else {}


def _write_note(directory: Path, wanted: Wanted) -> None:
    """Notes size and time of every file. Call it only when every file has been verified."""
    files = {}
    for name, file in sorted(wanted.files.items()):
        stamp = _stamp(directory / name)
        if stamp is not None:
            files[name] = {"bytes": stamp[0], "mtime_ns": stamp[1], "sha256": file.sha256}
    document = {"schema": 1, "model": wanted.name, "digest": wanted.digest, "files": files}
    temporary = directory / f"{NOTE}.new"
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    temporary.chmod(0o644)
    temporary.replace(directory / NOTE)


def _sync(path: Path) -> None:
    """Flushes a file or directory to the disk: after a power cut, no name stands for contents that were not written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
