"""Which attention backend an engine takes on a GPU and why, in words. ``memory.attention_backend`` decides it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .memory import attention_backend

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .engine_options import EngineOptions
    from .hardware import GpuModel
    from .model_facts import ModelFacts

# vLLM samples by FlashInfer where it can, and its kernels are compiled at the first request: a host has no compiler.
ENGINE_ENVIRONMENT: Mapping[str, str] = {"VLLM_USE_FLASHINFER_SAMPLER": "0"}


def why_this_backend(
    model: ModelFacts, gpu: GpuModel, options: EngineOptions, engine_args: Mapping[str, object]
) -> str:
    """One sentence about the backend of an instance.

    Args:
        model: facts of the model.
        gpu: the card.
        options: what was planned.
        engine_args: the user's own arguments.
    """
    backend = attention_backend(model, gpu, options)
    if "attention_backend" in engine_args:
        built = "; its kernels are compiled at the first start unless they are installed" if _compiles(backend) else ""
        return f"Attention by {backend}, as engine_args.attention_backend says{built}."
    if options.attention_backend is not None:
        return (
            f"Attention by {backend}, which is named to the engine: FlashAttention 2 has no FP8 cache, and the kernels"
            " of FlashInfer, vLLM's own choice, would be compiled on the host."
        )
    if backend == "TRITON_MLA":
        return "Attention by TRITON_MLA, vLLM's own choice: the other kernels for MLA need newer GPUs."
    if backend == "TRITON_ATTN":
        what = "attention sinks" if model.layer_kinds[0].sharded_parameters else "images attended to in both directions"
        return f"Attention by TRITON_ATTN, vLLM's own choice: FlashAttention 2 has no {what}."
    if backend == "FLASHINFER":
        return "Attention by FLASHINFER, vLLM's own choice."
    return f"Attention by {backend}, vLLM's own choice on this GPU."


def _compiles(backend: str) -> bool:
    return backend.startswith("FLASHINFER")
