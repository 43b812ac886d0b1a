import copy
import json
import re
from pathlib import Path

import pytest
from fleet.cli import main
from fleet.errors import FleetError
from fleet.hardware import gpu_by_name
from fleet.host_document import parse_hosts
from fleet.plan_document import canonical_json, parse_plan, plan_to_document
from fleet.report import ReportInput, render_report
from fleet.report_charts import nice_top, panels
from fleet.report_curves import curves
from fleet.report_fleet import candidate_rows, gpu_kinds, rank_memory
from fleet.report_hosts import host_views
from fleet.report_load import losses, model_loads
from fleet.report_memory import gpu_bar
from fleet.report_models import curve_models
from fleet.report_words import name_ranges, number, percent
from plan_samples import facts, gpu, model, plan

DEMAND = {"requests_per_second": 2, "prompt_tokens": 512, "output_tokens": 128}
OBJECTIVES = {"ttft_ms": 2000, "tpot_ms": 60}
TORCH_VISIBLE = gpu_by_name("L40S", where="test").torch_visible_bytes


def wanted(name="m", **changes):
    return model(name, demand=DEMAND, objectives=OBJECTIVES, **changes)


def page(made, **more):
    return render_report(ReportInput(plan=made, **more))


@pytest.fixture(scope="module")
def served():
    """Two hosts; one model is split over a pipeline, one is spread, one has no demand."""
    return plan(
        facts("a", "b"),
        [
            wanted("spread", availability={"hosts_lost": 1}),
            wanted("large", config="llama-3-70b", quantization="fp8", tensor_parallel=1, pipeline_parallel=3),
            model("idle"),
        ],
    )


def hosts_of(document):
    return parse_hosts(document, where="facts.json")


def test_equal_input_gives_equal_bytes(served):
    assert page(served, hosts=hosts_of(facts("a", "b"))) == page(served, hosts=hosts_of(facts("b", "a")))


def test_the_page_refers_to_nothing_outside(served):
    text = page(served)
    assert "<script" not in text
    assert not re.search(r"\son\w+=", text)
    assert not re.search(r'style="', text)
    # Fragments of the page itself and the empty icon are all that it refers to.
    for target in re.findall(r'(?:href|src|xlink:href|action)="([^"]*)"', text):
        assert target.startswith("#") or target == "data:,"
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {"#kv", "#activations", "#graphs", "#other", "#margin"}
    assert "http://" not in text
    assert "https://" not in text
    assert "default-src &#39;none&#39;" in text


def test_every_bar_adds_up_to_the_card(served):
    views = host_views(served, hosts_of(facts("a", "b")), {}, where="plan")
    bars = [one.bar for view in views for one in view.gpus for _ in view.names]
    assert len(bars) == 8
    for bar in bars:
        assert sum(part.size_bytes for part in bar.parts) == bar.total_bytes == TORCH_VISIBLE
        assert bar.over_bytes == 0


def test_the_bar_holds_what_the_plan_says(served):
    one = next(one for one in served.instances if one.model == "idle")
    bar = gpu_bar([(one, None)], TORCH_VISIBLE, where="plan")
    assert bar.of_kind("weights") == one.memory["weights_bytes"]
    assert bar.of_kind("kv") == one.memory["available_kv_cache_bytes"] - one.memory["margin_bytes"]
    # Beyond the budget of gpu_memory_utilization lies the CUDA context; the rest of it is free.
    assert 0.05 < bar.of_kind("free") / TORCH_VISIBLE < 0.08


def test_ranks_of_a_pipeline_differ_and_add_up(served):
    models = curve_models(served, where="plan")
    ranks = rank_memory(served, models, gpu_kinds(served, None, where="plan"), where="plan")
    one = next(one for one in served.instances if one.model == "large")
    stages = ranks[one.id]
    assert len(stages) == 3
    tightest = min(stages, key=lambda rank: rank.planned_kv_cache_bytes / rank.bytes_per_block)
    assert tightest.weights_bytes == one.memory["weights_bytes"]
    assert len({rank.weights_bytes for rank in stages}) > 1
    for rank in stages:
        bar = gpu_bar([(one, rank)], TORCH_VISIBLE, where="plan")
        assert sum(part.size_bytes for part in bar.parts) == TORCH_VISIBLE


