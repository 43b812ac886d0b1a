"""What hosts say about quantized checkpoints: which are there, and which were not good enough."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .errors import FleetError
from .quantize_gate import Figures, Limits, figures_from, why_rejected
from .quantize_recipes import recipe_from_document, words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Made:
    """A quantized checkpoint that is whole on a host.

    Args:
        figures: what the gate measured.
        files: size and SHA-256 by relative path.
    """

    figures: Figures
    files: Mapping[str, Any]

    @property
    def total_bytes(self) -> int:
        """Sum of the files."""
        return sum(int(file["bytes"]) for file in self.files.values())


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of all hosts that were probed.

    Args:
        made: by key, then by host.
        rejected: figures by key.
    """

    made: Mapping[str, Mapping[str, Made]] = field(default_factory=dict)
    rejected: Mapping[str, Figures] = field(default_factory=dict)

    def figures(self, key: str) -> Figures | None:
        """What was measured of a result, wherever it is; None when it was never made."""
        if key in self.rejected:
            return self.rejected[key]
        holders = self.made.get(key, {})
        return holders[min(holders)].figures if holders else None


def evidence_of(hosts: Mapping[str, Mapping[str, Any]], notices: list[str]) -> Evidence:
    """Read ``quantized`` and ``quantize_rejected`` of host documents.

    Args:
        hosts: host documents as the probe returned them, by name.
        notices: takes a line for what cannot be read; such a record counts as absent.
    """
    made: dict[str, dict[str, Made]] = {}
    rejected: dict[str, Figures] = {}
    for host, document in sorted(hosts.items()):
        for kind in ("quantized", "quantize_rejected"):
            for index, record in enumerate(document.get(kind) or ()):
                where = f"probe {host}: {kind}[{index}]"
                try:
                    figures = figures_from(record["figures"], where=where)
                    if kind == "quantized":
                        made.setdefault(str(record["key"]), {})[host] = Made(figures, dict(record["files"]))
                    else:
                        rejected[str(record["key"])] = figures
                except (FleetError, KeyError, TypeError) as error:
                    notices.append(f"{where} was left out: {error}")
    return Evidence(made, rejected)


@dataclass(frozen=True, slots=True)
class Record:
    """What was made once, as it is told to people.

    Args:
        key: SHA-256 that names the result.
        hosts: that have it; of a result that was refused, those where it was made.
        recipe: in words.
        tool: the environment that made it.
        versions: of its libraries, by name.
        source_digest: SHA-256 of the source's manifest.
        figures: as they were measured.
        limits: that it was judged by.
        seconds: that it took, all steps together.
        refused: why it is not used; None where it was kept.
    """

    model: str
    key: str
    hosts: tuple[str, ...]
    recipe: str
    tool: str
    versions: Mapping[str, str]
    source_digest: str
    figures: Figures
    limits: Limits
    seconds: float
    refused: str | None


def records_of(hosts: Mapping[str, Mapping[str, Any]]) -> tuple[Record, ...]:
    """The records of host documents, by model. What cannot be read is left out; ``evidence_of`` tells of it."""
    found: dict[tuple[str, str], Record] = {}
    for host, document in sorted(hosts.items()):
        for kind in ("quantized", "quantize_rejected"):
            for entry in document.get(kind) or ():
                try:
                    one = _record(entry, host, refused=kind == "quantize_rejected")
                except (FleetError, KeyError, TypeError, ValueError, AttributeError):
                    continue
                known = found.get((one.model, one.key))
                # Kept on one host, it is not refused, whatever was judged elsewhere by other limits.
                if known is None or (known.refused and not one.refused):
                    found[one.model, one.key] = one
                elif bool(known.refused) == bool(one.refused):
                    found[one.model, one.key] = replace(known, hosts=(*known.hosts, host))
    return tuple(found[name] for name in sorted(found))


def _record(entry: Mapping[str, Any], host: str, *, refused: bool) -> Record:
    figures, limits = figures_from(entry["figures"], where=host), Limits(**entry["limits"])
    seconds = entry.get("seconds") or {}
    why = why_rejected(figures, limits) or "it was refused"
    return Record(
        model=str(entry["model"]),
        key=str(entry["key"]),
        hosts=(host,),
        recipe=words(recipe_from_document(entry["recipe"])),
        tool=str(entry["tool"]),
        versions={str(name): str(value) for name, value in sorted(entry["versions"].items())},
        source_digest=str(entry["source_digest"]),
        figures=figures,
        limits=limits,
        seconds=float(sum(seconds.values())),
        refused=why if refused else None,
    )


def mark_of(records: Sequence[Record]) -> str:
    """What a page about these records bears, so that one about others is known without making it."""
    text = json.dumps([asdict(one) for one in records], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
