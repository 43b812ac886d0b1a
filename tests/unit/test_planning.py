import copy
from dataclasses import replace

import pytest
from fleet.errors import FleetError
from fleet.host_document import parse_hosts
from fleet.plan_document import CheckpointReference, canonical_json, plan_to_document
from fleet.planning import make_plan
from plan_samples import ENGINE, facts, gpu, host, model, moves, places, plan, refused, resolved


def exclude(document, name, *gpus):
    changed = copy.deepcopy(document)
    changed["hosts"][name]["policy"] = {"exclude_gpus": list(gpus)}
    return changed


def without(document, name):
    changed = copy.deepcopy(document)
    del changed["hosts"][name]
    return changed


def test_the_arguments_of_an_instance():
    entry = model(
        "m",
        aliases=["chat"],
        engine_args={"enable_auto_tool_choice": True, "tool_call_parser": "hermes", "seed": 7},
        env={"VLLM_LOGGING_LEVEL": "DEBUG"},
        source="org/m@v1",
    )
    (one,) = plan(facts("a"), [entry]).instances
    assert one.id == "m-1"
    assert one.port == 8100
    assert one.aliases == ("chat",)
    assert one.engine_args == {
        "enable_auto_tool_choice": True,
        "gpu_memory_utilization": 0.92,
        "max_model_len": 4096,
        "max_num_batched_tokens": 2048,
        "max_num_seqs": 256,
        "model": "org/m",
        "pipeline_parallel_size": 1,
        "revision": "v1",
        "seed": 7,
        "served_model_name": ["m", "chat"],
        "tensor_parallel_size": 1,
        "tool_call_parser": "hermes",
    }
    assert one.env == {
        "CUDA_VISIBLE_DEVICES": "GPU-a-0",
        "VLLM_LOGGING_LEVEL": "DEBUG",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
    }
    assert one.memory["fits"] is True
    assert one.memory["kv_cache_tokens_planned"] <= one.memory["kv_cache_tokens"]


def test_a_known_checkpoint_is_served_from_the_store():
    (entry,) = resolved(model("m"))
    digest = "0123456789abcdef" * 4
    hosts = parse_hosts(facts("a"), where="f")
    with_digest = replace(entry, checkpoint=CheckpointReference("m", digest, 17))
    (one,) = make_plan(hosts, [with_digest], [], engine_version=ENGINE).instances
    assert one.engine_args["model"] == "/var/lib/l40s-fleet/models/m-0123456789ab"
    assert one.checkpoint == CheckpointReference("m", digest, 17)


def test_the_users_kv_memory_replaces_utilization():
    entry = model("m", engine_args={"kv_cache_memory_bytes": 2**30, "block_size": 128})
    (one,) = plan(facts("a"), [entry]).instances
    assert one.engine_args["kv_cache_memory_bytes"] == 2**30
    assert one.engine_args["block_size"] == 128
    assert "gpu_memory_utilization" not in one.engine_args
    assert one.memory["kv_cache_tokens"] == 2**30 // (128 * 1024)


def test_arguments_that_change_memory_feed_the_plan():
    small = plan(facts("a"), [model("m", engine_args={"gpu_memory_utilization": 0.5})]).instances[0]
    large = plan(facts("a"), [model("m")]).instances[0]
    assert small.engine_args["gpu_memory_utilization"] == 0.5
    assert small.memory["kv_cache_tokens"] < large.memory["kv_cache_tokens"] / 2


def test_an_embedding_model_takes_a_whole_prompt_in_a_batch():
    (one,) = plan(facts("a"), [model("m", task="embed")]).instances
    assert one.engine_args["runner"] == "pooling"
    assert one.engine_args["max_num_batched_tokens"] == 4096


