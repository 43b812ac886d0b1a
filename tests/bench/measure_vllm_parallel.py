"""Measure real vLLM over several ranks: memory of each, prefill and time per token by batch size.

Usage: measure_vllm_parallel.py CASE.json OUTPUT.json TPxPP[:MODE]...

CASE.json: ``{"model_config", "engine_args", "budget_bytes"}``, the budget of each rank. Weights are random
(``load_format="dummy"``). Each layout runs in a process of its own; OUTPUT.json is written after each. MODE:

    (none)   each rank on a GPU of its own: memory and times
    nop2p    the same with peer-to-peer copies and vLLM's own all-reduce off
    shared   all ranks on GPU 0 (see shared_gpu_worker.py): memory only
    share    one GPU runs one rank's share as a model of its own: heads, width and vocabulary over TP, layers over PP;
             times without links (Llama and its like)
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
REPEATS = 5
# A cold start over two H100 took 155 s before the first request.
LIMIT_S = 300

# vLLM is imported once and forked: CUDA may start in the forks only. The engine runs in the layout's own process, so
# that a batch is complete before its first step.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "fork",
}


def share_of_a_rank(config: dict, tensor: int, pipeline: int) -> dict:
    """The model that has the shapes of one rank's part."""
    part = dict(config, head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"):
        part[name] = max(1, part[name] // tensor)
    part["num_hidden_layers"] //= pipeline
    return part


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


def _measure(case: dict, total_bytes: int, tensor: int, pipeline: int, mode: str) -> dict:
    from vllm import LLM, SamplingParams  # noqa: PLC0415

    config = case["model_config"]
    if mode == "share":
        config = share_of_a_rank(config, tensor, pipeline)
        tensor = pipeline = 1
    arguments = {"disable_custom_all_reduce": mode in ("nop2p", "shared"), **case["engine_args"]}
    if mode == "shared":
        # gloo's collectives cannot be captured in a CUDA graph.
        arguments |= {"worker_cls": "shared_gpu_worker.SharedGpuWorker"}
        arguments |= {"compilation_config": {"cudagraph_mode": "NONE"}}
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "config.json").write_text(json.dumps(config))
        llm = LLM(
            model=directory,
            load_format="dummy",
            skip_tokenizer_init=True,
            tensor_parallel_size=tensor,
            pipeline_parallel_size=pipeline,
            distributed_executor_backend="mp" if tensor * pipeline > 1 else "uni",
            gpu_memory_utilization=case["budget_bytes"] / total_bytes,
            **arguments,
        )
        result = {"torch_visible_bytes": total_bytes, "ranks": llm.collective_rpc(_rank)}
        cache = llm.llm_engine.vllm_config.cache_config
        result |= {"num_gpu_blocks": cache.num_gpu_blocks, "block_size": cache.block_size, "sweep": []}
        if mode == "shared":
            return result

        def seconds(batch: int, tokens: int, salt: int) -> float:
            prompts = [
                {"prompt_token_ids": [(salt + 7 * row + 3 * place) % 30000 + 10 for place in range(PROMPT_TOKENS)]}
                for row in range(batch)
            ]
            sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
            began = time.perf_counter()
            llm.generate(prompts, sampling, use_tqdm=False)
            return time.perf_counter() - began

        for batch in BATCHES:
            seconds(batch, 8, 1)
            first = sorted(seconds(batch, 1, 1000 * batch + number) for number in range(REPEATS))
            whole = sorted(seconds(batch, 1 + STEPS, 2000 * batch + number) for number in range(REPEATS))
            middle = REPEATS // 2
            result["sweep"].append(
                {
                    "batch": batch,
                    "prefill_s": first[middle],
                    "prefill_s_range": [first[0], first[-1]],
                    "tpot_ms": 1000 * (whole[middle] - first[middle]) / STEPS,
                    "tpot_ms_range": [1000 * (one - first[middle]) / STEPS for one in (whole[0], whole[-1])],
                }
            )
    return result


def _run_child(case: dict, total_bytes: int, layout: str, path: Path, log: Path) -> None:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sizes, _, mode = layout.partition(":")
    tensor, pipeline = map(int, sizes.split("x"))
    os.environ |= {"NCCL_P2P_DISABLE": "1"} if mode == "nop2p" else {}
    os.environ |= {"VLLM_DISABLE_PYNCCL": "1"} if mode == "shared" else {}
    try:
        result = _measure(case, total_bytes, tensor, pipeline, mode)
    except BaseException:
        result = {"error": traceback.format_exc()[-3000:]}
    path.write_text(json.dumps(result))
    os._exit(0)


def _wait(pid: int) -> None:
    """Until the process has ended or its time is up; its workers would keep the GPUs' memory from the next layout."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(0.2)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def main() -> None:
    """Run each layout in a process of its own, within its time."""
    case_path, output, *layouts = sys.argv[1:]
    case = json.loads(Path(case_path).read_text())
    total = [sys.executable, "-c", "import torch; print(torch.cuda.mem_get_info(0)[1])"]
    total_bytes = int(subprocess.run(total, check=True, capture_output=True, text=True).stdout)
    import vllm.v1.worker.gpu_worker  # noqa: F401, PLC0415
    from vllm import LLM  # noqa: F401, PLC0415

    results = []
    for layout in layouts:
        began = time.monotonic()
        part = Path(f"{output}.part")
        part.unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            _run_child(case, total_bytes, layout, part, Path(f"{output}.log"))
        _wait(pid)
        result = json.loads(part.read_text()) if part.exists() else {"error": f"no result within {LIMIT_S} s"}
        results.append({"layout": layout, "seconds": round(time.monotonic() - began, 1), **result})
        Path(output).write_text(json.dumps(results, indent=1) + "\n")
        print(layout, results[-1]["seconds"], json.dumps(result)[:1500], flush=True)
    Path(f"{output}.part").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
