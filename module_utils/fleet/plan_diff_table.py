"""The differences between two plans as a person reads them in a terminal."""

from __future__ import annotations

from collections import Counter
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from .plan_diff import KINDS
from .plan_table import short_uuids, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .plan_diff import Change, PlanDiff
    from .plan_document import Refusal

_COLUMNS = ("  INSTANCE", "CHANGE", "WHAT", "BEFORE", "AFTER")
_SIGNS = {"added": "+", "removed": "-", "moved": ">", "changed": "~"}
_COLOURS = {
    "added": "32",
    "removed": "31",
    "moved": "33",
    "changed": "36",
    "refused": "31",
    "fewer": "31",
    "more": "32",
}
_CELL = 44
_TEXT = 110


def diff_table(found: PlanDiff, gpu_indices: Mapping[str, int], *, colour: bool = False) -> str:
    """All differences, the instances first.

    Args:
        found: the differences.
        gpu_indices: index of a GPU by UUID, as far as known; other GPUs are shown by the start of their UUIDs.
        colour: mark the kinds of change with ANSI colours, which repeat what the signs say.
    """
    paint = _Paint(colour=colour)
    if found.is_empty:
        return "No difference."
    lines = [_headline(found)]
    if found.changes:
        lines += ["", *_changes(found, gpu_indices, paint)]
    if found.carried:
        lines += ["", *_carried(found, paint)]
    for title, refusals in (("Refused now:", found.refused), ("No longer refused:", found.no_longer_refused)):
        if refusals:
            lines += ["", title, *_refusals(refusals, remedies=refusals is found.refused)]
    return "\n".join(lines)


def _headline(found: PlanDiff) -> str:
    counts = Counter(change.kind for change in found.changes)
    words = [f"{counts[kind]} {kind}" for kind in KINDS if counts[kind]]
    words += [f"{len(found.refused)} refused now"] if found.refused else []
    words += [f"{len(found.no_longer_refused)} no longer refused"] if found.no_longer_refused else []
    gpus = f"{found.gpus_before} -> {found.gpus_after}" if found.gpus_before != found.gpus_after else found.gpus_after
    return f"Instances: {', '.join(words) or 'the same'}. GPUs used: {gpus}."


def _changes(found: PlanDiff, gpu_indices: Mapping[str, int], paint: _Paint) -> list[str]:
    names = _gpu_names(found, gpu_indices)
    rows: list[list[str]] = []
    owners: list[Change] = []
    for change in found.changes:
        for row in _rows(change, names):
            rows.append(row)
            owners.append(change)
    heading, *body = table(_COLUMNS, rows)
    lines = [heading]
    for position, (line, change) in enumerate(zip(body, owners, strict=True)):
        lines.append(paint(line, change.kind))
        if position + 1 == len(owners) or owners[position + 1] is not change:
            lines += [f"      {text}" for text in wrap(change.why, _TEXT)]
    return lines


def _rows(change: Change, names: Mapping[str, str]) -> Iterable[list[str]]:
    first = True
    for detail in change.details:
        before, after = (_shown(value, names) for value in (detail.before, detail.after))
        for index in range(max(len(before), len(after))):
            yield [
                f"{_SIGNS[change.kind]} {change.id}" if first else "",
                change.kind if first else "",
                detail.what if index == 0 else "",
                before[index] if index < len(before) else "",
                after[index] if index < len(after) else "",
            ]
            first = False


def _shown(value: Any, names: Mapping[str, str]) -> list[str]:
    """The lines of a cell."""
    if value is None:
        return ["-"]
    if isinstance(value, tuple):
        return [line for text in _places(value, names) for line in wrap(text, _CELL)]
    return wrap(str(value), _CELL) or ["''"]


def _places(shards: tuple[Any, ...], names: Mapping[str, str]) -> list[str]:
    return [f"{one.host} {', '.join(names[uuid] for uuid in one.gpus)}" for one in shards]


def _gpu_names(found: PlanDiff, gpu_indices: Mapping[str, int]) -> dict[str, str]:
    uuids = [
        uuid
        for change in found.changes
        for detail in change.details
        for shards in (detail.before, detail.after)
        if isinstance(shards, tuple)
        for shard in shards
        for uuid in shard.gpus
    ]
    return short_uuids(uuids) | {uuid: f"GPU {gpu_indices[uuid]}" for uuid in uuids if uuid in gpu_indices}


def _carried(found: PlanDiff, paint: _Paint) -> list[str]:
    rows = []
    kinds = []
    for one in found.carried:
        rows.append(
            [
                f"  {one.model}",
                *(_percent(share) for share in (one.before, one.after)),
                *(_rate(requests) for requests in (one.requests_before, one.requests_after)),
            ]
        )
        less = (one.after or 0.0) < (one.before or 0.0)
        kinds.append("fewer" if less else "more" if (one.after or 0.0) > (one.before or 0.0) else "")
    heading, *body = table(("  CARRIED", "BEFORE", "AFTER", "REQUESTS/S BEFORE", "AFTER"), rows)
    return [heading, *(paint(line, kind) for line, kind in zip(body, kinds, strict=True))]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.4g} %"


def _rate(requests: float | None) -> str:
    return "-" if requests is None else f"{requests:g}"


def _refusals(refusals: Iterable[Refusal], *, remedies: bool) -> list[str]:
    lines = []
    for one in refusals:
        lines += wrap(
            f"{one.model} ({one.constraint}): {one.explanation}", _TEXT, initial_indent="! ", subsequent_indent="    "
        )
        if remedies:
            lines += wrap(
                f"Nearest change: {one.nearest_change}", _TEXT, initial_indent="    ", subsequent_indent="    "
            )
    return lines


class _Paint:
    """Wraps a line into the colour of a kind of change."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour

    def __call__(self, line: str, kind: str) -> str:
        if not self._colour or kind not in _COLOURS:
            return line
        return f"\x1b[{_COLOURS[kind]}m{line}\x1b[0m"
