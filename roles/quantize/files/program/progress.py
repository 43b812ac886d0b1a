"""What a job says about itself while it runs: status.json in its directory, replaced as a whole."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Progress:
    """Writes status.json.

    The time left is counted from the steps that are done: a step's share of the whole is planned, so that the first
    figure appears only when some of the work is.

    Args:
        path: where status.json is written.
        shares: planned share of the time of each step, by name, in order; they add up to 1.
    """

    def __init__(self, path: Path, shares: dict[str, float]) -> None:
        self._path = path
        self._shares = shares
        self._begun = time.time()
        self._step = next(iter(shares))

    def at(self, step: str, done: int = 0, of: int = 1, unit: str = "") -> None:
        """Says that ``done`` of ``of`` units of a step are done."""
        self._step = step
        names = list(self._shares)
        before = sum(self._shares[name] for name in names[: names.index(step)])
        fraction = min(1.0, before + self._shares[step] * done / max(of, 1))
        elapsed_s = time.time() - self._begun
        left_s = elapsed_s * (1.0 - fraction) / fraction if fraction > 0.0 else None
        self._write(
            {
                "step": step,
                "done": done,
                "of": of,
                "unit": unit,
                "fraction": round(fraction, 4),
                "elapsed_s": round(elapsed_s, 1),
                "left_s": None if left_s is None else round(left_s, 1),
            }
        )

    def failed(self, problem: str) -> None:
        """Says why the job ended without a result."""
        self._write({"step": self._step, "failed": problem, "elapsed_s": round(time.time() - self._begun, 1)})

    def _write(self, document: dict[str, object]) -> None:
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps({"schema": 1, "updated_at": round(time.time(), 1), **document}) + "\n")
        temporary.chmod(0o644)
        temporary.replace(self._path)