def test_the_smallest_number_of_gpus_that_fits():
    made = plan(facts("a"), [model("m", "llama-3-70b", quantization="none")])
    (one,) = made.instances
    assert len(one.gpus) == 4
    assert (one.engine_args["tensor_parallel_size"], one.engine_args["pipeline_parallel_size"]) == (2, 2)
    assert made.summary.gpus_lower_bound == made.summary.gpus_used == 4
    (two,) = plan(facts("a"), [model("m", "llama-3-70b")]).instances
    assert len(two.gpus) == 2
    assert two.engine_args["quantization"] == "fp8"


def test_forced_parallel_sizes_are_kept():
    (one,) = plan(facts("a"), [model("m", tensor_parallel=1, pipeline_parallel=3)]).instances
    assert (one.engine_args["tensor_parallel_size"], one.engine_args["pipeline_parallel_size"]) == (1, 3)
    (one,) = plan(facts("a"), [model("m", tensor_parallel=4)]).instances
    assert (one.engine_args["tensor_parallel_size"], one.engine_args["pipeline_parallel_size"]) == (4, 1)
    (one,) = plan(facts("a"), [model("m", engine_args={"tensor_parallel_size": 2})]).instances
    assert len(one.gpus) == 2
    (one,) = plan(facts("a"), [model("m", pipeline_parallel=4)]).instances
    assert (one.engine_args["tensor_parallel_size"], one.engine_args["pipeline_parallel_size"]) == (1, 4)


def test_visible_devices_are_in_the_order_of_the_ranks():
    (one,) = plan(facts("a"), [model("m", tensor_parallel=2)]).instances
    assert one.env["CUDA_VISIBLE_DEVICES"] == ",".join(one.shards[0].gpus)
    assert one.shards[0].rank == 0


def test_replicas_spread_and_ports_count_on_each_host():
    made = plan(facts("a", "b"), [model("m", replicas={"min": 2}), model("n", replicas={"min": 2})], port_base=9000)
    assert places(made) == {"m-1": ("a", [0]), "m-2": ("b", [0]), "n-1": ("a", [1]), "n-2": ("b", [1])}
    assert {one.id: one.port for one in made.instances} == {"m-1": 9000, "m-2": 9000, "n-1": 9001, "n-2": 9001}


def test_labels_hosts_and_pins_are_kept():
    document = facts("a", "b", "c")
    document["hosts"]["b"]["policy"] = {"labels": ["fast", "rack=1"]}
    made = plan(
        document,
        [
            model("labelled", placement={"labels": {"rack": 1}}),
            model("hosted", placement={"hosts": ["c"]}),
            model("pinned", placement={"pins": [{"host": "b", "gpus": [3]}, {"host": "a", "gpus": ["GPU-a-2"]}]}),
        ],
    )
    found = places(made)
    assert found["labelled-1"][0] == "b"
    assert found["hosted-1"][0] == "c"
    assert sorted([found["pinned-1"], found["pinned-2"]]) == [("a", [2]), ("b", [3])]
    assert not made.refused


def test_excluded_blocked_and_unknown_gpus_stay_unused():
    document = facts("a")
    document["hosts"]["a"]["gpus"][1] = gpu("a", 1, health={"status": "blocked", "checks": []})
    document["hosts"]["a"]["gpus"][2] = gpu("a", 2, name="NVIDIA T4")
    made = plan(exclude(document, "a", 0), [model("m", replicas={"min": 2})])
    assert places(made) == {"m-1": ("a", [3])}
    assert made.summary.notes == ("a GPU 2 is not used: the hardware table does not know 'NVIDIA T4'.",)
    assert refused(made) == {"m": "gpus"}


def test_provisional_hosts_mark_their_instances():
    document = facts(a=host("a") | {"provisional": True})
    made = plan(document, [model("m")])
    assert made.instances[0].provisional
    assert plan_to_document(made)["instances"][0]["provisional"] is True
    assert "provisional" not in plan_to_document(plan(facts("a"), [model("m")]))["instances"][0]


