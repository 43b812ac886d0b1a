"""The links between the GPUs of a host: topology classes, and what a kept link test says about them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .probe_pci import path_between

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .probe_nvml import PairReading
    from .probe_pci import PciGpu


def read_links(uuids: Sequence[str], pairs: Sequence[PairReading]) -> list[dict[str, Any]]:
    """Return the links of the host document as NVML names them.

    Args:
        uuids: of the GPUs, in the order that the pairs count them.
        pairs: what NVML says about each pair.
    """
    return [_link(uuids[pair.a], uuids[pair.b], pair.path, pair.p2p_reported) for pair in pairs]


def links_from_pci(uuids: Sequence[str], gpus: Sequence[PciGpu]) -> list[dict[str, Any]]:
    """Return the links as far as the PCI tree shows them, for a host without a driver."""
    return [
        _link(uuids[a], uuids[b], path_between(gpus[a], gpus[b]), None)
        for a in range(len(gpus))
        for b in range(a + 1, len(gpus))
    ]


def topology_key(driver_version: str | None, links: Sequence[dict[str, Any]]) -> str:
    """Return the key that a link test belongs to: it changes with the driver, a GPU or the way between two of them."""
    text = json.dumps([driver_version, [[link["a"], link["b"], link["path"]] for link in links]])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def apply_link_test(links: list[dict[str, Any]], path: Path, key: str, unseen: list[str]) -> dict[str, Any] | None:
    """Enter a kept link test into the links and return it; None when there is none for this driver and topology.

    The file is what ``link_result`` writes: ``{"schema": 1, "key": KEY, "backend", "engine", "pairs": [{"a", "b",
    "p2p": "verified"|"failed", "bytes_per_s", "reason"}], "all_reduce": [{"gpus", "bytes", "seconds"}]}``.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["schema"] != 1 or kept["key"] != key:
            return None
        tested = {
            frozenset((pair["a"], pair["b"])): {
                "p2p": pair["p2p"],
                "bytes_per_s": pair["bytes_per_s"],
                "p2p_failure": pair.get("reason") or None,
            }
            for pair in kept["pairs"]
        }
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        unseen.append(f"link test: {path}: {type(error).__name__}: {error}")
        return None
    for link in links:
        ends = frozenset((link["a"], link["b"]))
        if ends in tested:
            link.update(tested[ends])
    return dict(kept)


@dataclass(frozen=True)
class GpuTest:
    """What a kept link test says about one GPU.

    Args:
        failure: why data that was written to it did not come back right; None when it did.
        link_generation: of its PCIe link while data crossed it; None when that was not seen.
    """

    failure: str | None = None
    link_generation: int | None = None


def tested_gpus(kept: dict[str, Any] | None) -> dict[str, GpuTest]:
    """Return what a kept link test says about the GPUs, by UUID."""
    rows = (kept or {}).get("gpus") or []
    return {
        row["uuid"]: GpuTest(
            failure=None if row.get("status") == "verified" else row.get("reason") or "failed",
            link_generation=row.get("link_generation"),
        )
        for row in rows
        if isinstance(row, dict) and "uuid" in row
    }


def link_test_part(kept: dict[str, Any] | None) -> dict[str, Any]:
    """Return what the host document says of a kept link test beside the links: how it was made, and the curve."""
    if kept is None:
        return {"link_test": None, "all_reduce": []}
    return {
        "link_test": {name: kept.get(name) for name in ("backend", "engine", "driver_version")},
        "all_reduce": kept.get("all_reduce") or [],
    }


def _link(a: str, b: str, path: str | None, p2p_reported: bool | None) -> dict[str, Any]:
    return {
        "a": a,
        "b": b,
        "path": path,
        "p2p": "untested",
        "bytes_per_s": None,
        "p2p_failure": None,
        "p2p_reported": p2p_reported,
    }
