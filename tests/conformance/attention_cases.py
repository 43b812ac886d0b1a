"""Models whose attention backend the plan foresees, as vLLM's selector is asked for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from argument_sets import L40S, config
from fleet.engine_options import EngineOptions
from fleet.memory import attention_backend
from fleet.model import facts_from_config
from fleet.quantization import choose_precision

# Name of the configuration, KV cache.
_MODELS = (
    ("llama-3-8b", "auto"),
    ("llama-3-8b", "fp8"),
    ("qwen3-8b", "fp8"),
    ("gemma-2-9b", "auto"),
    ("gemma-3-4b", "auto"),
    ("gpt-oss-20b", "auto"),
    ("deepseek-v2-lite", "auto"),
)


def attention_cases() -> list[dict[str, Any]]:
    """Each with ``planned``, the backend that the plan foresees, and ``named``, what it writes into the arguments."""
    cases = []
    for name, kv_cache_dtype in _MODELS:
        facts = facts_from_config(config(name), where=name)
        asked = EngineOptions(max_model_len=4096)
        chosen = choose_precision(facts, L40S, asked, kv_cache_dtype=kv_cache_dtype).options
        options = chosen or replace(asked, kv_cache_dtype=kv_cache_dtype)
        attention = facts.layer_kinds[0].attention
        mla = attention.kind == "mla"
        cases.append(
            {
                "name": f"{name}, KV cache {kv_cache_dtype}",
                "planned": attention_backend(facts, L40S, options),
                "named": options.attention_backend,
                "head_size": attention.kv_lora_rank + attention.qk_rope_head_dim if mla else attention.head_size,
                "kv_cache_dtype": kv_cache_dtype,
                "use_mla": mla,
                "has_sink": facts.layer_kinds[0].sharded_parameters > 0,
                "use_mm_prefix": facts.has_bidirectional_images,
            }
        )
    return cases
