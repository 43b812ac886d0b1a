"""Embedders, rerankers, vision-language models, adapters: what they are made of and take, how they are planned."""

import json
from dataclasses import replace

import pytest
from fleet.checkpoint import load_model_facts
from fleet.cli import main
from fleet.encoder_memory import profiled_images
from fleet.engine_options import EngineOptions, LoraOptions
from fleet.errors import FleetError
from fleet.hardware import gpu_by_name
from fleet.memory import estimate_memory
from fleet.model import facts_from_config
from fleet.model_document import facts_from_document, facts_to_document
from fleet.plan_document import plan_from_json, plan_to_document
from fleet.quantize_plan import can_be_made
from fleet.requests import parse_requests
from fleet.simulation_plan import simulation_of
from lab_code import tiny_kinds
from model_configs import config, facts
from plan_samples import ROOT, model, models_text, plan, refused
from plan_samples import facts as fleet_facts

L40S = gpu_by_name("L40S", where="test")
MIB = 1024**2
EXAMPLE = ROOT / "inventory" / "example"
ADAPTER = {"peft_type": "LORA", "r": 16, "bias": "none", "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("bge-m3", 567_754_752),
        ("bge-reranker-v2-m3", 567_755_777),
        ("bge-small-en", 33_360_000),
        ("qwen3-embedding-0.6b", 595_776_512),
        ("qwen2.5-vl-7b", 8_292_166_656),
        ("llava-1.5-7b", 7_063_427_072),
        ("smolvlm-256m", 256_484_928),
    ],
)
def test_parameters_are_those_that_are_published(name, parameters):
    assert facts(name).parameters == parameters


def test_the_keys_of_a_language_model_may_stand_below_text_config():
    flat = config("qwen2.5-vl-7b")
    vision = flat.pop("vision_config")
    nested = {"model_type": "qwen2_5_vl", "architectures": flat["architectures"], "tie_word_embeddings": False}
    made = facts_from_config({**nested, "vision_config": vision, "text_config": flat}, where="config.json")
    assert made.parameters == facts("qwen2.5-vl-7b").parameters


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"vision_config": None}, "vision_config: missing"), ({"text_config": {"model_type": "x"}}, "unknown family 'x'")],
)
def test_faults_of_a_configuration_name_the_key(changes, problem):
    with pytest.raises(FleetError, match=problem):
        facts_from_config(config("llava-1.5-7b", **changes), where="config.json")


class TestEncoders:
    def test_no_kv_cache_is_counted_or_needed(self):
        made = estimate_memory(facts("bge-m3"), L40S, EngineOptions(max_num_batched_tokens=8192))
        assert made.fits
        assert (made.kv_cache_tokens, made.kv_cache_tokens_planned, made.num_gpu_blocks) == (0, 0, 0)
        assert made.weights_bytes == pytest.approx(567_754_752 * 2, rel=0.02)
        assert made.max_model_len == made.max_model_len_that_fits == 8192

    def test_a_prompt_has_to_fit_in_a_batch(self):
        made = estimate_memory(facts("bge-m3"), L40S, EngineOptions(max_num_batched_tokens=2048))
        assert (made.fits, made.constraint) == (False, "max_num_batched_tokens")

    def test_a_batch_that_does_not_fit_is_refused_by_its_activations(self):
        made = estimate_memory(facts("bge-m3"), L40S, EngineOptions(max_num_batched_tokens=4_000_000))
        assert (made.fits, made.constraint) == (False, "activations")
        assert made.missing_bytes > 0

    def test_facts_survive_the_plan(self):
        again = facts_from_document(facts_to_document(facts("bge-m3")), where="plan.json", path="models")
        assert not again.has_kv_cache


