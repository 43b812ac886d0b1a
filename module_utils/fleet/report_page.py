"""The page as a Jinja template. A Python file, since Ansible ships no others beside a module.

Everything that varies is escaped by Jinja; geometry is computed elsewhere, so that no script and no inline style is
needed and the content security policy can refuse both.
"""

MACROS = """
{% macro meter(share, want=none, short=false, label="") %}
<svg class="meter" role="img" aria-label="{{ label }}">
<rect class="track" x="0.5" y="0.5" width="99%" height="11" rx="3"/>
{% if share > 0 %}<rect class="fill{{ ' short' if short }}" x="0.5" y="0.5" \
width="{{ '%.2f' | format(99 * share) }}%" height="11" rx="3"/>{% endif %}
{% if want is not none and want <= 1 %}
{% set at = '%.2f' | format(99 * want) %}
<line class="want" x1="{{ at }}%" x2="{{ at }}%" y1="0" y2="12"/>{% endif %}
</svg>
{% endmacro %}

{% macro swatch(kind) %}
<svg width="26" height="14" aria-hidden="true"><rect class="p-{{ kind }}" width="26" height="14"/>\
<rect class="card-outline" x="0.5" y="0.5" width="25" height="13"/></svg>
{% endmacro %}

{% macro shape(kind, x, y) %}
{% if kind == "planned" %}<circle class="mark planned" cx="{{ x }}" cy="{{ y }}" r="5"/>
{% elif kind == "capacity" %}<path class="mark capacity" d="M{{ x }} {{ y }}m0 -6l6 10h-12z"/>
{% else %}<path class="mark peak" d="M{{ x }} {{ y }}m0 -6l6 6l-6 6l-6 -6z"/>{% endif %}
{% endmacro %}

{% macro panel(one) %}
<svg viewBox="0 0 340 222" role="img" aria-label="{{ one.label }}">
<text class="title" x="0" y="12">{{ one.title }}</text>
{% for tick in one.y_ticks %}
<line class="axis" x1="{{ one.left }}" x2="{{ one.right }}" y1="{{ tick.at }}" y2="{{ tick.at }}"/>\
<text class="tick" text-anchor="end" x="{{ one.left - 6 }}" y="{{ tick.at + 4 }}">{{ tick.label }}</text>
{% endfor %}
{% for tick in one.x_ticks %}
<line class="axis" x1="{{ tick.at }}" x2="{{ tick.at }}" y1="{{ one.bottom }}" y2="{{ one.bottom + 4 }}"/>\
<text class="tick" text-anchor="middle" x="{{ tick.at }}" y="{{ one.bottom + 16 }}">{{ tick.label }}</text>
{% endfor %}
<text class="tick" text-anchor="end" x="{{ one.right }}" y="{{ one.bottom + 31 }}">{{ one.x_label }}</text>
{% if one.rule %}
<line class="rule" x1="{{ one.left }}" x2="{{ one.right }}" y1="{{ one.rule.y }}" y2="{{ one.rule.y }}"/>\
<text class="rule-label" x="{{ one.left + 4 }}" y="{{ one.rule.y - 4 }}">{{ one.rule.label }}</text>
{% endif %}
{% for line in one.lines %}
<polyline class="curve {{ line.kind }}" points="{{ line.points }}"/>
{% endfor %}
{% for marker in one.markers %}{{ shape(marker.shape, marker.x, marker.y) }}{% endfor %}
</svg>
{% endmacro %}

{% macro host_names(view) %}
{{ view.names | ranges }}{% if view.names | length > 1 %} \
<span class="muted">({{ view.names | length | plural("equal host") }})</span>{% endif %}
{% endmacro %}

{% macro gpus_used(view) %}
{% if view.complete %}{{ view.used }} of {{ view.gpus | length }} GPUs used{% else %}\
{{ view.used | plural("GPU") }} used{% endif %}{% if view.names | length > 1 %} on each{% endif %}
{% endmacro %}

{% macro gpu_name(view, gpu) %}
{{ "GPU " ~ gpu.label if view.complete else gpu.label or "GPU" }}
{% endmacro %}
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>Fleet plan {{ digest }}</title>
<style>{{ style }}</style>
</head>
<body>
<a class="skip" href="#summary">Skip to the summary</a>
<svg class="defs" aria-hidden="true">
<defs>
<pattern id="kv" width="7" height="7" patternUnits="userSpaceOnUse"><rect class="c-kv" width="7" height="7"/>\
<path class="hatch" d="M3.5 0V7"/></pattern>
<pattern id="activations" width="6" height="6" patternUnits="userSpaceOnUse"><rect class="c-activations" width="6" \
height="6"/><path class="hatch" d="M-1 1L1 -1M0 6L6 0M5 7L7 5"/></pattern>
<pattern id="graphs" width="5" height="5" patternUnits="userSpaceOnUse"><rect class="c-graphs" width="5" height="5"/>\
<circle class="dot" cx="2.5" cy="2.5" r="1.2"/></pattern>
<pattern id="other" width="5" height="5" patternUnits="userSpaceOnUse"><rect class="c-other" width="5" height="5"/>\
<path class="hatch" d="M0 2.5H5"/></pattern>
<pattern id="margin" width="6" height="6" patternUnits="userSpaceOnUse"><rect class="c-margin" width="6" height="6"/>\
<path class="hatch-margin" d="M-1 1L1 -1M0 6L6 0M5 7L7 5M-1 5L1 7M0 0L6 6M5 -1L7 1"/></pattern>
{% for bar in bars %}
<symbol id="b{{ loop.index0 }}" data-total-bytes="{{ bar.total_bytes }}" data-over-bytes="{{ bar.over_bytes }}">\
<desc id="d{{ loop.index0 }}">{{ bar.words }}</desc>
{% for part in bar.parts %}\
<rect class="p-{{ part.kind }}" data-kind="{{ part.kind }}" data-bytes="{{ part.size_bytes }}" \
x="{{ part.x }}%" width="{{ part.width }}%" height="100%"><title>{{ part.words }}</title></rect>{% endfor %}
{% for part in bar.parts if part.divides %}<line class="divide" x1="{{ part.x }}%" \
x2="{{ part.x }}%" y1="0" y2="100%"/>{% endfor %}
</symbol>
{% endfor %}
</defs>
</svg>
<div class="page">
<header>
<h1>Fleet plan</h1>
<p class="muted">l40s-fleet, plan <code>{{ digest }}</code></p>
<div class="verdict{{ '' if all_carried else ' no' }}">
<span class="sign {{ 'good' if all_carried else 'bad' }}" aria-hidden="true">{{ "✓" if all_carried else "✗" }}</span>
<p>{{ verdict }}</p>
</div>
<nav aria-label="Sections">
<ul>
{% for name, title in sections %}<li><a href="#{{ name }}">{{ title }}</a></li>
{% endfor %}
</ul>
</nav>
</header>
<main>

{% for name, title in sections %}
{% include name %}

{% endfor %}
</main>
<footer>
<p>GiB are 1024³ bytes. TTFT: time to first token. TPOT: time per output token. \
TP, PP: tensor and pipeline parallel size. \
Chunk: max_num_batched_tokens. This page holds no script and asks the network for nothing.</p>
</footer>
</div>
</body>
</html>
"""
