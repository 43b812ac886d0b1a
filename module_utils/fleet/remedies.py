"""What would have to change so that a model fits. Every change is tried with the same memory model first."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .configurations import NEEDS_CHECKPOINT, Configurations, Misfit, base_options
from .errors import FleetError
from .memory import estimate_memory
from .quantization import choose_precision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .configurations import ResolvedModel
    from .hardware import GpuModel

# A context that is shorter than this is no remedy.
_SHORTEST_MODEL_LEN = 512
_MOST_GPUS = 16


def remedies(
    model: ResolvedModel, gpu: GpuModel, most_gpus: int, misfits: Sequence[Misfit], engine_version: str
) -> list[str]:
    """Single changes that make the model fit, each in the words of models.yml.

    Args:
        model: a model of which no configuration fits.
        gpu: the kind of GPU it was tried on.
        most_gpus: GPUs of that kind on the largest host.
        misfits: what was tried.
        engine_version: vLLM's version.
    """
    found: list[str] = []
    request = model.request

    def fits(changes: Mapping[str, object], limit: int = most_gpus) -> int | None:
        """GPUs that suffice after the change, or None."""
        changed = replace(model, request=request.model_copy(update=dict(changes)))
        configurations, _ = Configurations(engine_version).smallest(changed, gpu, limit)
        return configurations[0].shape.gpus if configurations else None

    forced = {
        name: None
        for name, value in (
            ("tensor_parallel", request.tensor_parallel),
            ("pipeline_parallel", request.pipeline_parallel),
        )
        if value is not None
    }
    own_maximum = model.facts.max_position_embeddings
    if request.max_model_len is not None and request.max_model_len > own_maximum:
        if fits({"max_model_len": own_maximum}):
            return [f"max_model_len: {own_maximum}"]
        return ["max_model_len within the model's own maximum, and a smaller precision or more GPUs"]
    if model.facts.quantization is not None and request.quantization != "auto":
        count = fits({"quantization": "auto"})
        return [f"quantization: auto ({_gpus(count)})"] if count else []
    longest = _longest_that_fits(model, gpu, misfits)
    if longest and fits({"max_model_len": longest}):
        found.append(f"max_model_len: {longest}")
    if request.quantization != "auto":
        for quantization in ("none", "fp8"):
            count = fits({"quantization": quantization})
            if quantization != request.quantization and count:
                found.append(f"quantization: {quantization} ({_gpus(count)})")
    if forced:
        found += _more_stages(model, fits, most_gpus)
        count = fits(forced)
        if count:
            found.append(f"{' and '.join(forced)} left out ({_gpus(count)})")
    elif request.quantization not in NEEDS_CHECKPOINT:
        count = fits({}, _MOST_GPUS)
        if count:
            found.append(f"a host with {_gpus(count)} of kind {gpu.name}")
    small = _four_bit_gpus(model, gpu, most_gpus)
    if small and (not misfits or any(misfit.constraint == "memory" for misfit in misfits)):
        found.append(f"a source that is quantized with AWQ or GPTQ, 4 bits ({_gpus(small)})")
    return found


def _more_stages(model: ResolvedModel, fits: Callable[[Mapping[str, object]], int | None], most_gpus: int) -> list[str]:
    """The smallest pipeline that makes forced tensor ranks sufficient."""
    tensor, now = model.request.forced_tensor_parallel or 1, model.request.forced_pipeline_parallel or 1
    for stages in range(now + 1, most_gpus // tensor + 1):
        if fits({"pipeline_parallel": stages}):
            return [f"pipeline_parallel: {stages} ({_gpus(tensor * stages)})"]
    return []


def _longest_that_fits(model: ResolvedModel, gpu: GpuModel, misfits: Sequence[Misfit]) -> int | None:
    lengths = []
    for misfit in misfits:
        if misfit.constraint == "memory":
            estimate = estimate_memory(model.facts, gpu, misfit.options)
            lengths.append(estimate.max_model_len_that_fits)
    longest = max(lengths, default=0) // 16 * 16
    return longest if longest >= _SHORTEST_MODEL_LEN else None


def _four_bit_gpus(model: ResolvedModel, gpu: GpuModel, most_gpus: int) -> int | None:
    if model.facts.quantization is not None:
        return None
    for count in range(1, most_gpus + 1):
        for tensor in (size for size in (2, 1, 4, 8) if count % size == 0):
            options = replace(base_options(model), tensor_parallel_size=tensor, pipeline_parallel_size=count // tensor)
            try:
                choice = choose_precision(
                    model.facts, gpu, options, quantization="awq", kv_cache_dtype=options.kv_cache_dtype
                )
            except FleetError:
                continue
            if choice.options is not None:
                return count
    return None


def _gpus(count: int | None) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