def test_several_instances_on_one_gpu(served):
    ones = [one for one in served.instances if one.model == "idle"]
    shared = [copy.deepcopy(one) for one in (*ones, *ones)]
    for one in shared:
        one.engine_args["kv_cache_memory_bytes"] = 2 * 1024**3
    bar = gpu_bar([(one, None) for one in shared], TORCH_VISIBLE, where="plan")
    assert bar.of_kind("kv") == 4 * 1024**3
    assert sum(part.size_bytes for part in bar.parts) == TORCH_VISIBLE
    three = gpu_bar([(one, None) for one in (*shared, shared[0])], TORCH_VISIBLE, where="plan")
    assert three.over_bytes > 0
    assert sum(part.size_bytes for part in three.parts) == TORCH_VISIBLE + three.over_bytes


def test_gpus_that_are_not_used_say_why():
    document = facts("a")
    document["hosts"]["a"]["policy"] = {"exclude_gpus": [1]}
    health = {"status": "blocked", "checks": [{"name": "xid", "status": "blocked", "evidence": "Xid 79"}]}
    document["hosts"]["a"]["gpus"][2]["health"] = health
    document["hosts"]["a"]["gpus"][3] = gpu("a", 3, name="Something Else")
    made = plan(document, [model("m")])
    (view,) = host_views(made, hosts_of(document), {}, where="plan")
    assert [(one.label, one.state, one.note) for one in view.gpus] == [
        ("0", "used", ""),
        ("1", "excluded", "in fleet_exclude_gpus"),
        ("2", "blocked", "xid: Xid 79"),
        ("3", "unsuitable", "the hardware table does not know 'Something Else'"),
    ]


def test_gpus_are_grouped_by_node_and_switch():
    document = facts("a")
    names = [one["uuid"] for one in document["hosts"]["a"]["gpus"]]
    pairs = ((0, 1, "PIX"), (2, 3, "PXB"), (1, 2, "SYS"))
    document["hosts"]["a"]["links"] = [{"a": names[a], "b": names[b], "path": path} for a, b, path in pairs]
    (view,) = host_views(plan(document, []), hosts_of(document), {}, where="plan")
    assert [
        (node.name, [(one.name, [gpu.label for gpu in one.gpus]) for one in node.switches]) for node in view.nodes
    ] == [
        ("NUMA node 0", [("PCIe switch A", ["0", "1"])]),
        ("NUMA node 1", [("PCIe switch B", ["2", "3"])]),
    ]


def test_equal_hosts_are_shown_once():
    names = [f"h{index:02d}" for index in range(30)]
    document = facts(*names, gpus=2)
    made = plan(document, [model("m", replicas={"min": 40})])
    views = host_views(made, hosts_of(document), {}, where="plan")
    assert sorted(name for view in views for name in view.names) == names
    assert len(views) == 2
    assert sum(view.used * len(view.names) for view in views) == 40
    assert "h00 to h09" in page(made, hosts=hosts_of(document))


def test_without_facts_the_plan_alone_is_shown(served):
    views = host_views(served, None, {}, where="plan")
    assert sum(len(view.gpus) * len(view.names) for view in views) == served.summary.gpus_used
    assert "with --facts FACTS.json" in page(served)


def test_load_and_capacity(served):
    demands = {name: one.requests_per_s for name, one in curve_models(served, where="plan").items()}
    by_name = {load.model: load for load in model_loads(served, demands, where="plan")}
    spread = by_name["spread"]
    assert spread.demand == 2.0
    assert spread.capacity == pytest.approx(
        sum(one.speed["capacity_requests_per_s"] for one in served.instances if one.model == "spread")
    )
    assert by_name["idle"].demand is None
    # The demand can be told from the instances too, for plans without the section.
    assert model_loads(served, {}, where="plan")[2].demand == pytest.approx(2.0, rel=1e-6)


