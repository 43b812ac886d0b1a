"""The plan with quantized checkpoints: counted on, refused, made on an idle GPU, copied to other hosts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fleet.errors import FleetError
from fleet.host_document import parse_hosts
from fleet.plan_document import CheckpointReference
from fleet.planning import make_plan
from fleet.quantize_evidence import Evidence, Made, evidence_of
from fleet.quantize_gate import Figures
from fleet.quantize_jobs import plan_and_work
from fleet.quantize_plan import plan_with_quantized, preparation, quantized_as
from fleet.quantize_recipes import recipe
from plan_samples import ENGINE, facts, host, model, resolved

GOOD = Figures(10.0, 10.2, 0.97, 8192)
BAD = Figures(10.0, 19.0, 0.5, 8192)
FILES = {"config.json": {"bytes": 10, "sha256": "c" * 64}}
NEEDS_INT4 = {"config": "llama-3-70b", "max_model_len": 1024}


def known(*entries):
    """Resolved models whose sources have a digest."""
    return [
        replace(one, checkpoint=CheckpointReference(one.request.name, f"{index:064x}", 1))
        for index, one in enumerate(resolved(*entries), start=1)
    ]


def run(document, models, evidence=None, *, current=(), accelerator="cuda", enabled=True, engine_version=ENGINE):
    documents = {one.name: one for one in parse_hosts(document, where="facts.json")}

    def make(wanted):
        return make_plan(list(documents.values()), wanted, current, engine_version=engine_version)

    return plan_and_work(
        make,
        models,
        evidence or Evidence(),
        documents,
        engine_version=engine_version,
        accelerator=accelerator,
        enabled=enabled,
        texts={},
    )


def key(models, method):
    return preparation(models[0], method, None).key


def rejected(models, *methods):
    return Evidence(rejected={key(models, method): BAD for method in methods})


def made(models, method, *hosts):
    return Evidence(made={key(models, method): {name: Made(GOOD, FILES) for name in hosts}})


def test_nothing_is_quantized_where_nothing_asks_for_it():
    models = known(model("m"))
    outcome, work = run(facts("a"), models)
    assert outcome.preparations == {}
    assert (work.jobs, work.notices) == ({}, ())
    assert outcome.plan.instances[0].checkpoint == models[0].checkpoint


def test_a_model_is_planned_by_the_checkpoint_that_will_be_made():
    models = known(model("m", quantization="awq"))
    outcome, work = run(facts("a"), models)
    (instance,) = outcome.plan.instances
    assert instance.checkpoint.digest == key(models, "awq")
    assert instance.engine_args["model"] == f"/var/lib/l40s-fleet/models/m-{key(models, 'awq')[:12]}"
    assert "quantization" not in instance.engine_args
    assert 5.0e9 < instance.memory["weights_bytes"] < 6.5e9
    assert any("makes of the source: AWQ, 4 bits" in reason for reason in instance.reasons)
    (job,) = work.jobs["a"]
    assert (job["model"], job["key"], job["source_digest"]) == ("m", key(models, "awq"), models[0].checkpoint.digest)
    assert (job["tool"], job["gpu"]) == ("llmcompressor-0.14.0.1", instance.gpus[0][1])
    assert work.sources == {"a": {"m"}}
    assert work.notices[0].startswith("m: AWQ, 4 bits, groups of 128, 128 samples of 2048 tokens, is made on a: about ")


def test_the_plan_is_the_same_before_and_after_it_was_made():
    models = known(model("m", quantization="gptq", replicas={"min": 2}))
    before, _ = run(facts("a", "b"), models)
    after, work = run(facts("a", "b"), models, made(models, "gptq", "a", "b"), current=before.plan.instances)
    # Otherwise a second run would change something.
    assert [one.engine_args for one in after.plan.instances] == [one.engine_args for one in before.plan.instances]
    assert [one.checkpoint for one in after.plan.instances] == [one.checkpoint for one in before.plan.instances]
    assert [one.reasons for one in after.plan.instances] == [one.reasons for one in before.plan.instances]
    assert work.jobs == {}
    assert "perplexity 10.20 against 10.00 (1.020 times)" in work.notices[0]


def test_it_is_made_once_and_copied():
    models = known(model("m", quantization="awq", replicas={"min": 2}))
    _, work = run(facts("a", "b"), models)
    assert list(work.jobs) == ["a"]
    assert work.sources == {"a": {"m"}}
    assert "is made on a, and copied to b: about " in work.notices[0]


@pytest.mark.parametrize(
    ("holders", "asked"), [("b", "ab"), ("ab", "ab"), ("c", "abc"), ("abc", "ab")], ids=["one", "both", "other", "all"]
)
def test_whoever_has_it_verifies_it_and_gives_it_to_those_that_lack_it(holders, asked):
    models = known(model("m", quantization="awq", replicas={"min": 2}, placement={"hosts": ["a", "b"]}))
    _, work = run(facts("a", "b", "c"), models, made(models, "awq", *holders))
    assert work.jobs == {}
    assert work.existing == {name: {"m"} for name in asked}


def test_what_the_gate_refused_is_planned_around_and_said():
    models = known(model("m", quantization="awq"))
    outcome, work = run(facts("a"), models, rejected(models, "awq"))
    (instance,) = outcome.plan.instances
    assert instance.checkpoint == models[0].checkpoint
    assert work.jobs == {}
    assert "the quality gate refused it: its perplexity is 1.900 times the source's" in outcome.notices[0]
    assert outcome.notices[0] in instance.reasons


def test_other_limits_judge_the_same_figures_anew():
    lax = known(model("m", quantization="awq", quantize={"max_perplexity_ratio": 2.0, "min_agreement": 0.4}))
    outcome, work = run(facts("a"), lax, rejected(lax, "awq"))
    assert outcome.notices == ()
    assert len(work.jobs["a"]) == 1


def test_a_checkpoint_that_no_longer_meets_the_limits_is_not_used():
    strict = known(model("m", quantization="awq", quantize={"min_agreement": 0.99}))
    outcome, work = run(facts("a"), strict, made(strict, "awq", "a"))
    assert "refused" in outcome.notices[0]
    assert work.jobs == {}


def test_auto_is_quantized_only_where_nothing_else_places_it():
    models = known(model("m", **NEEDS_INT4))
    on_two, _ = run(facts("a", gpus=2), models)
    assert on_two.preparations == {}
    on_one, work = run(facts("a", gpus=1), models)
    assert on_one.plan.refused == ()
    assert on_one.preparations["m"].recipe.method == "awq"
    assert work.jobs["a"][0]["cost"]["layer_by_layer"]


def test_auto_takes_the_next_method_when_one_was_refused():
    models = known(model("m", **NEEDS_INT4))
    outcome, _ = run(facts("a", gpus=1), models, rejected(models, "awq"))
    assert outcome.preparations["m"].recipe.method == "gptq"
    outcome, _ = run(facts("a", gpus=1), models, rejected(models, "awq", "gptq"))
    assert outcome.preparations == {}
    assert [one.model for one in outcome.plan.refused] == ["m"]


def test_a_refused_method_falls_back_to_another_where_the_source_does_not_fit():
    models = known(model("m", quantization="awq", **NEEDS_INT4))
    outcome, work = run(facts("a", gpus=1), models, rejected(models, "awq"))
    assert [job["recipe"]["method"] for job in work.jobs["a"]] == ["gptq"]
    reasons = " ".join(outcome.plan.instances[0].reasons)
    assert "the quality gate refused it" in reasons
    assert "makes of the source: GPTQ" in reasons


def test_switched_off_only_what_is_there_counts():
    models = known(model("m", quantization="awq"))
    outcome, _ = run(facts("a"), models, enabled=False)
    assert "the engine cannot make awq of it" in outcome.plan.refused[0].explanation
    outcome, work = run(facts("a"), models, made(models, "awq", "a"), enabled=False)
    assert outcome.plan.refused == ()
    assert work.jobs == {}


def test_a_gpu_that_serves_is_not_taken_for_it():
    models = known(model("m", quantization="awq"), model("other"))
    serving = {"id": "other-1", "model": "other", "port": 8100}
    busy = host("a", 3, instances=[serving | {"shards": [{"host": "a", "gpus": ["GPU-a-0"], "rank": 0}]}])
    outcome, work = run(facts(a=busy), models)
    planned = {one.model: one.gpus[0][1] for one in outcome.plan.instances}
    # m will stand where other still runs, and other where nothing does yet: the third is idle now and then.
    assert (planned["m"], planned["other"]) == ("GPU-a-0", "GPU-a-1")
    assert work.jobs["a"][0]["gpu"] == "GPU-a-2"


def test_without_an_idle_gpu_the_plan_does_not_count_on_it():
    models = known(model("m", quantization="awq", placement={"hosts": ["a"]}))
    leaving = {"id": "old-1", "model": "old", "port": 8100, "shards": [{"host": "a", "gpus": ["GPU-a-0"], "rank": 0}]}
    outcome, work = run(facts(a=host("a", 1, instances=[leaving])), models)
    assert work.jobs == {}
    assert "no GPU of a is idle to make it on" in outcome.notices[0]
    assert outcome.plan.instances[0].checkpoint == models[0].checkpoint


def test_the_lab_needs_no_gpu_for_it():
    models = known(model("m", quantization="awq"), model("n", quantization="gptq"))
    _, work = run(facts("a", gpus=2), models, accelerator="cpu")
    assert [job["gpu"] for job in work.jobs["a"]] == ["", ""]


@pytest.mark.parametrize(
    ("quantize", "quantization", "method"),
    [
        ({"method": "fp8_dynamic"}, "fp8", "fp8_dynamic"),
        ({"method": "fp8_static"}, "auto", "fp8_static"),
        ({"method": "gptqmodel"}, "gptq", "gptqmodel"),
        ({"group_size": 64}, "gptq", "gptq"),
    ],
)
def test_the_method_can_be_named(quantize, quantization, method):
    models = known(model("m", quantization=quantization, quantize=quantize))
    outcome, _ = run(facts("a"), models)
    assert outcome.preparations["m"].recipe.method == method
    assert outcome.plan.refused == ()


def test_fp8_without_a_method_is_left_to_the_engine():
    outcome, _ = run(facts("a"), known(model("m", quantization="fp8")))
    assert outcome.preparations == {}
    assert outcome.plan.instances[0].engine_args["quantization"] == "fp8"


def test_scales_of_the_cache_are_used():
    outcome, _ = run(facts("a"), known(model("m", quantize={"method": "fp8_static"})))
    assert outcome.plan.instances[0].engine_args["kv_cache_dtype"] == "fp8"


def test_a_method_that_contradicts_the_precision_is_an_error():
    with pytest.raises(FleetError, match=r"quantize.method: awq makes awq of it, and quantization asks for int8"):
        run(facts("a"), known(model("m", quantization="int8", quantize={"method": "awq"})))


def test_g_idx_is_not_made_for_engines_that_refuse_it():
    models = known(model("m", quantization="gptq", quantize={"method": "gptq_g_idx"}))
    outcome, work = run(facts("a"), models)
    assert "no longer loads checkpoints with g_idx" in outcome.notices[0]
    assert work.jobs == {}


def test_evidence_is_read_from_host_documents_and_what_is_broken_is_told():
    record = {"key": "k", "figures": GOOD.to_document(), "files": FILES}
    notices = []
    evidence = evidence_of(
        {
            "a": {
                "quantized": [record, {"key": "x"}],
                "quantize_rejected": [{"key": "r", "figures": BAD.to_document()}],
            },
            "b": {"quantized": [record]},
            "c": {},
        },
        notices,
    )
    assert sorted(evidence.made["k"]) == ["a", "b"]
    assert evidence.made["k"]["a"].total_bytes == 10
    assert evidence.figures("r") == BAD
    assert evidence.figures("unknown") is None
    assert len(notices) == 1
    assert notices[0].startswith("probe a: quantized[1] was left out")


def checkpoint_of(made_by, **changes):
    """A model whose source was quantized elsewhere."""
    (one,) = known(model("m", quantization=changes.pop("quantization", "auto")))
    quantized = replace(quantized_as(recipe(made_by)), **changes)
    return [replace(one, facts=replace(one.facts, quantization=quantized))]


@pytest.mark.parametrize("quantization", ["auto", "awq", "gptq"])
def test_a_compressed_tensors_checkpoint_of_four_bits_is_what_it_is_called(quantization):
    models = checkpoint_of("awq", method="compressed-tensors", quantization=quantization)
    outcome, _ = run(facts("a"), models)
    assert outcome.plan.refused == ()
    assert outcome.preparations == {}


def test_a_foreign_checkpoint_with_g_idx_is_refused_where_the_engine_would():
    models = checkpoint_of("gptq", act_order=True)
    outcome, _ = run(facts("a"), models)
    assert "no longer loads checkpoints with g_idx" in outcome.plan.refused[0].explanation
    outcome, _ = run(facts("a"), models, engine_version="0.24.0")
    assert outcome.plan.refused == ()


def test_without_a_choice_an_open_precision_is_not_quantized():
    documents = parse_hosts(facts("a", gpus=1), where="facts.json")
    models = known(model("m", **NEEDS_INT4), model("n", quantization="gptq", **NEEDS_INT4))

    def make(wanted):
        return make_plan(documents, wanted, (), engine_version=ENGINE)

    outcome = plan_with_quantized(make, models, Evidence(), engine_version=ENGINE, enabled=True, choose=False)
    assert list(outcome.preparations) == ["n"]
    assert [one.model for one in outcome.plan.refused] == ["m"]
