"""Sections of the page about hosts and what changes on them: placement, memory, lost hosts, moves, differences."""

PLACEMENT = """
{% from "macros" import host_names, gpus_used, gpu_name %}
<section class="part" id="placement" aria-labelledby="h-placement">
<h2 id="h-placement">Placement by host</h2>
<p class="lead">{{ placement_words }}</p>
{% for view in hosts %}
<details class="host"{{ " open" if loop.index <= most_open }}>
<summary><span class="host-head"><span class="name">{{ host_names(view) }}</span> \
<span class="muted">{{ gpus_used(view) }}{% for note in view.notes %}; {{ note }}{% endfor %}</span></span></summary>
<div class="nodes">
{% for node in view.nodes %}
<div class="node">{% if node.name %}<h3 class="small muted">{{ node.name }}</h3>{% endif %}
<div class="switches">
{% for switch in node.switches %}
<div class="switch">{% if switch.name %}<span>{{ switch.name }}</span>{% endif %}
<ul class="cells">
{% for gpu in switch.gpus %}
{% if gpu.tenants %}<li class="cell {{ tints[gpu.tenants[0].model] }}"><b>{{ gpu_name(view, gpu) }}</b> \
{% for who in gpu.tenants %}<br>{{ who.name }}{% if who.ranks > 1 %} \
<span class="muted">rank {{ who.rank }}</span>{% endif %}{% endfor %}\
{% if gpu.note %}<br><span class="bad">{{ gpu.state }}: {{ gpu.note }}</span>{% endif %}</li>
{% elif gpu.state == "free" %}<li class="cell idle"><b>{{ gpu_name(view, gpu) }}</b><br>free</li>
{% else %}<li class="cell closed"><b>{{ gpu_name(view, gpu) }}</b><br>{{ gpu.state }}: {{ gpu.note }}</li>{% endif %}
{% endfor %}
</ul></div>
{% endfor %}
</div></div>
{% endfor %}
</div>
</details>
{% else %}<p>No host is known.</p>
{% endfor %}
</section>
"""

MEMORY = """
{% from "macros" import swatch, host_names, gpus_used, gpu_name %}
<section class="part" id="memory" aria-labelledby="h-memory">
<h2 id="h-memory">Memory of every GPU</h2>
<p class="lead">To scale; a whole bar is what the engine sees of the card. {{ memory_words }}</p>
<ul class="legend">
{% for kind, name in part_names.items() %}<li>{{ swatch(kind) }}{{ name }}</li>
{% endfor %}
</ul>
{% for view in hosts %}
<details class="host"{{ " open" if loop.index <= most_open }}>
<summary><span class="host-head"><span class="name">{{ host_names(view) }}</span> \
<span class="muted">{{ gpus_used(view) }}</span></span></summary>
<ul class="gpus">
{% for gpu in view.gpus %}
<li><b>{{ gpu_name(view, gpu) }}</b>
{% if gpu.bar %}<svg class="memory" role="img" aria-labelledby="d{{ bar_ids[gpu.bar] }}">\
<use href="#b{{ bar_ids[gpu.bar] }}" width="100%" height="20"/>\
<rect class="card-outline" x="0.5" y="0.5" width="99.9%" height="19"/></svg>
{% else %}<span class="muted">the plan does not say what lies there</span>{% endif %}
<span>{% for who in gpu.tenants %}{{ who.name }}, {% else %}<span class="muted">{{ gpu.state }}</span>{% endfor %}\
{% if gpu.tenants and gpu.bar %}KV {{ gpu.bar.of_kind("kv") | gib }}{% if gpu.bar.over_bytes %}, \
<strong class="bad">{{ gpu.bar.over_bytes | gib }} too much</strong>\
{% else %}, free {{ gpu.bar.of_kind("free") | gib }}{% endif %}{% endif %}</span></li>
{% endfor %}
</ul>
</details>
{% else %}<p>No GPU is known.</p>
{% endfor %}
</section>
"""

