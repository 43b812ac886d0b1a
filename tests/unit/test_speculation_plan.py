"""Speculative decoding from models.yml to the engine's arguments: what is planned, what is refused and why."""

import json

import pytest
from fleet.eagle_head import eagle3_facts
from fleet.engine_options import EngineOptions, SpeculativeOptions
from fleet.errors import FleetError
from fleet.hardware import gpu_by_name
from fleet.memory import estimate_memory
from fleet.model import facts_from_config
from model_configs import config
from plan_samples import CONFIGS, facts, model, plan
from test_requests import entry, fault, parse

L40S = gpu_by_name("L40S", where="test")
# The configuration of an EAGLE3 head for Llama-3.1-8B, as published heads have it.
HEAD = json.loads((CONFIGS.parent / "draft_configs" / "eagle3-llama-3-8b.json").read_text())
# Its tensors: 425 million numbers beside the tables that say which tokens it drafts.
HEAD_PARAMETERS = (
    3 * 4096 * 4096 + 2 * 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336 + 4096 * 32000 + 4 * 4096
)


def drafted(name, draft, target="llama-3-8b", **changes):
    speculative = {"method": "draft_model", "model": f"org/{draft}", "config": str(CONFIGS / f"{draft}.json")}
    return model(name, target, speculative={**speculative, **changes})


def only(made):
    (one,) = made.instances
    return one


def refusal(made):
    (one,) = made.refused
    return one


def test_the_source_notes_example_is_refused_with_what_to_use_instead():
    """TinyLlama-1.1B for Llama-3-8B: six tokens, drafts of at most 4,096."""
    made = plan(facts("a"), [drafted("m", "tinyllama-1.1b", num_speculative_tokens=6)])
    assert made.instances == ()
    one = refusal(made)
    assert one.constraint == "speculative.model"
    assert one.explanation == (
        "The draft org/tinyllama-1.1b has a vocabulary of 32,000 tokens, the model one of 128,256; vLLM refuses that."
    )
    assert one.nearest_change == (
        "speculative.model: hf:meta-llama/Llama-3.2-1B-Instruct, or an EAGLE3 head of the model"
        " (speculative.method: eagle3) or n-grams (speculative: {method: ngram})"
    )


def test_a_draft_is_named_to_the_engine_and_takes_memory():
    alone = only(plan(facts("a"), [model("m")]))
    one = only(plan(facts("a"), [drafted("m", "llama-3.2-1b", num_speculative_tokens=5)]))
    assert one.engine_args["speculative_config"] == {
        "method": "draft_model",
        "model": "org/llama-3.2-1b",
        "num_speculative_tokens": 5,
    }
    # 1.24 billion parameters; a token of cache is 16 layers of 8 heads of 64 larger.
    assert one.memory["weights_bytes"] - alone.memory["weights_bytes"] == pytest.approx(2 * 1_235_814_400, rel=0.02)
    assert one.memory["kv_cache_tokens_planned"] < alone.memory["kv_cache_tokens_planned"] * 0.8


def test_more_tokens_take_more_logits_where_the_budget_is_the_card():
    def planned(tokens):
        options = EngineOptions(
            max_model_len=4096, gpu_memory_utilization=0.99, speculative=SpeculativeOptions("ngram", tokens)
        )
        return estimate_memory(facts_from_config(config("llama-3-8b"), where="t"), L40S, options)

    few, many = planned(2), planned(5)
    assert few.available_kv_cache_bytes == many.available_kv_cache_bytes
    assert few.kv_cache_tokens_planned > many.kv_cache_tokens_planned


@pytest.mark.parametrize(
    ("changes", "constraint", "change"),
    [
        ({"max_model_len": 2048}, "speculative.max_model_len", "max_model_len: 2048"),
        ({"max_model_len": 200_000}, "speculative.max_model_len", "speculative.max_model_len: 131072"),
    ],
)
def test_a_draft_that_reads_less_than_is_served(changes, constraint, change):
    one = refusal(plan(facts("a"), [drafted("m", "llama-3.2-1b", **changes)]))
    assert one.constraint == constraint
    assert one.nearest_change.startswith(change)


