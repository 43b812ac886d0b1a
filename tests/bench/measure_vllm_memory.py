"""Measure what real vLLM finds at start, case by case, on a machine with a GPU.

Usage: measure_vllm_memory.py CASES.json OUTPUT.json SECONDS

CASES.json: ``[{"case", "model_config", "draft_config", "engine_args", "budget_bytes", "env": {}, "trace": false}]``.
Each case runs in a forked process of its own, so that vLLM is imported once and CUDA starts fresh. ``draft_config`` is
that of the model that ``engine_args.speculative_config`` drafts with. Weights are random (``load_format="dummy"``); the
engine is stopped where it would allocate the KV cache. OUTPUT.json is written after each case: ``measured`` holds the
fields of tests/data/vllm_memory_h100.json, ``allocator`` what PyTorch's allocator held after loading, ``peak`` (with
``trace``) the blocks alive at the peak of the profile run.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

CASE_SECONDS = 150


class _Stop(BaseException):
    """Ends the engine's start where the KV cache would be allocated."""


def _blocks(snapshot) -> Counter:
    """(block bytes, requested bytes) of live blocks, counted."""
    counts: Counter = Counter()
    for segment in snapshot["segments"]:
        for block in segment["blocks"]:
            if block["state"] == "active_allocated":
                counts[block["size"], block.get("requested_size", block["size"])] += 1
    return counts


def _peak(snapshot) -> dict:
    """Blocks alive at the peak of the recorded history, with the innermost frames that are not PyTorch's."""
    live: dict[int, dict] = {}
    level = best = 0
    at_best: list[dict] = []
    events = snapshot["device_traces"][0]
    marks = []
    for index, event in enumerate(events):
        if event["action"] == "alloc":
            live[event["addr"]] = event
            level += event["size"]
            if level > best:
                best = level
                marks = [index]
        elif event["action"] == "free_completed" and event["addr"] in live:
            level -= live.pop(event["addr"])["size"]
    live.clear()
    for index, event in enumerate(events):
        if event["action"] == "alloc":
            live[event["addr"]] = event
        elif event["action"] == "free_completed":
            live.pop(event["addr"], None)
        if marks and index == marks[0]:
            at_best = list(live.values())
            break
    rows: Counter = Counter()
    for event in at_best:
        frames = [
            f"{Path(frame['filename']).name}:{frame['line']}:{frame['name']}"
            for frame in event.get("frames", [])
            if "/torch/" not in frame["filename"] and frame["filename"] != "??"
        ][:4]
        rows[event["size"], " < ".join(frames)] += 1
    largest = sorted(rows.items(), key=lambda row: -row[0][0] * row[1])[:30]
    return {
        "peak_bytes": best,
        "rows": [{"bytes": size, "count": count, "frames": frames} for (size, frames), count in largest],
    }


def _write_models(directory: Path, case: dict) -> dict:
    """Writes what the engine reads of its model and of the draft; returns the engine's arguments."""
    (directory / "config.json").write_text(json.dumps(case["model_config"]))
    arguments = dict(case["engine_args"])
    if "draft_config" in case:
        draft = directory / "draft"
        draft.mkdir()
        (draft / "config.json").write_text(json.dumps(case["draft_config"]))
        arguments["speculative_config"] = {**arguments["speculative_config"], "model": str(draft)}
    return arguments


