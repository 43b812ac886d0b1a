"""Checkpoints of one host: what is there whole, what is missing, and how a new one comes to its final name. Does I/O.

A checkpoint is a directory ``<name>-<digest12>`` with a note beside its files (see ``checkpoint_note``). Its files are
hard links to ``.blobs/<sha256>``, so that models share what they have in common and a new revision brings only what
changed. What is fetched gathers in ``.incoming/<sha256>``, written by a user without rights; what has the right SHA-256
becomes a blob of root's. A directory takes its final name when every file in it has been verified. A damaged file is
replaced by a new one, so that an engine that has it open goes on with what it opened. Runs on managed hosts: standard
library only.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoint_note import (
    BLOBS,
    INCOMING,
    NOTE,
    STAGING,
    Sums,
    entry_of,
    read_note,
    replace_entries,
    sampled_damage,
    stamp_of,
    sums_of,
    sums_of_file,
    write_note,
)
from .checkpoint_wanted import Needed, State, Wanted, WantedFile, parse_wanted
from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = [
    "BLOBS",
    "INCOMING",
    "NOTE",
    "STAGING",
    "CheckpointStore",
    "Needed",
    "State",
    "Wanted",
    "WantedFile",
    "parse_wanted",
]
# Left free for the rest of the system.
_RESERVE_BYTES = 1 << 30
# What a run reads of checkpoints that nobody wrote to: a fraction of a second, and each part's turn comes by chance.
SAMPLE_BYTES = 256 << 20
# Files that are read at a time: SHA-256 keeps one core busy where the disk could give more.
_READERS = min(4, os.cpu_count() or 1)


class CheckpointStore:
    """The checkpoints of this host.

    Args:
        root: the directory that holds them.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, wanted: Wanted) -> Path:
        """Its final name."""
        return self.root / wanted.directory

    def blob(self, sha256: str) -> Path:
        """Where the file with this content is, once it was verified."""
        return self.root / BLOBS / sha256

    def incoming(self, sha256: str) -> Path:
        """Where it gathers until then."""
        return self.root / INCOMING / sha256

    def inspect(self, wanted: Wanted, *, full: bool = False) -> State:
        """What is there under the final name.

        Args:
            wanted: the checkpoint.
            full: read every file again, whatever the note says.
        """
        directory = self.path(wanted)
        noted = read_note(directory)
        missing, damaged, suspect, all_noted = [], [], [], True
        for name, file in wanted.files.items():
            stamp = stamp_of(directory / name)
            if stamp is None:
                missing.append(name)
            elif stamp.bytes != file.bytes:
                damaged.append(name)
            else:
                entry = noted.get(name, {})
                unchanged = {**entry, **stamp.__dict__, "sha256": file.sha256} == entry and "crc32" in entry
                all_noted = all_noted and unchanged
                if full or not unchanged:
                    suspect.append(name)
        with ThreadPoolExecutor(_READERS) as pool:
            read = pool.map(lambda name: sums_of_file(directory / name).sha256, suspect)
            damaged += [name for name, sha256 in zip(suspect, read, strict=True) if sha256 != wanted.files[name].sha256]
        unexpected = tuple(name for name in _walk(directory) if name not in wanted.files and name != NOTE)
        return State(tuple(missing), tuple(damaged), unexpected, all_noted)

    def inspect_all(self, wanted: Sequence[Wanted], verify: str) -> list[tuple[Wanted, State]]:
        """Every checkpoint with what is there of it.

        Args:
            wanted: the checkpoints.
            verify: ``quick`` takes the note's word, ``sampled`` reads ``SAMPLE_BYTES`` in all besides, ``full`` reads
                everything.
        """
        found = [(one, self.inspect(one, full=verify == "full")) for one in wanted]
        if verify != "sampled":
            return found
        whole = [self.path(one) for one, state in found if state.whole and state.noted]
        damage = sampled_damage(whole, SAMPLE_BYTES)
        return [(one, _with_damage(state, self.path(one), damage)) for one, state in found]

    def needed(self, inspected: Sequence[tuple[Wanted, State]]) -> tuple[Needed, ...]:
        """The files that have to be fetched, each once: what no blob holds and no earlier run brought whole."""
        spoilt = {
            stamp.inode
            for wanted, state in inspected
            for name in state.damaged
            if (stamp := stamp_of(self.path(wanted) / name)) is not None
        }
        found: dict[str, Needed] = {}
        for wanted, state in inspected:
            for name in (*state.missing, *state.damaged):
                file = wanted.files[name]
                if not file.bytes:
                    continue
                blob, part = stamp_of(self.blob(file.sha256)), stamp_of(self.incoming(file.sha256))
                if blob is not None and blob.bytes == file.bytes and blob.inode not in spoilt:
                    continue
                have = part.bytes if part is not None and part.bytes <= file.bytes else 0
                found.setdefault(file.sha256, Needed(file.sha256, file.bytes, have, wanted.name, name))
        return tuple(found.values())

    def check_space(self, needed: Sequence[Needed]) -> None:
        """Refuses what does not fit on the disk, all checkpoints of the host together.

        Raises:
            FleetError: with what is needed by model, and what is missing.
        """
        existing = next(path for path in (self.root, *self.root.parents) if path.exists())
        free_bytes = shutil.disk_usage(existing).free
        by_model: dict[str, int] = {}
        for one in needed:
            by_model[one.model] = by_model.get(one.model, 0) + one.bytes - one.have_bytes
        total = sum(by_model.values())
        lacking = total + _RESERVE_BYTES - free_bytes
        if total and lacking > 0:
            models = ", ".join(f"{name} {_gib(size)}" for name, size in sorted(by_model.items()))
            problem = (
                f"{_gib(total)} to fetch ({models}) and {_gib(_RESERVE_BYTES)} to leave, {_gib(free_bytes)} free: "
            )
            raise FleetError(str(self.root), f"{problem}{_gib(lacking)} are missing")

    def prepare_incoming(self, owner: tuple[int, int] | None = None) -> None:
        """Makes the directory that files gather in. ``owner`` (uid, gid) is who may write there, None this user.

        What an earlier owner left there and is no file of its own goes: nobody who writes there next follows it.
        """
        uid, gid = owner or (os.geteuid(), os.getegid())
        _make_directory(self.root)
        directory = self.root / INCOMING
        directory.mkdir(mode=0o700, exist_ok=True)
        # Closed to everybody else first, so that nothing is put there while this looks.
        os.chown(directory, os.geteuid(), os.getegid(), follow_symlinks=False)
        for path in directory.iterdir():
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                path.unlink()
            else:
                os.chown(path, uid, gid, follow_symlinks=False)
        os.chown(directory, uid, gid, follow_symlinks=False)

    def promote(self, wanted: Wanted, state: State) -> None:
        """Verifies what was fetched and puts the checkpoint in place.

        Raises:
            FleetError: a file was not fetched, or is wrong; then it is removed, so that the next run fetches it again.
        """
        _make_directory(self.root / BLOBS)
        directory = self.path(wanted)
        needed = (*state.missing, *state.damaged)
        # One after another where other checkpoints share what is replaced: their notes change with it.
        sums = {name: self._admit(wanted, name, spoilt=True) for name in state.damaged}
        with ThreadPoolExecutor(_READERS) as pool:
            admitted = {name: pool.submit(self._admit, wanted, name, spoilt=False) for name in state.missing}
        # All have ended by now: what is right is kept, whichever was wrong.
        sums |= {name: future.result() for name, future in admitted.items()}
        if directory.exists():
            for name in needed:
                self._link(wanted.files[name].sha256, directory / name)
            for name in state.unexpected:
                (directory / name).unlink()
            self._note(directory, wanted, sums)
        else:
            staging = self.root / f"{STAGING}{wanted.directory}"
            shutil.rmtree(staging, ignore_errors=True)
            _make_directory(staging)
            for name, file in wanted.files.items():
                self._link(file.sha256, staging / name)
            self._note(staging, wanted, sums)
            for parent, _, _ in os.walk(staging):
                _sync(Path(parent))
            staging.rename(directory)
        _sync(self.root)

    def _note(self, directory: Path, wanted: Wanted, sums: Mapping[str, Sums]) -> None:
        """Notes every file; what was there and right before becomes a blob as well."""
        noted, files = read_note(directory), {}
        for name, file in wanted.files.items():
            path, entry = directory / name, noted.get(name, {})
            stamp = stamp_of(path)
            if stamp is None:
                raise FleetError(str(path), "was there, and is not any more")
            if name in sums:
                files[name] = entry_of(stamp, sums[name])
            elif {**entry, **stamp.__dict__} == entry and entry.get("sha256") == file.sha256:
                files[name] = entry
            else:
                files[name] = entry_of(stamp, sums_of_file(path))
            if not self.blob(file.sha256).exists():
                os.link(path, self.blob(file.sha256))
        write_note(directory, wanted.name, wanted.digest, files)

    def _admit(self, wanted: Wanted, name: str, *, spoilt: bool) -> Sums:
        """Verifies a fetched file and makes it a blob, or verifies the blob that is there."""
        file = wanted.files[name]
        blob, part = self.blob(file.sha256), self.incoming(file.sha256)
        if not file.bytes:
            # Nothing to fetch.
            part.parent.mkdir(mode=0o700, exist_ok=True)
            part.touch(mode=0o600)
        found = stamp_of(part)
        if found is None or found.bytes != file.bytes:
            if stamp_of(blob) is None:
                size = found.bytes if found else 0
                raise FleetError(f"{wanted.name}: {name}", f"was not fetched, {size} of {file.bytes} bytes are there")
            sums = sums_of_file(blob)
            if sums.sha256 != file.sha256:
                blob.unlink()
                raise FleetError(str(blob), "is damaged, and was removed; the next run fetches it")
            return sums
        descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                raise FleetError(str(part), "is no file of its own")
            # From here on nobody but root can write to it, whoever fetched it.
            os.fchown(descriptor, os.geteuid(), os.getegid())
            os.fchmod(descriptor, 0o644)
            sums = sums_of(descriptor)
            if sums.sha256 != file.sha256:
                part.unlink()
                raise FleetError(f"{wanted.name}: {name}", f"is not the file that was planned ({file.sha256[:12]}...)")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        before = stamp_of(blob)
        part.replace(blob)
        if spoilt and before is not None:
            self._replace_elsewhere(file.sha256, before.inode, sums)
        return sums

    def _replace_elsewhere(self, sha256: str, inode: int, sums: Sums) -> None:
        """Other checkpoints that share the damaged file get the new one as well."""
        for directory in self.directories():
            entries = {}
            for name, entry in read_note(directory).items():
                stamp = stamp_of(directory / name)
                if entry.get("sha256") == sha256 and stamp is not None and stamp.inode == inode:
                    self._link(sha256, directory / name)
                    entries[name] = entry_of(stamp_of(directory / name) or stamp, sums)
            if entries:
                replace_entries(directory, entries)

    def _link(self, sha256: str, path: Path) -> None:
        """A file of a checkpoint, replaced whole."""
        _make_directory(path.parent)
        temporary = path.parent / f".fleet-{sha256[:12]}.new"
        temporary.unlink(missing_ok=True)
        os.link(self.blob(sha256), temporary)
        temporary.replace(path)
        # Renaming a link over another one of the same file does nothing, and leaves both.
        temporary.unlink(missing_ok=True)

    def directories(self) -> list[Path]:
        """The checkpoints that have their final name."""
        found = sorted(self.root.iterdir()) if self.root.is_dir() else []
        return [path for path in found if path.is_dir() and re.fullmatch(r"[^.].*-[0-9a-f]{12}", path.name)]


def _with_damage(state: State, directory: Path, damage: set[tuple[Path, str]]) -> State:
    names = tuple(sorted(name for where, name in damage if where == directory))
    return State(state.missing, (*state.damaged, *names), state.unexpected, state.noted) if names else state


def _make_directory(path: Path) -> None:
    """Makes a directory and its parents, readable for the engines' users whatever the umask."""
    if not path.is_dir():
        _make_directory(path.parent)
        path.mkdir()
        path.chmod(0o755)


def _gib(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"


def _walk(directory: Path) -> Iterator[str]:
    """Paths of all files below a directory, relative to it."""
    for parent, _, names in os.walk(directory):
        for name in sorted(names):
            yield Path(parent, name).relative_to(directory).as_posix()


def _sync(path: Path) -> None:
    """Flushes a directory to the disk: after a power cut, no name stands for contents that were not written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
