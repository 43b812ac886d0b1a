"""What one check of the probe says, and how the verdicts of several checks become the health of a GPU or a host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check.

    Args:
        status: ``ok``, ``degraded`` (works, plan with it), ``blocked`` (must not be used) or ``unknown`` (could not be
            seen; it does not lower the health).
        evidence: what was read, with its value.
        remedy: what to do about it; empty when there is nothing to do.
    """

    status: str
    evidence: str
    remedy: str = ""


@dataclass(frozen=True)
class Check(Generic[Subject]):
    """A named check: a small function from what was read to a verdict."""

    name: str
    judge: Callable[[Subject], Verdict]


def ok(evidence: str) -> Verdict:
    """Return a verdict that asks for nothing."""
    return Verdict("ok", evidence)


def unknown(evidence: str, remedy: str = "") -> Verdict:
    """Return the verdict for what could not be seen."""
    return Verdict("unknown", evidence, remedy)


def degraded(evidence: str, remedy: str) -> Verdict:
    """Return the verdict for what works, but less well than it should."""
    return Verdict("degraded", evidence, remedy)


def blocked(evidence: str, remedy: str) -> Verdict:
    """Return the verdict for what must not be used until it is mended."""
    return Verdict("blocked", evidence, remedy)


def worst(statuses: Iterable[str]) -> str:
    """Return the health that follows from the statuses of checks: ``ok``, ``degraded`` or ``blocked``."""
    seen = set(statuses)
    return next((status for status in ("blocked", "degraded") if status in seen), "ok")


def health(checks: Sequence[Check[Subject]], subject: Subject) -> dict[str, Any]:
    """Run every check on the subject and return the health part of the host document."""
    rows = []
    for check in checks:
        verdict = check.judge(subject)
        rows.append(
            {
                "name": check.name,
                "status": verdict.status,
                "evidence": verdict.evidence,
                "remedy": verdict.remedy,
            }
        )
    return {"status": worst(row["status"] for row in rows), "checks": rows}
