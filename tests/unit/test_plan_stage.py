import copy
import json
from dataclasses import replace

import pytest
from fleet.errors import FleetError
from fleet.plan_document import instance_document
from fleet.plan_stage import StageInput, run_stage, validate
from plan_samples import ENGINE, facts, model, models_text


@pytest.fixture
def stage(tmp_path):
    return at(tmp_path, facts("a", "b"), model("m", replicas={"min": 2}))


def at(tmp_path, document, *entries, **changes):
    (tmp_path / "models.yml").write_text(models_text(*entries))
    values = {
        "models_file": str(tmp_path / "models.yml"),
        "policies": {name: {} for name in document["hosts"]},
        "inventory_hosts": list(document["hosts"]),
        "hosts": document["hosts"],
        "applied": [None, ""],
        "engine_version": ENGINE,
        "engine_port_base": 8100,
    }
    return StageInput(**values | changes)


def applied(result, stage):
    """The next run on the same fleet, after this one was applied everywhere."""
    hosts = copy.deepcopy(dict(stage.hosts))
    for name, document in hosts.items():
        document["instances"] = result.per_host.get(name, [])
    return replace(stage, hosts=hosts, applied=[result.applied_document, None])


def without(stage, *names):
    return replace(stage, hosts={name: host for name, host in stage.hosts.items() if name not in names})


def test_a_first_run(stage):
    result = run_stage(stage)
    assert [one.id for one in result.plan.instances] == ["m-1", "m-2"]
    assert result.applied_document["revision"] == 1
    assert result.applied_document["hosts"]["a"]["gpus"][0]["uuid"] == "GPU-a-0"
    assert {host: [one["id"] for one in mine] for host, mine in result.per_host.items()} == {"a": ["m-1"], "b": ["m-2"]}
    assert result.frozen == {}
    assert result.known_models == ("m",)
    assert result.notices == ()
    assert "m-1" in result.table


def test_a_second_run_changes_nothing(stage):
    first = run_stage(stage)
    second = run_stage(applied(first, stage))
    assert second.applied_document == first.applied_document
    assert second.plan == first.plan
    assert second.moves == ()


@pytest.mark.parametrize(
    ("gpus", "entries"),
    [
        pytest.param(1, [model(name, config="qwen2.5-0.5b") for name in ("x", "y")], id="a shared GPU"),
        pytest.param(
            1,
            [model("m", demand={"requests_per_second": 7}, objectives={"ttft_ms": 2000, "tpot_ms": 60})],
            id="a precision that was given up",
        ),
        pytest.param(
            2, [model(name, demand={"requests_per_second": 40}) for name in ("x", "y")], id="demand that is left"
        ),
    ],
)
def test_what_was_chosen_among_is_not_forgotten_by_a_second_run(tmp_path, gpus, entries):
    stage = at(tmp_path, facts("a", gpus=gpus), *entries)
    first = run_stage(stage)
    assert first.plan.instances
    second = run_stage(applied(first, stage))
    assert second.plan == first.plan
    assert second.applied_document == first.applied_document


def test_a_move_is_told_once_and_kept_in_the_plan(stage):
    first = run_stage(stage)
    after = applied(first, stage)
    after = replace(after, policies={"a": {"fleet_exclude_gpus": [0]}, "b": {}})
    second = run_stage(after)
    assert second.moves == ("m-1: a 0 -> a 1 (excluded)",)
    assert second.applied_document["revision"] == 2
    third = run_stage(replace(applied(second, after), policies=after.policies))
    assert third.moves == ()
    assert third.plan == second.plan
    assert third.applied_document == second.applied_document


def test_a_host_that_was_not_reached_is_frozen(stage):
    first = run_stage(stage)
    limited = without(applied(first, stage), "b")
    result = run_stage(limited)
    assert result.plan.instances == first.plan.instances
    assert result.applied_document == first.applied_document
    assert result.frozen == {"b": "not reached in this run: outside --limit, or it did not answer"}
    assert result.notices == ("b is left as it is: not reached in this run: outside --limit, or it did not answer.",)
    told = run_stage(replace(limited, attempted=["a", "b"]))
    assert told.frozen == {"b": "did not answer"}
    assert run_stage(replace(limited, attempted=["a"])).frozen == {"b": "outside --limit"}


def test_all_hosts_frozen_keeps_the_plan(stage):
    first = run_stage(stage)
    result = run_stage(without(applied(first, stage), "a", "b"))
    assert result.applied_document == first.applied_document


def test_a_host_that_is_gone_is_released(stage):
    first = run_stage(stage)
    gone = replace(applied(first, stage), policies={"a": {}, "b": {"fleet_state": "gone"}})
    result = run_stage(gone)
    assert result.moves == ("m-2: b GPU-b-0 -> a 1 (lost)",)
    assert "b" not in result.applied_document["hosts"]
    assert run_stage(without(gone, "b")).plan.instances == result.plan.instances


def test_the_highest_revision_counts(stage):
    first = run_stage(stage)
    after = replace(applied(first, stage), policies={"a": {"fleet_exclude_gpus": [0]}, "b": {}})
    second = run_stage(after)
    documents = [first.applied_document, second.applied_document, first.applied_document]
    limited = without(replace(after, applied=documents), "a")
    assert run_stage(limited).plan.instances == second.plan.instances


def test_broken_applied_documents_are_left_out_and_told(stage):
    first = run_stage(stage)
    broken = [{"schema": 1, "revision": 99, "plan": {}, "hosts": {}}, {"schema": 7}, first.applied_document]
    result = run_stage(replace(applied(first, stage), applied=broken))
    assert result.applied_document == first.applied_document
    assert len(result.notices) == 2
    assert all(line.startswith("An applied plan was left out: applied.json: ") for line in result.notices)