def _measure(case: dict) -> dict:
    os.environ.update(case.get("env", {}))
    import torch  # noqa: PLC0415
    from vllm import LLM  # noqa: PLC0415
    from vllm.v1.core import kv_cache_utils  # noqa: PLC0415
    from vllm.v1.engine import core  # noqa: PLC0415
    from vllm.v1.worker import gpu_worker  # noqa: PLC0415

    result: dict = {}
    worker_class = gpu_worker.Worker
    determine = worker_class.determine_available_memory

    def determine_available_memory(self):
        runner = self.model_runner
        stats = torch.cuda.memory_stats()
        blocks = _blocks({"segments": torch.cuda.memory_snapshot()})
        result["allocator"] = {
            "allocated_bytes": stats["allocated_bytes.all.current"],
            "requested_bytes": stats["requested_bytes.all.current"],
            "reserved_bytes": stats["reserved_bytes.all.current"],
            "blocks": [[size, requested, count] for (size, requested), count in sorted(blocks.items(), reverse=True)][
                :60
            ],
        }
        if case.get("trace"):
            profile_run = runner.profile_run

            def recorded(*args, **kwargs):
                torch.cuda.memory._record_memory_history(
                    enabled="all", context="alloc", stacks="python", max_entries=400_000
                )
                try:
                    return profile_run(*args, **kwargs)
                finally:
                    snapshot = torch.cuda.memory._snapshot()
                    torch.cuda.memory._record_memory_history(enabled=None)
                    result["peak"] = _peak(snapshot)

            runner.profile_run = recorded
        available = determine(self)
        parameters: Counter = Counter()
        for name, parameter in [*runner.model.named_parameters(), *runner.model.named_buffers()]:
            key = ".".join("*" if part.isdigit() else part for part in name.split("."))
            parameters[f"{key} {str(parameter.dtype).removeprefix('torch.')} {list(parameter.shape)}"] += 1
        result["parameters"] = dict(parameters)
        result["measured"] = {
            "weights_bytes": int(runner.model_memory_usage),
            "peak_activation_bytes": int(self.peak_activation_memory),
            "non_torch_bytes": int(self.non_torch_memory),
            "cudagraph_estimate_bytes": int(self.cudagraph_memory_estimate),
            "available_kv_cache_bytes": int(self.available_kv_cache_memory_bytes),
        }
        result["runner"] = type(runner).__module__
        result["requested_memory"] = int(self.requested_memory)
        return available

    worker_class.determine_available_memory = determine_available_memory
    get_configs = core.get_kv_cache_configs

    def get_kv_cache_configs(vllm_config, specs, available):
        configs = get_configs(vllm_config, specs, available)
        scheduler = kv_cache_utils.generate_scheduler_kv_cache_config(configs)
        tokens, concurrency = kv_cache_utils.get_kv_cache_capacity(vllm_config, scheduler)
        result["measured"] |= {
            "num_gpu_blocks": scheduler.num_blocks,
            "block_size": min(group.kv_cache_spec.block_size for group in scheduler.kv_cache_groups),
            "kv_cache_tokens": tokens,
        }
        result["groups"] = [
            f"{type(group.kv_cache_spec).__name__} x {len(group.layer_names)}" for group in scheduler.kv_cache_groups
        ]
        result["max_concurrency"] = concurrency
        raise _Stop

    core.get_kv_cache_configs = get_kv_cache_configs
    total = torch.cuda.mem_get_info(0)[1]
    with tempfile.TemporaryDirectory() as directory:
        arguments = _write_models(Path(directory), case)
        with contextlib.suppress(_Stop):
            LLM(
                model=directory,
                load_format="dummy",
                skip_tokenizer_init=True,
                gpu_memory_utilization=case["budget_bytes"] / total,
                **arguments,
            )
    result["torch_visible_bytes"] = total
    return result


def _run_child(case: dict, path: Path, log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        result = _measure(case)
    except BaseException:
        result = {"error": traceback.format_exc()[-3000:]}
    path.write_text(json.dumps(result))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def main() -> None:
    """Run the cases until the time is up."""
    cases_path, output_path, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    deadline = time.monotonic() + seconds
    cases = json.loads(Path(cases_path).read_text())
    started = time.monotonic()
    import torch  # noqa: PLC0415
    import vllm.v1.engine.llm_engine  # noqa: PLC0415
    import vllm.v1.worker.gpu.model_runner  # noqa: PLC0415
    import vllm.v1.worker.gpu_model_runner  # noqa: PLC0415
    import vllm.v1.worker.gpu_worker  # noqa: F401, PLC0415
    from vllm import LLM  # noqa: F401, PLC0415

    print(f"imported in {time.monotonic() - started:.1f} s, CUDA in use: {torch.cuda.is_initialized()}", flush=True)
    results = []
    scratch = Path(tempfile.mkdtemp())
    for case in cases:
        if time.monotonic() > deadline - 15:
            break
        began = time.monotonic()
        path, log = scratch / "result.json", scratch / "log"
        path.unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            _run_child(case, path, log)
        limit = min(began + CASE_SECONDS, deadline)
        while True:
            done, _ = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() > limit:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                break
            time.sleep(0.1)
        result = json.loads(path.read_text()) if path.exists() else {"error": "no result"}
        if "measured" not in result:
            result["log"] = log.read_text(errors="replace")[-2500:] if log.exists() else ""
        results.append({**case, **result, "seconds": round(time.monotonic() - began, 1)})
        output_path.write_text(json.dumps(results, indent=1))
        measured = result.get("measured", result.get("error", "")[-400:])
        print(case["case"], results[-1]["seconds"], json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
