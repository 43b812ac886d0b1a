"""The quality gate: whether a quantized checkpoint is near enough to its source. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Limits:
    """What a quantized checkpoint has to hold.

    Args:
        max_perplexity_ratio: its perplexity on held-out text over the source's.
        min_agreement: share of the places at which both would choose the same token.
    """

    max_perplexity_ratio: float = 1.10
    min_agreement: float = 0.85

    def to_document(self) -> dict[str, float]:
        """The limits as JSON has them."""
        return {"max_perplexity_ratio": self.max_perplexity_ratio, "min_agreement": self.min_agreement}


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured, both models on the same held-out tokens."""

    source_perplexity: float
    perplexity: float
    agreement: float
    tokens: int

    @property
    def ratio(self) -> float:
        """Perplexity over the source's."""
        return self.perplexity / self.source_perplexity

    def to_document(self) -> dict[str, float | int]:
        """The figures as JSON has them."""
        return {
            "source_perplexity": self.source_perplexity,
            "perplexity": self.perplexity,
            "perplexity_ratio": round(self.ratio, 6),
            "agreement": self.agreement,
            "tokens": self.tokens,
        }


def figures_from(document: Mapping[str, Any], *, where: str) -> Figures:
    """Figures that were written down.

    Raises:
        FleetError: one is missing or is no number.
    """
    values: dict[str, float] = {}
    for name in ("source_perplexity", "perplexity", "agreement", "tokens"):
        value = document.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FleetError(f"{where}: {name}", f"must be a number, got {value!r}")
        values[name] = value
    if not values["source_perplexity"] > 0.0 or values["tokens"] < 1:
        raise FleetError(where, "nothing was measured")
    return Figures(values["source_perplexity"], values["perplexity"], values["agreement"], int(values["tokens"]))


def why_rejected(figures: Figures, limits: Limits) -> str | None:
    """Why a checkpoint is not near enough to its source; None when it is."""
    problems = []
    # A model that is broken predicts not-a-number, which compares as neither above nor below.
    if not isfinite(figures.perplexity) or not figures.ratio <= limits.max_perplexity_ratio:
        allowed = f"at most {limits.max_perplexity_ratio:.3f} is allowed"
        problems.append(f"its perplexity is {figures.ratio:.3f} times the source's, {allowed}")
    if not figures.agreement >= limits.min_agreement:
        allowed = f"{100 * limits.min_agreement:.1f} % is required"
        problems.append(f"it chooses the source's token at {100 * figures.agreement:.1f} % of the places, {allowed}")
    return ", and ".join(problems) or None


def figures_words(figures: Figures) -> str:
    """The figures as they are told to people."""
    return (
        f"perplexity {figures.perplexity:.2f} against {figures.source_perplexity:.2f} ({figures.ratio:.3f} times),"
        f" same token at {100 * figures.agreement:.1f} % of {figures.tokens:,} places"
    )
