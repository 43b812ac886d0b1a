"""The lab's modules, which lie beside the command that uses them and belong to no package."""

from __future__ import annotations

import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT / "scripts"), str(CHECKOUT / "lab")]

import lab_engine  # noqa: E402
import lab_image  # noqa: E402
import lab_nodes  # noqa: E402
import lab_sysfs  # noqa: E402
import lab_topology  # noqa: E402
import tiny_kinds  # noqa: E402
import tiny_models  # noqa: E402
import tiny_parts  # noqa: E402

__all__ = [
    "CHECKOUT",
    "lab_engine",
    "lab_image",
    "lab_nodes",
    "lab_sysfs",
    "lab_topology",
    "tiny_kinds",
    "tiny_models",
    "tiny_parts",
]
