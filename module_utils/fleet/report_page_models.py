"""Sections of the page about models: what is carried, load, curves, candidates, simulation."""

SUMMARY = """
{% from "macros" import meter %}
<section class="part" id="summary" aria-labelledby="h-summary">
<h2 id="h-summary">Summary</h2>
<dl class="tiles">
{% for tile in tiles %}
<div class="tile"><dt>{{ tile.name }}</dt><dd><div class="figure">{{ tile.figure }}</div>\
<div class="small muted">{{ tile.note }}</div></dd></div>
{% endfor %}
</dl>
<h3>Carried by model</h3>
{% if loads %}
<p class="small muted">The share of a model's demand that is carried within its objectives; of its instances where it \
has no demand.</p>
<ul class="carried">
{% for load in carried %}
<li><span>{{ load.model }}</span>\
{{ meter(load.carried or 0, short=(load.carried or 0) < 1, \
label=load.model ~ " is carried to " ~ load.carried | percent) }}
<span class="share">{% if (load.carried or 0) >= 1 %}<span class="good" aria-hidden="true">✓</span>{% else %}\
<span class="bad" aria-hidden="true">✗</span>{% endif %} {{ load.carried | percent }}</span></li>
{% endfor %}
</ul>
{% else %}<p>The plan holds no model.</p>{% endif %}
{% if improvement %}<p class="warn">{{ improvement }}</p>{% endif %}
{% for note in notes %}<p class="small muted">{{ note }}</p>
{% endfor %}
</section>
"""

REFUSALS = """
<section class="part" id="refusals" aria-labelledby="h-refusals">
<h2 id="h-refusals">Refusals and remedies</h2>
{% for one in plan.refused %}
<div class="refusal"><p><strong>{{ one.model }}</strong> <span class="tag">{{ one.constraint }}</span></p>
<p>{{ one.explanation }}</p>
<p><strong>Nearest change:</strong> {{ one.nearest_change }}</p></div>
{% else %}<p>Nothing was refused.</p>
{% endfor %}
</section>
"""

LOAD = """
{% from "macros" import meter %}
<section class="part" id="load" aria-labelledby="h-load">
<h2 id="h-load">Load against capacity</h2>
<p class="lead">Capacity is the largest request rate at which the objectives hold. The bar is the load on it; a line \
marks the demand where it is not met.</p>
{% for load in loads %}
<details class="model"{{ " open" if loads | length <= 8 }}>
<summary><span class="bar-head"><span class="name">{{ load.model }}</span>
{% if load.share is not none %}
{{ meter(load.share, want=load.want, short=load.short, label=load.words) }}
{% else %}<span class="muted">{{ "no demand is given" if load.instances else "does not run" }}</span>{% endif %}
<span>{{ load.words }}</span></span></summary>
{% if not load.loads %}<p class="small muted">Nothing of it runs.</p>{% endif %}
{% if load.loads %}
<table class="stack">
<caption>{{ load.instances | plural("instance") }} on {{ load.gpus | plural("GPU") }}. Figures are of one instance\
{% if load.percentile %}; times are the {{ load.percentile | number }}th percentile{% endif %}.\
{% if load.objectives %} Objectives: {{ load.objectives }}.{% endif %}</caption>
<thead><tr><th scope="col">Instances</th><th scope="col">Started with</th><th scope="col" class="n">Load, capacity</th>\
<th scope="col" class="n">Running</th><th scope="col" class="n">TTFT</th><th scope="col" class="n">TPOT</th>\
<th scope="col">Limited by</th><th scope="col" class="n">KV tokens</th></tr></thead>
<tbody>
{% for one in load.loads %}
<tr><th scope="row">{{ one.ids | ids }}{% if one.ids | length > 2 %} \
<span class="muted">({{ one.ids | length }})</span>{% endif %}</th>
<td data-label="Started with">{{ one.configuration }}{% if one.max_model_len %}, context \
{{ one.max_model_len | number }}{% endif %}{% if one.chunk %}, chunks of {{ one.chunk | number }}{% endif %}</td>
<td data-label="Load, capacity" class="n">{% if one.capacity_requests_per_s %}{{ one.requests_per_s | number }} of \
{{ one.capacity_requests_per_s | number }}/s ({{ one.utilization | percent }}){% else %}-{% endif %}</td>
<td data-label="Running" class="n">{{ one.running_sequences | number }}</td>
<td data-label="TTFT" class="n">{{ one.ttft_ms | number("ms") }}</td>
<td data-label="TPOT" class="n">{{ one.tpot_ms | number("ms") }}</td>
<td data-label="Limited by" class="word">{{ one.limit or "-" }}</td>
<td data-label="KV tokens" class="n">{{ one.kv_cache_tokens | number }}</td></tr>
{% endfor %}
</tbody>
</table>
{% for one in load.loads %}
<details class="why"><summary>Why {{ one.ids | ranges }}</summary>
<ul>
{% for reason in one.reasons %}<li>{{ reason }}</li>
{% endfor %}
{% for identity, place in one.places[:most_places] if place %}<li><strong>{{ identity }}</strong>: {{ place }}</li>
{% endfor %}
{% if one.places | length > most_places %}<li>and {{ one.places | length - most_places }} more.</li>{% endif %}
</ul></details>
{% endfor %}
{% endif %}
</details>
{% else %}<p>No model.</p>
{% endfor %}
</section>
"""

