"""Measures real vLLM under Poisson arrivals on the GPU of this machine, to hold the simulation against.

    python tests/bench/measure_serving.py CONFIG.json RESULT.json [--chunks 512,2048] [--rates 8,16,24] [--seconds 40]

Random weights of the right shapes, token ids, fixed lengths, greedy, ignore_eos, no prefix caching. A new engine for
each chunk (``max_num_batched_tokens``); at each rate requests arrive for a warm-up and then ``--seconds`` that count.
Times are from the request's arrival. ``compare_serving.py`` prints them beside the simulation's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

WARM_UP_S = 8.0


async def one_request(
    engine: Any, index: int, lengths: tuple[int, int], vocabulary: int, due: float
) -> dict[str, float]:
    """Send one request and note when its tokens come."""
    from vllm import SamplingParams  # noqa: PLC0415
    from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415

    prompt, output = lengths
    params = SamplingParams(
        temperature=0.0,
        max_tokens=output,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    ids = [(7 + 13 * index + 31 * j) % (vocabulary - 10) for j in range(prompt)]
    await asyncio.sleep(max(0.0, due - time.perf_counter()))
    first = last = 0.0
    tokens = 0
    async for delta in engine.generate({"prompt_token_ids": ids}, params, f"r{index}-{due}"):
        last = time.perf_counter()
        first = first or last
        tokens += len(delta.outputs[0].token_ids)
    if tokens != output:
        raise RuntimeError(f"request {index} ended after {tokens} tokens")
    return {"due": due, "ttft_s": first - due, "tpot_s": (last - first) / (output - 1)}


async def at_rate(
    engine: Any, rate: float, seconds: float, lengths: tuple[int, int], vocabulary: int
) -> dict[str, Any]:
    """Requests at one rate."""
    draw = random.Random(1)  # noqa: S311  (arrivals, not secrets)
    begin = time.perf_counter() + 0.5
    due, arrivals = begin, []
    while due < begin + WARM_UP_S + seconds:
        due += draw.expovariate(rate)
        arrivals.append(due)
    rows = await asyncio.gather(*(one_request(engine, i, lengths, vocabulary, when) for i, when in enumerate(arrivals)))
    counted = [row for row in rows if row["due"] >= begin + WARM_UP_S]
    return {
        "requests_per_second": rate,
        "measured": len(counted),
        **{name: percentiles([row[name] for row in counted]) for name in ("ttft_s", "tpot_s")},
    }


def percentiles(values: list[float]) -> dict[str, float]:
    """The median and what comes above it."""
    ordered = sorted(values)
    return {str(p): round(ordered[min(len(ordered) - 1, int(p / 100 * len(ordered)))], 5) for p in (50, 90, 95, 99)}


async def measure(arguments: argparse.Namespace) -> None:
    """All chunks and rates; the result is written after each."""
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415
    from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415

    config = json.loads(Path(arguments.config).read_text())
    directory = tempfile.mkdtemp()
    Path(directory, "config.json").write_text(json.dumps(config))
    document: dict[str, Any] = {
        "model": Path(arguments.config).stem,
        "prompt_tokens": arguments.prompt,
        "output_tokens": arguments.output,
        "runs": [],
    }
    for tokens in map(int, arguments.chunks.split(",")):
        started = time.monotonic()
        options = {
            "max_model_len": 4096,
            "max_num_seqs": 256,
            "max_num_batched_tokens": tokens,
            "enable_prefix_caching": False,
            "gpu_memory_utilization": 0.92,
            **json.loads(arguments.engine_args),
        }
        engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(model=directory, load_format="dummy", skip_tokenizer_init=True, seed=0, **options)
        )
        print(f"chunk {tokens}: started in {time.monotonic() - started:.0f} s", flush=True)
        await at_rate(engine, 4.0, 2.0, (arguments.prompt, 8), config["vocab_size"])
        for rate in map(float, arguments.rates.split(",")):
            row = await at_rate(
                engine, rate, arguments.seconds, (arguments.prompt, arguments.output), config["vocab_size"]
            )
            document["runs"].append({"engine_args": options, **row})
            Path(arguments.result).write_text(json.dumps(document, indent=1))
            print(tokens, row, f"{time.monotonic() - started:.0f} s", flush=True)
        engine.shutdown()


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("result")
    parser.add_argument("--chunks", default="512,2048")
    parser.add_argument("--rates", default="8,16,24")
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--engine-args", default="{}", help="further ones, as JSON")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
