"""A checkpoint that lies elsewhere, as far as planning needs it. Does I/O.

That is: its files with their SHA-256, its configuration, and the headers of its tensors. A description is kept on the
controller under what it describes, so that a second look asks nobody.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from .checkpoint import INDEX_NAME, facts_with_headers, manifest_of, read_json, weight_map
from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .model_facts import ModelFacts

_SCHEMA = 1
_DOCUMENT = "description.json"
_SMALL = "files"


class UnreachableError(FleetError):
    """The source cannot be asked now; another time it may."""


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How sources elsewhere are reached.

    Args:
        cache: directory on the controller.
        endpoint: the hub.
        token: for the hub; empty when none is set.
        proxy: for hub and HTTP trees; empty takes the environment's.
        update: look again what a revision or a tree is now, instead of taking what was recorded.
    """

    cache: Path
    endpoint: str = "https://huggingface.co"
    token: str = ""
    proxy: str = ""
    update: bool = False

    def __repr__(self) -> str:
        return f"SourceOptions(endpoint={self.endpoint!r})"


@dataclass(frozen=True, slots=True)
class Description:
    """What is known of a checkpoint that lies elsewhere.

    Args:
        directory: where its small files are kept on the controller.
        files: ``bytes`` and ``sha256`` of each file, by its path in the checkpoint.
        headers: safetensors headers by file name.
        base_url: what a file's path is appended to.
        credential: ``hub`` where the hub's token has to be sent, else empty.
    """

    directory: Path
    files: Mapping[str, Mapping[str, Any]]
    headers: Mapping[str, Mapping[str, Any]]
    base_url: str
    credential: str

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest, the same as that of a copy on the controller."""
        return dict(manifest_of(self.files))

    def config(self, name: str) -> Mapping[str, object]:
        """Its configuration, from the file of this name.

        Raises:
            FleetError: it is missing or malformed.
        """
        return read_json(self.directory / _SMALL / name)

    def facts(self) -> ModelFacts:
        """The model's facts, its sizes those of the tensors.

        Raises:
            FleetError: config.json is missing or malformed.
        """
        return facts_with_headers(self.directory / _SMALL, self.headers)


def small_files(directory: Path) -> Path:
    """Where a description that is being made gathers its small files."""
    path = directory / _SMALL
    path.mkdir(exist_ok=True)
    return path


def new_directory(cache: Path) -> Path:
    """An empty directory in which a description is made before ``keep`` puts it in place."""
    root = cache / "sources"
    root.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=".new-", dir=root))


def keep(description: Description, key: str, cache: Path) -> Description:
    """Put a description that was made in ``new_directory`` in place, whole."""
    document = {
        "schema": _SCHEMA,
        "files": description.files,
        "headers": description.headers,
        "base_url": description.base_url,
        "credential": description.credential,
    }
    # huggingface_hub notes there what it fetched and when.
    shutil.rmtree(description.directory / _SMALL / ".cache", ignore_errors=True)
    (description.directory / _DOCUMENT).write_text(json.dumps(document), encoding="utf-8")
    final = cache / "sources" / key
    shutil.rmtree(final, ignore_errors=True)
    try:
        os.replace(description.directory, final)
    except OSError:
        # Another run was faster; what it made is the same.
        shutil.rmtree(description.directory, ignore_errors=True)
    return read_kept(key, cache) or description


def read_kept(key: str, cache: Path) -> Description | None:
    """What was kept under a key; None when there is nothing that can be read."""
    directory = cache / "sources" / key
    try:
        document = json.loads((directory / _DOCUMENT).read_text(encoding="utf-8"))
        if document["schema"] != _SCHEMA:
            return None
        found = document["files"], document["headers"], document["base_url"], document["credential"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Description(directory, *found)


def shards_of(names: frozenset[str], index: Path | None, where: str) -> frozenset[str]:
    """The safetensors files that make up the model: those that the index names, or all of the top directory.

    Args:
        names: all files.
        index: the index, if the checkpoint has one.
        where: the source, for errors.

    Raises:
        FleetError: there is none, or the index names one that is not there.
    """
    if index is not None:
        wanted = frozenset(weight_map(index).values())
        missing = sorted(wanted - names)
        if missing:
            raise FleetError(where, f"lacks {missing[0]}, which {INDEX_NAME} names")
        return wanted
    found = frozenset(name for name in names if name.endswith(".safetensors") and "/" not in name)
    if not found:
        raise FleetError(where, "holds no *.safetensors; other formats can run code when they are loaded")
    return found


def is_inside(name: str) -> bool:
    """Whether a file name of a source stays inside the checkpoint's directory."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and not name.startswith(".")
