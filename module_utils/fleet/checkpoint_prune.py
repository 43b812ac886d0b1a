"""What a store holds that nobody needs. Does I/O. Runs on managed hosts: standard library only."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

from .checkpoint_store import BLOBS, INCOMING, STAGING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from .checkpoint_store import CheckpointStore


def forgotten(store: CheckpointStore, known_models: Collection[str]) -> list[Path]:
    """Checkpoints of models that the inventory does not know any more."""
    return [path for path in store.directories() if _model(path) not in known_models]


def unreferenced(store: CheckpointStore, keep: Collection[str]) -> list[Path]:
    """Checkpoints that no plan refers to and no engine here serves; also earlier ones of models that are known.

    Args:
        store: the store.
        keep: names of directories that plan or engines refer to.
    """
    return [path for path in store.directories() if path.name not in keep]


def leftovers(store: CheckpointStore, needed: Collection[str] = ()) -> list[Path]:
    """What earlier runs left half-way and no checkpoint will be made from.

    Args:
        store: the store.
        needed: SHA-256 of files that are still to be fetched.
    """
    incoming = store.root / INCOMING
    parts = sorted(incoming.iterdir()) if incoming.is_dir() else []
    return [*sorted(store.root.glob(f"{STAGING}*")), *(path for path in parts if path.name not in needed)]


def loose_blobs(store: CheckpointStore, going: Sequence[Path] = ()) -> list[Path]:
    """Blobs that no checkpoint links to once some directories are gone."""
    blobs = store.root / BLOBS
    links: dict[int, int] = {}
    for directory in going:
        for path in directory.rglob("*"):
            if path.is_file():
                inode = path.stat().st_ino
                links[inode] = links.get(inode, 0) + 1
    found = sorted(blobs.iterdir()) if blobs.is_dir() else []
    return [path for path in found if path.stat().st_nlink - links.get(path.stat().st_ino, 0) == 1]


def freed_bytes(going: Sequence[Path], blobs: Sequence[Path]) -> int:
    """What removing directories and the blobs that become loose gives back: shared files only with their last link."""
    inodes = {}
    loose = {path.stat().st_ino for path in blobs}
    for root in (*going, *blobs):
        for path in [root] if root.is_file() else root.rglob("*"):
            status = path.lstat()
            if path.is_file() and (status.st_ino in loose or status.st_nlink == 1):
                inodes[status.st_ino] = status.st_size
    return sum(inodes.values())


def remove(paths: Sequence[Path]) -> None:
    """Removes directories and files."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove_empty(store: CheckpointStore) -> None:
    """The directory that files gather in is there only while something is in it."""
    incoming = store.root / INCOMING
    if incoming.is_dir() and not any(incoming.iterdir()):
        incoming.rmdir()


def _model(path: Path) -> str:
    """The model that a checkpoint belongs to: ``m`` of ``m-DIGEST`` and of its draft's ``m_draft-DIGEST``."""
    match = re.fullmatch(r"(.+)-[0-9a-f]{12}", path.name)
    return (match[1] if match else path.name).partition("_")[0]
