"""The quantizers of the lab: installed once by the role's own installer, shared read-only by the nodes."""

from __future__ import annotations

import re
from pathlib import Path

from lab_engine import install_environment
from lab_host import CHECKOUT, LabError, cache_directory

INSTALLER = CHECKOUT / "roles" / "quantize" / "files" / "quantizer-install"
RECIPES = CHECKOUT / "module_utils" / "fleet" / "quantize_recipes.py"
PREFIX = Path("/opt/l40s-fleet/quantizers")
# GPTQModel is built from source, for which the nodes have no compiler.
IN_THE_LAB = ("llmcompressor",)


def store() -> Path:
    """Where the quantizers are on this machine; nodes see it at PREFIX."""
    return cache_directory() / "engines" / "quantizers"


def versions() -> dict[str, str]:
    """Version by tool, as the core has them."""
    found = re.search(r"^TOOL_VERSIONS: .* = \{(.*)\}$", RECIPES.read_text(), re.MULTILINE)
    if found is None:
        raise LabError(f"{RECIPES}: TOOL_VERSIONS is not there")
    return dict(re.findall(r'"(\w+)": "([\w.]+)"', found[1]))


def install(lab: str, image: str) -> None:
    """Makes sure that the store holds the quantizers that the lab uses."""
    for tool in IN_THE_LAB:
        version = versions()[tool]
        what = f"{tool} {version} for CPU into {store()} (once; about a minute)"
        arguments = ["--tool", tool, "--version", version]
        install_environment(lab, image, INSTALLER, arguments, place=store(), what=what)
