"""Memory that an engine needs on every rank, and the KV cache that is left."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from .alternatives import nearest_changes
from .checkpoint import load_model_facts
from .engine_flags import add_engine_flags, engine_options
from .hardware import gpu_by_name
from .memory import estimate_memory

if TYPE_CHECKING:
    import argparse

EXIT_NO = 2
_OWN = {name: name for name in ("kv_cache_memory_bytes", "block_size", "attention_backend", "weight_kernel")}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_engine_flags(parser)
    parser.add_argument("--budget-bytes", type=int, help="replaces utilization x total")
    parser.add_argument("--kv-cache-memory-bytes", type=int)
    parser.add_argument("--block-size", type=int)
    parser.add_argument("--attention-backend")
    parser.add_argument(
        "--kernel", dest="weight_kernel", help="kernel of INT4 weights: marlin or machete (default: what the GPU gets)"
    )
    parser.add_argument("--json", action="store_true", help="print the whole answer as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the estimate; 2 when the engine would not start."""
    model = load_model_facts(args.config)
    gpu = gpu_by_name(args.gpu, where="--gpu")
    options = engine_options(args, _OWN)
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
