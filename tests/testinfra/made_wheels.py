"""Wheels made on the spot for tests of the engine's installer: small, with a program that answers as vLLM does."""

from __future__ import annotations

import hashlib
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# What vLLM does on --version: the CPU build asks for a distribution named vllm.
PROGRAM = "def main():\n    import importlib.metadata\n    print(importlib.metadata.version('vllm'))\n"


def wheel(directory: Path, name: str, version: str, tag: str, program: str = "") -> str:
    """Writes a wheel and returns its line of a lock file."""
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    path = directory / f"{module}-{version}-{tag}.whl"
    files = {
        f"{module}.py": program,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    if program:
        files[f"{info}/entry_points.txt"] = f"[console_scripts]\nvllm = {module}:main\n"
    record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(file, text)
    return f"{name}=={version} \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"
