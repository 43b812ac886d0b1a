"""The engine options that several subcommands of ``fleet`` take, under the names of design.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .engine_options import (
    DEFAULT_ENGINE_VERSION,
    DEFAULT_GPU_MEMORY_UTILIZATION,
    EngineOptions,
    options_from_engine_args,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

# Argument of the command line -> vLLM's name; where they are the same it stands once.
_SHARED = {
    **{name: name for name in ("dtype", "quantization", "kv_cache_dtype", "max_model_len", "max_num_seqs")},
    **{name: name for name in ("max_num_batched_tokens", "enforce_eager", "engine_version")},
    "tensor_parallel": "tensor_parallel_size",
    "pipeline_parallel": "pipeline_parallel_size",
    "utilization": "gpu_memory_utilization",
}


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the GPU and the engine options."""
    parser.add_argument("--config", required=True, metavar="PATH", help="checkpoint directory or config.json")
    parser.add_argument("--gpu", required=True, help="L40S, H100 or H200")
    parser.add_argument("--utilization", type=float, default=DEFAULT_GPU_MEMORY_UTILIZATION)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization")
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--max-num-batched-tokens", type=int, default=2048)
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--pipeline-parallel", type=int, default=1)
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--engine-version", default=DEFAULT_ENGINE_VERSION)


def engine_options(args: argparse.Namespace, more: Mapping[str, str] | None = None) -> EngineOptions:
    """The options that were given; ``more`` maps a command's own arguments to vLLM's names.

    Raises:
        FleetError: a value that vLLM would not take.
    """
    names = {**_SHARED, **(more or {})}
    return options_from_engine_args(
        {name: getattr(args, argument) for argument, name in names.items()}, where="arguments"
    )
