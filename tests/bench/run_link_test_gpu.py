"""The probe and the link test on a machine with real NVIDIA GPUs: whole documents, and the time-out with a real hang.

    python3 tests/bench/run_link_test_gpu.py OUT_DIRECTORY [AnsiballZ_fleet_probe.py]

Needs a Python with torch (2.11 or newer) and NCCL, no Ansible. With the payload that Ansible sent (kept with
ANSIBLE_KEEP_REMOTE_FILES=1) the module itself is run; otherwise its core. Writes probe.json (the module's document),
link_test.json, link_test_hang.json and summary.json, and exits with 1 where something is not as it should be. On one
GPU it covers the GPU by itself and the time-out; with more also pairs and the curve.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / "module_utils"))

import pynvml  # noqa: E402
from fleet import link_worker  # noqa: E402
from fleet.link_runner import Engine  # noqa: E402
from fleet.link_test import Settings, gpus_to_test, run_link_test, why_not_now, write_kept  # noqa: E402
from fleet.probe import ProbeOptions, probe_host  # noqa: E402
from fleet.probe_host import Paths  # noqa: E402

HANG_TIMEOUT_S = 30.0


def probed(payload: str | None, out: Path) -> dict[str, Any]:
    """The host document, from the module as Ansible ships it, or from its core."""
    if payload is None:
        return probe_host(lambda: pynvml, ProbeOptions(paths=Paths(link_test=out / "link_test.json")))
    done = subprocess.run(
        [sys.executable, payload], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    return dict(json.loads(done.stdout[done.stdout.index("{") :])["host"])


def used_mib() -> int:
    """Memory in use on all GPUs together."""
    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    used = sum(pynvml.nvmlDeviceGetMemoryInfo(handle).used for handle in handles)
    pynvml.nvmlShutdown()
    return int(used) >> 20


def main() -> int:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    document = probed(sys.argv[2] if len(sys.argv) > 2 else None, out)
    summary: dict[str, Any] = {"probe_s": round(time.perf_counter() - begun, 3), "why_not_now": why_not_now(document)}
    (out / "probe.json").write_text(json.dumps(document, indent=2) + "\n")
    summary["gpus"] = [gpu.uuid for gpu in gpus_to_test(document)]

    engine = Engine(sys.executable, Path(link_worker.__file__).read_text(), "nccl")
    before_mib = used_mib()
    begun = time.perf_counter()
    result = run_link_test(document, engine, Settings("torch of this machine", timeout_s=120))
    summary["link_test_s"] = round(time.perf_counter() - begun, 1)
    write_kept(out / "link_test.json", result)

    count = len(summary["gpus"])
    hangs = ("0",) if count == 1 else ("0-1",)
    begun = time.perf_counter()
    hung = run_link_test(
        document, engine, Settings("torch of this machine", largest_bytes=1024, timeout_s=HANG_TIMEOUT_S, hangs=hangs)
    )
    summary["hang_s"] = round(time.perf_counter() - begun, 1)
    write_kept(out / "link_test_hang.json", hung)
    left = subprocess.run(["pgrep", "--full", "[L]INK-TEST-RESULT"], capture_output=True, text=True, check=False)
    time.sleep(2)
    summary |= {
        "processes_left": left.stdout.split(),
        "gpu_memory_left_mib": used_mib() - before_mib,
        "second_probe": {
            gpu["uuid"]: [check for check in gpu["health"]["checks"] if check["name"] in ("write_and_verify", "xid")]
            for gpu in probe_host(lambda: pynvml, ProbeOptions(paths=Paths(link_test=out / "link_test.json")))["gpus"]
        },
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))
    print(json.dumps({"gpus": result["gpus"], "pairs": result["pairs"], "hung": hung["gpus"]}, indent=2))
    hung_rows = hung["gpus"] if count == 1 else hung["pairs"]
    right = (
        all(gpu["status"] == "verified" for gpu in result["gpus"])
        and any("it hangs" in str(row["reason"]) for row in hung_rows)
        and not summary["processes_left"]
        and summary["gpu_memory_left_mib"] < 64
    )
    print("as it should be" if right else "NOT as it should be")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
