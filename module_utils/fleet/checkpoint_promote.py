"""How a checkpoint comes to its final name: verified, linked from blobs, noted. Does I/O.

What was fetched and has the right SHA-256 becomes a blob of root's. A directory takes its final name when every file in
it has been verified. A damaged file is replaced by a new one, so that an engine that has it open goes on with what it
opened. Runs on managed hosts: standard library only.
"""

from __future__ import annotations

import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoint_note import (
    BLOBS,
    STAGING,
    Sums,
    entry_of,
    is_as_noted,
    read_note,
    replace_entries,
    stamp_of,
    sums_of,
    sums_of_file,
    write_note,
)
from .checkpoint_store import READERS, make_directory
from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .checkpoint_store import CheckpointStore
    from .checkpoint_wanted import State, Wanted


def promote(store: CheckpointStore, wanted: Wanted, state: State) -> None:
    """Verifies what was fetched and puts the checkpoint in place.

    Raises:
        FleetError: a file was not fetched, or is wrong; then it is removed, so that the next run fetches it again.
    """
    make_directory(store.root / BLOBS)
    directory = store.path(wanted)
    needed = (*state.missing, *state.damaged)
    # One after another where other checkpoints share what is replaced: their notes change with it.
    sums = {name: _admit(store, wanted, name, spoilt=True) for name in state.damaged}
    with ThreadPoolExecutor(READERS) as pool:
        admitted = {name: pool.submit(_admit, store, wanted, name, spoilt=False) for name in state.missing}
    # All have ended by now: what is right is kept, whichever was wrong.
    sums |= {name: future.result() for name, future in admitted.items()}
    if directory.exists():
        for name in needed:
            _link(store, wanted.files[name].sha256, directory / name)
        for name in state.unexpected:
            (directory / name).unlink()
        _write_note(store, directory, wanted, sums)
    else:
        staging = store.root / f"{STAGING}{wanted.directory}"
        shutil.rmtree(staging, ignore_errors=True)
        make_directory(staging)
        for name, file in wanted.files.items():
            _link(store, file.sha256, staging / name)
        _write_note(store, staging, wanted, sums)
        for parent, _, _ in os.walk(staging):
            _sync(Path(parent))
        staging.rename(directory)
    _sync(store.root)


def _write_note(store: CheckpointStore, directory: Path, wanted: Wanted, sums: Mapping[str, Sums]) -> None:
    """Notes every file; what was there and right before becomes a blob as well."""
    noted, files = read_note(directory), {}
    for name, file in wanted.files.items():
        path, entry = directory / name, noted.get(name, {})
        stamp = stamp_of(path)
        if stamp is None:
            raise FleetError(str(path), "was there, and is not any more")
        if name in sums:
            files[name] = entry_of(stamp, sums[name])
        elif is_as_noted(entry, stamp) and entry.get("sha256") == file.sha256:
            files[name] = entry
        else:
            files[name] = entry_of(stamp, sums_of_file(path))
        if not store.blob(file.sha256).exists():
            os.link(path, store.blob(file.sha256))
    write_note(directory, wanted.name, wanted.digest, files)


def _admit(store: CheckpointStore, wanted: Wanted, name: str, *, spoilt: bool) -> Sums:
    """Verifies a fetched file and makes it a blob, or verifies the blob that is there."""
    file = wanted.files[name]
    blob, part = store.blob(file.sha256), store.incoming(file.sha256)
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
        _replace_elsewhere(store, file.sha256, before.inode, sums)
    return sums


def _replace_elsewhere(store: CheckpointStore, sha256: str, inode: int, sums: Sums) -> None:
    """Other checkpoints that share the damaged file get the new one as well."""
    for directory in store.directories():
        entries = {}
        for name, entry in read_note(directory).items():
            stamp = stamp_of(directory / name)
            if entry.get("sha256") == sha256 and stamp is not None and stamp.inode == inode:
                _link(store, sha256, directory / name)
                entries[name] = entry_of(stamp_of(directory / name) or stamp, sums)
        if entries:
            replace_entries(directory, entries)


def _link(store: CheckpointStore, sha256: str, path: Path) -> None:
    """A file of a checkpoint, replaced whole."""
    make_directory(path.parent)
    temporary = path.parent / f".fleet-{sha256[:12]}.new"
    temporary.unlink(missing_ok=True)
    os.link(store.blob(sha256), temporary)
    temporary.replace(path)
    # Renaming a link over another one of the same file does nothing, and leaves both.
    temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flushes a directory to the disk: after a power cut, no name stands for contents that were not written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