def test_a_host_that_fails_a_check_keeps_what_runs_and_gets_nothing_new():
    document = facts("a", "b")
    first = plan(document, [model("m", replicas={"min": 2})])
    checks = [{"name": "cuda", "status": "blocked", "evidence": "driver too old"}]
    document["hosts"]["b"]["health"] = {"status": "blocked", "checks": checks}
    second = plan(document, [model("m", replicas={"min": 2}), model("n", replicas={"min": 2})], first.instances)
    assert {one.id: one.shards[0].host for one in second.instances} == {"m-1": "a", "m-2": "b", "n-1": "a", "n-2": "a"}
    assert second.moves == ()
    (one,) = plan(document, [model("n", placement={"hosts": ["b"]})]).refused
    assert "hosts that get nothing new: b (cuda: driver too old)" in one.explanation
    document["hosts"]["b"]["provisional"] = True
    assert not plan(document, [model("n", placement={"hosts": ["b"]})]).refused


def test_planning_again_changes_no_byte():
    document = facts("a", "b")
    entries = [model("m", replicas={"min": 3}), model("w", "llama-3-70b")]
    first = plan(document, entries)
    second = plan(document, entries, first.instances)
    assert canonical_json(plan_to_document(first)) == canonical_json(plan_to_document(second))


def test_only_what_must_move_moves():
    entries = [model("m", replicas={"min": 2}), model("n", replicas={"min": 2})]
    document = facts("a", "b")
    first = plan(document, entries)
    second = plan(exclude(document, "a", 0), entries, first.instances)
    assert moves(second) == {"m-1": "excluded"}
    changed = {one.id for one in second.instances} - {
        one.id for one in second.instances for before in first.instances if one == before
    }
    assert changed == {"m-1"}
    assert "because GPU 0 of a is in fleet_exclude_gpus" in second.instances[0].reasons[0]
    third = plan(exclude(document, "a", 0), entries, second.instances)
    assert third.moves == ()
    assert third.instances == second.instances


def test_a_new_argument_changes_the_instance_where_it_stands():
    document = facts("a", "b")
    first = plan(document, [model("m", placement={"hosts": ["b"]})])
    second = plan(document, [model("m", engine_args={"seed": 1})], first.instances)
    assert places(second) == {"m-1": ("b", [0])}
    assert second.moves == ()
    assert second.instances[0].engine_args["seed"] == 1


def test_a_larger_shape_stays_until_it_must_not():
    document = facts("a")
    first = plan(document, [model("m", tensor_parallel=2)])
    second = plan(document, [model("m")], first.instances)
    assert len(second.instances[0].gpus) == 2
    assert second.summary.gpus_lower_bound == 1
    assert second.summary.gap_fraction == 0.5
    assert second.summary.improvement_available == {"replicas_more": 0, "gpus_fewer": 1, "moves": 1}
    third = plan(document, [model("m")], first.instances, optimize=True)
    assert len(third.instances[0].gpus) == 1
    assert moves(third) == {"m-1": "optimize"}
    fourth = plan(document, [model("m", tensor_parallel=4)], first.instances)
    assert moves(fourth) == {"m-1": "configuration"}


def test_a_lost_host_moves_its_instances_only():
    entries = [model("m", replicas={"min": 2}), model("n", replicas={"min": 2})]
    document = facts("a", "b", "c")
    first = plan(document, entries)
    on_b = {one.id for one in first.instances if "b" in one.hosts}
    second = plan(without(document, "b"), entries, first.instances)
    assert set(moves(second)) == on_b
    assert set(moves(second).values()) == {"lost"}


def test_a_model_that_is_gone_drops_out():
    document = facts("a")
    first = plan(document, [model("m"), model("n")])
    second = plan(document, [model("n")], first.instances)
    assert places(second) == {"n-1": ("a", [1])}
    assert second.moves == ()