def test_what_a_lost_host_leaves(served):
    loads = model_loads(served, {"spread": 2.0, "large": 2.0, "idle": None}, where="plan")
    rows = {host: row for row in losses(served, loads, where="plan") for host in row.hosts}
    assert set(rows) == {"a", "b"}
    for host, row in rows.items():
        left = dict(row.left)
        assert left["spread"] == 1.0
        assert row.spared == ("spread",)
        assert ("large" in left) == any(host in one.hosts for one in served.instances if one.model == "large")
        assert left.get("large", 0.0) == 0.0


def test_curves_pass_through_the_planned_point(served):
    models = curve_models(served, where="plan")
    drawn, missing = curves(served, models, gpu_kinds(served, None, where="plan"), where="plan")
    assert not missing
    by_model = {curve.model: curve for curve in drawn}
    curve = by_model["spread"]
    assert any(
        point.sequences == pytest.approx(curve.planned.sequences, rel=0.02)
        and point.tpot_ms == pytest.approx(curve.planned.tpot_ms, rel=0.02)
        for point in curve.sustained
    )
    assert curve.capacity.sequences > curve.planned.sequences
    assert curve.peak.sequences == next(one.speed["peak_batch"] for one in served.instances if one.model == "spread")
    # Without a demand there is no load, and the shape of requests is assumed.
    assert by_model["idle"].planned is None
    assert by_model["idle"].sustained == ()
    for one in panels(curve):
        assert {marker.shape for marker in one.markers} >= {"planned", "peak"}
        for line in one.lines:
            for place in line.points.split():
                x, y = map(float, place.split(","))
                assert one.left <= x <= one.right
                assert one.top <= y <= one.bottom


def test_an_instance_that_shares_its_gpu_has_a_curve_of_its_part():
    entries = [wanted(name, config="qwen2.5-0.5b", placement={"share_gpus": "auto"}) for name in ("one", "two")]
    made = plan(facts("a", gpus=1), entries)
    assert {one.sharing.ways for one in made.instances} == {2}
    drawn, _ = curves(made, curve_models(made, where="plan"), gpu_kinds(made, None, where="plan"), where="plan")
    for curve in drawn:
        assert curve.configuration.startswith("1/2 of a GPU")
        assert any(
            point.tokens_per_s == pytest.approx(curve.planned.tokens_per_s)
            and point.tpot_ms == pytest.approx(curve.planned.tpot_ms, rel=0.02)
            for point in curve.sustained
        )
    chosen = {row.model: row.chosen for row in candidate_rows(made) if row.chosen}
    assert chosen == {"one": 1, "two": 1}
    (view,) = host_views(made, hosts_of(facts("a", gpus=1)), {}, where="plan")
    assert [[who.name for who in one.tenants] for one in view.gpus] == [["one-1", "two-1"]]
    assert sum(part.size_bytes for part in view.gpus[0].bar.parts) == TORCH_VISIBLE


def test_a_plan_without_the_models_section_is_reported_without_curves(served):
    document = plan_to_document(served)
    del document["models"]
    text = page(parse_plan(document, where="plan"))
    assert "the plan holds no facts of the model" in text
    assert "by the speed model" not in text


def test_what_users_write_is_escaped(served):
    document = plan_to_document(served)
    bad = '<img src=x onerror=alert(1)>"&'
    document["refused"] = [{"model": bad, "constraint": bad, "explanation": bad, "nearest_change": bad}]
    document["instances"][0]["reasons"] = [bad, bad]
    document["instances"][0]["shards"][0]["host"] = bad
    document["instances"][1]["engine_args"]["chat_template"] = bad
    document["summary"]["notes"] = [bad]
    document["moves"] = [{"id": bad, "model": bad, "from": [], "to": [], "cause": bad}]
    text = page(parse_plan(document, where="plan"), current=served)
    assert text.count("&lt;img src=x onerror=alert(1)&gt;&#34;&amp;") > 8
    assert "<img" not in text


def test_the_difference_to_what_runs(served):
    document = plan_to_document(served)
    document["instances"][0]["engine_args"]["seed"] = 7
    text = page(parse_plan(document, where="plan"), current=served)
    assert "seed: nothing" in text
    assert "Instances: 1 changed." in text
    assert "No difference." in page(served, current=served)
    assert "was not compared" in page(served)


