"""The simulated hub, which the lab's scenarios run as a program and unit tests run in their own process."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulated"))

from simulated_hub import Fault, SimulatedHub

__all__ = ["Fault", "SimulatedHub"]