def test_the_smallest_free_number_is_given():
    document = facts("a", "b")
    first = plan(document, [model("m", replicas={"min": 3})])
    remaining = [one for one in first.instances if one.id != "m-2"]
    second = plan(document, [model("m", replicas={"min": 3})], remaining)
    assert sorted(one.id for one in second.instances) == ["m-1", "m-2", "m-3"]
    assert [one for one in second.instances if one.id != "m-2"] == remaining


class TestFrozenHosts:
    entries = (model("m", replicas={"min": 2}), model("n", replicas={"min": 2}))

    def test_their_instances_stay_verbatim_though_the_model_was_edited(self):
        document = facts("a", "b")
        first = plan(document, self.entries)
        edited = [model("m", replicas={"min": 2}, engine_args={"seed": 5}), self.entries[1]]
        second = plan(document, edited, first.instances, frozen=["b"])
        before = {one.id: one for one in first.instances}
        for one in second.instances:
            assert (one == before[one.id]) == ("b" in one.hosts or one.model == "n")
        assert second.moves == ()

    def test_nothing_new_goes_there_and_their_ports_and_numbers_are_taken(self):
        document = facts("a", "b")
        first = plan(document, [model("m", placement={"hosts": ["b"]})])
        second = plan(document, [model("m", replicas={"min": 3})], first.instances, frozen=["b"])
        assert {identity: place[0] for identity, place in places(second).items()} == {
            "m-1": "b",
            "m-2": "a",
            "m-3": "a",
        }

    def test_they_need_no_document(self):
        document = facts("a", "b")
        first = plan(document, self.entries)
        second = plan(without(document, "b"), self.entries, first.instances, frozen=["b"])
        assert second.instances == first.instances

    def test_a_model_that_was_removed_stays_listed_with_the_reason(self):
        document = facts("a", "b")
        first = plan(document, self.entries)
        second = plan(document, [self.entries[0]], first.instances, frozen=["b"])
        (left,) = [one for one in second.instances if one.model == "n"]
        assert left.reasons[-1] == "Stays listed although n is no longer in the models file: b was not reached."
        third = plan(document, [self.entries[0]], second.instances, frozen=["b"])
        assert third.instances == second.instances
        assert not [one for one in plan(document, [self.entries[0]], third.instances).instances if one.model == "n"]

    def test_an_identity_that_also_runs_there_is_not_kept_twice(self):
        document = facts("a", "b")
        first = plan(document, [model("m")])
        twin = replace(first.instances[0], shards=(replace(first.instances[0].shards[0], host="b", gpus=("GPU-b-0",)),))
        second = plan(document, [model("m")], [*first.instances, twin], frozen=["b"])
        assert places(second) == {"m-1": ("b", [0])}

    def test_a_pin_to_a_frozen_host_waits_for_it(self):
        document = facts("a", "b")
        entry = model("m", placement={"pins": [{"host": "b"}]})
        made = plan(document, [entry], frozen=["b"])
        assert refused(made) == {"m": "placement.pins"}
        running = plan(document, [entry]).instances
        assert plan(document, [entry], running, frozen=["b"]).instances == running


