"""fleet simulate on plans that the planner made, and on plans that somebody damaged."""

import copy
import json
import random

import pytest
from fleet.cli import main
from fleet.plan_document import canonical_json, plan_to_document
from plan_samples import facts, model, plan

DEMAND = {"requests_per_second": 2, "prompt_tokens": 512, "output_tokens": 64}
OBJECTIVES = {"ttft_ms": 2000, "tpot_ms": 60}


@pytest.fixture(scope="module")
def document():
    entries = [
        model("m", demand=DEMAND, objectives=OBJECTIVES),
        model("q", "qwen2.5-0.5b", demand={**DEMAND, "requests_per_second": 5}, objectives=OBJECTIVES),
        model("idle"),
    ]
    return plan_to_document(plan(facts("a", "b"), entries))


@pytest.fixture
def simulate(tmp_path, capsys):
    def call(document, *arguments):
        path = tmp_path / "plan.json"
        path.write_text(document if isinstance(document, str) else canonical_json(document))
        code = main(["simulate", str(path), "--seconds", "30", *arguments])
        output = capsys.readouterr()
        return code, output.out, output.err.replace(str(path), "plan.json")

    return call


def test_percentiles_and_goodput_by_model(document, simulate):
    code, out, _ = simulate(document, "--seed", "1", "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["holds"] is True
    assert set(answer["models"]) == {"m", "q"}
    assert answer["not_simulated"] == {"idle": "no demand"}
    one = answer["models"]["m"]
    for times in (one["ttft_ms"], one["tpot_ms"]):
        assert 0 < times["p50"] <= times["p95"] <= times["p99"]
    assert one["goodput_requests_per_s"] == pytest.approx(2.0, rel=0.5)
    assert one["objectives"] == {**OBJECTIVES, "percentile": 95.0}
    assert simulate(document, "--seed", "1", "--json")[1] == out
    assert simulate(document, "--seed", "2", "--json")[1] != out


def test_too_much_load_is_a_no_and_the_limit_lies_below_it(document, simulate):
    code, out, _ = simulate(document, "--load", "40", "--json")
    assert code == 2
    assert json.loads(out)["models"]["m"]["violated"]
    code, out, _ = simulate(document, "--find-limit", "--lengths", "fixed", "--json")
    limit = json.loads(out)["limit"]
    assert code == 0
    assert 1.0 < limit["load"] < 40
    assert limit["load"] == min(limit["by_model"].values())


def test_a_table_for_people(document, simulate):
    code, out, _ = simulate(document, "--load", "40", "--find-limit")
    assert code == 2
    assert "missed" in out
    assert "idle: not simulated, no demand" in out
    assert "The fleet holds up to" in out


def test_instances_on_one_gpu_slow_each_other_down(document, simulate):
    shared = copy.deepcopy(document)
    first, second = (next(one for one in shared["instances"] if one["model"] == name) for name in ("m", "q"))
    second["shards"] = first["shards"]
    apart, together = (json.loads(simulate(one, "--json")[1])["models"]["m"] for one in (document, shared))
    assert together["tpot_ms"]["p50"] > 1.8 * apart["tpot_ms"]["p50"]


def test_a_model_that_was_refused_meets_nothing(simulate):
    demand = {**DEMAND, "requests_per_second": 1}
    refused = plan(facts("a", gpus=1), [model("big", "llama-3-70b", demand=demand, objectives=OBJECTIVES)])
    assert refused.refused
    code, out, _ = simulate(plan_to_document(refused), "--json")
    assert code == 2
    assert json.loads(out)["models"]["big"]["ttft_ms"]["p95"] is None


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["models"], {}, "plan.json: models: is missing: an older version made this plan; make it again"),
        (["models", "m", "facts"], None, "plan.json: models.m.facts: must be a mapping, got None"),
        (["models", "m", "facts", "hidden_size"], "4096", "models.m.facts.hidden_size: must be a whole number of 1 or"),
        (["models", "m", "facts", "layer_pattern"], [[7, 32]], "models.m.facts.layer_pattern: names kind 7"),
        (["models", "m", "facts", "wings"], 2, "models.m.facts.wings: is no fact of a model"),
        (["models", "m", "demand", "requests_per_second"], -3, "models.m.demand.requests_per_second: must be above 0"),
        (["models", "m", "objectives", "percentile"], 101, "models.m.objectives.percentile: must be below 100"),
        (["instance_gpus"], {}, "instance_gpus: names no kind of GPU for m-1"),
        (["instance_gpus"], {"L41S": []}, "unknown GPU 'L41S'"),
        (
            ["instances", 1, "memory", "kv_cache_tokens_planned"],
            None,
            "memory.kv_cache_tokens_planned: must be a whole",
        ),
        (["instances", 1, "engine_args", "max_num_seqs"], "many", "engine_args.max_num_seqs: must be a whole number"),
    ],
)
def test_damage_is_one_clear_line(document, simulate, path, value, message):
    changed = copy.deepcopy(document)
    target = changed
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
    code, out, err = simulate(changed)
    assert (code, out) == (1, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--load", "0"], "--load: must be"), (["--seconds", "nan"], "--seconds: must be"), (["--seed", "-1"], "--seed")],
)
def test_wrong_arguments_are_told(document, simulate, arguments, message):
    code, _, err = simulate(document, *arguments)
    assert code == 1
    assert message in err


VALUES = (None, -1, 0, 1.5, True, "x", "", [], {}, [None], {"a": 1}, 10**30, "1e9", [[0, 0]], 3)


def _places(value, path=()):
    """Every place in a document."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _places(child, (*path, key))


def test_no_mutation_ends_in_a_traceback(document, simulate):
    interesting = {key: document[key] for key in ("instances", "models", "instance_gpus")}
    places = [path for path in _places(interesting) if path]
    drawn = random.Random(4)  # noqa: S311
    for path in drawn.sample(places, 150):
        changed = copy.deepcopy(document)
        target = changed
        for part in path[:-1]:
            target = target[part]
        target[path[-1]] = drawn.choice(VALUES)
        code, out, err = simulate(changed, "--seconds", "2", "--load", "0.5")
        assert code in (0, 1, 2), path
        if code == 1:
            assert out == "", path
            assert 1 <= len(err.splitlines()) <= 6, path
            assert "plan.json" in err, (path, err)
