"""Shared GPUs and instances over several hosts: planned where something would be left otherwise, and only there."""

import pytest
from fleet.configurations import Misfit
from fleet.fleet_configurations import FleetConfigurations
from fleet.hardware import gpu_by_name
from fleet.plan_document import canonical_json, plan_from_json, plan_to_document
from fleet.shared_gpu import resident_bytes, start_conflict
from plan_samples import ENGINE, facts, host, model, moves, places, plan, refused, resolved

L40S = gpu_by_name("L40S", where="test")
SMALL = "qwen2.5-0.5b"


def parts(config, **changes):
    (entry,) = resolved(model("m", config, **changes))
    return FleetConfigurations(ENGINE).parts(entry, L40S)


def again(document, entries, made):
    """The plan made of what a plan leaves running, read back from its JSON."""
    text = canonical_json(plan_to_document(made))
    return plan(document, entries, plan_from_json(text, where="plan.json").instances)


class TestPartsOfAGpu:
    @pytest.mark.parametrize("config", [SMALL, "llama-3-8b", "llama-2-13b"])
    def test_as_many_as_there_are_parts_start_one_after_another(self, config):
        found = parts(config)
        assert found
        for one in found:
            sharers = [(one.estimate, one.options.kv_cache_memory_bytes)] * one.shape.ways
            assert start_conflict(L40S.torch_visible_bytes, sharers) is None

    def test_one_restarts_while_all_others_run(self):
        """The engine wants its budget free at start, whatever its KV cache."""
        for one in parts("llama-3-8b"):
            others = (one.shape.ways - 1) * resident_bytes(one.estimate, one.options.kv_cache_memory_bytes)
            needed = one.estimate.budget_bytes + one.estimate.ranks[0].outside_bytes
            assert others + needed <= L40S.torch_visible_bytes

    def test_what_a_part_reports_is_its_own_number(self):
        for one in parts("llama-3-8b"):
            per_token = 128 * 1024
            assert one.estimate.kv_cache_tokens == one.options.kv_cache_memory_bytes // per_token
            assert one.estimate.kv_cache_tokens_planned == one.estimate.kv_cache_tokens

    def test_engines_that_take_turns_carry_less_together_than_one_alone(self):
        changes = {"demand": {"requests_per_second": 1}, "objectives": {"tpot_ms": 100}, "quantization": "none"}
        (entry,) = resolved(model("m", "llama-3-8b", **changes))
        configurations = FleetConfigurations(ENGINE)
        (alone,), _ = configurations.smallest(entry, L40S, 1)
        whole = configurations.with_capacity(entry, L40S, alone).capacity_requests_per_s
        two = next(one for one in configurations.parts(entry, L40S) if one.shape.ways == 2)
        assert 0 < 2 * two.capacity_requests_per_s < whole
        speed = configurations.speed(entry, L40S, two, two.capacity_requests_per_s)
        assert speed["tpot_ms"] <= 100 * 1.01

    def test_a_given_utilization_cannot_be_shared(self):
        assert parts(SMALL, engine_args={"gpu_memory_utilization": 0.5}) == ()

    def test_given_kv_memory_is_kept_or_does_not_fit(self):
        assert {
            one.options.kv_cache_memory_bytes for one in parts(SMALL, engine_args={"kv_cache_memory_bytes": 2**30})
        } == {2**30}
        (entry,) = resolved(model("m", SMALL, engine_args={"kv_cache_memory_bytes": 30 * 2**30}))
        found = FleetConfigurations(ENGINE).parts(entry, L40S)
        assert found == ()


class TestSharing:
    def test_small_models_share_where_one_would_be_left(self):
        entries = [model("m", SMALL), model("n", SMALL), model("o", "llama-3-8b")]
        document = facts("a", gpus=1)
        made = plan(document, entries)
        assert not made.refused
        assert made.summary.gpus_used == made.summary.gpus_lower_bound == 1
        assert [(one.id, one.sharing.seat, one.sharing.starts_after) for one in made.instances] == [
            ("m-1", 0, ()),
            ("n-1", 1, ("m-1",)),
            ("o-1", 2, ("m-1", "n-1")),
        ]
        assert all("kv_cache_memory_bytes" in one.engine_args for one in made.instances)
        assert len({one.port for one in made.instances}) == 3
        second = again(document, entries, made)
        assert (second.moves, second.instances) == ((), made.instances)

    def test_nothing_is_shared_where_there_is_room(self):
        made = plan(facts("a", gpus=2), [model("m", SMALL), model("n", SMALL)])
        assert all(one.sharing is None for one in made.instances)

    def test_what_runs_makes_room_where_it_stands(self):
        document = facts("a", gpus=1)
        first = plan(document, [model("o", "llama-3-8b")])
        second = plan(document, [model("o", "llama-3-8b"), model("m", SMALL)], first.instances)
        assert not second.refused
        assert moves(second) == {}
        assert {one.id: one.sharing.ways for one in second.instances} == {"m-1": 2, "o-1": 2}

    @pytest.mark.parametrize("kept", ["m", "n"])
    def test_never_means_never(self, kept):
        entries = [
            model(name, SMALL, **({"placement": {"share_gpus": "never"}} if name == kept else {})) for name in "mn"
        ]
        made = plan(facts("a", gpus=1), entries)
        assert len(made.instances) == 1
        assert len(refused(made)) == 1

    def test_two_replicas_of_one_model_do_not_share(self):
        made = plan(facts("a", gpus=1), [model("m", SMALL, replicas={"min": 2})])
        assert len(made.instances) == 1
        assert refused(made) == {"m": "gpus"}

    def test_a_shared_gpu_that_is_excluded_sends_all_elsewhere(self):
        entries = [model("m", SMALL), model("n", SMALL)]
        first = plan(facts("a", gpus=1), entries)
        document = facts(a=host("a", 2) | {"policy": {"exclude_gpus": [0]}})
        second = plan(document, entries, first.instances)
        assert not second.refused
        assert moves(second) == {"m-1": "excluded", "n-1": "excluded"}
        assert {one.shards[0].gpus for one in second.instances} == {("GPU-a-1",)}


