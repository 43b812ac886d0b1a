"""Sources that are not on the controller, and the record of what each was when it was first planned. Does I/O.

`hf:org/name` and a branch mean another commit every day, and an HTTP tree can be replaced. So that a run does not move
a fleet that nobody meant to move, the commit (or the digest of the tree's SHA256SUMS) is recorded in `models.lock.json`
beside models.yml, and taken from there until `fleet_update_sources` asks to look again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoint import CONFIG_NAME
from .errors import FleetError
from .fetch_description import read_kept
from .fetch_hub import COMMIT, Hub
from .fetch_hub import key_of as hub_key
from .fetch_tree import Tree, digest_of
from .fetch_tree import key_of as tree_key

if TYPE_CHECKING:
    from .fetch_description import Description, SourceOptions
    from .sources import Source

_SCHEMA = 1


@dataclass(slots=True)
class RemoteSources:
    """Hubs and HTTP trees.

    Args:
        options: how they are reached.
        lock_path: where the record is.
        recorded: what each source was, as far as this run asked.
        unavailable: sources that could not be reached while models.yml gives a configuration to plan with:
            where they stand in models.yml, and why.
    """

    options: SourceOptions
    lock_path: Path
    recorded: dict[str, str] = field(default_factory=dict)
    unavailable: list[tuple[str, str]] = field(default_factory=list)
    _lock: dict[str, str] | None = None
    _hub: Hub | None = None

    def description(self, source: Source, *, config_name: str = CONFIG_NAME) -> Description:
        """What a source holds.

        Args:
            source: where it is.
            config_name: the file that says what it is.

        Raises:
            UnreachableError: it cannot be asked now, and no earlier answer is kept.
            FleetError: it has no such checkpoint, or none that can be served.
        """
        if source.repository is not None:
            return self._from_hub(source.repository, source.revision, config_name)
        return self._from_tree(source.text, config_name)

    def lock_text(self) -> str | None:
        """What the record should hold now; None when it needs no change."""
        text = json.dumps({"schema": _SCHEMA, "sources": self.recorded}, indent=2, sort_keys=True) + "\n"
        if not self.recorded and not self.lock_path.exists():
            return None
        try:
            return None if self.lock_path.read_text(encoding="utf-8") == text else text
        except OSError:
            return text

    def _from_hub(self, repository: str, revision: str | None, config_name: str) -> Description:
        name = f"hf:{repository}@{revision or 'main'}"
        if revision is not None and COMMIT.fullmatch(revision):
            commit = revision
        else:
            commit = self._known(name) or self._the_hub().commit(repository, revision)
            self.recorded[name] = commit
        kept = read_kept(hub_key(self.options.endpoint, repository, commit), self.options.cache)
        return kept or self._the_hub().describe(repository, commit, config_name=config_name)

    def _from_tree(self, url: str, config_name: str) -> Description:
        known = self._known(url)
        kept = read_kept(tree_key(url, known), self.options.cache) if known else None
        if known and kept:
            self.recorded[url] = known
            return kept
        tree = Tree(url, self.options)
        sums = tree.sums()
        digest = digest_of(sums)
        if known and known != digest:
            raise FleetError(
                url, f"is not what {self.lock_path.name} records; fleet_update_sources=true takes what it is now"
            )
        self.recorded[url] = digest
        return read_kept(tree_key(url, digest), self.options.cache) or tree.describe(sums, config_name=config_name)

    def _known(self, name: str) -> str | None:
        if self._lock is None:
            self._lock = self._read_lock()
        return None if self.options.update else self._lock.get(name)

    def _read_lock(self) -> dict[str, str]:
        try:
            text = self.lock_path.read_text(encoding="utf-8")
        except OSError:
            return {}
        try:
            document = json.loads(text)
            if document["schema"] != _SCHEMA:
                raise FleetError(f"{self.lock_path}: schema", f"must be {_SCHEMA}, got {document['schema']!r}")
            return {str(name): str(value) for name, value in document["sources"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise FleetError(str(self.lock_path), "is no record of sources; remove it to look again") from None

    def _the_hub(self) -> Hub:
        if self._hub is None:
            self._hub = Hub(self.options)
        return self._hub


def lock_path_of(models_file: str) -> Path:
    """Where the record of a models file is: ``models.lock.json`` beside ``models.yml``."""
    return Path(models_file).with_suffix(".lock.json")
