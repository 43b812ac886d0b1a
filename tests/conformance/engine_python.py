"""Where the real engine is, and how to ask it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("L40S_FLEET_CACHE", Path.home() / ".cache" / "l40s-fleet"))
ENGINE_VERSION = "0.32.0"


def engine_python() -> list[str]:
    """The command that runs the engine's Python: L40S_FLEET_VLLM_PYTHON, or that of the lab's engine store.

    The store's interpreter is Debian 12's. Where this machine has none such, the lab runs it in a container.
    """
    given = os.environ.get("L40S_FLEET_VLLM_PYTHON")
    if given:
        return shlex.split(given)
    default = CACHE / "engines" / "vllm" / ENGINE_VERSION / "bin" / "python"
    found = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    if default.exists() and subprocess.run([str(default), "-c", found], check=False).returncode == 0:
        return [str(default)]
    if default.is_symlink():
        return [str(HERE.parents[1] / "scripts" / "lab"), "engine-python"]
    message = f"{default} is missing: start the lab once, or set L40S_FLEET_VLLM_PYTHON"
    raise FileNotFoundError(message)


def _asked(script: str, sets: list[dict[str, Any]], environment: dict[str, str]) -> list[dict[str, Any]]:
    """What a script answers under the engine's Python: JSON in its last line."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(sets, file)
        file.flush()
        done = subprocess.run(
            [*engine_python(), str(HERE / script), file.name],
            capture_output=True,
            text=True,
            check=False,
            cwd=HERE,
            env={**os.environ, **environment},
        )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def backends(cases: list[dict[str, Any]], **environment: str) -> dict[str, dict[str, Any]]:
    """For each case's name, the backend that vLLM's selector takes and what its log says."""
    return {answer["name"]: answer for answer in _asked("choose_attention.py", cases, environment)}


def answers(sets: list[dict[str, Any]], **environment: str) -> dict[str, str | None]:
    """For each set's name, why the engine refuses it; None where it accepts."""
    return {answer["name"]: answer["error"] for answer in _asked("accept_arguments.py", sets, environment)}
