"""Ask vLLM's own selector which attention backend it takes on a simulated L40S. Runs under the engine's Python.

Usage: choose_attention.py CASES.json   prints ``[{"name", "backend", "log"}]``

CASES.json: ``[{"name", "named": backend or null, "head_size", "kv_cache_dtype", "use_mla", "has_sink",
"use_mm_prefix"}]``. ``backend`` is the class's own name for itself, ``log`` what the engine would have in its log.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

if os.environ.get("SIMULATED_SM89"):
    import simulated_sm89

    simulated_sm89.install()

import torch
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.attention.selector import AttentionSelectorConfig


class _Kept(logging.Handler):
    """Keeps messages as the engine's log has them."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.lines.append(record.getMessage())


def main() -> None:
    """Answer for every case."""
    answers = []
    for case in json.loads(Path(sys.argv[1]).read_text()):
        kept = _Kept()
        logging.getLogger("vllm").addHandler(kept)
        logging.getLogger("vllm").setLevel(logging.INFO)
        config = AttentionSelectorConfig(
            head_size=case["head_size"],
            dtype=torch.bfloat16,
            kv_cache_dtype=case["kv_cache_dtype"],
            block_size=None,
            use_mla=case["use_mla"],
            has_sink=case["has_sink"],
            use_mm_prefix=case["use_mm_prefix"],
        )
        named = AttentionBackendEnum[case["named"]] if case["named"] else None
        path = current_platform.get_attn_backend_cls(named, config, 32)
        backend = next((one.name for one in AttentionBackendEnum if one.value == path), path)
        logging.getLogger("vllm").removeHandler(kept)
        answers.append({"name": case["name"], "backend": backend, "log": "\n".join(kept.lines)})
    sys.stdout.write("\n" + json.dumps(answers) + "\n")


if __name__ == "__main__":
    main()
