"""The section of the page about quantized checkpoints."""

QUANTIZED = """
<section class="part" id="quantized" aria-labelledby="h-quantized" data-records="{{ quantized_mark }}">
<h2 id="h-quantized">Quantized checkpoints</h2>
<p class="lead">Made by this fleet and judged against their sources on the same held-out text. What is refused is not \
served; the plan goes around it.</p>
<table class="stack">
<thead><tr><th scope="col">Model</th><th scope="col">Recipe</th><th scope="col">Verdict</th>\
<th scope="col">Perplexity, result / source</th><th scope="col">Chooses the source's token</th>\
<th scope="col" class="n">Places</th><th scope="col">On</th></tr></thead>
<tbody>
{% for one in quantized %}
<tr><th scope="row">{{ one.model }}</th>
<td data-label="Recipe">{{ one.recipe }}</td>
<td data-label="Verdict"><span><span class="{{ 'good' if one.good else 'bad' }}" aria-hidden="true">\
{{ "✓" if one.good else "✗" }}</span> {{ one.verdict }}</span></td>
<td data-label="Perplexity, result / source">{{ one.perplexity }}</td>
<td data-label="Chooses the source's token">{{ one.agreement }}</td>
<td data-label="Places" class="n">{{ one.tokens | number }}</td>
<td data-label="On">{{ one.hosts | ranges }}</td></tr>
{% endfor %}
</tbody>
</table>
{% for one in quantized %}
<details class="why"><summary>How {{ one.model }} was made{{ "" if one.good else ", and why it was refused" }}</summary>
<ul>
{% if one.why %}<li>Refused: {{ one.why }}.</li>
{% endif %}
<li>{{ one.recipe }}.</li>
<li>Libraries: {{ one.versions }}.</li>
<li>Checkpoint <code>{{ one.key }}</code>, of the source <code>{{ one.source_digest }}</code>; it took \
{{ one.seconds | number("s") }}.</li>
</ul></details>
{% endfor %}
</section>
"""