class TestRefusals:
    def test_no_room(self):
        made = plan(facts("a", gpus=2), [model("m", replicas={"min": 3})])
        (one,) = made.refused
        assert one.constraint == "gpus"
        assert "1 of 3 replicas found no place" in one.explanation
        assert "replicas.min: 2" in one.nearest_change
        assert made.summary.carried == {"m": pytest.approx(2 / 3, abs=1e-6)}

    @pytest.mark.parametrize(
        ("change", "nearest"),
        [
            ({"quantization": "none", "tensor_parallel": 2}, "quantization: fp8 (2 GPUs)"),
            ({"quantization": "none", "tensor_parallel": 2}, "pipeline_parallel: 2 (4 GPUs)"),
            ({"quantization": "none", "tensor_parallel": 2}, "tensor_parallel left out (4 GPUs)"),
            ({"quantization": "none", "tensor_parallel": 2}, "quantized with AWQ or GPTQ, 4 bits ("),
            ({"tensor_parallel": 1, "pipeline_parallel": 1}, "tensor_parallel and pipeline_parallel left out (2 GPUs)"),
        ],
    )
    def test_weights_that_do_not_fit(self, change, nearest):
        made = plan(facts("a"), [model("m", "llama-3-70b", **change)])
        (one,) = made.refused
        assert one.constraint == "memory"
        assert nearest in one.nearest_change

    def test_every_nearest_change_of_memory_is_true(self):
        entry = model("m", "llama-3-70b", quantization="none")
        (one,) = plan(facts("a", gpus=3), [entry]).refused
        changes = one.nearest_change.split(" or ")
        assert "quantization: fp8 (2 GPUs)" in changes
        assert "a host with 4 GPUs of kind L40S" in changes
        assert len(plan(facts("a", gpus=3), [entry | {"quantization": "fp8"}]).instances[0].gpus) == 2
        assert len(plan(facts("a", gpus=4), [entry]).instances[0].gpus) == 4

    def test_a_context_that_is_too_long_for_the_memory(self):
        entry = model("m", "llama-2-13b", max_model_len=4096, engine_args={"gpu_memory_utilization": 0.62})
        entry |= {"quantization": "none", "kv_cache_dtype": "bfloat16", "tensor_parallel": 1, "pipeline_parallel": 1}
        (one,) = plan(facts("a"), [entry]).refused
        shorter = next(part for part in one.nearest_change.split(" or ") if part.startswith("max_model_len: "))
        length = int(shorter.removeprefix("max_model_len: "))
        assert 512 <= length < 4096
        assert not plan(facts("a"), [entry | {"max_model_len": length}]).refused

    def test_more_kv_memory_than_there_is(self):
        entry = model("m", engine_args={"kv_cache_memory_bytes": 40 * 2**30}, tensor_parallel=1)
        (one,) = plan(facts("a"), [entry]).refused
        assert one.constraint == "memory"
        assert "kv_cache_memory_bytes" in one.explanation

    def test_a_context_above_the_models_own(self):
        (one,) = plan(facts("a"), [model("m", "llama-2-13b", max_model_len=8192)]).refused
        assert one.constraint == "max_model_len"
        assert one.nearest_change == "max_model_len: 4096"

    def test_a_tensor_size_that_does_not_divide_the_heads(self):
        (one,) = plan(facts("a"), [model("m", tensor_parallel=3)]).refused
        assert one.constraint == "tensor_parallel_size"
        assert "3 does not divide the 32 attention heads" in one.explanation
        assert one.nearest_change == "tensor_parallel left out (1 GPU)"

    def test_more_gpus_than_any_host_has(self):
        (one,) = plan(facts("a", gpus=2), [model("m", tensor_parallel=4)]).refused
        assert one.constraint == "parallel_size"
        assert "need 4 GPUs on one host, the largest has 2" in one.explanation

    def test_a_precision_that_needs_another_checkpoint(self):
        (one,) = plan(facts("a"), [model("m", quantization="awq")]).refused
        assert one.constraint == "quantization"
        assert "quantization: none (1 GPU)" in one.nearest_change

    def test_no_host_is_allowed(self):
        (one,) = plan(facts("a"), [model("m", placement={"labels": ["x"]})]).refused
        assert one.constraint == "placement"
        assert "placement.labels asks for x; no host carries a label" in one.explanation

    def test_all_gpus_excluded(self):
        (one,) = plan(exclude(facts("a", gpus=1), "a", 0), [model("m")]).refused
        assert one.constraint == "gpus"
        assert "all are excluded" in one.explanation

    def test_a_pin_to_a_gpu_that_is_excluded(self):
        document = exclude(facts("a"), "a", 0)
        made = plan(document, [model("m", placement={"pins": [{"host": "a", "gpus": [0]}]})])
        assert refused(made) == {"m": "placement.pins"}

    def test_one_host_cannot_lose_one(self):
        made = plan(facts("a"), [model("m", availability={"hosts_lost": 1})])
        assert refused(made) == {"m": "availability.hosts_lost"}
        assert len(made.instances) == 1

    def test_no_host_at_all(self):
        (one,) = plan(facts(), [model("m")]).refused
        assert one.explanation == "There is no host to place it on."