class TestPlans:
    def planned(self, *entries, **kwargs):
        made = plan(fleet_facts("a"), entries, **kwargs)
        assert refused(made) == {}
        return made

    @pytest.mark.parametrize("task", ["embed", "score"])
    def test_capacity_of_an_encoder_is_that_of_prefill_alone(self, task):
        entry = model(
            "m",
            "bge-m3" if task == "embed" else "bge-reranker-v2-m3",
            task=task,
            max_model_len=8192,
            demand={"requests_per_second": 50, "prompt_tokens": 512, "output_tokens": 256},
            objectives={"ttft_ms": 500},
        )
        (one,) = self.planned(entry).instances
        assert one.engine_args["runner"] == "pooling"
        assert one.engine_args["max_num_batched_tokens"] == 8192
        assert one.memory["kv_cache_tokens_planned"] == 0
        # 568 million parameters, 512 tokens: 0.6 TFLOP a request on 362 TFLOPS at best.
        assert 100 < one.speed["capacity_requests_per_s"] < 362e12 / (2 * 302e6 * 512)
        assert any("keeps no KV cache" in reason for reason in one.reasons)

    def test_a_plan_with_an_encoder_is_read_and_simulated(self):
        demand = {"requests_per_second": 20, "prompt_tokens": 256}
        made = self.planned(model("m", "bge-m3", task="embed", max_model_len=8192, demand=demand))
        text = json.dumps(plan_to_document(made))
        simulation, left_out = simulation_of(plan_from_json(text, where="plan.json"), where="plan.json")
        assert left_out == {}
        assert simulation is not None

    def test_encoders_share_a_gpu(self):
        entries = [model(f"m{n}", "bge-m3", task="embed", max_model_len=512) for n in range(6)]
        made = self.planned(*entries)
        shared = [one for one in made.instances if one.sharing is not None]
        assert shared
        assert all("kv_cache_memory_bytes" not in one.engine_args for one in shared)

    def test_an_embedder_that_decodes_has_a_kv_cache_and_no_head(self):
        (one,) = self.planned(model("m", "qwen3-embedding-0.6b", task="embed", max_model_len=8192)).instances
        assert one.engine_args["runner"] == "pooling"
        assert one.memory["kv_cache_tokens_planned"] > 0

    def test_what_images_take_is_counted(self):
        both = self.planned(model("m", "qwen2.5-vl-7b", max_model_len=32768)).instances[0]
        images = {"max_model_len": 32768, "limit_mm_per_prompt": {"image": 4, "video": 0}}
        no_video = self.planned(model("m", "qwen2.5-vl-7b", **images)).instances[0]
        nothing = {"max_model_len": 32768, "limit_mm_per_prompt": {"image": 0, "video": 0}}
        text_only = self.planned(model("m", "qwen2.5-vl-7b", **nothing)).instances[0]
        tokens = [one.memory["kv_cache_tokens_planned"] for one in (both, no_video, text_only)]
        assert tokens == sorted(tokens)
        assert len(set(tokens)) == 3
        assert any("never measured" in reason for reason in both.reasons)
        assert no_video.engine_args["limit_mm_per_prompt"] == {"image": 4, "video": 0}

    def test_smaller_images_leave_more_to_the_kv_cache(self):
        few = {"mm_processor_kwargs": {"max_pixels": 28 * 28 * 1024}}
        limits = {"max_model_len": 8192, "limit_mm_per_prompt": {"video": 0}}
        entries = [
            model("large", "qwen2.5-vl-7b", **limits),
            model("small", "qwen2.5-vl-7b", **limits, engine_args=few),
        ]
        tokens = {one.model: one.memory["kv_cache_tokens_planned"] for one in self.planned(*entries).instances}
        assert tokens["small"] > tokens["large"] + 8192

    def test_encoders_are_not_quantized(self):
        assert not can_be_made(facts("bge-m3"))
        assert not can_be_made(facts("qwen2.5-vl-7b"))
        assert can_be_made(facts("llama-3-8b"))


class TestVision:
    options = EngineOptions(max_model_len=32768)

    def images(self, **limits):
        given = tuple(sorted(limits.items())) or None
        return profiled_images(facts("qwen2.5-vl-7b"), replace(self.options, limit_mm_per_prompt=given))

    def test_the_engine_profiles_the_modality_with_the_most_tokens(self):
        assert self.images() == 2  # a video of 32,768 tokens
        assert self.images(video=0) == 1
        assert self.images(image=0, video=0) == 0

    def test_small_images_fill_a_batch(self):
        llava = facts("llava-1.5-7b")
        assert profiled_images(llava, replace(self.options, max_model_len=4096)) == 2048 // 576
        few = replace(self.options, max_model_len=4096, max_num_seqs=1, limit_mm_per_prompt=(("image", 1),))
        assert profiled_images(llava, few) == 1

    def test_the_encoder_takes_from_the_kv_cache_and_has_a_margin(self):
        vision = facts("qwen2.5-vl-7b")
        with_images = estimate_memory(vision, L40S, self.options)
        without = estimate_memory(vision, L40S, replace(self.options, limit_mm_per_prompt=(("image", 0), ("video", 0))))
        assert with_images.activation_bytes > without.activation_bytes + 1024 * MIB
        assert with_images.margin_bytes > without.margin_bytes