def test_without_a_length_no_more_is_served_than_the_draft_reads():
    entry_of = drafted("m", "llama-3-8b", "llama-3.1-8b")
    del entry_of["max_model_len"]
    one = only(plan(facts("a"), [{**entry_of, "quantization": "fp8"}]))
    assert one.engine_args["max_model_len"] == 8192


def test_the_draft_is_split_as_the_model_is():
    made = plan(facts("a"), [drafted("m", "llama-3.2-1b", draft_tensor_parallel_size=1) | {"tensor_parallel": 2}])
    assert "1 is refused by the worker of a draft model, whose model has 2" in refusal(made).explanation
    made = plan(facts("a"), [drafted("m", "llama-3.2-1b", draft_tensor_parallel_size=3)])
    assert "ust be 1 or the model's tensor parallel size 1, got 3" in refusal(made).explanation
    assert refusal(made).nearest_change.startswith("leave speculative.draft_tensor_parallel_size out")
    one = only(plan(facts("a"), [drafted("m", "llama-3.2-1b") | {"tensor_parallel": 2}]))
    assert one.engine_args["tensor_parallel_size"] == 2
    assert "draft_tensor_parallel_size" not in one.engine_args["speculative_config"]


def test_a_path_from_which_vllm_reads_another_method():
    one = refusal(plan(facts("a"), [drafted("m", "llama-3.2-1b", model="org/Eagle-1B")]))
    assert one.explanation == "vLLM would take the draft for another kind: its path org/Eagle-1B has 'eagle-' in it."


def test_an_embedding_model_decodes_nothing():
    one = refusal(plan(facts("a"), [model("m", task="embed", speculative={"method": "ngram"})]))
    assert (one.constraint, one.nearest_change) == ("speculative", "speculative: none")


class TestEagle3:
    def test_a_head_has_the_parameters_of_published_ones(self):
        tensors = ["midlayer.self_attn.q_proj.weight", "fc.weight", "lm_head.weight", "d2t", "t2d", "norm.weight"]
        assert eagle3_facts(HEAD, tensors, where="t").parameters == HEAD_PARAMETERS
        own = eagle3_facts(HEAD, [*tensors, "embed_tokens.weight"], where="t").parameters
        assert own - HEAD_PARAMETERS == 128256 * 4096

    def test_a_head_is_planned(self, tmp_path):
        path = tmp_path / "head.json"
        path.write_text(json.dumps(HEAD))
        speculative = {"method": "eagle3", "model": "hf:org/head", "config": str(path), "num_speculative_tokens": 2}
        alone = only(plan(facts("a"), [model("m", "llama-3.1-8b", max_model_len=16384)]))
        one = only(plan(facts("a"), [model("m", "llama-3.1-8b", max_model_len=16384, speculative=speculative)]))
        assert one.engine_args["speculative_config"] == {
            "method": "eagle3",
            "model": "org/head",
            "num_speculative_tokens": 2,
        }
        # The head reads as far as the model does, whatever its own configuration says (0.33).
        assert one.engine_args["max_model_len"] == 16384
        more = one.memory["weights_bytes"] - alone.memory["weights_bytes"]
        assert more == pytest.approx(2 * (HEAD_PARAMETERS + 128256 * 4096), rel=0.01)

    def test_a_head_of_another_model_is_refused(self, tmp_path):
        path = tmp_path / "head.json"
        path.write_text(json.dumps(HEAD))
        speculative = {"method": "eagle3", "model": "hf:org/head", "config": str(path)}
        one = refusal(plan(facts("a"), [model("m", "llama-3-70b", speculative=speculative)]))
        assert one.constraint == "speculative.model"
        assert "hidden states of 4,096, the model's have 8,192" in one.explanation

    def test_a_head_taken_for_a_draft_model(self, tmp_path):
        path = tmp_path / "head.json"
        path.write_text(json.dumps(HEAD))
        speculative = {"method": "draft_model", "model": "hf:org/head", "config": str(path)}
        one = refusal(plan(facts("a"), [model("m", speculative=speculative)]))
        assert one.nearest_change == "speculative.method: eagle3"

    def test_a_pipeline_of_a_family_that_hands_no_states_on(self):
        head = eagle3_facts(HEAD, None, where="t")
        options = EngineOptions(
            max_model_len=4096,
            pipeline_parallel_size=2,
            speculative=SpeculativeOptions("eagle3", 2, model="x", draft=head),
        )
        for name, served in (("llama-3-8b", True), ("mixtral-8x7b", False)):
            facts_of = facts_from_config(config(name, vocab_size=128256), where="t")
            if served:
                assert estimate_memory(facts_of, L40S, options).fits
                continue
            with pytest.raises(FleetError, match="hand no hidden states on to an EAGLE3 head"):
                estimate_memory(facts_of, L40S, options)

    def test_a_model_is_no_head(self):
        with pytest.raises(FleetError, match="is no EAGLE3 head"):
            eagle3_facts(config("llama-3.2-1b"), None, where="t")