class TestSeveralHosts:
    ENTRY = model("big", "llama-3-70b", quantization="none", placement={"allow_multi_node": True})

    def test_a_model_that_fits_no_host_spans_some(self):
        document = facts("a", "b", "c", gpus=2)
        made = plan(document, [self.ENTRY])
        (one,) = made.instances
        assert [(shard.host, len(shard.gpus), shard.rank) for shard in one.shards] == [("a", 2, 0), ("b", 2, 1)]
        assert (one.engine_args["tensor_parallel_size"], one.engine_args["pipeline_parallel_size"]) == (2, 2)
        assert made.summary.gpus_used == 4
        second = again(document, [self.ENTRY], made)
        assert (second.moves, second.instances) == ((), made.instances)

    def test_ports_of_ranks_stay_and_are_not_given_twice(self):
        def entry(name):
            parts = {"tensor_parallel": 1, "pipeline_parallel": 2, "placement": {"allow_multi_node": True}}
            return model(name, SMALL, **parts)

        first = plan(facts("a", "b", gpus=1), [entry("small")])
        (one,) = first.instances
        assert (one.engine_args["nnodes"], one.engine_args["distributed_executor_backend"]) == (2, "mp")
        second = plan(facts("a", "b", gpus=2), [entry("another"), entry("small")], first.instances)
        ports = {one.model: one.engine_args["master_port"] for one in second.instances}
        assert ports == {"small": 29500, "another": 29502}
        assert second.moves == ()
        assert "master_port" not in plan(facts("a", gpus=2), [entry("small")]).instances[0].engine_args

    def test_one_host_is_preferred(self):
        made = plan(facts("a", "b", gpus=4), [self.ENTRY])
        assert [len(one.shards) for one in made.instances] == [1]

    def test_losing_one_of_its_hosts_moves_it(self):
        first = plan(facts("a", "b", gpus=2), [self.ENTRY])
        second = plan(facts("a", "c", gpus=2), [self.ENTRY], first.instances)
        assert moves(second) == {"big-1": "lost"}
        assert second.instances[0].hosts == ("a", "c")
        assert [place.host for place in second.moves[0].to] == ["a", "c"]

    def test_only_where_it_is_allowed(self):
        entry = self.ENTRY | {"placement": {}}
        assert refused(plan(facts("a", "b", gpus=2), [entry])) == {"big": "memory"}

    def test_the_network_is_taken_off_the_objectives(self):
        changes = {"demand": {"requests_per_second": 0.1}, "objectives": {"tpot_ms": 200, "ttft_ms": 5000}}
        (entry,) = resolved(self.ENTRY | changes)
        configurations = FleetConfigurations(ENGINE)
        wide = configurations.over_hosts(entry, L40S, [2, 2])
        assert wide
        for one in wide:
            speed = configurations.speed(entry, L40S, one, one.capacity_requests_per_s)
            assert speed["tpot_ms"] <= 200 * 1.01
        (hasty,) = resolved(self.ENTRY | changes | {"objectives": {"tpot_ms": 30}})
        found = configurations.of_shape(
            resolved(self.ENTRY | changes | {"objectives": {"tpot_ms": 30}, "name": "hasty"})[0], L40S, wide[0].shape
        )
        assert hasty.request.objectives.tpot_ms == 30
        assert isinstance(found, Misfit)
        assert found.constraint == "objectives"


class TestHostMeans:
    def test_engines_take_host_memory(self):
        document = facts(a=host("a") | {"memory_total_bytes": 12 * 2**30}, b=host("b"))
        made = plan(document, [model("m", replicas={"min": 6})])
        assert [one.shards[0].host for one in made.instances].count("a") == 2
        assert not made.refused
        made = plan(facts(a=document["hosts"]["a"]), [model("m", replicas={"min": 3})])
        assert refused(made) == {"m": "host_memory"}
        assert made.refused[0].nearest_change == "2.0 GiB more memory in a"

    def test_a_checkpoint_takes_disk_once_a_host(self):
        disk = [{"path": "/var/lib/l40s-fleet", "free_bytes": 18 * 2**30}, {"path": "/", "free_bytes": 10}]
        document = facts(a=host("a") | {"disk": disk})
        made = plan(document, [model("m", replicas={"min": 2}, priority=1), model("n", SMALL), model("o")])
        assert sorted(places(made)) == ["m-1", "m-2", "n-1"]
        assert refused(made) == {"o": "disk"}
        assert "more free in /var/lib/l40s-fleet/models on a" in made.refused[0].nearest_change

    def test_what_is_there_takes_no_more(self):
        document = facts("a")
        first = plan(document, [model("m", replicas={"min": 2})])
        document["hosts"]["a"]["disk"] = [{"path": "/", "free_bytes": 0}]
        second = plan(document, [model("m", replicas={"min": 3})], first.instances)
        assert len(second.instances) == 3
        assert not second.refused

    def test_what_runs_stays_though_memory_is_short(self):
        document = facts("a")
        first = plan(document, [model("m", replicas={"min": 2})])
        document["hosts"]["a"]["memory_total_bytes"] = 5 * 2**30
        second = plan(document, [model("m", replicas={"min": 2})], first.instances)
        assert second.instances == first.instances
