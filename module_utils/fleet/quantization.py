"""Which precision: the most faithful that meets memory and objectives, and why not the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .memory import MemoryEstimate, estimate_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .engine_options import EngineOptions
    from .hardware import GpuModel
    from .model_facts import ModelFacts

# Most faithful first.
WEIGHT_PRECISIONS: tuple[str, ...] = ("none", "fp8", "int8", "awq", "gptq")
KV_PRECISIONS: tuple[str, ...] = ("auto", "fp8")


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
            lines.insert(
                0, f"{self.quantization} with {self.kv_cache_dtype} KV cache is the most faithful that meets all"
            )
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
    """Choose weights and KV cache precision.

    Args:
        model: facts of the model. A quantized checkpoint is taken as it is.
        gpu: the card.
        options: everything but the precision.
        quantization: ``auto``, or one of ``WEIGHT_PRECISIONS`` to force it.
        kv_cache_dtype: ``auto`` lets FP8 be tried, anything else forces it.
        forbidden: weight or ``kv_fp8`` precisions not to be used.
        sequences: how many requests of ``max_model_len`` the KV cache has to hold.
        accept: objectives; returns why an estimate is not acceptable, or None.
        budget_bytes: as for ``estimate_memory``.
    """
    considered: list[Alternative] = []
    for weights in _weight_candidates(model, quantization, forbidden):
        for kv in KV_PRECISIONS if kv_cache_dtype == "auto" and "kv_fp8" not in forbidden else (kv_cache_dtype,):
            candidate = replace(
                options,
                quantization=None if weights == "none" or model.quantization is not None else weights,
                kv_cache_dtype=kv,
            )
            estimate = estimate_memory(model, gpu, candidate, budget_bytes=budget_bytes)
            why_not = estimate.reason if not estimate.fits else None
            if why_not is None and estimate.max_concurrency < sequences:
                why_not = f"holds {estimate.max_concurrency:.1f} of {sequences} requests at full length"
            if why_not is None and accept is not None:
                why_not = accept(candidate, estimate)
            considered.append(Alternative(weights, kv, why_not, estimate.kv_cache_tokens_planned))
            if why_not is None:
                return PrecisionChoice(weights, kv, candidate, estimate, tuple(considered))
    return PrecisionChoice(None, None, None, None, tuple(considered))


def _weight_candidates(model: ModelFacts, quantization: str, forbidden: Sequence[str]) -> tuple[str, ...]:
    if model.quantization is not None:
        return (model.quantization.method,)
    if quantization != "auto":
        return (quantization,)
    return tuple(name for name in WEIGHT_PRECISIONS if name not in forbidden)
