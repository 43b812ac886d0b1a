"""The page about a benchmark: measured and predicted, in the style of the plan's report."""

from __future__ import annotations

from math import log2
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from .benchmark import peak_words
from .report import page_environment, page_policy
from .report_charts import HEIGHT, WIDTH, Line, Marker, Panel, Tick, nice_top
from .report_style import STYLE
from .report_words import number

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 28, 36
_INTERVALS = 4

PAGE = """{% from "macros" import panel, shape with context %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>Benchmark of {{ result.instance }}</title>
<style>{{ style }}</style>
</head>
<body>
<a class="skip" href="#curves">Skip to the curves</a>
<div class="page">
<header>
<h1>Benchmark of {{ result.instance }}</h1>
<p class="muted">l40s-fleet, {{ result.at }}, vLLM {{ result.engine.version }} ({{ result.engine.accelerator }}) \
on {{ result.hosts | listing }}</p>
<div class="verdict{{ '' if result.peak else ' no' }}">
<span class="sign {{ 'good' if result.peak else 'bad' }}" aria-hidden="true">{{ "✓" if result.peak else "✗" }}</span>
<p id="peak">{{ words }}</p>
</div>
</header>
<main>
<section class="part" id="curves">
<h2>Measured{{ " and predicted" if predicted }}</h2>
<p class="lead">Random prompts of {{ result.prompt_tokens | plural("token") }}, answers of \
{{ result.output_tokens | plural("token") }}; every client sends its next request when the last is answered.
{% if not result.prediction.comparable %}
The prediction is not to be compared: {{ result.prediction.why }}.
{% endif %}</p>
<ul class="legend">
<li><svg width="26" height="14" aria-hidden="true"><polyline class="curve sustained" points="0,7 26,7"/></svg>\
measured</li>
{% if predicted %}
<li><svg width="26" height="14" aria-hidden="true"><polyline class="curve decode" points="0,7 26,7"/></svg>\
predicted for the {{ result.prediction.gpu }}</li>
{% endif %}
<li><svg width="14" height="14" aria-hidden="true">{{ shape("peak", 7, 7) }}</svg>peak</li>
</ul>
<div class="figures"><figure><div class="panels">
{% for one in panels %}{{ panel(one) }}{% endfor %}
</div></figure></div>
</section>
<section class="part" id="steps">
<h2>Steps</h2>
<table class="stack">
<caption>TTFT: time to first token. TPOT: time per output token after the first. Median and 95th percentile, in ms.\
</caption>
<thead><tr><th scope="col" class="n">Concurrent</th><th scope="col" class="n">Output tokens/s</th>\
<th scope="col" class="n">Predicted</th><th scope="col" class="n">Requests/s</th>\
<th scope="col" class="n">TTFT p50</th>\
<th scope="col" class="n">TTFT p95</th><th scope="col" class="n">TPOT p50</th><th scope="col" class="n">TPOT p95</th>\
<th scope="col" class="n">Answered</th></tr></thead>
<tbody>
{% for step in result.steps %}
<tr><th scope="row" class="n">{{ step.concurrency }}</th>
{% if step.timed_out %}
<td class="word" colspan="8">not done in time, stopped</td>
{% else %}
<td class="n" data-label="Output tokens/s">{{ step.output_tokens_per_s | number }}</td>\
<td class="n" data-label="Predicted">{{ (step.predicted or {}).get("output_tokens_per_s") | number }}</td>\
<td class="n" data-label="Requests/s">{{ step.requests_per_s | number }}</td>\
<td class="n" data-label="TTFT p50">{{ step.ttft_ms.p50 | number }}</td>\
<td class="n" data-label="TTFT p95">{{ step.ttft_ms.p95 | number }}</td>\
<td class="n" data-label="TPOT p50">{{ step.tpot_ms.p50 | number }}</td>\
<td class="n" data-label="TPOT p95">{{ step.tpot_ms.p95 | number }}</td>\
<td class="n" data-label="Answered">{{ step.completed }} of {{ step.completed + step.failed }}</td>
{% endif %}
</tr>
{% endfor %}
</tbody>
</table>
</section>
</main>
<footer><p>This page holds no script and asks the network for nothing.</p></footer>
</div>
</body>
</html>
"""


def render_page(result: Mapping[str, Any]) -> str:
    """The page of a result document. Equal input gives equal bytes."""
    done = [step for step in result["steps"] if step["output_tokens_per_s"] > 0]
    predicted = [step for step in done if step["predicted"]] if result["prediction"]["comparable"] else []
    template = page_environment().from_string(PAGE)
    return template.render(
        result=result,
        words=peak_words(result),
        policy=page_policy(),
        style=Markup(STYLE),  # noqa: S704 (our own text)
        predicted=predicted,
        panels=_panels(result, done, predicted) if done else [],
    )


def _panels(
    result: Mapping[str, Any], done: Sequence[Mapping[str, Any]], predicted: Sequence[Mapping[str, Any]]
) -> list[Panel]:
    peak = result["peak"]["concurrency"]

    def made(title: str, value: Callable[[Mapping[str, Any]], float], expected: str) -> Panel:
        measured = [(step["concurrency"], value(step)) for step in done]
        planned = [(step["concurrency"], step["predicted"][expected]) for step in predicted] if expected else []
        best = next(height for at, height in measured if at == peak)
        label = f"{title} of {result['instance']} against concurrent requests: "
        label += ", ".join(f"{at}: {number(height)}" for at, height in measured)
        return _panel(title, label, measured, planned, (peak, best))

    return [
        made("Output tokens/s", lambda step: step["output_tokens_per_s"], "output_tokens_per_s"),
        made("Time per output token, median, ms", lambda step: step["tpot_ms"].get("p50", 0.0), "tpot_ms"),
        made("Time to first token, median, ms", lambda step: step["ttft_ms"].get("p50", 0.0), ""),
    ]


def _panel(
    title: str,
    label: str,
    measured: Sequence[tuple[int, float]],
    predicted: Sequence[tuple[int, float]],
    peak: tuple[int, float],
) -> Panel:
    last = max(2, measured[-1][0])
    top = nice_top(max(height for _, height in (*measured, *predicted)) or 1.0)

    def x(clients: float) -> float:
        return round(_LEFT + (WIDTH - _RIGHT - _LEFT) * log2(clients) / log2(last), 1)

    def y(height: float) -> float:
        return round(HEIGHT - _BOTTOM - (HEIGHT - _BOTTOM - _TOP) * height / top, 1)

    def points(pairs: Sequence[tuple[int, float]]) -> str:
        return " ".join(f"{x(at)},{y(height)}" for at, height in pairs)

    steps = [top * part / _INTERVALS for part in range(_INTERVALS + 1)]
    lines = [Line("sustained", points(measured))]
    if predicted:
        lines.insert(0, Line("decode", points(predicted)))
    return Panel(
        title=title,
        label=label,
        x_ticks=tuple(Tick(x(at), str(at)) for at, _ in measured),
        y_ticks=tuple(Tick(y(step), number(step)) for step in steps),
        lines=tuple(lines),
        markers=(Marker("peak", x(peak[0]), y(peak[1])),),
        x_label="concurrent requests",
    )
