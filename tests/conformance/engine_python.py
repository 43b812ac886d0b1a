"""Where the real engine is, and how to ask it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("L40S_FLEET_CACHE", Path.home() / ".cache" / "l40s-fleet"))
ENGINE_VERSION = "0.32.0"


def engine_python() -> str:
    """Python of the engine's virtual environment: L40S_FLEET_VLLM_PYTHON, or the lab's engine store."""
    default = CACHE / "engines" / "vllm" / ENGINE_VERSION / "bin" / "python"
    python = os.environ.get("L40S_FLEET_VLLM_PYTHON", str(default))
    if not Path(python).exists():
        message = f"{python} is missing: start the lab once, or set L40S_FLEET_VLLM_PYTHON"
        raise FileNotFoundError(message)
    return python


def answers(sets: list[dict[str, Any]], **environment: str) -> dict[str, str | None]:
    """For each set's name, why the engine refuses it; None where it accepts."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(sets, file)
        file.flush()
        done = subprocess.run(
            [engine_python(), str(HERE / "accept_arguments.py"), file.name],
            capture_output=True,
            text=True,
            check=False,
            cwd=HERE,
            env={**os.environ, **environment},
        )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return {answer["name"]: answer["error"] for answer in json.loads(done.stdout.splitlines()[-1])}
