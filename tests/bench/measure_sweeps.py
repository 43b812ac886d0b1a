"""Measures prefill and decode of real vLLM on the GPU of this machine, with random weights of the right shapes.

    python tests/bench/measure_sweeps.py CONFIGS.json RESULT.json [CASE ...]

CONFIGS.json: {"cases": [{"case", "model_config", "engine_args", "env", "points": [[batch, prompt_tokens], ...]}]}.
Each case runs in a process of its own. prefill_s: from giving the batch to the engine until each has one token
(max_tokens 1). tpot_ms: the same batch with 65 tokens, less prefill_s, over 64. Greedy, ignore_eos, token ids,
no prefix caching; one warm-up at every point's batch size.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OUTPUT_TOKENS = 64

os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def measure(case: dict, result: Path) -> None:
    """Run one case in this process and write its sweep after each point."""
    from vllm import LLM, SamplingParams  # noqa: PLC0415  (only on the GPU machine)

    directory = tempfile.mkdtemp()
    Path(directory, "config.json").write_text(json.dumps(case["model_config"]))
    started = time.monotonic()
    llm = LLM(model=directory, load_format="dummy", skip_tokenizer_init=True, seed=0, **case["engine_args"])
    document = {
        "case": case["case"],
        "engine_args": case["engine_args"],
        "env": case.get("env", {}),
        "start_s": round(time.monotonic() - started, 1),
        "sweep": [],
    }
    vocabulary = case["model_config"]["vocab_size"]

    def run(batch: int, prompt: int, tokens: int, salt: int) -> float:
        prompts = [
            {"prompt_token_ids": [(7 + 13 * i + 31 * j + 101 * salt) % (vocabulary - 10) for j in range(prompt)]}
            for i in range(batch)
        ]
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        begin = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - begin
        if any(len(output.outputs[0].token_ids) != tokens for output in outputs):
            raise RuntimeError("a request ended early")
        return seconds

    for point, (batch, prompt) in enumerate(case["points"]):
        run(min(batch, 8), prompt, 2, 1000 + point)
        repeats = 3 if batch * prompt <= 8192 else 1
        first = sorted(run(batch, prompt, 1, 10 * point + i) for i in range(repeats))[repeats // 2]
        whole = sorted(run(batch, prompt, OUTPUT_TOKENS + 1, 10 * point + i + 5) for i in range(repeats))[repeats // 2]
        step = (whole - first) / OUTPUT_TOKENS
        document["sweep"].append(
            {
                "batch": batch,
                "isl": prompt,
                "prefill_s": round(first, 5),
                "tpot_ms": round(step * 1e3, 4),
                "decode_tok_s": round(batch / step, 1),
            }
        )
        result.write_text(json.dumps(document))
        print(case["case"], document["sweep"][-1], f"{time.monotonic() - started:.0f} s", flush=True)


def main(arguments: list[str]) -> None:
    """Run the named cases one after the other, each with its own time limit."""
    configurations, result, names = Path(arguments[0]), Path(arguments[1]), arguments[2:]
    cases = {case["case"]: case for case in json.loads(configurations.read_text())["cases"]}
    if os.environ.get("SWEEP_CASE"):
        measure(cases[os.environ["SWEEP_CASE"]], result)
        return
    for name in names or list(cases):
        part = result.with_name(f"{result.stem}_{name}.json")
        environment = {**os.environ, **cases[name].get("env", {}), "SWEEP_CASE": name}
        command = [sys.executable, __file__, str(configurations), str(part)]
        log = Path(tempfile.gettempdir(), f"{name}.log")
        with log.open("w") as stream:
            code = subprocess.run(command, env=environment, stderr=stream, check=False).returncode
        print(name, "exit", code, flush=True)
        if code:
            print("\n".join(log.read_text().splitlines()[-12:]), flush=True)
    merged = [json.loads(part.read_text()) for part in sorted(result.parent.glob(f"{result.stem}_*.json"))]
    result.write_text(json.dumps({"cases": merged}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