class TestAdapters:
    def entry(self, tmp_path, *, name="m", adapter=None, **lora):
        file = tmp_path / "adapter_config.json"
        file.write_text(json.dumps({**ADAPTER, **(adapter or {})}))
        adapters = [{"name": "adapted", "source": "org/adapter", "config": str(file)}]
        return model(name, "llama-3.1-8b", lora={"max_loras": 2, "max_rank": 16, "adapters": adapters, **lora})

    def test_adapters_are_given_to_the_engine_under_their_names(self, tmp_path):
        (one,) = plan(fleet_facts("a"), [self.entry(tmp_path)]).instances
        assert one.engine_args["lora_modules"] == [{"name": "adapted", "path": "org/adapter"}]
        assert (one.engine_args["enable_lora"], one.engine_args["max_lora_rank"]) == (True, 16)

    def test_the_room_for_adapters_is_that_of_every_slot(self):
        llama = facts("llama-3.1-8b")
        without = estimate_memory(llama, L40S, EngineOptions(max_model_len=8192))
        with_room = estimate_memory(llama, L40S, EngineOptions(max_model_len=8192, lora=LoraOptions(4, 64)))
        per_layer = (3 * 4096 + 6144) + (4096 + 4096) + (2 * 4096 + 28672) + (14336 + 4096)
        expected = 4 * 64 * 2 * (32 * per_layer + 2 * (128256 + 4096))
        assert with_room.weights_bytes - without.weights_bytes == expected

    @pytest.mark.parametrize(
        ("adapter", "constraint", "change"),
        [
            ({"r": 24}, "lora.max_rank", "lora.max_rank: 32"),
            ({"rank_pattern": {"q_proj": 64}}, "lora.max_rank", "lora.max_rank: 64"),
            ({"use_dora": True}, "lora.adapters", "lora.adapters without adapted"),
            ({"bias": "all"}, "lora.adapters", "lora.adapters without adapted"),
            ({"peft_type": "IA3"}, "lora.adapters", "lora.adapters without adapted"),
            ({"modules_to_save": ["lm_head"]}, "lora.adapters", "lora.adapters without adapted"),
        ],
    )
    def test_what_would_not_load_is_refused(self, tmp_path, adapter, constraint, change):
        (refusal,) = plan(fleet_facts("a"), [self.entry(tmp_path, adapter=adapter)]).refused
        assert (refusal.constraint, refusal.nearest_change) == (constraint, change)

    def test_encoders_take_none(self, tmp_path):
        entry = model("m", "bge-m3", task="embed", lora={"max_loras": 1})
        (refusal,) = plan(fleet_facts("a"), [entry]).refused
        assert refusal.constraint == "lora"

    def test_a_rank_that_vllm_does_not_know_is_a_fault_of_the_file(self):
        with pytest.raises(FleetError, match=r"lora\.max_rank: must be one of 1, 8, 16"):
            parse_requests(models_text(model("m", lora={"max_rank": 24})), where="models.yml")


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """The instances of inventory/example/kinds.yml by model."""
    output = tmp_path_factory.mktemp("example") / "plan.json"
    arguments = ["plan", "--facts", str(EXAMPLE / "facts.json"), "--models", str(EXAMPLE / "kinds.yml")]
    assert main([*arguments, "--output", str(output)]) == 0
    return {one.model: one for one in plan_from_json(output.read_text(), where="plan.json").instances}


class TestExample:
    def test_every_kind_is_planned(self, planned):
        assert {name: (one.task, one.takes, one.embedding_size) for name, one in planned.items()} == {
            "qwen3-30b-a3b": ("generate", (), None),
            "bge-m3": ("embed", (), 1024),
            "qwen3-embedding": ("embed", (), 1024),
            "bge-reranker": ("score", (), None),
            "qwen2.5-vl": ("generate", ("image",), None),
            "llama-3.1-8b": ("generate", (), None),
        }

    def test_the_demand_is_carried(self, planned):
        assert planned["bge-m3"].speed["capacity_requests_per_s"] >= 60

    def test_adapters_are_given_by_name(self, planned):
        modules = planned["llama-3.1-8b"].engine_args["lora_modules"]
        assert [one["name"] for one in modules] == ["llama-support", "llama-legal"]


class TestLabCheckpoints:
    @pytest.mark.parametrize("name", sorted(tiny_kinds.MAKERS))
    def test_the_same_bytes_every_time(self, name, tmp_path):
        for directory in ("one", "two"):
            tiny_kinds.MAKERS[name](tmp_path / directory)
        files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
        assert files
        for file in files:
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()

    @pytest.mark.parametrize("name", ["tiny-embedder", "tiny-reranker", "tiny-vision"])
    def test_the_configuration_says_what_the_tensors_hold(self, name, tmp_path):
        tiny_kinds.MAKERS[name](tmp_path / name)
        made = load_model_facts(tmp_path / name)
        assert made.unknown == ()
        assert made.checkpoint.parameters == made.parameters
