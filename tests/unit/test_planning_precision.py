"""Who gives up precision, and what links of GPUs do to a plan."""

from __future__ import annotations

from collections import defaultdict

import pytest
from fleet.plan_document import canonical_json, plan_from_json, plan_to_document
from fleet.plan_gpus import gpus_of_instances
from fleet.speed_collectives import PCIE_ALL_REDUCE
from plan_samples import facts, model, plan

OBJECTIVES = {"ttft_ms": 2000, "tpot_ms": 60}


def precisions(made):
    found = defaultdict(set)
    for one in made.instances:
        arguments = one.engine_args
        found[one.model].add((arguments.get("quantization"), arguments.get("kv_cache_dtype")))
    return dict(found)


def test_as_few_models_as_will_do_give_up_precision_and_their_replicas_are_alike():
    entries = [
        model(name, demand={"requests_per_second": rate}, objectives=OBJECTIVES)
        for name, rate in (("small", 4), ("large", 20))
    ]
    made = plan(facts("a", gpus=4), entries)
    assert not made.refused
    found = precisions(made)
    assert found["small"] == {(None, None)}
    assert len(found["large"]) == 1
    assert found["large"] != {(None, None)}
    # What the candidates say is what was chosen among: an outsider finds the same bound.
    assert {one.config["quantization"] for one in made.candidates if one.model == "small"} == {"none"}
    assert made.summary.gap_fraction == 0.0


def test_enough_room_leaves_every_model_its_precision():
    entries = [model("m", demand={"requests_per_second": 20}, objectives=OBJECTIVES)]
    assert precisions(plan(facts("a", "b", gpus=8), entries)) == {"m": {(None, None)}}


def test_replicas_of_a_later_plan_are_like_those_that_run():
    entry = model("m", demand={"requests_per_second": 7}, objectives=OBJECTIVES)
    first = plan(facts("a", gpus=1), [entry])
    assert precisions(first) == {"m": {("fp8", None)}}
    again = plan(facts("a", gpus=1), [entry], first.instances)
    assert again.instances == first.instances


def slow(host, factor):
    host["all_reduce"] = [
        {"gpus": gpus, "bytes": size, "seconds": factor * seconds}
        for gpus, curve in PCIE_ALL_REDUCE.items()
        for size, seconds in curve
    ]


def test_measured_links_decide_how_a_model_is_spread_over_gpus():
    entry = model("m", config="llama-3-70b", quantization="fp8", demand={"requests_per_second": 0.5})
    document = facts("a", gpus=8)
    before = plan(document, [entry]).instances[0]
    slow(document["hosts"]["a"], 30.0)
    after = plan(document, [entry]).instances[0]
    assert before.engine_args["tensor_parallel_size"] > 1
    assert after.engine_args["tensor_parallel_size"] == 1
    assert after.engine_args["pipeline_parallel_size"] > 1
    # Whoever reads the plan counts with the same links.
    made = plan(document, [entry])
    read = plan_from_json(canonical_json(plan_to_document(made)), where="plan.json")
    (gpu,) = {one.kind: one for one in gpus_of_instances(read, where="plan.json").values()}.values()
    assert gpu.links.all_reduce_s(2, 1 << 20) == pytest.approx(30.0 * dict(PCIE_ALL_REDUCE[2])[1 << 20])


def test_a_host_of_slow_links_is_used_last_for_tensor_groups():
    entry = model("m", config="llama-3-70b", quantization="fp8", tensor_parallel=2, demand={"requests_per_second": 0.3})
    document = facts("a", "b", gpus=2)
    slow(document["hosts"]["a"], 20.0)
    made = plan(document, [entry])
    assert [one.hosts for one in made.instances] == [("b",)]
    kinds = {one.config["gpu"]: one.capacity_requests_per_s for one in made.candidates}
    assert kinds["L40S"] > kinds.get("L40S with the links of a", 0.0)


def test_a_degraded_link_keeps_a_gpu_out_of_tensor_groups_but_not_out_of_use():
    document = facts("a", gpus=4)
    for gpu in document["hosts"]["a"]["gpus"]:
        gpu["link"] = {"generation": 4, "width": 1 if gpu["index"] == 1 else 16}
    uuid = document["hosts"]["a"]["gpus"][1]["uuid"]
    group = model("g", config="llama-3-70b", quantization="fp8", tensor_parallel=2, demand={"requests_per_second": 0.1})
    alone = [model(name, replicas={"min": 1}) for name in ("x", "y")]
    made = plan(document, [group, *alone])
    assert not made.refused
    holders = {one.model: {gpu for _, gpu in one.gpus} for one in made.instances}
    assert uuid not in holders["g"]
    assert uuid in holders["x"] | holders["y"]
