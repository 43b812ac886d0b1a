"""The seed's quantization decision guide, computed instead of remembered."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from .engine_options import EngineOptions
from .errors import FleetError
from .memory import estimate_memory
from .model import facts_from_config

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .hardware import GpuModel
    from .memory import MemoryEstimate
    from .model_facts import ModelFacts


@dataclass(frozen=True, slots=True)
class GuideRow:
    """One size of model. ``concurrency`` is how many requests of ``max_model_len`` the KV cache holds at once."""

    size: str
    model: str
    parameters: int
    strategy: str
    gpus: int
    tensor_parallel_size: int
    pipeline_parallel_size: int
    max_model_len: int
    kv_cache_tokens: int
    concurrency: float
    seed_says: str
    differs_because: str

    def to_document(self) -> dict[str, object]:
        """A JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Entry:
    size: str
    model: str
    config: Mapping[str, object]
    seed_strategies: tuple[str, ...]
    seed_gpus: tuple[int, int]
    seed_says: str


def _llama(**keys: object) -> dict[str, object]:
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", **keys}


_ENTRIES: tuple[_Entry, ...] = (
    _Entry(
        "7B",
        "Llama-2-7B",
        _llama(
            hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=11008,
            vocab_size=32000, max_position_embeddings=4096,
        ),
        ("none",),
        (1, 1),
        "FP16 or BF16 on 1 GPU",
    ),
    _Entry(
        "13B",
        "Llama-2-13B",
        _llama(
            hidden_size=5120, num_hidden_layers=40, num_attention_heads=40, intermediate_size=13824,
            vocab_size=32000, max_position_embeddings=4096,
        ),
        ("none",),
        (1, 1),
        "FP16 on 1 GPU",
    ),
    _Entry(
        "34B",
        "CodeLlama-34B",
        _llama(
            hidden_size=8192, num_hidden_layers=48, num_attention_heads=64, num_key_value_heads=8,
            intermediate_size=22016, vocab_size=32000, max_position_embeddings=16384,
        ),
        ("int8", "awq"),
        (1, 2),
        "INT8 or AWQ INT4 on 1 to 2 GPUs",
    ),
    _Entry(
        "70B",
        "Llama-3-70B",
        _llama(
            hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
            intermediate_size=28672, vocab_size=128256, max_position_embeddings=8192,
        ),
        ("awq", "gptq"),
        (1, 2),
        "AWQ or GPTQ INT4 on 1 to 2 GPUs",
    ),
    _Entry(
        "180B",
        "Falcon-180B",
        {
            "architectures": ["FalconForCausalLM"], "model_type": "falcon", "torch_dtype": "bfloat16",
            "hidden_size": 14848, "num_hidden_layers": 80, "num_attention_heads": 232, "num_kv_heads": 8,
            "new_decoder_architecture": True, "bias": False, "vocab_size": 65024,
        },
        ("gptq",),
        (4, 5),
        "GPTQ INT4 on 4 to 5 GPUs",
    ),
)  # fmt: skip

# How far a model may spread: beyond two L40S on PCIe a more compact precision serves more per GPU than a wider spread.
_SMALL_GROUP = 2
_MOST_GPUS = 8
# A strategy that holds fewer requests of full length at once is one that starts, not one to serve with.
_USEFUL_CONCURRENCY = 4.0
_PRECISIONS = (
    ("none", "BF16"),
    ("fp8", "FP8 W8A8"),
    ("int8", "INT8 W8A8"),
    ("awq", "AWQ INT4"),
    ("gptq", "GPTQ INT4"),
)


def guide_rows(gpu: GpuModel) -> list[GuideRow]:
    """The guide for one GPU: fewest GPUs first, and on as many the most faithful precision that is useful."""
    return [_row(entry, gpu) for entry in _ENTRIES]


def _row(entry: _Entry, gpu: GpuModel) -> GuideRow:
    model = facts_from_config(entry.config, where=f"guide: {entry.model}")
    for gpus, name, label, options in _strategies():
        estimate = _estimate(model, gpu, options)
        if estimate is not None and estimate.fits and estimate.max_concurrency >= _USEFUL_CONCURRENCY:
            return GuideRow(
                size=entry.size,
                model=entry.model,
                parameters=model.parameters,
                strategy=label if options.kv_cache_dtype == "auto" else f"{label}, FP8 KV cache",
                gpus=gpus,
                tensor_parallel_size=options.tensor_parallel_size,
                pipeline_parallel_size=options.pipeline_parallel_size,
                max_model_len=estimate.max_model_len,
                kv_cache_tokens=estimate.kv_cache_tokens_planned,
                concurrency=estimate.max_concurrency,
                seed_says=entry.seed_says,
                differs_because=_difference(entry, model, gpu, name, gpus),
            )
    raise FleetError(f"guide: {entry.model}", f"fits no group of up to {_MOST_GPUS} {gpu.name}")


def _strategies() -> Iterator[tuple[int, str, str, EngineOptions]]:
    """Groups of one and two GPUs through all precisions, then wider ones with INT4 alone."""
    for gpus in range(1, _MOST_GPUS + 1):
        for name, label in _PRECISIONS if gpus <= _SMALL_GROUP else _PRECISIONS[-1:]:
            for kv in ("auto", "fp8"):
                for tensor_size in (1, 2):
                    if gpus % tensor_size:
                        continue
                    options = EngineOptions(
                        quantization=None if name == "none" else name,
                        kv_cache_dtype=kv,
                        attention_backend="TRITON_ATTN" if kv == "fp8" else None,
                        tensor_parallel_size=tensor_size,
                        pipeline_parallel_size=gpus // tensor_size,
                    )
                    yield gpus, name, label, options


def _estimate(model: ModelFacts, gpu: GpuModel, options: EngineOptions) -> MemoryEstimate | None:
    try:
        return estimate_memory(model, gpu, options)
    except FleetError:
        return None


def _difference(entry: _Entry, model: ModelFacts, gpu: GpuModel, name: str, gpus: int) -> str:
    """Why the answer is not the seed's, with the figures of the seed's own strategy."""
    fewest, most = entry.seed_gpus
    if name in entry.seed_strategies and fewest <= gpus <= most:
        return ""
    wanted = entry.seed_strategies[0]
    options = EngineOptions(
        quantization=None if wanted == "none" else wanted, pipeline_parallel_size=fewest, attention_backend=None
    )
    estimate = _estimate(model, gpu, options)
    if estimate is None:
        return f"{wanted} on {fewest} GPU cannot be split so"
    if not estimate.fits:
        return f"{wanted} on {fewest} GPU does not start: {estimate.reason}"
    held = f"{estimate.max_concurrency:.1f} requests of {estimate.max_model_len} tokens at once"
    if estimate.max_concurrency < _USEFUL_CONCURRENCY:
        return f"{wanted} on {fewest} GPU starts but holds {held}"
    if name in ("none", "fp8") and gpus <= most:
        return f"a more faithful precision fits as many GPUs; {wanted} on {fewest} GPU would hold {held}"
    return f"{wanted} on {fewest} GPU holds {held}"