LOSSES = """
<section class="part" id="losses" aria-labelledby="h-losses">
<h2 id="h-losses">When a host is lost</h2>
{% if losses %}
<p class="lead">What the other hosts carry when this one is lost, before anything is placed anew. Models with \
availability.hosts_lost: 1 are placed so that they stay carried.</p>
<table class="stack">
<thead><tr><th scope="col">Host lost</th><th scope="col" class="n">GPUs</th><th scope="col" class="n">Instances</th>\
<th scope="col">Less than all is left of</th><th scope="col">Carried all the same</th></tr></thead>
<tbody>
{% for row in losses[:most_losses] %}
<tr><th scope="row">{{ row.hosts | ids }}{% if row.hosts | length > 2 %} <span class="muted">(each of \
{{ row.hosts | length }})</span>{% endif %}</th>
<td data-label="GPUs" class="n">{{ row.gpus }}</td><td data-label="Instances" class="n">{{ row.instances }}</td>
<td data-label="Less is left of">{% for model, share in row.left if share < 1 %}{{ model }} \
<strong class="bad">{{ share | percent }}</strong>{{ ", " if not loop.last }}\
{% else %}<span class="good">✓ nothing</span>{% endfor %}</td>
<td data-label="Still carried">\
{% for model, share in row.left if share >= 1 %}{{ model }}{{ " (asked for)" if model in row.spared }}\
{{ ", " if not loop.last }}{% else %}-{% endfor %}</td></tr>
{% endfor %}
</tbody>
</table>
{% if losses | length > most_losses %}<p class="small muted">And {{ losses | length - most_losses }} more rows, in \
which at least {{ losses[most_losses].worst | percent }} of every model is left.</p>{% endif %}
{% else %}<p>Nothing runs, so nothing is lost.</p>{% endif %}
</section>
"""

MOVES = """
<section class="part" id="moves" aria-labelledby="h-moves">
<h2 id="h-moves">Moves</h2>
{% if moves %}
<table class="stack">
<thead><tr><th scope="col">Instance</th><th scope="col">From</th><th scope="col">To</th><th scope="col">Cause</th>\
<th scope="col">Why</th></tr></thead>
<tbody>
{% for move in moves %}
<tr><th scope="row">{{ [move.id] | ids }}</th><td data-label="From">{{ move.origin }}</td>\
<td data-label="To">{{ move.to or "nowhere" }}</td>\
<td data-label="Cause"><span class="tag">{{ move.cause }}</span></td>\
<td data-label="Why">{{ move.why }}</td></tr>
{% endfor %}
</tbody>
</table>
{% else %}<p>Nothing moves.</p>{% endif %}
</section>
"""

CHANGES = """
<section class="part" id="changes" aria-labelledby="h-changes">
<h2 id="h-changes">Changes against what runs now</h2>
{% if changes is none %}<p>The plan was not compared with another one. What it moves is listed above; \
<code>--current OLD_PLAN.json</code> adds the comparison.</p>
{% elif changes.is_empty %}<p>No difference.</p>
{% else %}
<p class="lead">{{ change_words }}</p>
{% if change_rows %}
<table class="stack">
<thead><tr><th scope="col">Instance</th><th scope="col">Change</th>\
<th scope="col" class="wide">What, from what to what</th>\
<th scope="col">Why</th></tr></thead>
<tbody>
{% for row in change_rows %}
<tr><th scope="row">{{ [row.id] | ids }}</th>\
<td data-label="Change"><span class="tag">{{ row.sign }} {{ row.kind }}</span></td>
<td data-label="What"><ul class="plain">{% for what, before, after in row.details %}<li>{{ what }}: {{ before }} \
<span aria-hidden="true">→</span><span class="hidden"> becomes </span> {{ after }}</li>{% endfor %}</ul></td>
<td data-label="Why">{{ row.why }}</td></tr>
{% endfor %}
</tbody>
</table>
{% endif %}
{% if changes.carried %}
<table class="stack">
<caption>Carried by model</caption>
<thead><tr><th scope="col">Model</th><th scope="col" class="n">Before</th><th scope="col" class="n">After</th>\
<th scope="col" class="n">Requests/s before</th><th scope="col" class="n">after</th></tr></thead>
<tbody>
{% for one in changes.carried %}
<tr><th scope="row">{{ one.model }}</th><td data-label="Before" class="n">{{ one.before | percent }}</td>\
<td data-label="After" class="n">{{ one.after | percent }}</td>\
<td data-label="Requests/s before" class="n">{{ one.requests_before | number }}</td>\
<td data-label="after" class="n">{{ one.requests_after | number }}</td></tr>
{% endfor %}
</tbody>
</table>
{% endif %}
{% for one in changes.refused %}<p><span class="bad">✗ Refused now:</span> {{ one.model }} \
({{ one.constraint }}): {{ one.explanation }}</p>
{% endfor %}
{% for one in changes.no_longer_refused %}<p><span class="good">✓ No longer refused:</span> {{ one.model }} \
({{ one.constraint }})</p>
{% endfor %}
{% endif %}
</section>
"""