def test_a_damaged_record_is_taken_from_the_applied_plan(stage):
    first = run_stage(stage)
    after = applied(first, stage)
    after.hosts["a"]["instances"] = [{"id": "m-1", "corrupt": True, "error": "not JSON"}]
    result = run_stage(after)
    assert result.plan.instances == first.plan.instances
    assert result.notices == (
        "a: the record of m-1 is damaged (not JSON); what the applied plan says is used instead.",
    )


def test_two_hosts_that_claim_one_instance(stage):
    first = run_stage(stage)
    after = applied(first, stage)
    stale = instance_document(first.plan.instances[1]) | {
        "shards": [{"host": "a", "gpus": ["GPU-a-3"], "rank": 0}],
        "port": 8107,
    }
    after.hosts["a"]["instances"] = [*after.hosts["a"]["instances"], stale]
    assert run_stage(after).plan.instances == first.plan.instances


def test_a_host_that_was_never_planned_and_does_not_answer_is_told(stage):
    result = run_stage(without(stage, "b"))
    assert {one.shards[0].host for one in result.plan.instances} == {"a"}
    assert result.notices[0] == "b was never planned before; it is left out until it can be reached."


def test_checkpoints_go_where_they_are_needed(tmp_path, checkpoint):
    entry = {"name": "m", "source": "file:tiny", "placement": {"hosts": ["b"]}}
    stage = at(tmp_path, facts("a", "b"), entry)
    result = run_stage(stage)
    (needed,) = result.checkpoints["b"]
    assert "a" not in result.checkpoints
    assert needed["source_path"] == str(checkpoint)
    assert set(needed) == {"name", "source_path", "base_url", "credential", "digest", "total_bytes", "files"}
    (one,) = result.plan.instances
    assert one.engine_args["model"] == f"/var/lib/l40s-fleet/models/m-{needed['digest'][:12]}"
    frozen = run_stage(without(applied(result, stage), "b"))
    assert frozen.checkpoints == {}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "tiny"
    path.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 300,
        "max_position_embeddings": 512,
        "torch_dtype": "bfloat16",
    }
    (path / "config.json").write_text(json.dumps(config))
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    return path


class TestValidate:
    def test_a_truncated_checkpoint_is_found_before_any_host_is_asked(self, tmp_path, checkpoint):
        stage = at(tmp_path, facts("a"), {"name": "m", "source": "file:tiny"}, hosts={})
        validate(stage)
        weights = checkpoint / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-3])
        with pytest.raises(FleetError, match=r"models\.yml: models\[0\]\.source: .*model\.safetensors: is truncated"):
            validate(stage)

    def test_a_checkpoint_that_is_not_there(self, tmp_path):
        stage = at(tmp_path, facts("a"), {"name": "m", "source": "file:nowhere"})
        with pytest.raises(FleetError, match=r"models\[0\]\.source: .*nowhere does not exist"):
            validate(stage)

    def test_host_variables(self, stage):
        with pytest.raises(FleetError, match=r"host_vars a: fleet_exclude_gpu: unknown variable"):
            validate(replace(stage, policies={"a": {"fleet_exclude_gpu": []}, "b": {}}))

    def test_hosts_that_the_inventory_lacks(self, tmp_path):
        stage = at(tmp_path, facts("a"), model("m", placement={"hosts": ["aa"]}))
        with pytest.raises(FleetError, match=r"placement\.hosts\[0\]: no host 'aa'"):
            validate(stage)


def test_an_excluded_gpu_that_is_not_there(stage):
    with pytest.raises(FleetError, match=r"^host_vars a: fleet_exclude_gpus\[0\]: no GPU 7 on this host"):
        run_stage(replace(stage, policies={"a": {"fleet_exclude_gpus": [7]}, "b": {}}))


class TestSeveralHosts:
    @pytest.fixture
    def wide(self, tmp_path):
        entry = model("big", "llama-3-70b", quantization="none", placement={"allow_multi_node": True})
        return at(tmp_path, facts("a", "b", "c", gpus=2), entry)

    def test_each_host_of_an_instance_has_it_and_a_second_run_changes_nothing(self, wide):
        first = run_stage(wide)
        assert {host: [one["id"] for one in mine] for host, mine in first.per_host.items()} == {
            "a": ["big-1"],
            "b": ["big-1"],
        }
        second = run_stage(applied(first, wide))
        assert second.plan == first.plan
        assert second.applied_document == first.applied_document

    @pytest.mark.parametrize("frozen", ["a", "b"])
    def test_a_frozen_host_keeps_the_whole_instance(self, wide, frozen):
        first = run_stage(wide)
        other = "ab".replace(frozen, "")
        excluded = replace(wide, policies={**wide.policies, other: {"fleet_exclude_gpus": [0]}})
        result = run_stage(without(applied(first, excluded), frozen))
        assert result.plan.instances == first.plan.instances
        assert [one["id"] for one in result.per_host[other]] == ["big-1"]

    def test_the_whole_instance_moves_when_one_of_its_hosts_has_to_be_left(self, wide):
        first = run_stage(wide)
        excluded = replace(applied(first, wide), policies={"a": {}, "b": {"fleet_exclude_gpus": [0]}, "c": {}})
        result = run_stage(excluded)
        assert result.moves == ("big-1: a 0,1, b 0,1 -> a 0,1, c 0,1 (excluded)",)
        (one,) = result.plan.instances
        assert (one.id, one.hosts) == ("big-1", ("a", "c"))
        assert "b" not in result.per_host