def test_an_ngram_speculation_is_passed_on():
    speculative = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}
    (one,) = plan(facts("a"), [model("m", speculative=speculative)]).instances
    assert one.engine_args["speculative_config"] == speculative


def test_an_excluded_gpu_that_does_not_exist_is_an_error():
    hosts = parse_hosts(facts("a"), where="f")
    policy = replace(hosts[0].policy, exclude_gpus=(9,))
    with pytest.raises(FleetError, match=r"host_vars a: fleet_exclude_gpus\[0\]: no GPU 9"):
        make_plan([replace(hosts[0], policy=policy)], resolved(model("m")), [], engine_version=ENGINE)


def test_reasons_tell_precision_place_and_number():
    (one,) = plan(facts("a"), [model("m", demand={"requests_per_second": 3})]).instances
    assert one.reasons[0] == "On a GPU 0: the only host that may be used."
    assert one.reasons[1].startswith("Unquantized weights: 15.")
    assert one.reasons[2] == "Attention by FLASH_ATTN, vLLM's own choice on this GPU."
    assert one.reasons[3].startswith("One instance carries ")
    assert one.reasons[3].endswith("; the demand is 3 requests/s.")
    (one,) = plan(facts("a"), [model("m")]).instances
    assert one.reasons[3] == "1 replica, from replicas.min."


def test_reasons_tell_why_fewer_gpus_do_not_do():
    (one,) = plan(facts("a", "b"), [model("m", "llama-3-70b")]).instances
    assert one.reasons[0] == "On a GPUs 0, 1: the host with the largest share of free GPUs."
    (line,) = [line for line in one.reasons if line.startswith("1 GPU does not do: FP8 weights and FP8 KV cache: ")]
    assert "GiB" in line


def test_candidates_allow_the_bound_to_be_recomputed():
    made = plan(facts("a"), [model("m", replicas={"min": 2}), model("w", "llama-3-70b")])
    smallest = {one.model: one.gpus for one in made.candidates}
    counts = {"m": 2, "w": 1}
    assert made.summary.gpus_lower_bound == sum(smallest[name] * count for name, count in counts.items())


