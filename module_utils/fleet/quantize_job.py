"""A job of quantization on a host: what it makes, where its files are, what became of it. Pure.

Runs on managed hosts: standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FleetError
from .quantize_gate import Figures, Limits

if TYPE_CHECKING:
    from collections.abc import Mapping

DIGEST = re.compile(r"[0-9a-f]{64}")
_IDENTITY = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?-[0-9a-f]{12}")


@dataclass(frozen=True)
class Places:
    """Where things are on a host.

    Attributes:
        configuration: a directory for each job: ``job.json`` and ``environment``.
        state: a directory for each job, written by its unit.
        store: the checkpoints.
        records: ``rejected/<id>.json``, and ``baselines/`` of sources.
        quantizers: the environments.
        text: what is calibrated and judged with where a job names no other text.
        meminfo: the kernel's account of memory.
    """

    configuration: Path = Path("/etc/l40s-fleet/quantize")
    state: Path = Path("/var/lib/l40s-fleet-quantize")
    store: Path = Path("/var/lib/l40s-fleet/models")
    records: Path = Path("/var/lib/l40s-fleet/quantize")
    quantizers: Path = Path("/opt/l40s-fleet/quantizers")
    text: Path = Path("/usr/local/lib/l40s-fleet/quantize/text/python-reference.txt")
    meminfo: Path = Path("/proc/meminfo")

    @property
    def rejected(self) -> Path:
        """Records of results that were not good enough."""
        return self.records / "rejected"

    @property
    def baselines(self) -> Path:
        """What sources do on held-out texts."""
        return self.records / "baselines"


@dataclass(frozen=True)
class Job:
    """One quantized checkpoint that is wanted.

    Attributes:
        model: its model; the checkpoint's name.
        key: SHA-256 of source, recipe and tool: the checkpoint's digest before it exists.
        source_digest: SHA-256 of the source's manifest.
        recipe: method and parameters.
        limits: of the quality gate.
        tool: the environment that makes it, as in ``llmcompressor-0.14.0.1``.
        gpu: UUID of the GPU; empty for the CPU.
        cost: what it takes, as ``quantize_costs`` estimates it.
        judged: ``tokens`` of held-out text, in pieces of ``sequence_length``.
        text: path of a text on this host; empty for the repository's.
    """

    model: str
    key: str
    source_digest: str
    recipe: Mapping[str, Any]
    limits: Limits
    tool: str
    gpu: str = ""
    cost: Mapping[str, Any] = field(default_factory=dict)
    judged: Mapping[str, int] = field(default_factory=dict)
    text: str = ""

    @property
    def id(self) -> str:
        """Its name, also that of the checkpoint's directory."""
        return f"{self.model}-{self.key[:12]}"

    @property
    def source(self) -> str:
        """Name of the source's directory in the store."""
        return f"{self.model}-{self.source_digest[:12]}"

    @property
    def unit(self) -> str:
        """Its service."""
        return f"fleet-quantize@{self.id}.service"


def parse_job(document: Mapping[str, Any]) -> Job:
    """The module's argument, checked.

    Raises:
        FleetError: a digest or a name that is none.
    """
    for name in ("key", "source_digest"):
        if not DIGEST.fullmatch(document[name]):
            raise FleetError(f"job.{name}", f"must be 64 hexadecimal digits, got {document[name]!r}")
    job = Job(
        model=document["model"],
        key=document["key"],
        source_digest=document["source_digest"],
        recipe=document["recipe"],
        limits=Limits(**document["limits"]),
        tool=document["tool"],
        gpu=document.get("gpu") or "",
        cost=document.get("cost") or {},
        judged=document.get("judged") or {},
        text=document.get("text") or "",
    )
    if not _IDENTITY.fullmatch(job.id):
        raise FleetError("job.model", f"is no name of a model: {job.model!r}")
    return job


@dataclass(frozen=True)
class Verdict:
    """What became of a job.

    Attributes:
        outcome: ``accepted``, ``rejected`` or ``absent``.
        words: the figures, or why there is no checkpoint, in words.
        figures: as they were measured; None when nothing was.
        files: size and SHA-256 of an accepted checkpoint's files, by relative path.
    """

    outcome: str
    words: str
    figures: Figures | None = None
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
