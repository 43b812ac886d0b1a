"""Let vLLM 0.33.0's own code judge the argument sets as on a host with eight L40S: `make conformance`.

The names that models on Triton may use are those of the vLLM in the container, 0.24.0: its source is asked too. Each
wheel is downloaded once, its Python files are kept in the cache; the engine's virtual environment gives the
dependencies. Exits 0 when every planned set is accepted, every impossible one refused, attention taken by the planned
backend, and the names are the same.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from argument_sets import impossible_sets, planned_sets
from attention_cases import attention_cases
from engine_python import CACHE, answers, backends
from fleet.engine_reports import attention_backends
from fleet.triton_releases import ASYNC_ENGINE_ARGUMENTS

ROOT = Path(__file__).resolve().parents[2]
VERSION = "0.33.0"
TRITON_VERSION = "0.24.0"
WHEELS = CACHE / "conformance" / "wheels"
PLATFORM = ["--python-version", "3.12", "--platform", "manylinux_2_28_x86_64", "--only-binary=:all:"]


def python_with_pip() -> str:
    """An interpreter that has pip: uv made .venv without it; set-up's bootstrap environment or the system has it."""
    for python in (str(ROOT / "build" / "bootstrap" / "bin" / "python"), "python3", "/usr/bin/python3"):
        command = [python, "-m", "pip", "--version"]
        if shutil.which(python) and subprocess.run(command, check=False, capture_output=True).returncode == 0:
            return python
    raise SystemExit("no interpreter with pip was found to download the wheel of vLLM: install python3-pip")


def source(version: str = VERSION) -> str:
    """The folder with the wheel's Python files."""
    folder = CACHE / "conformance" / f"vllm-{version}"
    if not (folder / ".complete").exists():
        WHEELS.mkdir(parents=True, exist_ok=True)
        wheels = sorted(WHEELS.glob(f"vllm-{version}-*.whl"))
        if not wheels:
            download = ["-m", "pip", "download", "--no-deps", "-d", str(WHEELS), *PLATFORM]
            subprocess.run([python_with_pip(), *download, f"vllm=={version}"], check=True)
            wheels = sorted(WHEELS.glob(f"vllm-{version}-*.whl"))
        with zipfile.ZipFile(wheels[0]) as wheel:
            names = [name for name in wheel.namelist() if name.endswith((".py", ".json", "METADATA"))]
            wheel.extractall(folder, names)
        (folder / ".complete").touch()
    return str(folder)


def names_on_triton() -> set[str]:
    """The fields of AsyncEngineArgs, with those that it inherits, in the source of the container's vLLM."""
    tree = ast.parse(Path(source(TRITON_VERSION), "vllm", "engine", "arg_utils.py").read_text())
    return {
        statement.target.id
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name in ("EngineArgs", "AsyncEngineArgs")
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        if not statement.target.id.startswith("_")
    }


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
    differing = sorted(names_on_triton() ^ ASYNC_ENGINE_ARGUMENTS)
    sys.stdout.write(f"arguments of vLLM {TRITON_VERSION}: {', '.join(differing) or 'the same names'}\n")
    return int(bool(refused or accepted or others or unread or differing))


if __name__ == "__main__":
    sys.exit(main())
