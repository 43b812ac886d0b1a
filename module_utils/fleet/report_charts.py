"""From curves to the coordinates of two panels: throughput, and time per output token, against running sequences."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from typing import TYPE_CHECKING, Literal

from .report_words import number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .report_curves import Curve, Point

WIDTH, HEIGHT = 340, 222
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 28, 36
_INTERVALS = 4
# The TPOT panel ends so far above the highest of what it is about: objective, peak and planned point.
_HEADROOM = 1.25

Shape = Literal["planned", "capacity", "peak"]


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis and its label."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    """A polyline; ``points`` as SVG has them."""

    kind: Literal["decode", "sustained"]
    points: str


@dataclass(frozen=True, slots=True)
class Marker:
    """A point of interest."""

    shape: Shape
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Rule:
    """A horizontal line with a label."""

    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart in a box of ``WIDTH`` times ``HEIGHT``; ``label`` says it all to those who do not see it."""

    title: str
    label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    markers: tuple[Marker, ...]
    rule: Rule | None = None
    x_label: str = "running sequences"
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def panels(curve: Curve) -> tuple[Panel, Panel]:
    """Throughput and time per output token of one configuration."""
    name = f"{curve.model}, {curve.configuration}"
    most_tokens = max(point.tokens_per_s for point in (*curve.decode, curve.peak))
    throughput = _panel(
        curve,
        "Output tokens/s of an instance",
        f"Output tokens a second of {name}, against running sequences. {legend_words(curve)}",
        lambda point: point.tokens_per_s,
        nice_top(most_tokens),
    )
    objective = curve.tpot_objective_ms
    planned = curve.planned.tpot_ms if curve.planned else 0.0
    highest = _HEADROOM * max(objective or 0.0, planned, curve.peak.tpot_ms)
    tpot = _panel(
        curve,
        "Time per output token, ms",
        f"Time per output token of {name} in milliseconds, against running sequences. {legend_words(curve)}",
        lambda point: point.tpot_ms,
        nice_top(highest),
        rule_at=objective,
    )
    return throughput, tpot


def legend_words(curve: Curve) -> str:
    """The marked points in words."""
    words = []
    if curve.planned:
        words.append(f"Planned: {_at(curve.planned)}.")
    if curve.capacity and curve.capacity_requests_per_s:
        words.append(f"The most within the objectives: {_at(curve.capacity)}{_limit(curve.limit)}.")
    words.append(f"Decode peaks at {_at(curve.peak)}.")
    limit = "the KV cache" if curve.room_is_kv else "max_num_seqs"
    words.append(f"Room for {curve.room:,} sequences, limited by {limit}.")
    if curve.nodes > 1:
        words.append("The planned time per token has what goes between hosts in it, the lines do not.")
    return " ".join(words)


def _limit(limit: str) -> str:
    return f", limited by the {limit}" if limit else ""


def _at(point: Point) -> str:
    return f"{number(point.sequences)} running, {number(point.tokens_per_s)} tokens/s, {number(point.tpot_ms)} ms"


def nice_top(value: float) -> float:
    """The least of 1, 2, 4, 6, 8 times a power of ten that is not below the value."""
    power = 1.0
    while power * 10.0 <= value:
        power *= 10.0
    while power > value > 0.0:
        power /= 10.0
    return next((step * power for step in (1, 2, 4, 6, 8) if step * power >= value), 10.0 * power)


def _panel(
    curve: Curve,
    title: str,
    label: str,
    value: Callable[[Point], float],
    top: float,
    *,
    rule_at: float | None = None,
) -> Panel:
    room = max(curve.room, 2)

    def x(sequences: float) -> float:
        return round(_LEFT + (WIDTH - _RIGHT - _LEFT) * log2(min(max(sequences, 1.0), room)) / log2(room), 1)

    def y(height: float) -> float:
        return round(HEIGHT - _BOTTOM - (HEIGHT - _BOTTOM - _TOP) * height / top, 1)

    def line(points: Sequence[Point]) -> str:
        inside = _below([(max(point.sequences, 1.0), value(point)) for point in points], top)
        return " ".join(f"{x(at)},{y(height)}" for at, height in inside)

    marked: tuple[tuple[Shape, Point | None], ...] = (
        ("peak", curve.peak),
        ("capacity", curve.capacity),
        ("planned", curve.planned),
    )
    steps = [top * part / _INTERVALS for part in range(_INTERVALS + 1)]
    return Panel(
        title=title,
        label=label,
        x_ticks=tuple(Tick(x(at), f"{at:g}") for at in _powers(room)),
        y_ticks=tuple(Tick(y(step), number(step)) for step in steps),
        lines=tuple(
            Line(kind, line(points))  # type: ignore[arg-type]
            for kind, points in (("decode", curve.decode), ("sustained", curve.sustained))
            if len(points) > 1
        ),
        markers=tuple(
            Marker(shape, x(point.sequences), y(value(point)))
            for shape, point in marked
            if point is not None and value(point) <= top
        ),
        rule=None if rule_at is None else Rule(y(rule_at), f"objective {number(rule_at)} ms"),
    )


def _below(points: Sequence[tuple[float, float]], top: float) -> list[tuple[float, float]]:
    """The line as far as it stays below the top, ending there."""
    inside: list[tuple[float, float]] = []
    for at, height in points:
        if height > top:
            if inside:
                before, low = inside[-1]
                inside.append((before + (at - before) * (top - low) / (height - low), top))
            break
        # Fewer than one sequence on average are drawn at one; the last of them is the one that counts.
        if inside and inside[-1][0] == at:
            inside.pop()
        inside.append((at, height))
    return inside


def _powers(room: int) -> list[int]:
    """Ticks of the logarithmic axis: powers of 4, or of 2 on a short axis, and the end."""
    base = 4 if room > 32 else 2
    ticks = [1]
    while ticks[-1] * base * 1.4 <= room:
        ticks.append(ticks[-1] * base)
    return [*ticks, room]
