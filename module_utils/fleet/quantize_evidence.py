"""What hosts say about quantized checkpoints: which are there, and which were not good enough."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import FleetError
from .quantize_gate import Figures, figures_from

if TYPE_CHECKING:
    from collections.abc import Mapping


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
