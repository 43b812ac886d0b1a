"""Which Triton servers the plan makes, seen by the ports of its instances."""

import json

import pytest
from fleet.errors import FleetError
from fleet.plan_document import plan_from_json, plan_to_document
from fleet.requests import parse_requests
from plan_samples import facts, model, models_text, plan, refused

SMALL = {"engine": "triton"}


def ports(made):
    return {one.id: one.port for one in made.instances}


def test_models_on_one_gpu_share_a_server_and_replicas_on_a_host_do_not():
    entries = [model("a", **SMALL, replicas={"min": 2}), model("b", **SMALL), model("c")]
    assert ports(plan(facts("h"), entries)) == {"a-1": 8000, "a-2": 8003, "b-1": 8000, "c-1": 8100}


def test_a_model_over_two_gpus_has_a_server_of_its_own():
    entries = [model("wide", **SMALL, tensor_parallel=2), model("z", **SMALL)]
    made = ports(plan(facts("h"), entries))
    assert made["wide-1"] != made["z-1"]
    assert set(made.values()) == {8000, 8003}


def test_environment_variables_are_a_servers():
    made = ports(plan(facts("h"), [model("a", **SMALL, env={"X": "1"}), model("b", **SMALL)]))
    assert made["a-1"] != made["b-1"]


def test_what_stays_keeps_its_server_and_what_comes_joins_it():
    first = plan(facts("h"), [model("b", **SMALL, env={"X": "1"}), model("c", **SMALL)])
    assert ports(first) == {"b-1": 8000, "c-1": 8003}
    second = plan(facts("h"), [model("a", **SMALL), model("c", **SMALL)], first.instances)
    assert ports(second) == {"a-1": 8003, "c-1": 8003}


def test_an_engine_that_changes_keeps_its_place_and_changes_its_port():
    first = plan(facts("h"), [model("m")])
    second = plan(facts("h"), [model("m", **SMALL)], first.instances)
    assert (second.instances[0].gpus, second.moves) == (first.instances[0].gpus, ())
    assert ports(second) == {"m-1": 8000}
    back = plan(facts("h"), [model("m")], second.instances)
    assert ports(back) == {"m-1": 8100}


def test_servers_of_hosts_that_were_not_reached_keep_their_ports():
    first = plan(facts("h"), [model("m", **SMALL)])
    second = plan(facts("h", "i"), [model("m", **SMALL), model("n", **SMALL)], first.instances, frozen=["h"])
    assert ports(second) == {"m-1": 8000, "n-1": 8000}
    assert {one.id: one.hosts for one in second.instances} == {"m-1": ("h",), "n-1": ("i",)}


def test_memory_is_planned_for_the_vllm_in_tritons_container():
    by_engine = {name: plan(facts("h"), [model("m", engine=name)]).instances[0].memory for name in ("vllm", "triton")}
    own = plan(facts("h"), [model("m")], triton_engine_version="0.33.0").instances[0].memory
    assert by_engine["vllm"] == own
    assert by_engine["triton"] != own
    same = plan(facts("h"), [model("m", engine="triton")], triton_engine_version="0.33.0").instances[0].memory
    assert same == own


def test_triton_models_neither_share_a_gpu_nor_span_hosts():
    crowded = [model(name, **SMALL) for name in "abcde"]
    made = plan(facts("h"), crowded)
    assert len(made.instances) == 4
    assert all(one.sharing is None for one in made.instances)
    assert list(refused(made).values()) == ["gpus"]


def test_a_plan_with_triton_reads_back():
    made = plan(facts("h"), [model("m", **SMALL)])
    again = plan_from_json(json.dumps(plan_to_document(made)), where="plan.json")
    assert again == made


def test_what_tritons_backend_does_not_take_is_a_fault():
    entry = model("m", **SMALL, task="embed", lora={"max_loras": 1}, engine_args={"tool_call_parser": "hermes"})
    with pytest.raises(FleetError) as caught:
        parse_requests(models_text(entry), where="models.yml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert any(line.startswith("models.yml: models[0].engine_args.tool_call_parser:") for line in lines)
