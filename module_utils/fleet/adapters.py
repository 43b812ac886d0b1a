"""LoRA adapters: what vLLM would refuse of them, seen before anything is started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .engine_options import LORA_RANKS
from .plan_document import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .configurations import FurtherCheckpoint, ResolvedModel
    from .requests import Lora, LoraAdapter

# vLLM's own limit (lora/layers/logits_processor.py).
_LARGEST_VOCABULARY = 258048
# Heads of classifiers, the only modules that an adapter may replace (lora/peft_helper.py).
_REPLACEABLE = frozenset({"classifier", "score"})


def refused_adapters(model: ResolvedModel) -> Refusal | None:
    """Refuse a model whose adapters would not load."""
    request, lora = model.request, model.request.lora
    if lora is None:
        return None
    if request.engine == "triton" and lora.adapters:
        problem = "Triton's vLLM backend takes no adapters from the plan: lora_modules is an option of vllm serve."
        return Refusal(request.name, "lora.adapters", problem, "engine: vllm")
    if not model.facts.has_kv_cache:
        return Refusal(request.name, "lora", "vLLM takes no adapters for encoders.", "lora left out")
    vocabulary = model.facts.vocab_size
    if vocabulary > _LARGEST_VOCABULARY:
        problem = f"vLLM takes adapters for vocabularies up to {_LARGEST_VOCABULARY}, this one has {vocabulary}."
        return Refusal(request.name, "lora", problem, "lora left out")
    return next(filter(None, (_refused_adapter(model, lora, adapter) for adapter in lora.adapters)), None)


def _refused_adapter(model: ResolvedModel, lora: Lora, adapter: LoraAdapter) -> Refusal | None:
    found = model.further_by_label(adapter.label)
    if found is None:
        return None
    rank = largest_rank(found.config)
    if rank is not None and rank > lora.max_rank:
        problem = f"The adapter {adapter.name} has rank {rank}, lora.max_rank is {lora.max_rank}."
        sufficient = next((str(one) for one in LORA_RANKS if one >= rank), "an adapter of smaller rank")
        return Refusal(model.request.name, "lora.max_rank", problem, f"lora.max_rank: {sufficient}")
    for fault in _faults(found):
        said = f"The adapter {adapter.name} {fault}."
        return Refusal(model.request.name, "lora.adapters", said, f"lora.adapters without {adapter.name}")
    return None


def largest_rank(config: Mapping[str, object]) -> int | None:
    """The rank that room is needed for, None where the configuration does not say it."""
    pattern = config.get("rank_pattern")
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    return max((rank for rank in ranks if isinstance(rank, int)), default=None)


def _faults(adapter: FurtherCheckpoint) -> Iterator[str]:
    """What vLLM's PEFTHelper refuses."""
    config = adapter.config
    if config.get("peft_type", "LORA") != "LORA":
        yield f"is no LoRA but {config['peft_type']}, which vLLM does not serve"
    if config.get("use_dora"):
        yield "is a DoRA, which vLLM does not serve"
    if config.get("bias", "none") not in (None, "none"):
        yield "changes biases, which vLLM does not serve"
    modules = config.get("modules_to_save")
    replaced = sorted(set(map(str, modules)) - _REPLACEABLE) if isinstance(modules, list) else []
    if replaced:
        yield f"replaces {', '.join(replaced)} as a whole, which vLLM does not serve"
