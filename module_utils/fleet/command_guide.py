"""The quantization decision guide, computed: strategy and GPUs for 7B, 13B, 34B, 70B and 180B."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from .guide import guide_rows
from .hardware import gpu_by_name

if TYPE_CHECKING:
    import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--gpu", default="L40S", help="L40S (default), H100 or H200")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the guide."""
    rows = guide_rows(gpu_by_name(args.gpu, where="--gpu"))
    if args.json:
        json.dump({"rows": [row.to_document() for row in rows]}, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return 0
    for row in rows:
        sys.stdout.write(
            f"{row.model:16} {row.strategy:28} {row.gpus} GPU  context {row.max_model_len:6}  "
            f"{row.kv_cache_tokens:8} tokens of KV cache, {row.concurrency:.1f} requests at full length\n"
            f"{'':16} the seed says: {row.seed_says}; {row.differs_because or 'the same'}\n"
        )
    return 0
