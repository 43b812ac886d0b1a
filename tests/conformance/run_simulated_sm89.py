"""Let vLLM 0.33.0's own code judge the argument sets as on a host with eight L40S: `make conformance`.

The wheel is downloaded once, its Python files are kept in the cache; the engine's virtual environment gives the
dependencies. Exits 0 when every planned set is accepted, every impossible one refused, and attention
taken by the planned backend.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from argument_sets import impossible_sets, planned_sets
from attention_cases import attention_cases
from engine_python import CACHE, answers, backends
from fleet.engine_reports import attention_backends

ROOT = Path(__file__).resolve().parents[2]
VERSION = "0.33.0"
SOURCE = CACHE / "conformance" / f"vllm-{VERSION}"
WHEELS = CACHE / "conformance" / "wheels"
PLATFORM = ["--python-version", "3.12", "--platform", "manylinux_2_28_x86_64", "--only-binary=:all:"]


def python_with_pip() -> str:
    """An interpreter that has pip: uv made .venv without it; set-up's bootstrap environment or the system has it."""
    for python in (str(ROOT / "build" / "bootstrap" / "bin" / "python"), "python3", "/usr/bin/python3"):
        command = [python, "-m", "pip", "--version"]
        if shutil.which(python) and subprocess.run(command, check=False, capture_output=True).returncode == 0:
            return python
    raise SystemExit("no interpreter with pip was found to download the wheel of vLLM: install python3-pip")


def source() -> str:
    """The folder with the wheel's Python files."""
    if not (SOURCE / ".complete").exists():
        WHEELS.mkdir(parents=True, exist_ok=True)
        wheels = sorted(WHEELS.glob(f"vllm-{VERSION}-*.whl"))
        if not wheels:
            download = ["-m", "pip", "download", "--no-deps", "-d", str(WHEELS), *PLATFORM]
            subprocess.run([python_with_pip(), *download, f"vllm=={VERSION}"], check=True)
            wheels = sorted(WHEELS.glob(f"vllm-{VERSION}-*.whl"))
        with zipfile.ZipFile(wheels[0]) as wheel:
            names = [name for name in wheel.namelist() if name.endswith((".py", ".json", "METADATA"))]
            wheel.extractall(SOURCE, names)
        (SOURCE / ".complete").touch()
    return str(SOURCE)


def main() -> int:
    """Print what differs and the counts."""
    planned, impossible = planned_sets(), impossible_sets()
    verdicts = answers([*planned, *impossible], SIMULATED_SM89="1", PYTHONPATH=source())
    refused = [(item["name"], verdicts[item["name"]]) for item in planned if verdicts[item["name"]] is not None]
    accepted = [item["name"] for item in impossible if verdicts[item["name"]] is None]
    for name, error in refused:
        sys.stdout.write(f"planned but refused: {name}: {error}\n")
    for name in accepted:
        sys.stdout.write(f"impossible but accepted: {name}\n")
    sys.stdout.write(
        f"vLLM {VERSION} on simulated sm89: {len(planned) - len(refused)} of {len(planned)} planned sets accepted, "
        f"{len(impossible) - len(accepted)} of {len(impossible)} impossible sets refused\n"
    )
    cases = attention_cases()
    taken = backends(cases, SIMULATED_SM89="1", PYTHONPATH=source())
    others = [case for case in cases if taken[case["name"]]["backend"] != case["planned"]]
    # A line that was said before is not said again.
    read = {case["name"]: attention_backends(taken[case["name"]]["log"]) for case in cases}
    unread = [case for case in cases if read[case["name"]] not in ((), (case["planned"],))]
    unread += cases if len(set(read.values())) < 4 else []
    for case in others:
        sys.stdout.write(f"{case['name']}: planned {case['planned']}, taken {taken[case['name']]['backend']}\n")
    for case in unread:
        sys.stdout.write(f"{case['name']}: not read off its log: {taken[case['name']]['log']!r}\n")
    sys.stdout.write(f"{len(cases) - len(others)} of {len(cases)} attention backends as planned\n")
    return int(bool(refused or accepted or others or unread))


if __name__ == "__main__":
    sys.exit(main())
