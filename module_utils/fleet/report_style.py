"""The style sheet of the report: dark and light, narrow and wide, on paper."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f4f6f8; --card: #ffffff; --ink: #18222c; --muted: #54616e; --line: #d3dae1; --soft: #eef1f4;
  --accent: #1d5fc4; --good: #17703a; --bad: #b3261e; --warn: #7f5300;
  --weights: #34519c; --kv: #1c9479; --activations: #c4761a; --graphs: #8050b5; --other: #73808d; --margin: #b99a2d;
  --mark: rgb(255 255 255 / 55%);
  --t0: #2f6fd0; --t1: #c2571a; --t2: #1c8c6e; --t3: #9a4fb5; --t4: #a98500; --t5: #c23b63; --t6: #3f8f2c;
  --t7: #5d6b7a;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #0e1318; --card: #161d25; --ink: #e5eaf0; --muted: #a3b1be; --line: #2d3843; --soft: #1e2731;
    --accent: #86b6ff; --good: #74d493; --bad: #ff9a91; --warn: #f2c462;
    --weights: #6d8de0; --kv: #35b795; --activations: #e09a45; --graphs: #ad86df; --other: #8795a3; --margin: #d3b551;
    --mark: rgb(0 0 0 / 45%);
    --t0: #77a9f7; --t1: #ef9560; --t2: #54c7a6; --t3: #c990e2; --t4: #d9b93d; --t5: #f17f9f; --t6: #85cf70;
    --t7: #9aa8b6;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans",
  "DejaVu Sans", sans-serif; font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
.page { max-width: 1140px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 1.2rem; margin: 0 0 4px; line-height: 1.3; }
h3 { font-size: 1rem; margin: 0 0 6px; line-height: 1.35; }
h4 { font-size: 0.85rem; margin: 0 0 6px; color: var(--muted); font-weight: 600; }
p { margin: 0 0 10px; max-width: 85ch; }
a { color: var(--accent); }
a:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
.muted { color: var(--muted); font-weight: 400; }
.small { font-size: 0.85rem; }
.skip { position: absolute; left: -999px; }
.skip:focus { left: 8px; top: 8px; background: var(--card); padding: 6px 10px; }
.verdict { display: flex; gap: 10px; align-items: flex-start; border: 1px solid var(--line);
  border-left: 5px solid var(--good);
  background: var(--card); border-radius: 8px; padding: 10px 14px; margin: 14px 0; }
.verdict.no { border-left-color: var(--bad); }
.verdict p { margin: 0; }
.part > :last-child, .part > details:last-child > :last-child { margin-bottom: 0; }
.sign { font-weight: 700; }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
nav ul { display: flex; flex-wrap: wrap; gap: 4px 16px; list-style: none; padding: 0; margin: 0 0 18px;
  font-size: 0.9rem; }
nav a { display: inline-block; padding: 3px 0; }
section.part { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px;
  margin: 0 0 16px; }
.part > p.lead { color: var(--muted); margin-bottom: 14px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(45%, 210px), 1fr)); gap: 10px;
  margin: 0 0 16px; padding: 0; }
.tile { background: var(--soft); border-radius: 8px; padding: 10px 12px; }
.tile dt { font-size: 0.8rem; color: var(--muted); }
.tile dd { margin: 0; }
.tile .figure { font-size: 1.45rem; font-weight: 650; line-height: 1.25; }
.carried { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 4px 28px;
  list-style: none;
  padding: 0; margin: 0 0 10px; }
.carried li { display: grid; grid-template-columns: minmax(0, 1fr) 84px 68px; gap: 8px; align-items: center; }
.carried .share { text-align: right; white-space: nowrap; }
svg.meter { display: block; width: 100%; height: 12px; }
.track { fill: var(--soft); stroke: var(--line); }
.carried .track { fill: var(--page); }
.fill { fill: var(--accent); } .fill.short { fill: var(--bad); }
.want { stroke: var(--ink); stroke-width: 2; }
table { margin: 0 0 14px; width: 100%; border-collapse: collapse; font-size: 0.9rem; }
caption { text-align: left; color: var(--muted); font-size: 0.85rem; padding-bottom: 4px; }
th, td { text-align: left; vertical-align: top; padding: 6px 10px 6px 0;
  border-bottom: 1px solid var(--line); }
thead th { font-size: 0.8rem; color: var(--muted); font-weight: 600; vertical-align: bottom; }
tbody th, .plain, td { overflow-wrap: anywhere; }
td.word { overflow-wrap: normal; }
tbody th { font-weight: 600; }
.id { white-space: nowrap; }
th.wide { width: 40%; }
tr:last-child > td, tr:last-child > th { border-bottom: 0; }
td.n, th.n { text-align: right; white-space: nowrap; padding-right: 18px; }
details > summary { cursor: pointer; }
details.model, details.host { border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; margin: 0 0 10px; }
details.model > summary, details.host > summary { display: list-item; }
details[open].model > summary, details[open].host > summary { margin-bottom: 10px; }
.bar-head { display: inline-grid; width: calc(100% - 1.4em); vertical-align: top; gap: 2px 16px;
  grid-template-columns: minmax(0, 15rem) minmax(80px, 1fr) minmax(0, 19rem); align-items: center; }
.bar-head .name { font-weight: 600; }
.why { margin: 10px 0 0; font-size: 0.9rem; }
.why ul { margin: 4px 0 0; padding-left: 20px; }
.host-head .name { font-weight: 600; }
.nodes { display: grid; gap: 10px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.node { border: 1px dashed var(--line); border-radius: 8px; padding: 8px 10px; min-width: 0; }
.switches { display: flex; flex-wrap: wrap; gap: 10px; }
.switch { background: var(--soft); border-radius: 6px; padding: 6px 8px; flex: 1 1 auto; min-width: 0; }
.switch > span { font-size: 0.8rem; color: var(--muted); }
.cells { display: flex; flex-wrap: wrap; gap: 6px; list-style: none; margin: 2px 0 0; padding: 0; }
.cell { flex: 1 1 104px; max-width: 220px; border: 1px solid var(--line); border-left-width: 5px;
  background: var(--card);
  border-radius: 5px; padding: 3px 7px; font-size: 0.8rem; line-height: 1.35; min-width: 0; }
.cell b { color: var(--muted); font-weight: 600; }
.cell.idle { border-style: dashed; border-left-width: 1px; color: var(--muted); background: transparent; }
.cell.closed { border-style: double; border-width: 3px; }
.t0 { border-left-color: var(--t0); } .t1 { border-left-color: var(--t1); } .t2 { border-left-color: var(--t2); }
.t3 { border-left-color: var(--t3); } .t4 { border-left-color: var(--t4); } .t5 { border-left-color: var(--t5); }
.t6 { border-left-color: var(--t6); } .t7 { border-left-color: var(--t7); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; list-style: none; padding: 0; margin: 0 0 14px;
  font-size: 0.85rem; }
.legend li { display: flex; align-items: center; gap: 6px; }
.legend svg { flex: none; }
.defs { position: absolute; width: 0; height: 0; }
.gpus { list-style: none; padding: 0; margin: 0 0 8px; }
.gpus li { display: grid; grid-template-columns: 4.4rem minmax(0, 1fr) minmax(0, 21rem); gap: 0 12px;
  align-items: center;
  padding: 2px 0; font-size: 0.85rem; }
svg.memory { display: block; width: 100%; height: 20px; }
.divide { stroke: var(--ink); stroke-width: 2; }
.card-outline { fill: none; stroke: var(--muted); }
.p-weights { fill: var(--weights); } .p-kv { fill: url(#kv); } .p-activations { fill: url(#activations); }
.p-graphs { fill: url(#graphs); } .p-other { fill: url(#other); } .p-margin { fill: url(#margin);
  } .p-free { fill: transparent; }
.c-kv { fill: var(--kv); } .c-activations { fill: var(--activations); } .c-graphs { fill: var(--graphs); }
.c-other { fill: var(--other); } .c-margin { fill: var(--card); }
.hatch { stroke: var(--mark); stroke-width: 1.5; fill: none; } .dot { fill: var(--mark); }
.hatch-margin { stroke: var(--margin); stroke-width: 1.5; fill: none; }
.figures { display: grid; gap: 16px; }
.figures figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; min-width: 0; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 10px; }
.panels svg { width: 100%; max-width: 420px; height: auto; display: block; margin: 0 auto; }
.axis { stroke: var(--line); stroke-width: 1; }
.tick { fill: var(--muted); font-size: 11px; }
.title { fill: var(--ink); font-size: 12px; font-weight: 600; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.curve.decode { stroke: var(--other); stroke-dasharray: 5 4; } .curve.sustained { stroke: var(--accent); }
.rule { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 2 3; }
.rule-label { fill: var(--bad); font-size: 11px; }
.mark { stroke: var(--card); stroke-width: 1.5; }
.mark.planned { fill: var(--ink); } .mark.capacity { fill: var(--bad); } .mark.peak { fill: var(--other); }
.refusal { border-left: 5px solid var(--bad); background: var(--soft); border-radius: 6px; padding: 8px 12px;
  margin: 0 0 10px; }
.refusal p { margin: 0 0 4px; }
.plain { list-style: none; padding: 0; margin: 0; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.tag { display: inline-block; border: 1px solid var(--line); border-radius: 10px; padding: 0 8px; font-size: 0.8rem;
  white-space: nowrap; }
code { font-family: ui-monospace, "DejaVu Sans Mono", Consolas, monospace; font-size: 0.9em; }
footer { color: var(--muted); font-size: 0.85rem; }
@media (max-width: 860px) {
  body { font-size: 14px; }
  .page { padding: 14px 10px 32px; }
  section.part { padding: 12px 10px; }
  .bar-head { grid-template-columns: minmax(0, 1fr); }
  .gpus li { padding: 5px 0; row-gap: 2px; }
  .gpus svg { grid-row: 2; }
  .gpus li > b { grid-area: 1 / 1; }
  .gpus li > span { grid-area: 1 / 2; }
  .gpus li { grid-template-columns: 4.4rem minmax(0, 1fr); }
  .gpus svg { grid-column: 1 / -1; }
  .id { white-space: normal; }
  table.stack, table.stack caption, table.stack tbody, table.stack tr, table.stack td,
    table.stack th { display: block; }
  table.stack thead { position: absolute; left: -9999px; }
  table.stack tr { padding: 8px 0; border-bottom: 1px solid var(--line); }
  table.stack tr:last-child { border-bottom: 0; }
  table.stack td, table.stack th { border: 0; padding: 1px 0; text-align: left; white-space: normal; }
  table.stack td[data-label] { display: grid; grid-template-columns: 8.5rem minmax(0, 1fr); gap: 8px; }
  table.stack td[data-label]::before { content: attr(data-label); color: var(--muted); }
}
@media print {
  body { background: #ffffff; font-size: 10.5pt; }
  nav, .skip { display: none; }
  section.part { border: 0; padding: 0; }
  details::details-content { content-visibility: visible; block-size: auto; }
  details.model, details.host, figure, tr, .refusal { break-inside: avoid; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""