CURVES = """
{% from "macros" import shape, panel %}
<section class="part" id="curves" aria-labelledby="h-curves">
<h2 id="h-curves">Throughput and time per output token</h2>
{% if curves %}
<p class="lead">Of one instance of each configuration that runs, by the speed model. \
Running sequences are the batch of a decode step.</p>
<ul class="legend">
<li><svg width="34" height="14" aria-hidden="true"><path class="curve sustained" d="M0 7H34"/></svg>a steady stream of \
requests, prompts mixed in (time: at the percentile of the objectives)</li>
<li><svg width="34" height="14" aria-hidden="true"><path class="curve decode" d="M0 7H34"/></svg>decode alone</li>
{% for kind, name in marker_names %}
<li><svg width="16" height="16" aria-hidden="true">{{ shape(kind, 8, 8) }}</svg>{{ name }}</li>
{% endfor %}
</ul>
<div class="figures">
{% for model, figures in curves | groupby("curve.model") %}
<details class="model"{{ " open" if loop.index <= most_open }}>
<summary><strong>{{ model }}</strong> <span class="muted">{{ figures[0].curve.prompt_tokens | number }} prompt tokens, \
{{ figures[0].curve.output_tokens | number }} output tokens\
{% if not figures[0].curve.sustained %}, assumed{% endif %}</span></summary>
<div class="figures">
{% for figure in figures %}
<figure>
<figcaption><h3>{{ figure.curve.configuration }} \
<span class="muted">{{ figure.curve.instances | plural("instance") }}</span></h3></figcaption>
<div class="panels">
{% for one in figure.panels %}{{ panel(one) }}{% endfor %}
</div>
<p class="small muted">{{ figure.words }}</p>
</figure>
{% endfor %}
</div>
</details>
{% endfor %}
</div>
{% endif %}
{% if not_drawn %}
<p class="small muted">Not drawn:</p>
<ul class="small muted">
{% for why, names in not_drawn %}<li>{{ names | listing }}: {{ why }}.</li>
{% endfor %}
</ul>
{% elif not curves %}<p>Nothing runs.</p>{% endif %}
</section>
"""

CANDIDATES = """
<section class="part" id="candidates" aria-labelledby="h-candidates">
<h2 id="h-candidates">Candidates</h2>
<p class="lead">The configurations that the placement chose among. From these and the demands, the bound of \
{{ plan.summary.gpus_lower_bound | plural("GPU") }} can be recomputed.</p>
{% if candidates %}
<details{{ " open" if candidates | length <= 24 }}><summary>{{ candidates | length | plural("candidate") }}</summary>
<table class="stack">
<thead><tr><th scope="col">Model</th><th scope="col">Configuration</th><th scope="col" class="n">Context</th>\
<th scope="col" class="n">Chunk</th>\
<th scope="col" class="n">Requests/s</th><th scope="col" class="n">Requests/s a GPU</th>\
<th scope="col" class="n">Instances</th></tr></thead>
<tbody>
{% for one in candidates %}
<tr><th scope="row">{{ one.model }}</th><td data-label="Configuration">{{ one.configuration }}</td>\
<td data-label="Context" class="n">{{ one.context | number }}</td>\
<td data-label="Chunk" class="n">{{ one.chunk | number }}</td>\
<td data-label="Requests/s" class="n">{{ one.capacity | number }}</td>\
<td data-label="Requests/s a GPU" class="n">{{ one.per_gpu | number }}</td>\
<td data-label="Instances" class="n">{{ one.chosen or "-" }}</td></tr>
{% endfor %}
</tbody>
</table>
</details>
{% else %}<p>None.</p>{% endif %}
</section>
"""

SIMULATION = """
<section class="part" id="simulation" aria-labelledby="h-simulation">
<h2 id="h-simulation">Simulated</h2>
<p class="lead">{{ simulation.words }}</p>
<table class="stack">
<thead><tr><th scope="col">Model</th>\
{% for name in simulation.columns %}<th scope="col" class="n">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for model, cells in simulation.rows %}
<tr><th scope="row">{{ model }}</th>\
{% for cell in cells %}<td data-label="{{ simulation.columns[loop.index0] }}" class="n">\
{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</section>
"""