@pytest.mark.parametrize(
    ("speculative", "problem"),
    [
        ("sometimes", "speculative: must be auto, none or a mapping with a method, got 'sometimes'"),
        ({"method": "draft_model"}, "speculative.model: is required for draft_model"),
        ({"method": "ngram", "model": "org/x"}, "speculative.model: is not used by ngram"),
        ({"method": "ngram", "prompt_lookup_min": 4, "prompt_lookup_max": 2}, "must be at most prompt_lookup_max 2"),
        ({"method": "draft_model", "model": "s3:x"}, "speculative.model: s3: is no kind of source"),
        ({"method": "draft_model", "model": "org/x", "prompt_lookup_max": 2}, "is not used by draft_model"),
        ({"method": "medusa", "model": "org/x"}, "speculative.method"),
        ({"method": "ngram", "num_speculative_tokens": 0}, "speculative.num_speculative_tokens"),
        ({"method": "ngram", "speculative_model": "x"}, "speculative.speculative_model"),
    ],
)
def test_faults_name_the_key(speculative, problem):
    assert problem in fault(entry(speculative=speculative))


def test_what_is_written_short():
    assert parse(entry(speculative="none"))[0].speculative is None
    assert parse(entry(speculative="auto"))[0].speculative.method == "auto"
    assert parse(entry(speculative={"method": "ngram"}))[0].speculative.engine_document() == {
        "method": "ngram",
        "num_speculative_tokens": 3,
    }


