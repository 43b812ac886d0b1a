"""Looks for quantized checkpoints of this fleet's making, and for records of those that were not good enough.

Standard library only; reads, changes nothing.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .checkpoint_note import is_as_noted, read_note, stamp_of

if TYPE_CHECKING:
    from pathlib import Path

_KEPT = ("model", "key", "source_digest", "recipe", "tool", "versions", "figures", "limits", "seconds")


def read_quantized(models: Path, records: Path, unseen: list[str]) -> dict[str, list[dict[str, Any]]]:
    """``quantized`` and ``quantize_rejected`` of the host document, each only where there is something.

    A checkpoint counts when every file has the size, time and inode at which its SHA-256 was right.

    Args:
        models: the store of checkpoints.
        records: the directory with ``rejected/``.
        unseen: takes a line for what could not be read.
    """
    made, rejected = [], []
    try:
        for path in sorted(models.glob("*/recipe.json")):
            record = _read(path)
            files = _whole_files(path.parent)
            if record and files:
                made.append({**record, "files": files})
        rejected = [record for path in sorted((records / "rejected").glob("*.json")) if (record := _read(path))]
    except OSError as error:
        unseen.append(f"quantized: {error.filename}: {error.strerror}")
    return {**({"quantized": made} if made else {}), **({"quantize_rejected": rejected} if rejected else {})}


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    if not isinstance(document, dict) or "key" not in document:
        return {}
    return {name: document[name] for name in _KEPT if name in document}


def _whole_files(directory: Path) -> dict[str, dict[str, Any]]:
    files = {}
    for name, entry in read_note(directory).items():
        stamp = stamp_of(directory / name)
        if stamp is None or not is_as_noted(entry, stamp):
            return {}
        files[name] = {"bytes": entry["bytes"], "sha256": entry["sha256"]}
    return files
