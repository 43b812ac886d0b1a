import json
from dataclasses import replace

import pytest
from fleet.errors import FleetError
from fleet.plan_document import (
    canonical_json,
    id_order,
    instance_document,
    parse_instance,
    parse_plan,
    plan_from_json,
    plan_to_document,
)
from plan_samples import facts, model, plan


@pytest.fixture(scope="module")
def made():
    entries = [model("m", replicas={"min": 3}, aliases=["x"]), model("n", "llama-3-70b", quantization="awq")]
    first = plan(facts("a", "b"), entries)
    document = facts("a", "b")
    document["hosts"]["a"]["policy"] = {"exclude_gpus": [0]}
    return plan(document, entries, first.instances)


def test_a_plan_survives_its_json(made):
    assert made.moves
    assert made.refused
    text = canonical_json(plan_to_document(made))
    assert plan_from_json(text, where="plan.json") == made
    assert canonical_json(plan_to_document(plan_from_json(text, where="plan.json"))) == text


def test_the_names_are_those_of_the_design(made):
    document = plan_to_document(made)
    fixed = {"schema", "instances", "refused", "moves", "candidates", "summary"}
    assert set(document) == fixed | {"models", "instance_gpus"}
    assert document["instance_gpus"] == {"L40S": [one.id for one in made.instances]}
    assert set(document["models"]["m"]) == {"facts", "demand", "objectives"}
    assert set(document["refused"][0]) == {"model", "constraint", "explanation", "nearest_change"}
    assert set(document["moves"][0]) == {"id", "model", "from", "to", "cause"}
    assert set(document["candidates"][0]) == {"model", "config", "gpus", "capacity_requests_per_s"}
    summary = {"gpus_used", "gpus_lower_bound", "gap_fraction", "carried", "improvement_available"}
    assert summary <= set(document["summary"])
    instance = {"id", "model", "engine", "shards", "engine_args", "env", "port", "memory", "speed", "reasons"}
    assert instance | {"task", "aliases"} == set(document["instances"][0])
    assert document["instances"][0]["shards"] == [{"host": "b", "gpus": ["GPU-b-1"], "rank": 0}]


def test_bytes_do_not_depend_on_order(made):
    turned = replace(made, instances=made.instances[::-1])
    assert canonical_json(plan_to_document(turned)) == canonical_json(plan_to_document(made))
    assert canonical_json({"b": 1, "a": "ü"}) == '{\n  "a": "ü",\n  "b": 1\n}\n'


def test_ids_are_sorted_by_number():
    assert sorted(["m-10", "m-2", "a-1"], key=id_order) == ["a-1", "m-2", "m-10"]


def test_a_record_may_carry_more_than_we_read(made):
    record = instance_document(made.instances[0]) | {"unit": {"state": "active"}}
    assert parse_instance(record, where="x") == made.instances[0]


def edit(document, path, value):
    target = document
    for part in path[:-1]:
        target = target[part]
    if value is KeyError:
        del target[path[-1]]
    else:
        target[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["schema"], 2, "plan.json: schema: must be 1, got 2"),
        (["instances"], KeyError, "plan.json: instances: is required"),
        (["instances", 0, "id"], KeyError, "plan.json: instances[0].id: is required"),
        (["instances", 1, "id"], "m-1", "plan.json: instances[1].id: 'm-1' is that of instances[0] too"),
        (["instances", 0, "id"], "../x", "plan.json: instances[0].id: must match"),
        (["instances", 0, "port"], "8100", "plan.json: instances[0].port: must be a whole number, got '8100'"),
        (["instances", 0, "shards"], [], "plan.json: instances[0].shards: must have at least 1 entry, got []"),
        (["instances", 0, "shards", 0, "gpus"], "GPU-1", "plan.json: instances[0].shards[0].gpus: must be a list"),
        (["instances", 0, "env"], {"A": 1}, "plan.json: instances[0].env.A: must be a string, got 1"),
        (["moves", 0, "from"], KeyError, "plan.json: moves[0].from: is required"),
        (["summary", "gpus_used"], None, "plan.json: summary.gpus_used: must be a whole number, got None"),
    ],
)
def test_faults_name_the_path(made, path, value, message):
    document = json.loads(canonical_json(plan_to_document(made)))
    edit(document, path, value)
    with pytest.raises(FleetError) as caught:
        parse_plan(document, where="plan.json")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": 1}'])
def test_no_plan_is_one_line(text):
    with pytest.raises(FleetError) as caught:
        plan_from_json(text, where="plan.json")
    assert str(caught.value).startswith("plan.json: ")
    assert "\n" not in str(caught.value)
