"""Integer programs for OR-Tools' CP-SAT, solved alike on any machine.

One worker, a fixed seed, and limits in the solver's own deterministic time. The programs are written to the solver's
extension module directly: OR-Tools' modelling layer imports pandas, which takes longer (1.2 s) than most plans do.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ortools.sat.python import cp_model_helper as solver

if TYPE_CHECKING:
    from collections.abc import Iterable


_NO_BOUND = 1 << 62


class IntegerProgram:
    """Variables, linear constraints, and goals that are reached one after another.

    Args:
        deterministic_time: limit for one goal, in the solver's own unit (about a second).
        relative_gap: how far from the best a goal may stay.
    """

    def __init__(self, *, deterministic_time: float, relative_gap: float = 0.0) -> None:
        self._proto = solver.CpModelProto()
        self._count = 0
        self._solution: list[int] = []
        self._deterministic_time = deterministic_time
        self.relative_gap = relative_gap
        self.proven = False

    def integer(self, most: int, least: int = 0) -> int:
        """A new variable between two bounds, both included."""
        variable = self._proto.variables.add()
        variable.domain.extend([least, max(least, most)])
        self._count += 1
        return self._count - 1

    def constrain(self, terms: Iterable[tuple[int, int]], *, least: int | None = None, most: int | None = None) -> None:
        """Bound a sum."""
        merged = _merged(terms)
        linear = self._proto.constraints.add().linear
        linear.vars.extend(list(merged))
        linear.coeffs.extend(list(merged.values()))
        linear.domain.extend([-_NO_BOUND if least is None else least, _NO_BOUND if most is None else most])

    def minimize(self, terms: Iterable[tuple[int, int]], *, share_of_time: float = 1.0, close: float = 0.0) -> bool:
        """Look for the least sum, or one that is this close; ``value`` then gives the solution.

        Returns:
            Whether there is one.
        """
        merged = _merged(terms)
        self._proto.clear_objective()
        self._proto.objective.vars.extend(list(merged))
        self._proto.objective.coeffs.extend(list(merged.values()))
        parameters = solver.SatParameters()
        parameters.num_workers = 1
        parameters.random_seed = 1
        parameters.interleave_search = False
        parameters.max_deterministic_time = self._deterministic_time * share_of_time
        parameters.relative_gap_limit = self.relative_gap
        if close:
            parameters.absolute_gap_limit = close
        run = solver.SolveWrapper()
        run.set_parameters(parameters)
        response = run.solve(self._proto)  # type: ignore[no-untyped-call]
        self.proven = response.status == solver.CpSolverStatus.OPTIMAL
        if response.status not in (solver.CpSolverStatus.OPTIMAL, solver.CpSolverStatus.FEASIBLE):
            return False
        self._solution = list(response.solution)
        return True

    def value(self, variable: int) -> int:
        """What a variable is in the last solution."""
        return self._solution[variable]

    def total(self, terms: Iterable[tuple[int, int]]) -> int:
        """What a sum is in the last solution."""
        return sum(coefficient * self._solution[variable] for variable, coefficient in terms)

    def hint(self, values: Iterable[tuple[int, int]]) -> None:
        """Start the next search from these values of variables."""
        listed = list(values)
        self._proto.clear_solution_hint()
        self._proto.solution_hint.vars.extend([variable for variable, _ in listed])
        self._proto.solution_hint.values.extend([value for _, value in listed])

    def fix(self, terms: Iterable[tuple[int, int]]) -> None:
        """Let a sum that was made least be no more than what was reached, and start the next search from there."""
        listed = list(terms)
        self.constrain(listed, most=self.total(listed))
        self.hint(enumerate(self._solution))


def _merged(terms: Iterable[tuple[int, int]]) -> Counter[int]:
    merged: Counter[int] = Counter()
    for variable, coefficient in terms:
        merged[variable] += coefficient
    return merged
