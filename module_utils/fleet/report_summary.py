"""The sentences and figures at the top of the report's sections."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .plan_diff import KINDS
from .report_memory import PART_NAMES
from .report_words import gib, listing, number, percent, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .plan_diff import PlanDiff
    from .plan_document import Plan
    from .report_curves import CurveModel
    from .report_hosts import HostView
    from .report_load import ModelLoad
    from .report_memory import Bar


def verdict_words(plan: Plan, views: Sequence[HostView]) -> str:
    """What matters most, in a sentence."""
    short = {model for model, share in plan.summary.carried.items() if share < 1.0} | {
        one.model for one in plan.refused
    }
    models = len(set(plan.summary.carried) | short)
    used = sum(len(view.names) for view in views if view.used)
    where = f"on {plural(plan.summary.gpus_used, 'GPU')} of {plural(used, 'host')}"
    if not models:
        return "The plan holds no model."
    if short:
        runs = f"the plan runs {where}" if plan.instances else "nothing runs"
        return f"{len(short)} of {plural(models, 'model')} cannot be carried as asked for; {runs}."
    return f"{'The model is' if models == 1 else f'All {models} models are'} carried as asked for, {where}."


def tiles(plan: Plan, loads: Sequence[ModelLoad], views: Sequence[HostView]) -> list[dict[str, str]]:
    """The figures of the summary."""
    summary = plan.summary
    known = sum(len(view.gpus) * len(view.names) for view in views)
    complete = all(view.complete for view in views)
    hosts = sum(len(view.names) for view in views)
    full = sum(1 for load in loads if (load.carried or 0.0) >= 1.0 and not load.refused)
    got = sum((load.demand or 0.0) * (load.carried or 0.0) for load in loads)
    asked = sum(load.demand or 0.0 for load in loads)
    return [
        _tile("GPUs used", f"{summary.gpus_used:,}", f"of {plural(known, 'GPU')}" if complete and views else ""),
        _tile("Fewest GPUs", f"{summary.gpus_lower_bound:,}", "for the same, with these candidates"),
        _tile("Gap", percent(summary.gap_fraction), "of the GPUs used are above that bound"),
        _tile("Models carried", f"{full:,} of {len(loads):,}", "in full, within their objectives"),
        _tile("Requests/s", number(round(got, 3)), f"of {number(round(asked, 3))} asked for"),
        _tile(
            "Instances",
            f"{len(plan.instances):,}",
            f"on {plural(hosts, 'host')}"
            if not complete
            else f"on {plural(sum(len(view.names) for view in views if view.used), 'host')} of {hosts:,}",
        ),
        _tile("Refusals", f"{len(plan.refused):,}", "each with its nearest change" if plan.refused else "nothing"),
        _tile("Moves", f"{len(plan.moves):,}", "of instances that ran" if plan.moves else "nothing moves"),
    ]


def _tile(name: str, figure: str, note: str) -> dict[str, str]:
    return {"name": name, "figure": figure, "note": note}


def improvement_words(plan: Plan) -> str:
    """What ``fleet_optimize=true`` would bring; empty when nothing."""
    better = plan.summary.improvement_available
    if not better:
        return ""
    gains = [
        f"place {better['replicas_more']} more" if _above_zero(better.get("replicas_more")) else "",
        f"use {plural(int(better['gpus_fewer']), 'GPU')} fewer" if _above_zero(better.get("gpus_fewer")) else "",
    ]
    gain = listing(word for word in gains if word) or "pack better"
    return f"A better placement is known: fleet_optimize=true would {gain}, with {better.get('moves', 'some')} moves."


def _above_zero(value: object) -> bool:
    return isinstance(value, int | float) and value > 0


def load_document(load: ModelLoad, model: CurveModel | None) -> dict[str, Any]:
    """A model's load with its bar: ``share`` of it is filled, ``want`` marks a demand that is not met."""
    requests = (load.demand or 0.0) * min(load.carried or 0.0, 1.0)
    scale = max(load.capacity or 0.0, load.demand or 0.0) if load.demand else 0.0
    percentile = next((one.percentile for one in load.loads if one.percentile is not None), None)
    words = plural(load.instances, "instance")
    if load.demand and (load.carried or 0.0) < 1.0:
        words = f"{number(requests)} of the {number(load.demand)} requests/s asked for ({percent(load.carried or 0.0)})"
    elif load.demand and load.capacity:
        words = f"{number(load.demand)} of {number(load.capacity)} requests/s ({percent(load.demand / load.capacity)})"
    if load.refused:
        words += "; see refusals"
    short = (load.carried or 0.0) < 1.0
    fields = ("model", "carried", "instances", "gpus", "loads")
    return {name: getattr(load, name) for name in fields} | {
        "share": requests / scale if scale else None,
        "want": load.demand / scale if load.demand and short else None,
        "percentile": percentile,
        "short": short,
        "objectives": _objectives(model) if load.demand else "",
        "words": words,
    }


def _objectives(model: CurveModel | None) -> str:
    if model is None:
        return ""
    asked = (("TTFT", model.objectives.ttft_ms), ("TPOT", model.objectives.tpot_ms))
    return ", ".join(f"{name} {number(limit)} ms" for name, limit in asked if limit is not None)


def placement_words(views: Sequence[HostView]) -> str:
    """How the placement is to be read."""
    words = ["Each box is a GPU with the instance that runs on it."]
    if any(len(view.names) > 1 for view in views):
        words.append("Hosts that are filled alike are shown once, with models instead of instances.")
    if any(not view.complete for view in views):
        words.append(
            "The plan names only the GPUs that it uses; with --facts FACTS.json all of them are shown, by NUMA node "
            "and PCIe switch."
        )
    return " ".join(words)


def memory_words(*, exact: bool) -> str:
    """Where the figures of the memory map come from."""
    source = "rank by rank" if exact else "those of an instance's tightest rank"
    return (
        f"Figures are planned, {source}. Free is what gpu_memory_utilization or kv_cache_memory_bytes keeps from the "
        "engines."
    )


def bar_document(bar: Bar) -> dict[str, Any]:
    """A bar with places and widths in percent of its length."""
    length = bar.total_bytes + bar.over_bytes
    owners = len({part.owner for part in bar.parts if part.owner})
    parts = []
    before = 0
    for part in bar.parts:
        name = f"{PART_NAMES[part.kind]} {gib(part.size_bytes)}"
        parts.append(
            asdict(part)
            | {
                "x": f"{100 * before / length:.3f}",
                "width": f"{100 * part.size_bytes / length:.3f}",
                # Each instance starts with its weights.
                "divides": part.kind == "weights" and before > 0,
                "words": f"{part.owner}: {name}" if owners > 1 and part.owner else name,
            }
        )
        before += part.size_bytes
    words = f"{gib(bar.total_bytes)}: {', '.join(part['words'] for part in parts)}"
    return {"total_bytes": bar.total_bytes, "over_bytes": bar.over_bytes, "parts": parts, "words": words}


def change_words(changes: PlanDiff | None) -> str:
    """The differences counted."""
    if changes is None:
        return ""
    counts = Counter(change.kind for change in changes.changes)
    words = [f"{counts[kind]:,} {kind}" for kind in KINDS if counts[kind]]
    gpus = f"{changes.gpus_before:,} before, {changes.gpus_after:,} after"
    return f"Instances: {', '.join(words) or 'the same'}. GPUs used: {gpus}."