class TestAttention:
    def backend(self, *arguments, **changes):
        one = only(plan(facts("a"), [model("m", *arguments, **changes)]))
        (said,) = [reason for reason in one.reasons if reason.startswith("Attention by ")]
        return one, one.memory["attention_backend"], said

    def test_a_cache_in_full_precision_is_left_to_vllm(self):
        one, backend, said = self.backend()
        assert "attention_backend" not in one.engine_args
        assert (backend, said) == ("FLASH_ATTN", "Attention by FLASH_ATTN, vLLM's own choice on this GPU.")

    def test_an_fp8_cache_names_the_backend_and_keeps_flashinfers_workspace_free(self):
        one, backend, said = self.backend(kv_cache_dtype="fp8")
        assert one.engine_args["attention_backend"] == backend == "TRITON_ATTN"
        assert "FlashAttention 2 has no FP8 cache" in said
        assert one.env["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
        assert one.memory["attention_workspace_bytes"] == 0
        asked, backend, said = self.backend(kv_cache_dtype="fp8", engine_args={"attention_backend": "FLASHINFER"})
        assert asked.memory["attention_workspace_bytes"] >= 394 * 2**20
        assert (asked.engine_args["attention_backend"], backend) == ("FLASHINFER", "FLASHINFER")
        assert said.endswith("; its kernels are compiled at the first start unless they are installed.")

    def test_models_on_triton_have_no_environment_of_their_own_so_that_they_share_a_server(self):
        one = only(plan(facts("a"), [model("m", engine="triton")]))
        assert set(one.env) <= {"CUDA_VISIBLE_DEVICES"}

    def test_mla_and_sinks_and_images(self):
        assert self.backend("deepseek-v2-lite")[1] == "TRITON_MLA"
        _, backend, said = self.backend("gpt-oss-20b")
        assert backend == "TRITON_ATTN"
        assert "has no attention sinks" in said
        assert self.backend("gemma-3-4b")[1] == "TRITON_ATTN"


class TestAuto:
    """``speculative: auto`` drafts where the speed model says that it pays at the load of an instance."""

    def one(self, rate, *, current=(), target="llama-3-8b", **speculative):
        wanted = {"method": "auto", **speculative}
        demand = {"requests_per_second": rate, "prompt_tokens": 512, "output_tokens": 128}
        made = plan(facts("a", gpus=1), [model("m", target, demand=demand, speculative=wanted)], current)
        return only(made)

    def said(self, one):
        return next(reason for reason in one.reasons if "peculative" in reason or reason.startswith("Drafts "))

    def test_n_grams_at_a_light_load_with_the_assumption_in_the_reason(self):
        one = self.one(0.2)
        drafted = one.engine_args["speculative_config"]
        assert drafted["method"] == "ngram"
        assert self.said(one).startswith(f"Drafts {drafted['num_speculative_tokens']} token")
        assert "20% of drafted tokens are accepted is an assumption" in self.said(one)

    def test_nothing_at_a_heavy_load(self):
        one = self.one(24)
        assert "speculative_config" not in one.engine_args
        assert self.said(one).startswith("No speculative decoding: at ")
        assert "times as fast" in self.said(one)

    def test_a_measured_acceptance_decides(self):
        assert "speculative_config" not in self.one(0.2, acceptance_rate=0.02).engine_args
        one = self.one(0.2, acceptance_rate=0.6)
        assert "speculative.acceptance_rate says that 60%" in self.said(one)

    def test_a_draft_that_is_named_is_used_and_its_memory_counted(self):
        draft = {"model": "org/llama-3.2-1b", "config": str(CONFIGS / "llama-3.2-1b.json")}
        one, without = self.one(0.2, **draft), self.one(0.2)
        assert one.engine_args["speculative_config"]["method"] == "draft_model"
        assert one.memory["weights_bytes"] > without.memory["weights_bytes"] + 2_000_000_000
        busy = self.one(24, **draft)
        assert "speculative_config" not in busy.engine_args

    def test_a_draft_as_slow_as_the_model_is_left_out(self):
        one = self.one(0.2, model="org/same", config=str(CONFIGS / "llama-3-8b.json"))
        assert "speculative_config" not in one.engine_args

    def test_what_drafts_goes_on_while_it_is_not_slower(self):
        """Between the load at which drafting would begin and that at which it is slower, engines stay as they are."""
        light, between = self.one(12), 20
        assert "speculative_config" in light.engine_args
        assert "speculative_config" not in self.one(between).engine_args
        kept = self.one(between, current=[light])
        assert kept.engine_args["speculative_config"] == light.engine_args["speculative_config"]
        assert self.one(between, current=[kept]) == kept
        off = self.one(between)
        assert self.one(between, current=[off]).engine_args == off.engine_args

    def test_without_a_demand_nothing_is_known(self):
        one = only(plan(facts("a"), [model("m", speculative="auto")]))
        assert self.said(one) == (
            "No speculative decoding: without a demand it is not known how many sequences run at a time."
        )

    def test_what_was_asked_for_says_what_it_brings(self):
        (said,) = [
            reason
            for reason in only(plan(facts("a"), [model("m", speculative={"method": "ngram"})])).reasons
            if reason.startswith("Drafts 3 tokens a step by n-grams, as asked for: at 1 running sequence ")
        ]
        assert "times as fast" in said
