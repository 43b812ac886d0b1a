"""One step of a benchmark on its host: vLLM's own load generator with so many clients, as a service without rights.

The engine's key comes to it in the environment, from the file that the engine itself has it from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_UNIT = "fleet-benchmark"
_KEY_FILE = "/etc/l40s-fleet/engine.env"
# What timeout(1) exits with when it has stopped its program.
_TIMED_OUT = 124
_GRACE_S = 10
_PERCENTILES = (50, 95, 99)
_MEASURES = {"ttft_ms": "ttft", "tpot_ms": "tpot", "itl_ms": "itl", "e2e_ms": "e2el"}
# The result goes to stdout and everything else to stderr. vLLM's clients know the key by OpenAI's name.
_SCRIPT = """
export OPENAI_API_KEY="$VLLM_API_KEY"
unset VLLM_API_KEY
set -- "$@" --result-dir "$RUNTIME_DIRECTORY" --result-filename result.json
timeout --kill-after=10 "$BENCHMARK_LIMIT_S" "$@" >&2
exec cat "$RUNTIME_DIRECTORY/result.json"
"""
_PROPERTIES = (
    "DynamicUser=yes",
    f"EnvironmentFile={_KEY_FILE}",
    f"RuntimeDirectory={_UNIT}",
    "RuntimeDirectoryMode=0700",
    "UMask=0077",
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "KeyringMode=private",
    "LimitNOFILE=65536",
    "LockPersonality=yes",
    "PrivateTmp=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHome=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectProc=invisible",
    "ProtectSystem=strict",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "RestrictNamespaces=yes",
    "RestrictSUIDSGID=yes",
)
_ENVIRONMENT = {
    "HOME": f"/run/{_UNIT}",
    "XDG_CACHE_HOME": f"/run/{_UNIT}",
    "XDG_CONFIG_HOME": f"/run/{_UNIT}",
    # A client needs no GPU, and must take no memory of one that serves.
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True)
class Step:
    """What a step asks.

    Args:
        engine_directory: environment of the engine, as in ``/opt/vllm/0.33.0``.
        url: the engine, as in ``http://127.0.0.1:8100``.
        model: the name under which it serves.
        tokenizer: the checkpoint's directory.
        prompt_tokens: of each request.
        output_tokens: of each request; the model is kept from ending earlier.
        concurrency: requests in flight.
        requests: requests in all.
        warmups: requests before those that count.
        limit_s: seconds until it is stopped.
        seed: of the random prompts.
        trust_remote_code: whether the tokenizer may run code of the checkpoint, as the engine may.
    """

    engine_directory: str
    url: str
    model: str
    tokenizer: str
    prompt_tokens: int
    output_tokens: int
    concurrency: int
    requests: int
    warmups: int
    limit_s: int
    seed: int = 0
    trust_remote_code: bool = False


def bench_command(step: Step) -> list[str]:
    """``vllm bench serve`` of the engine that is installed."""
    options = {
        "backend": "openai",
        "endpoint": "/v1/completions",
        "base-url": step.url,
        "model": step.tokenizer,
        "served-model-name": step.model,
        "dataset-name": "random",
        "random-input-len": step.prompt_tokens,
        "random-output-len": step.output_tokens,
        "num-prompts": step.requests,
        "max-concurrency": step.concurrency,
        "num-warmups": step.warmups,
        "seed": step.seed,
        "percentile-metrics": ",".join(_MEASURES.values()),
        "metric-percentiles": ",".join(str(number) for number in _PERCENTILES),
        "ready-check-timeout-sec": 0,
    }
    command = [f"{step.engine_directory}/bin/vllm", "bench", "serve", "--ignore-eos", "--disable-tqdm", "--save-result"]
    command += [f"--{name}={value}" for name, value in options.items()]
    return [*command, "--trust-remote-code"] if step.trust_remote_code else command


def service_command(step: Step) -> list[str]:
    """The same as a transient service: a user of its own for as long as it runs, and nothing left behind."""
    environment = {**_ENVIRONMENT, "BENCHMARK_LIMIT_S": str(step.limit_s)}
    return [
        *("systemd-run", "--quiet", "--wait", "--pipe", "--collect", f"--unit={_UNIT}"),
        *(f"--property={one}" for one in (*_PROPERTIES, f"RuntimeMaxSec={step.limit_s + 3 * _GRACE_S}")),
        *(f"--setenv={name}={value}" for name, value in environment.items()),
        *("/bin/sh", "-euc", _SCRIPT, "sh"),
        *bench_command(step),
    ]


def run_step(step: Step, run: Callable[[list[str]], tuple[int, str, str]]) -> dict[str, Any]:
    """Runs a step.

    Args:
        step: what to ask.
        run: runs a program; status, stdout, stderr.

    Returns:
        What ``summary`` returns, and ``timed_out``: whether it was stopped, in which case nothing was measured.

    Raises:
        FleetError: the load generator failed, or no request was answered.
    """
    status, output, complaint = run(service_command(step))
    if status == _TIMED_OUT:
        return {**_nothing(step), "timed_out": True}
    if status != 0:
        lines = [line.strip() for line in complaint.splitlines() if line.strip()] or ["no message"]
        raise FleetError(f"vllm bench serve, {step.concurrency} concurrent", f"exited {status}: {lines[-1][:500]}")
    try:
        result = json.loads(output)
    except ValueError:
        raise FleetError(f"vllm bench serve, {step.concurrency} concurrent", "wrote no result") from None
    found = summary(step, result)
    if not found["completed"]:
        said = f"none of {found['failed']} requests was answered; see journalctl -u 'vllm@*'"
        raise FleetError(f"vllm bench serve, {step.concurrency} concurrent", said)
    return found


def summary(step: Step, result: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of vLLM's result that are kept, under names with their units."""
    found = {
        **_nothing(step),
        "completed": result["completed"],
        "failed": result.get("failed", step.requests - result["completed"]),
        "duration_s": round(result["duration"], 3),
        "requests_per_s": round(result["request_throughput"], 4),
        "output_tokens_per_s": round(result["output_throughput"], 2),
        "total_tokens_per_s": round(result["total_token_throughput"], 2),
    }
    for name, theirs in _MEASURES.items():
        values = {"mean": result.get(f"mean_{theirs}_ms")}
        values |= {f"p{number}": result.get(f"p{number}_{theirs}_ms") for number in _PERCENTILES}
        found[name] = {key: round(value, 3) for key, value in values.items() if value is not None}
    acceptance = result.get("spec_decode_acceptance_rate")
    return found if acceptance is None else {**found, "speculative_acceptance_percent": round(acceptance, 2)}


def _nothing(step: Step) -> dict[str, Any]:
    return {
        "concurrency": step.concurrency,
        "requests": step.requests,
        "completed": 0,
        "failed": 0,
        "duration_s": 0.0,
        "requests_per_s": 0.0,
        "output_tokens_per_s": 0.0,
        "total_tokens_per_s": 0.0,
        **{name: {} for name in _MEASURES},
        "timed_out": False,
    }


def step_words(found: Mapping[str, Any]) -> str:
    """A step as a line of progress."""
    if found["timed_out"]:
        return f"{found['concurrency']} concurrent: not done in time, stopped"
    words = f"{found['concurrency']} concurrent: {found['output_tokens_per_s']:,.1f} output tokens/s"
    for name, label in (("ttft_ms", "TTFT"), ("tpot_ms", "TPOT")):
        if "p50" in found[name]:
            words += f", {label} p50 {found[name]['p50']:,.1f} ms"
    words += f", {found['completed']} requests in {found['duration_s']:,.1f} s"
    return words + (f", {found['failed']} failed" if found["failed"] else "")
