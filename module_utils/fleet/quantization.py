"""Which precision: the most faithful that meets memory and objectives, and why not the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .errors import FleetError
from .memory import MemoryEstimate, estimate_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .engine_options import EngineOptions
    from .hardware import GpuModel
    from .model_facts import ModelFacts

# Most faithful first. AWQ stands before GPTQ: of the two, its perplexity is slightly the better at 4 bits.
WEIGHT_PRECISIONS: tuple[str, ...] = ("none", "fp8", "int8", "awq", "gptq")
KV_CACHE_FP8 = "kv_fp8"
# Batch sizes above 4 for which the engine captures CUDA graphs are multiples of 8.
_GRAPH_STEP = 8
_MOST_SEQUENCES = 1024


@dataclass(frozen=True, slots=True)
class Alternative:
    """A precision that was considered, and why it was not taken (None for the one that was)."""

    quantization: str
    kv_cache_dtype: str
    why_not: str | None
    kv_cache_tokens_planned: int


@dataclass(frozen=True, slots=True)
class PrecisionChoice:
    """The precision to serve in. ``options`` and ``estimate`` are None when nothing fits."""

    quantization: str | None
    kv_cache_dtype: str | None
    options: EngineOptions | None
    estimate: MemoryEstimate | None
    alternatives: tuple[Alternative, ...]

    def reasons(self) -> list[str]:
        """The choice in sentences, for an instance's ``reasons``."""
        lines = [
            f"{item.quantization} with {item.kv_cache_dtype} KV cache: {item.why_not}"
            for item in self.alternatives
            if item.why_not is not None
        ]
        if self.quantization is not None:
            chosen = f"{self.quantization} with {self.kv_cache_dtype} KV cache"
            lines.insert(0, f"{chosen} is the most faithful precision that meets memory and objectives")
        return lines


def choose_precision(
    model: ModelFacts,
    gpu: GpuModel,
    options: EngineOptions,
    *,
    quantization: str = "auto",
    kv_cache_dtype: str = "auto",
    forbidden: Sequence[str] = (),
    sequences: int = 1,
    accept: Callable[[EngineOptions, MemoryEstimate], str | None] | None = None,
    budget_bytes: int | None = None,
) -> PrecisionChoice:
    """Choose the precision of weights and KV cache.

    Args:
        model: facts of the model. A quantized checkpoint is taken as it is.
        gpu: the card.
        options: everything but the precision.
        quantization: ``auto``, or one of ``WEIGHT_PRECISIONS`` to force it.
        kv_cache_dtype: ``auto`` lets FP8 be tried after the model's own, anything else forces it.
        forbidden: precisions of weights not to be used, and ``kv_fp8`` for the cache's.
        sequences: how many requests of ``max_model_len`` the KV cache has to hold.
        accept: objectives; returns why an estimate is not acceptable, or None.
        budget_bytes: as for ``estimate_memory``.

    Raises:
        FleetError: a precision is forced that contradicts the checkpoint.
    """
    considered: list[Alternative] = []
    for weights in _weight_candidates(model, quantization, forbidden):
        for kv in _kv_candidates(model, kv_cache_dtype, forbidden):
            candidate = _with_precision(model, gpu, options, weights, kv)
            estimate = estimate_memory(model, gpu, candidate, budget_bytes=budget_bytes)
            why_not = _why_not(candidate, estimate, sequences, accept)
            considered.append(Alternative(weights, kv, why_not, estimate.kv_cache_tokens_planned))
            if why_not is None:
                return PrecisionChoice(weights, kv, candidate, estimate, tuple(considered))
    return PrecisionChoice(None, None, None, None, tuple(considered))


def batch_sweet_spot(
    estimate: MemoryEstimate,
    *,
    tokens_per_request: int,
    meets_objectives: Callable[[int], bool] = lambda _: True,
) -> int:
    """``max_num_seqs``: as many requests as the KV cache holds and the objectives allow.

    Args:
        estimate: the memory of the instance.
        tokens_per_request: prompt and output of a typical request, what it holds at its end.
        meets_objectives: whether a batch of this size is fast enough; taken to be monotone.

    Returns:
        At least 1; above 8 a multiple of 8, since graphs are captured for those.
    """
    blocks = -(-tokens_per_request // estimate.block_size)
    room = estimate.kv_cache_tokens_planned // (blocks * estimate.block_size)
    low, high = 1, max(1, min(room, _MOST_SEQUENCES))
    while low < high:
        middle = (low + high + 1) // 2
        if meets_objectives(middle):
            low = middle
        else:
            high = middle - 1
    return low if low < _GRAPH_STEP else low // _GRAPH_STEP * _GRAPH_STEP


def _why_not(
    options: EngineOptions,
    estimate: MemoryEstimate,
    sequences: int,
    accept: Callable[[EngineOptions, MemoryEstimate], str | None] | None,
) -> str | None:
    if not estimate.fits:
        return estimate.reason
    if estimate.max_concurrency < sequences:
        return f"holds {estimate.max_concurrency:.1f} of {sequences} requests of {estimate.max_model_len} tokens"
    return accept(options, estimate) if accept is not None else None


def _with_precision(
    model: ModelFacts, gpu: GpuModel, options: EngineOptions, weights: str, kv_cache_dtype: str
) -> EngineOptions:
    backend = options.attention_backend
    if backend is None and kv_cache_dtype.startswith("fp8") and not gpu.is_hopper:
        # FlashAttention 2 has no FP8 cache. Triton needs neither a compiler on the host nor FlashInfer's workspace.
        backend = "TRITON_ATTN"
    return replace(
        options,
        quantization=None if weights == "none" or model.quantization is not None else weights,
        kv_cache_dtype=kv_cache_dtype,
        attention_backend=backend,
    )


def _weight_candidates(model: ModelFacts, quantization: str, forbidden: Sequence[str]) -> tuple[str, ...]:
    if model.quantization is not None:
        methods = {model.quantization.method, model.quantization.weight_format}
        if methods == {"compressed-tensors", "int4"}:
            # The format does not say which of the two found the scales.
            methods |= {"awq", "gptq"}
        if quantization not in ("auto", *methods) and not (quantization == "int8" and "int8" in methods):
            own = model.quantization.method
            raise FleetError("quantization", f"{quantization!r} is forced, the checkpoint is {own!r}")
        return (model.quantization.method,)
    if quantization != "auto":
        return (quantization,)
    return tuple(name for name in WEIGHT_PRECISIONS if name not in forbidden)


def _kv_candidates(model: ModelFacts, kv_cache_dtype: str, forbidden: Sequence[str]) -> tuple[str, ...]:
    if kv_cache_dtype != "auto":
        return (kv_cache_dtype,)
    if KV_CACHE_FP8 in forbidden or not model.has_kv_cache or model.layer_kinds[0].attention.kind == "mla":
        return ("auto",)  # MLA's cache is compressed already, and Triton's MLA on sm89 reads it in 16 bits
    return ("auto", "fp8")
