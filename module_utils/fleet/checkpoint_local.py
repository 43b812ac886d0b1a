"""Files that a host has already, outside the store: a mounted share, a disk that was filled beforehand. Does I/O."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .checkpoint_store import Needed


def find_local(directories: Sequence[Path], needed: Sequence[Needed]) -> dict[str, list[Path]]:
    """Paths, by SHA-256, of files that have the name and the size of one that is needed.

    Whether they are it shows when they are copied. A directory that is not there holds nothing: shares come and go.
    """
    wanted: dict[tuple[str, int], list[str]] = {}
    for one in needed:
        wanted.setdefault((one.name.rpartition("/")[2], one.bytes), []).append(one.sha256)
    found: dict[str, list[Path]] = {}
    for root in directories if wanted else []:
        for parent, _, names in os.walk(root):
            for name in names:
                path = Path(parent, name)
                try:
                    size = path.stat().st_size if any(name == known for known, _ in wanted) else -1
                except OSError:
                    continue
                for sha256 in wanted.get((name, size), []):
                    found.setdefault(sha256, []).append(path)
    return found
