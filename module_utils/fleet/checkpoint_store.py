"""Checkpoints of one host: what is there whole, what is missing, and where it gathers. Does I/O.

A checkpoint is a directory ``<name>-<digest12>`` with a note beside its files (see ``checkpoint_note``). Its files are
hard links to ``.blobs/<sha256>``, so that models share what they have in common and a new revision brings only what
changed. What is fetched gathers in ``.incoming/<sha256>``, written by a user without rights; ``checkpoint_promote``
puts it in place. Runs on managed hosts: standard library only.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoint_note import BLOBS, INCOMING, NOTE, STAGING, distrust, is_as_noted, read_note, stamp_of, sums_of_file
from .checkpoint_samples import SAMPLE_BYTES, cursor_of, damage_in_turn
from .checkpoint_wanted import Needed, State, Wanted, WantedFile, parse_wanted
from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
# Files that are read at a time: SHA-256 keeps one core busy where the disk could give more.
READERS = min(4, os.cpu_count() or 1)


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
                unchanged = is_as_noted(entry, stamp) and entry["sha256"] == file.sha256
                all_noted = all_noted and unchanged
                if full or not unchanged:
                    suspect.append(name)
        with ThreadPoolExecutor(READERS) as pool:
            read = pool.map(lambda name: sums_of_file(directory / name).sha256, suspect)
            damaged += [name for name, sha256 in zip(suspect, read, strict=True) if sha256 != wanted.files[name].sha256]
        unexpected = tuple(name for name in _walk(directory) if name not in wanted.files and name != NOTE)
        return State(tuple(missing), tuple(damaged), unexpected, all_noted)

    def inspect_all(
        self, wanted: Sequence[Wanted], verify: str, *, sample_bytes: int = SAMPLE_BYTES, remember: bool = True
    ) -> list[tuple[Wanted, State]]:
        """Every checkpoint with what is there of it.

        Args:
            wanted: the checkpoints.
            verify: ``quick`` takes the note's word, ``sampled`` reads besides what is next in turn, ``full`` reads
                everything.
            sample_bytes: what ``sampled`` reads of all checkpoints together.
            remember: damage that no stamp shows is marked in the notes, so that every later look sees it, and what
                was read is not read again before everything else was.
        """
        found = [(one, self.inspect(one, full=verify == "full")) for one in wanted]
        if verify == "sampled":
            whole = [self.path(one) for one, state in found if state.whole and state.noted]
            damage = damage_in_turn(whole, sample_bytes, cursor_of(self.root), advance=remember)
            found = [(one, _with_damage(state, self.path(one), damage)) for one, state in found]
        for one, state in found if remember else ():
            if state.damaged:
                distrust(self.path(one), state.damaged)
        return found

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

    def check_space(self, needed: Sequence[Needed], also_bytes: int = 0) -> None:
        """Refuses what does not fit on the disk, all checkpoints of the host together.

        Args:
            needed: what is still to be fetched.
            also_bytes: what will be written besides, such as checkpoints that are to be quantized here.

        Raises:
            FleetError: with what is needed by model, and what is missing.
        """
        existing = next(path for path in (self.root, *self.root.parents) if path.exists())
        free_bytes = shutil.disk_usage(existing).free
        by_model: dict[str, int] = {}
        for one in needed:
            by_model[one.model] = by_model.get(one.model, 0) + one.bytes - one.have_bytes
        total = sum(by_model.values())
        lacking = total + also_bytes + _RESERVE_BYTES - free_bytes
        if total + also_bytes and lacking > 0:
            models = ", ".join(f"{name} {_gib(size)}" for name, size in sorted(by_model.items()))
            also = f", {_gib(also_bytes)} to quantize" if also_bytes else ""
            problem = f"{_gib(total)} to fetch ({models}){also} and {_gib(_RESERVE_BYTES)} to leave"
            raise FleetError(str(self.root), f"{problem}, {_gib(free_bytes)} free: {_gib(lacking)} are missing")

    def prepare_incoming(self, owner: tuple[int, int] | None = None) -> None:
        """Makes the directory that files gather in. ``owner`` (uid, gid) is who may write there, None this user.

        What an earlier owner left there and is no file of its own goes: nobody who writes there next follows it.
        """
        uid, gid = owner or (os.geteuid(), os.getegid())
        make_directory(self.root)
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

    def directories(self) -> list[Path]:
        """The checkpoints that have their final name."""
        found = sorted(self.root.iterdir()) if self.root.is_dir() else []
        return [path for path in found if path.is_dir() and re.fullmatch(r"[^.].*-[0-9a-f]{12}", path.name)]


def _with_damage(state: State, directory: Path, damage: set[tuple[Path, str]]) -> State:
    names = tuple(sorted(name for where, name in damage if where == directory))
    return State(state.missing, (*state.damaged, *names), state.unexpected, state.noted) if names else state


def make_directory(path: Path) -> None:
    """Makes a directory and its parents, readable for the engines' users whatever the umask."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir()
        path.chmod(0o755)


def _gib(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"


def _walk(directory: Path) -> Iterator[str]:
    """Paths of all files below a directory, relative to it."""
    for parent, _, names in os.walk(directory):
        for name in sorted(names):
            yield Path(parent, name).relative_to(directory).as_posix()
