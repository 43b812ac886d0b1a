"""The report: one HTML page that says what a plan does and why. It holds no script and asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from . import report_page_hosts, report_page_models, report_page_quantized
from .plan_diff import diff_plans
from .plan_document import canonical_json, plan_to_document
from .quantize_evidence import mark_of
from .report_charts import legend_words, panels
from .report_curves import curves
from .report_fleet import GpuNames, candidate_rows, change_rows, gpu_kinds, move_rows, rank_memory
from .report_hosts import host_views
from .report_load import losses, model_loads
from .report_memory import PART_NAMES
from .report_models import curve_models
from .report_page import MACROS, PAGE
from .report_quantized import quantized_rows
from .report_style import STYLE
from .report_summary import (
    bar_document,
    change_words,
    improvement_words,
    load_document,
    memory_words,
    placement_words,
    tiles,
    verdict_words,
)
from .report_words import gib, listing, name_ranges, number, percent, plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .host_document import HostDocument
    from .plan_document import Plan
    from .quantize_evidence import Record
    from .report_curves import NoCurve
    from .report_memory import Bar
    from .report_simulation import SimulationTable

_SECTIONS = (
    ("summary", "Summary"),
    ("refusals", "Refusals"),
    ("load", "Load"),
    ("placement", "Placement"),
    ("memory", "Memory"),
    ("curves", "Throughput"),
    ("losses", "Lost hosts"),
    ("moves", "Moves"),
    ("changes", "Changes"),
    ("candidates", "Candidates"),
)
_QUANTIZED = ("quantized", "Quantized")
_SIMULATED = ("simulation", "Simulated")
_MARKER_NAMES = (
    ("planned", "planned: where this plan runs it"),
    ("capacity", "the most within the objectives"),
    ("peak", "where decode yields most"),
)
# Hosts and models that are unfolded at first, reasons and rows that are listed: a large fleet stays readable.
_MOST_OPEN, _FEW_OPEN = 12, 4
_MOST_PLACES = 20
_MOST_LOSSES = 100
_TINTS = 8
# Names of so many characters stay on one line.
_WHOLE = 32


@dataclass(frozen=True, slots=True)
class ReportInput:
    """What the report is made of.

    Args:
        plan: the plan.
        current: the plan to compare it with; None leaves the comparison out.
        hosts: host documents; without them only the GPUs that the plan uses are known.
        simulation: what a simulation of the plan saw.
        quantized: checkpoints that the fleet made, and those that the quality gate refused.
        where: the plan's file, for errors.
    """

    plan: Plan
    current: Plan | None = None
    hosts: Sequence[HostDocument] | None = None
    simulation: SimulationTable | None = None
    quantized: Sequence[Record] = ()
    where: str = "plan"


def render_report(given: ReportInput) -> str:
    """The page. Equal input gives equal bytes.

    Raises:
        FleetError: a figure of the plan is of the wrong type; the path is named.
    """
    plan, where = given.plan, given.where
    models = curve_models(plan, where=where)
    loads = model_loads(plan, {name: one.requests_per_s for name, one in models.items()}, where=where)
    kinds = gpu_kinds(plan, given.hosts, where=where)
    ranks = rank_memory(plan, models, kinds, where=where)
    views = host_views(plan, given.hosts, ranks, where=where)
    bar_ids: dict[Bar, int] = {}
    for view in views:
        for gpu in view.gpus:
            if gpu.bar is not None:
                bar_ids.setdefault(gpu.bar, len(bar_ids))
    drawn, missing = curves(plan, models, kinds, where=where)
    changes = diff_plans(given.current, plan) if given.current is not None else None
    names = GpuNames(given.hosts, [plan, given.current] if given.current is not None else [plan])
    sections = list(_SECTIONS)
    if given.quantized:
        sections.insert(-1, _QUANTIZED)
    if given.simulation is not None:
        sections.insert(-1, _SIMULATED)
    page = page_environment().get_template("page")
    return page.render(
        plan=plan,
        policy=page_policy(),
        style=Markup(STYLE),  # noqa: S704 (our own text)
        digest=hashlib.sha256(canonical_json(plan_to_document(plan)).encode()).hexdigest()[:12],
        sections=sections,
        all_carried=not plan.refused and all(share >= 1.0 for share in plan.summary.carried.values()),
        verdict=verdict_words(plan, views),
        tiles=tiles(plan, loads, views),
        improvement=improvement_words(plan),
        notes=plan.summary.notes,
        carried=sorted(loads, key=lambda load: (load.carried or 0.0, load.model)),
        loads=[load_document(load, models.get(load.model)) for load in loads],
        hosts=views,
        tints={load.model: f"t{position % _TINTS}" for position, load in enumerate(loads)},
        placement_words=placement_words(views),
        memory_words=memory_words(exact=len(ranks) == len(plan.instances)),
        part_names=PART_NAMES,
        bars=[bar_document(bar) for bar in bar_ids],
        bar_ids=bar_ids,
        curves=[{"curve": curve, "panels": panels(curve), "words": legend_words(curve)} for curve in drawn],
        not_drawn=_by_reason(missing),
        marker_names=_MARKER_NAMES,
        losses=losses(plan, loads, where=where),
        moves=move_rows(plan, names),
        changes=changes,
        change_rows=change_rows(changes, names) if changes is not None else [],
        change_words=change_words(changes),
        simulation=given.simulation,
        quantized=quantized_rows(plan, given.quantized),
        quantized_mark=mark_of(given.quantized),
        candidates=candidate_rows(plan),
        most_open=_MOST_OPEN if len(views) <= _MOST_OPEN else _FEW_OPEN,
        most_places=_MOST_PLACES,
        most_losses=_MOST_LOSSES,
    )


@lru_cache(maxsize=1)
def page_environment() -> Environment:
    """Where the pages of this project are made: their shared macros, filters and escaping."""
    environment = Environment(
        loader=DictLoader(_templates()),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "gib": gib,
        "listing": listing,
        "number": number,
        "percent": percent,
        "plural": plural,
        "ids": _ids,
        "ranges": lambda names: ", ".join(name_ranges(names)),
    }
    return environment


def _templates() -> dict[str, str]:
    sections = vars(report_page_models) | vars(report_page_hosts) | vars(report_page_quantized)
    names = [name for name, _ in (*_SECTIONS, _QUANTIZED, _SIMULATED)]
    return {"macros": MACROS, "page": PAGE} | {name: sections[name.upper()] for name in names}


def _ids(names: Iterable[str]) -> Markup:
    """Names that are not broken at their hyphens, unless they are long."""
    texts = name_ranges(names)
    whole = Markup('<span class="id">{}</span>')
    return Markup(", ").join(whole.format(text) if len(text) <= _WHOLE else Markup.escape(text) for text in texts)


def page_policy() -> str:
    """Nothing may be loaded or run; the one style sheet is allowed by its hash, the icon is empty."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def _by_reason(missing: Sequence[NoCurve]) -> list[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for one in missing:
        found.setdefault(one.why, []).append(f"{one.model} ({one.configuration})")
    return sorted(found.items())
