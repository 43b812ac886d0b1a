"""Memory that an engine needs on every rank, and the KV cache that is left."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from .alternatives import nearest_changes
from .checkpoint import load_model_facts
from .engine_options import DEFAULT_ENGINE_VERSION, DEFAULT_GPU_MEMORY_UTILIZATION, options_from_engine_args
from .hardware import gpu_by_name
from .memory import estimate_memory

if TYPE_CHECKING:
    import argparse

EXIT_NO = 2
_OPTIONS = {
    "utilization": "gpu_memory_utilization",
    "dtype": "dtype",
    "quantization": "quantization",
    "kv_cache_dtype": "kv_cache_dtype",
    "max_model_len": "max_model_len",
    "max_num_seqs": "max_num_seqs",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "tensor_parallel": "tensor_parallel_size",
    "pipeline_parallel": "pipeline_parallel_size",
    "enforce_eager": "enforce_eager",
    "kv_cache_memory_bytes": "kv_cache_memory_bytes",
    "block_size": "block_size",
    "attention_backend": "attention_backend",
    "engine_version": "engine_version",
    "weight_kernel": "weight_kernel",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--config", required=True, metavar="PATH", help="checkpoint directory or config.json")
    parser.add_argument("--gpu", required=True, help="L40S, H100 or H200")
    parser.add_argument("--budget-bytes", type=int, help="replaces utilization x total")
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
    parser.add_argument("--kv-cache-memory-bytes", type=int)
    parser.add_argument("--block-size", type=int)
    parser.add_argument("--attention-backend")
    parser.add_argument("--engine-version", default=DEFAULT_ENGINE_VERSION)
    parser.add_argument(
        "--kernel", dest="weight_kernel", help="kernel of INT4 weights: marlin or machete (default: what the GPU gets)"
    )
    parser.add_argument("--json", action="store_true", help="print the whole answer as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the estimate; 2 when the engine would not start."""
    model = load_model_facts(args.config)
    gpu = gpu_by_name(args.gpu, where="--gpu")
    options = options_from_engine_args(
        {name: getattr(args, argument) for argument, name in _OPTIONS.items()}, where="arguments"
    )
    estimate = estimate_memory(model, gpu, options, budget_bytes=args.budget_bytes)
    document = estimate.to_document()
    if not estimate.fits:
        changes = nearest_changes(model, gpu, options, budget_bytes=args.budget_bytes)
        document["nearest_changes"] = [change.to_document() for change in changes]
    if args.json:
        json.dump(document, sys.stdout, indent=2, sort_keys=True)
        sys.stdout.write("\n")
    else:
        for name, value in document.items():
            if name != "ranks":
                sys.stdout.write(f"{name:28} {value}\n")
    return 0 if estimate.fits else EXIT_NO
