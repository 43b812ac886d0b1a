"""The smallest change that would lift a refusal. Each suggestion is checked by the memory model itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .errors import FleetError
from .memory import MemoryEstimate, estimate_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .engine_options import EngineOptions
    from .hardware import GpuModel
    from .model_facts import ModelFacts

_MOST_GPUS = 8
_USEFUL_CONTEXT = 2048
_HIGHEST_UTILIZATION = 0.95


@dataclass(frozen=True, slots=True)
class NearestChange:
    """One change of the options under which the model starts."""

    change: str
    options: EngineOptions
    estimate: MemoryEstimate

    def to_document(self) -> dict[str, object]:
        """A JSON object."""
        return {
            "change": self.change,
            "kv_cache_tokens_planned": self.estimate.kv_cache_tokens_planned,
            "max_concurrency": round(self.estimate.max_concurrency, 4),
        }


def nearest_changes(
    model: ModelFacts, gpu: GpuModel, options: EngineOptions, *, budget_bytes: int | None = None, most: int = 3
) -> list[NearestChange]:
    """Changes that work, the least intrusive first.

    Args:
        model: facts of the model.
        gpu: the card.
        options: the options that do not fit.
        budget_bytes: as for ``estimate_memory``; suggestions about the utilization need it to be None.
        most: how many to return.
    """
    found: list[NearestChange] = []
    for change, candidate in _candidates(model, gpu, options, budget_bytes):
        try:
            estimate = estimate_memory(model, gpu, candidate, budget_bytes=budget_bytes)
        except FleetError:
            continue
        if estimate.fits:
            found.append(NearestChange(change, candidate, estimate))
            if len(found) == most:
                break
    return found


def _candidates(
    model: ModelFacts, gpu: GpuModel, options: EngineOptions, budget_bytes: int | None
) -> Iterator[tuple[str, EngineOptions]]:
    if budget_bytes is None and options.gpu_memory_utilization < _HIGHEST_UTILIZATION:
        utilization = _HIGHEST_UTILIZATION
        yield f"gpu_memory_utilization {utilization}", replace(options, gpu_memory_utilization=utilization)
    longest = estimate_memory(model, gpu, options, budget_bytes=budget_bytes).max_model_len_that_fits
    if longest >= _USEFUL_CONTEXT:
        yield f"max_model_len {longest}", replace(options, max_model_len=longest)
    if options.kv_cache_dtype == "auto":
        yield "kv_cache_dtype fp8", replace(options, kv_cache_dtype="fp8")
    if model.quantization is None:
        for name in _lower_precisions(options.quantization):
            candidate = replace(options, quantization=name)
            yield f"quantization {name}", candidate
            yield (
                f"quantization {name} with kv_cache_dtype fp8 and gpu_memory_utilization {_HIGHEST_UTILIZATION}",
                replace(candidate, kv_cache_dtype="fp8", gpu_memory_utilization=_HIGHEST_UTILIZATION),
            )
    yield (
        f"kv_cache_dtype fp8 with gpu_memory_utilization {_HIGHEST_UTILIZATION}",
        replace(options, kv_cache_dtype="fp8", gpu_memory_utilization=_HIGHEST_UTILIZATION),
    )
    for gpus in range(options.world_size + 1, _MOST_GPUS + 1):
        for tensor_size, pipeline_size in ((gpus, 1), (1, gpus), (2, gpus // 2)):
            if tensor_size * pipeline_size == gpus:
                yield (
                    f"{gpus} GPUs (tensor_parallel_size {tensor_size}, pipeline_parallel_size {pipeline_size})",
                    replace(options, tensor_parallel_size=tensor_size, pipeline_parallel_size=pipeline_size),
                )


def _lower_precisions(quantization: str | None) -> tuple[str, ...]:
    order = ("fp8", "int8", "awq")
    if quantization is None:
        return order
    return ("awq",) if quantization in ("fp8", "int8") else ()