class TestDemand:
    hosts = tuple(f"h{number:02d}" for number in range(20))
    entries = (
        model("m", demand={"requests_per_second": 150}, objectives={"tpot_ms": 60}),
        model("n", "llama-3-70b", demand={"requests_per_second": 3}, objectives={"tpot_ms": 150}, priority=1),
    )

    def capacity(self, made, name):
        return sum(one.speed["capacity_requests_per_s"] for one in made.instances if one.model == name)

    def test_it_is_carried_on_as_few_gpus_as_the_bound_says(self):
        made = plan(facts(*self.hosts), self.entries)
        assert not made.refused
        assert self.capacity(made, "m") >= 150
        assert self.capacity(made, "n") >= 3
        assert made.summary.gpus_used == made.summary.gpus_lower_bound
        for one in made.instances:
            assert one.speed["tpot_ms"] <= {"m": 60, "n": 150}[one.model]

    def test_a_lost_host_moves_just_its_instances(self):
        document = facts(*self.hosts)
        first = plan(document, self.entries)
        name = first.instances[0].hosts[0]
        on_it = {one.id for one in first.instances if name in one.hosts}
        second = plan(without(document, name), self.entries, first.instances)
        assert set(moves(second)) == on_it
        assert second.summary.carried == first.summary.carried

    def test_more_traffic_adds_instances_and_less_takes_them_away_again(self):
        document = facts(*self.hosts)
        first = plan(document, self.entries)
        more = [self.entries[0] | {"demand": {"requests_per_second": 200}}, self.entries[1]]
        second = plan(document, more, first.instances)
        assert second.moves == ()
        assert {one.id for one in first.instances} < {one.id for one in second.instances}
        third = plan(document, self.entries, second.instances)
        assert third.moves == ()
        assert len(third.instances) == len(first.instances)

    def test_any_one_host_may_be_lost(self):
        entry = model("m", demand={"requests_per_second": 12}, availability={"hosts_lost": 1})
        made = plan(facts("a", "b", "c"), [entry])
        assert not made.refused
        for name in {one.hosts[0] for one in made.instances}:
            left = [one for one in made.instances if name not in one.hosts]
            assert sum(one.speed["capacity_requests_per_s"] for one in left) >= 12
            assert made.summary.carried_without_host[name] == {"m": 1.0}

    def test_the_most_replicas_are_kept_and_what_is_left_is_refused(self):
        entry = model("m", demand={"requests_per_second": 500}, replicas={"max": 2})
        made = plan(facts("a", "b"), [entry])
        assert len(made.instances) == 2
        assert refused(made) == {"m": "replicas.max"}
        assert 0 < made.summary.carried["m"] < 1

    def test_precision_is_given_up_only_where_demand_would_be_left(self):
        entry = model("m", demand={"requests_per_second": 7}, objectives={"tpot_ms": 60}, tensor_parallel=1)
        room = plan(facts("a", gpus=4), [entry])
        assert not any({"quantization", "kv_cache_dtype"} & one.engine_args.keys() for one in room.instances)
        tight = plan(facts("a", gpus=1), [entry])
        assert [one.engine_args["quantization"] for one in tight.instances] == ["fp8"]
        assert "FP8 weights, because demand would have been left without." in tight.instances[0].reasons
        # What runs stays, also when there is room again.
        assert plan(facts("a", gpus=4), [entry], tight.instances).instances == tight.instances

    def test_prompts_come_in_chunks_that_suit_the_objectives_and_what_runs_keeps_its_own(self):
        entry = model("m", demand={"requests_per_second": 5}, objectives={"tpot_ms": 60})
        (one,) = plan(facts("a", gpus=1), [entry]).instances
        tokens = one.engine_args["max_num_batched_tokens"]
        assert tokens < 2048
        assert any(f"max_num_batched_tokens {tokens:,} instead of 2,048" in reason for reason in one.reasons)
        # Without objectives no other chunk is better, but that is no reason to restart an engine.
        relaxed = model("m", demand={"requests_per_second": 5})
        assert plan(facts("a", gpus=1), [relaxed]).instances[0].engine_args["max_num_batched_tokens"] == 2048
        (kept,) = plan(facts("a", gpus=1), [relaxed], (one,)).instances
        assert kept.engine_args == one.engine_args
        given = model("m", demand={"requests_per_second": 5}, engine_args={"max_num_batched_tokens": 4096})
        (own,) = plan(facts("a", gpus=1), [given], (one,)).instances
        assert own.engine_args["max_num_batched_tokens"] == 4096

    def test_priority_decides_when_there_is_no_room_for_all(self):
        low, high = (
            model(name, demand={"requests_per_second": 40}, priority=p) for name, p in (("low", 0), ("high", 1))
        )
        first = plan(facts("a", gpus=4), [low])
        second = plan(facts("a", gpus=4), [low, high], first.instances)
        assert second.summary.carried["high"] > second.summary.carried["low"]
        assert set(moves(second).values()) == {"priority"}
        assert "low" in refused(second)

    def test_objectives_that_nothing_meets_are_refused_and_the_model_runs(self):
        entry = model("m", demand={"requests_per_second": 1}, objectives={"tpot_ms": 1})
        made = plan(facts("a"), [entry])
        assert refused(made) == {"m": "objectives"}
        assert len(made.instances) == 1
        assert made.summary.carried == {"m": 0.0}
