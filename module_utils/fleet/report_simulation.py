"""What ``fleet simulate --json`` printed, as a table of the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator, Field

from .document_checks import MachineDocument, check_document, list_as_tuple
from .report_words import number

_PERCENTILES = ("p50", "p95", "p99")
_COLUMNS = ("Requests/s", "Within objectives", "TTFT", "TPOT", "Holds")


@dataclass(frozen=True, slots=True)
class SimulationTable:
    """A sentence about the simulation and a row of cells for each model."""

    words: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


class _Model(MachineDocument):
    requests_per_s: float
    ttft_ms: dict[str, float | None]
    tpot_ms: dict[str, float | None]
    goodput_requests_per_s: float
    holds: bool
    violated: Annotated[tuple[str, ...], BeforeValidator(list_as_tuple)] = ()


class _Limit(MachineDocument):
    load: float
    by_model: dict[str, float] = Field(default_factory=dict)


class _Simulation(MachineDocument):
    seconds: float
    seed: int
    load: float = 1.0
    models: dict[str, _Model]
    limit: _Limit | None = None


def simulation_table(document: object, *, where: str) -> SimulationTable:
    """Read the document.

    Raises:
        FleetError: it is not what ``fleet simulate --json`` prints; names file and path.
    """
    found = check_document(_Simulation, document, where=where)
    words = (
        f"{number(found.seconds)} s of arrivals at {number(found.load)} times the demand, seed {found.seed}, by a "
        "simulation that shares only the step times with the plan's closed forms. Times are the 50th, 95th and 99th "
        "percentiles in ms."
    )
    columns: tuple[str, ...] = _COLUMNS
    if found.limit is not None:
        words += f" All objectives hold up to {number(found.limit.load)} times the demand."
        columns = (*_COLUMNS, "Holds up to")
    rows = []
    for name, model in sorted(found.models.items()):
        cells = [
            number(model.requests_per_s),
            number(model.goodput_requests_per_s),
            _percentiles(model.ttft_ms),
            _percentiles(model.tpot_ms),
            "✓ yes" if model.holds else f"✗ no: {', '.join(model.violated)}",
        ]
        if found.limit is not None:
            factor = found.limit.by_model.get(name)
            cells.append("-" if factor is None else f"{number(factor)} times")
        rows.append((name, tuple(cells)))
    return SimulationTable(words, columns, tuple(rows))


def _percentiles(values: dict[str, float | None]) -> str:
    known = [values.get(name) for name in _PERCENTILES]
    return " / ".join(number(value) for value in known) if values else "-"
