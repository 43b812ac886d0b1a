"""Argument sets that the planner makes, and impossible ones, for the real engine to judge."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from fleet.eagle_head import eagle3_facts
from fleet.engine_options import (
    DEFAULT_ENGINE_VERSION,
    EngineOptions,
    LoraOptions,
    SpeculativeOptions,
    engine_args_document,
)
from fleet.errors import FleetError
from fleet.hardware import gpu_by_name
from fleet.host_document import parse_hosts
from fleet.memory import estimate_memory
from fleet.model import facts_from_config
from fleet.model_sources import read_models_file, resolve_models
from fleet.planning import make_plan

CONFIGS = Path(__file__).resolve().parent.parent / "data" / "model_configs"
EXAMPLE = Path(__file__).resolve().parents[2] / "inventory" / "example"
L40S = gpu_by_name("L40S", where="test")
# As published heads for Llama-3-8B have it.
EAGLE3_HEAD = json.loads((CONFIGS.parent / "draft_configs" / "eagle3-llama-3-8b.json").read_text())

FAMILIES = (
    "llama-2-7b", "llama-3-8b", "llama-3-70b", "llama-3.2-1b", "codellama-34b", "mistral-7b-v0.1", "mistral-7b-v0.3",
    "mixtral-8x7b", "qwen2.5-7b", "qwen2.5-72b", "qwen3-8b", "qwen3-32b", "qwen3-30b-a3b", "qwen1.5-moe-a2.7b",
    "gemma-2-9b", "gemma-2-27b", "gemma-3-1b", "gemma-3-12b-text", "gemma-3-27b-text", "phi-3-mini-4k", "phi-4",
    "falcon-7b", "falcon-180b", "deepseek-v2-lite", "gpt-oss-20b", "gpt-oss-120b",
)  # fmt: skip


def _weights(bits: int, kind: str, strategy: str, group: int | None = None) -> dict[str, object]:
    return {"num_bits": bits, "type": kind, "strategy": strategy, "group_size": group, "symmetric": True}


def _compressed(weights: dict[str, object], inputs: dict[str, object] | None, layout: str) -> dict[str, object]:
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}},
    }


QUANTIZED_CHECKPOINTS: dict[str, dict[str, object]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True, "lm_head": False},
    "int8": _compressed(
        _weights(8, "int", "channel"), {**_weights(8, "int", "token"), "dynamic": True}, "int-quantized"
    ),
    "w4a16": _compressed(_weights(4, "int", "group", 128), None, "pack-quantized"),
}


def config(name: str) -> dict[str, object]:
    """The content of one config.json."""
    return json.loads((CONFIGS / f"{name}.json").read_text())  # type: ignore[no-any-return]


def planned_sets() -> list[dict[str, object]]:
    """Sets that fit on L40S: every family in each precision and on the smallest group that holds it."""
    sets = []
    for name in FAMILIES:
        base = config(name)
        precisions = ["none", "fp8", *QUANTIZED_CHECKPOINTS] if "quantization_config" not in base else ["none"]
        for precision in precisions:
            checkpoint = dict(base)
            if precision in QUANTIZED_CHECKPOINTS:
                checkpoint["quantization_config"] = QUANTIZED_CHECKPOINTS[precision]
            found = _smallest(name, precision, checkpoint)
            if found is not None:
                sets.append(found)
    return sets + _special_sets() + _kinds()


def _smallest(name: str, precision: str, checkpoint: dict[str, object]) -> dict[str, object] | None:
    model = facts_from_config(checkpoint, where=name)
    for tensor, pipeline in ((1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (1, 4), (2, 4)):
        options = EngineOptions(
            quantization="fp8" if precision == "fp8" else None,
            kv_cache_dtype="fp8" if precision in ("int8", "w4a16") else "auto",
            attention_backend="TRITON_ATTN" if precision in ("int8", "w4a16") else None,
            max_model_len=min(4096, model.max_position_embeddings),
            max_num_seqs=128,
            tensor_parallel_size=tensor,
            pipeline_parallel_size=pipeline,
        )
        if model.layer_kinds[0].attention.kind == "mla":
            options = replace(options, kv_cache_dtype="auto", attention_backend=None)
        try:
            estimate = estimate_memory(model, L40S, options)
        except FleetError:
            continue
        if estimate.fits:
            return {"name": f"{name} {precision}", "config": checkpoint, "engine_args": engine_args_document(options)}
    return None


def _kinds() -> list[dict[str, object]]:
    """The instances of inventory/example/kinds.yml: parsers, encoders, adapters; images need a processor."""
    models_file = str(EXAMPLE / "kinds.yml")
    models, _ = resolve_models(read_models_file(models_file), models_file, with_checkpoints=False)
    hosts = parse_hosts(json.loads((EXAMPLE / "facts.json").read_text()), where="facts.json")
    plan = make_plan(hosts, models, (), engine_version=DEFAULT_ENGINE_VERSION)
    configs = {model.request.name: EXAMPLE / str(model.request.config) for model in models}
    return [
        {
            "name": f"kind {one.model}",
            "config": json.loads(configs[one.model].read_text()),
            # A reasoning parser looks into the tokenizer, which a configuration alone does not have.
            "engine_args": {
                name: value for name, value in one.engine_args.items() if name not in ("model", "reasoning_parser")
            },
        }
        for one in plan.instances
        if not one.takes
    ]


def _special_sets() -> list[dict[str, object]]:
    """LoRA, speculation, memory given by hand, eager mode."""
    draft = facts_from_config(config("llama-3.2-1b"), where="draft")
    speculative = SpeculativeOptions("draft_model", 5, model="draft", draft=draft)
    head = eagle3_facts(EAGLE3_HEAD, None, where="head")
    eagle3 = SpeculativeOptions("eagle3", 3, model="draft", draft=head)
    lookups = (("prompt_lookup_max", 4), ("prompt_lookup_min", 2))
    special = {
        "lora": EngineOptions(max_model_len=8192, lora=LoraOptions(max_loras=4, max_lora_rank=64)),
        "eager": EngineOptions(max_model_len=8192, enforce_eager=True, gpu_memory_utilization=0.85),
        "ngram": EngineOptions(max_model_len=8192, speculative=SpeculativeOptions("ngram", 4)),
        "ngram with lookups": EngineOptions(
            max_model_len=8192, speculative=SpeculativeOptions("ngram", 2, further=lookups)
        ),
        "draft model": EngineOptions(max_model_len=8192, speculative=speculative),
        "draft model, two ranks": EngineOptions(max_model_len=8192, speculative=speculative, tensor_parallel_size=2),
        "draft model that samples": EngineOptions(
            max_model_len=8192, speculative=replace(speculative, draft_sample_method="probabilistic")
        ),
        "shorter drafts": EngineOptions(max_model_len=4096, speculative=replace(speculative, max_model_len=4096)),
        "eagle3": EngineOptions(max_model_len=8192, speculative=eagle3),
        "given memory": EngineOptions(max_model_len=8192, kv_cache_memory_bytes=4 * 1024**3, block_size=16),
    }
    sets = []
    for name, options in special.items():
        assert estimate_memory(facts_from_config(config("llama-3-8b"), where="8b"), L40S, options).fits
        item: dict[str, object] = {
            "name": name, "config": config("llama-3-8b"), "engine_args": engine_args_document(options)
        }  # fmt: skip
        drafting = options.speculative
        if drafting is not None and drafting.draft is not None:
            item["draft_config"] = EAGLE3_HEAD if drafting.method == "eagle3" else config("llama-3.2-1b")
        sets.append(item)
    return sets


def impossible_sets() -> list[dict[str, object]]:
    """Sets that neither we nor the engine accept."""
    speculative = {"method": "draft_model", "num_speculative_tokens": 5}
    awq = {**config("llama-3-8b"), "quantization_config": QUANTIZED_CHECKPOINTS["awq"]}
    gptq = {**config("llama-3-8b"), "quantization_config": QUANTIZED_CHECKPOINTS["gptq"]}
    unknown = {**config("llama-3-8b"), "quantization_config": {"quant_method": "wonder", "bits": 4}}
    rows: list[tuple[str, dict[str, object], dict[str, object]]] = [
        ("three ranks for 32 heads", config("llama-3-8b"), {"tensor_parallel_size": 3}),
        ("five ranks for 32 heads", config("llama-3-8b"), {"tensor_parallel_size": 5}),
        ("eight ranks for 28 heads", config("qwen2.5-7b"), {"tensor_parallel_size": 8}),
        ("eight ranks for 4 heads", config("gemma-3-1b"), {"tensor_parallel_size": 8}),
        ("two ranks for 71 heads", config("falcon-7b"), {"tensor_parallel_size": 2}),
        ("three ranks for 40 heads", config("llama-2-13b"), {"tensor_parallel_size": 3}),
        ("context above the model's", config("llama-3-8b"), {"max_model_len": 100_000}),
        ("context above the model's, phi", config("phi-3-mini-4k"), {"max_model_len": 8192}),
        ("context above the model's, codellama", config("codellama-34b"), {"max_model_len": 16_385}),
        ("context 0", config("llama-3-8b"), {"max_model_len": 0}),
        ("unknown quantization", config("llama-3-8b"), {"quantization": "wonder"}),
        ("unknown quantization of the checkpoint", unknown, {}),
        ("fp8 asked of an AWQ checkpoint", awq, {"quantization": "fp8"}),
        ("fp8 asked of a GPTQ checkpoint", gptq, {"quantization": "fp8"}),
        (
            "fewer batched tokens than sequences",
            config("llama-3-8b"),
            {"max_num_batched_tokens": 100, "max_num_seqs": 256},
        ),
        ("no sequences", config("llama-3-8b"), {"max_num_seqs": 0}),
        ("unknown KV cache dtype", config("llama-3-8b"), {"kv_cache_dtype": "fp9"}),
        ("unknown dtype", config("llama-3-8b"), {"dtype": "int8"}),
        ("16-bit floats for Gemma", config("gemma-2-9b"), {"dtype": "float16"}),
        ("more memory than there is", config("llama-3-8b"), {"gpu_memory_utilization": 1.5}),
        ("no memory", config("llama-3-8b"), {"gpu_memory_utilization": 0.0}),
        ("unknown attention backend", config("llama-3-8b"), {"attention_backend": "WONDER"}),
        ("LoRA rank 17", config("llama-3-8b"), {"enable_lora": True, "max_lora_rank": 17}),
        ("no ranks", config("llama-3-8b"), {"tensor_parallel_size": 0}),
        ("a draft without a number of tokens", config("llama-3-8b"), {"speculative_config": {"method": "ngram"}}),
    ]
    sets = [{"name": name, "config": content, "engine_args": args} for name, content, args in rows]
    split = {"method": "draft_model", "num_speculative_tokens": 5}
    for ranks, drafts in ((4, 3), (1, 2)):
        sets.append(
            {
                "name": f"a draft on {drafts} ranks of {ranks}",
                "config": config("llama-3-8b"),
                "draft_config": config("llama-3.2-1b"),
                "engine_args": {
                    "tensor_parallel_size": ranks,
                    "speculative_config": {**split, "draft_tensor_parallel_size": drafts},
                },
            }
        )
    sets.append(
        {
            "name": "a draft of another vocabulary",
            "config": config("llama-3-8b"),
            "draft_config": config("tinyllama-1.1b"),
            "engine_args": {"speculative_config": speculative},
        }
    )
    return sets