def test_ranges_of_names():
    assert name_ranges(["b", "h2", "h0009", "h0010", "h0011", "h3", "m-9", "m-10", "m-11"]) == [
        "b",
        "h2",
        "h3",
        "h0009 to h0011",
        "m-9 to m-11",
    ]
    assert name_ranges([]) == []


def test_numbers_and_shares():
    assert [number(value) for value in (None, 0.0, 0.4242, 12.0, 12.34, 1234.5, 1e300)][:6] == [
        "-",
        "0",
        "0.424",
        "12",
        "12.3",
        "1,234",
    ]
    assert [percent(value) for value in (None, 0.0, 0.0001, 0.5, 0.4237, 0.99999, 1.0)] == [
        "-",
        "0 %",
        "under 0.1 %",
        "50 %",
        "42.4 %",
        "99.9 %",
        "100 %",
    ]


@pytest.mark.parametrize("value", [0.003, 0.9, 1.0, 7.0, 95.0, 101.0, 2345.0])
def test_the_axis_ends_just_above_the_highest(value):
    assert value <= nice_top(value) <= 2.01 * value


@pytest.fixture
def files(tmp_path, served):
    (tmp_path / "plan.json").write_text(canonical_json(plan_to_document(served)))
    (tmp_path / "facts.json").write_text(json.dumps(facts("a", "b")))
    return tmp_path


def run(files, *more, plan_file="plan.json"):
    return main(["report", str(files / plan_file), "--output", str(files / "report.html"), *more])


def test_the_command_writes_the_page(files):
    plan_file = str(files / "plan.json")
    assert run(files, "--facts", str(files / "facts.json"), "--current", plan_file) == 0
    assert (files / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_the_simulation_is_a_table(files, capsys):
    assert main(["simulate", str(files / "plan.json"), "--seconds", "5", "--json"]) in (0, 2)
    (files / "sim.json").write_text(capsys.readouterr().out)
    assert run(files, "--simulation", str(files / "sim.json")) == 0
    assert 'id="simulation"' in (files / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda document: document["instances"][0].pop("shards"), "instances[0].shards"),
        (lambda document: document["instances"][0]["memory"].update(weights_bytes="x"), "memory.weights_bytes"),
        (lambda document: document["instances"][0]["speed"].update(tpot_ms=[]), "speed.tpot_ms"),
        (lambda document: document["models"]["idle"].pop("facts"), "models.idle.facts"),
        (lambda document: document["models"]["idle"].update(demand=3), "models.idle.demand"),
        (lambda document: document.update(schema=2), "schema"),
    ],
)
def test_bad_plans_are_one_line(files, capsys, served, change, expected):
    document = plan_to_document(served)
    change(document)
    (files / "bad.json").write_text(json.dumps(document))
    assert run(files, plan_file="bad.json") == 1
    error = capsys.readouterr().err
    assert "bad.json" in error
    assert expected in error
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1
    assert not (files / "report.html").exists()


def test_files_that_cannot_be_used_are_named(files, capsys):
    for option in ("--current", "--facts", "--simulation"):
        (files / "bad.json").write_text("[]")
        assert run(files, option, str(files / "bad.json")) == 1
        assert "bad.json" in capsys.readouterr().err
        assert run(files, option, str(files / "absent.json")) == 1
        assert "absent.json" in capsys.readouterr().err
    assert main(["report", str(files / "plan.json"), "--output", str(files / "none" / "r.html")]) == 1
    assert "none/r.html" in capsys.readouterr().err


def test_facts_that_contradict_one_another_are_bad_input(served):
    document = plan_to_document(served)
    module = document["models"]["idle"]["facts"]["layer_kinds"][0]["modules"][0]
    module["output_sizes"] = []
    with pytest.raises(FleetError, match=r"models\.idle\.facts"):
        page(parse_plan(document, where="plan"))


def test_no_template_file_would_ship_to_a_host():
    core = Path(__file__).parents[2] / "module_utils" / "fleet"
    assert {path.suffix for path in core.iterdir() if path.is_file()} == {".py"}
