"""Rows of the report about quantized checkpoints: how each was made, what was measured, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .plan_document import Plan
    from .quantize_evidence import Record

_DIGEST_CHARACTERS = 12


@dataclass(frozen=True, slots=True)
class QuantizedRow:
    """One result.

    Args:
        good: it was kept.
        verdict: what became of it.
        why: the reason of a refusal; empty for what was kept.
        perplexity: of the result against the source's, their ratio and the limit.
        agreement: the share of places with the source's token, and the limit.
        versions: of the libraries.
    """

    model: str
    recipe: str
    good: bool
    verdict: str
    why: str
    perplexity: str
    agreement: str
    tokens: int
    hosts: tuple[str, ...]
    versions: str
    seconds: float
    key: str
    source_digest: str


def quantized_rows(plan: Plan, records: Sequence[Record]) -> list[QuantizedRow]:
    """The rows, in the order of the records."""
    served = {one.checkpoint.digest for one in plan.instances if one.checkpoint is not None}
    return [_row(one, served=one.key in served) for one in records]


def _row(one: Record, *, served: bool) -> QuantizedRow:
    figures, limits = one.figures, one.limits
    ratio = f"{figures.ratio:.3f}" if isfinite(figures.ratio) else "not a number"
    verdict = "refused" if one.refused is not None else "serves" if served else "kept, not used by this plan"
    return QuantizedRow(
        model=one.model,
        recipe=one.recipe,
        good=one.refused is None,
        verdict=verdict,
        why=one.refused or "",
        perplexity=f"{figures.perplexity:.2f} / {figures.source_perplexity:.2f} = {ratio} "
        f"(at most {limits.max_perplexity_ratio:.2f})",
        agreement=f"{100 * figures.agreement:.1f} % (at least {100 * limits.min_agreement:.1f} %)",
        tokens=figures.tokens,
        hosts=one.hosts,
        versions=", ".join(f"{name} {version}" for name, version in one.versions.items()),
        seconds=one.seconds,
        key=one.key[:_DIGEST_CHARACTERS],
        source_digest=one.source_digest[:_DIGEST_CHARACTERS],
    )
