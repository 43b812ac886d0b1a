"""Errors that a user can cause. Each knows the place of the fault and says it in one line."""

from __future__ import annotations


class FleetError(Exception):
    """A mistake in the input, or a limit that was met.

    Args:
        where: file and path of the fault, as in ``models.yml: models[2].demand.requests_per_second``.
        problem: what was wrong and what would be right, without a full stop.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.problem = problem
