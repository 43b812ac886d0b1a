"""Measure real vLLM over several GPUs: memory of each rank, prefill and time per token by batch size.

Usage: measure_vllm_parallel.py CONFIG.json OUTPUT.json BUDGET_BYTES [TPxPP[:nop2p]...]

CONFIG.json is a model's config.json; weights are random (``load_format="dummy"``). Each layout runs in a process of
its own. ``nop2p`` switches peer-to-peer copies and vLLM's own all-reduce off. OUTPUT.json is written after each layout.
On two H100 (vLLM 0.24.0) a first form reached the KV cache of 2x1 and ran out of its time: not yet seen to end.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

PROMPT_TOKENS = 512
STEPS = 64
BATCHES = (1, 8, 32, 128)
# A cold start over two H100 took 155 s before the first request.
LIMIT_S = 300


def _rank(worker) -> dict:
    """What one rank found at its start, in bytes."""
    return {
        "rank": worker.rank,
        "weights_bytes": int(worker.model_runner.model_memory_usage),
        "peak_activation_bytes": int(worker.peak_activation_memory),
        "non_torch_bytes": int(worker.non_torch_memory),
        "cudagraph_estimate_bytes": int(worker.cudagraph_memory_estimate),
        "available_kv_cache_bytes": int(worker.available_kv_cache_memory_bytes),
    }


def _measure(config: str, budget_bytes: int, tensor: int, pipeline: int, *, p2p: bool) -> dict:
    import torch  # noqa: PLC0415
    from vllm import LLM, SamplingParams  # noqa: PLC0415

    total = torch.cuda.mem_get_info(0)[1]
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "config.json").write_text(Path(config).read_text())
        llm = LLM(
            model=directory,
            load_format="dummy",
            skip_tokenizer_init=True,
            tensor_parallel_size=tensor,
            pipeline_parallel_size=pipeline,
            distributed_executor_backend="mp",
            gpu_memory_utilization=budget_bytes / total,
            max_model_len=4096,
            max_num_seqs=128,
            max_num_batched_tokens=8192,
            enable_prefix_caching=False,
            disable_custom_all_reduce=not p2p,
        )
        result = {"torch_visible_bytes": total, "ranks": llm.collective_rpc(_rank)}
        cache = llm.llm_engine.vllm_config.cache_config
        result |= {"num_gpu_blocks": cache.num_gpu_blocks, "block_size": cache.block_size, "sweep": []}

        def seconds(batch: int, tokens: int, salt: int) -> float:
            prompts = [
                {"prompt_token_ids": [(salt + 7 * row + 3 * place) % 30000 + 10 for place in range(PROMPT_TOKENS)]}
                for row in range(batch)
            ]
            sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
            began = time.perf_counter()
            llm.generate(prompts, sampling, use_tqdm=False)
            return time.perf_counter() - began

        seconds(4, 8, 1)
        for batch in BATCHES:
            first = sorted(seconds(batch, 1, 1000 * batch + number) for number in range(3))[1]
            whole = sorted(seconds(batch, 1 + STEPS, 2000 * batch + number) for number in range(3))[1]
            result["sweep"].append({"batch": batch, "prefill_s": first, "tpot_ms": 1000 * (whole - first) / STEPS})
    return result


def main() -> None:
    """Run each layout in a process of its own, within its time."""
    config, output, budget, *layouts = sys.argv[1:]
    if len(layouts) == 1 and "=" in layouts[0]:
        layout = layouts[0].removeprefix("one=")
        sizes, _, mode = layout.partition(":")
        tensor, pipeline = map(int, sizes.split("x"))
        try:
            result = _measure(config, int(budget), tensor, pipeline, p2p=mode != "nop2p")
        except BaseException:
            result = {"error": traceback.format_exc()[-3000:]}
        Path(output).write_text(json.dumps(result))
        sys.stdout.flush()
        os._exit(0)
    results = []
    for layout in layouts:
        began = time.monotonic()
        environment = {
            **os.environ,
            "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            **({"NCCL_P2P_DISABLE": "1"} if layout.endswith(":nop2p") else {}),
        }
        part = Path(f"{output}.part")
        part.unlink(missing_ok=True)
        with Path(f"{output}.log").open("ab") as log:
            command = [sys.executable, __file__, config, str(part), budget, f"one={layout}"]
            engine = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                engine.wait(timeout=LIMIT_S)
            # Its workers would keep the GPUs' memory from the next layout.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(engine.pid, signal.SIGKILL)
            engine.wait()
        result = json.loads(part.read_text()) if part.exists() else {"error": f"no result within {LIMIT_S} s"}
        results.append({"layout": layout, "seconds": round(time.monotonic() - began, 1), **result})
        Path(output).write_text(json.dumps(results, indent=1) + "\n")
        print(layout, results[-1]["seconds"], json.dumps(result)[:1500], flush=True)


if __name__ == "__main__":
    main()
