"""What holds for every test."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With ``L40S_NO_SKIPS`` a run in which a test was skipped has failed: nobody would count it."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = len(reporter.stats.get("skipped", ())) if reporter else 0
    if skipped and os.environ.get("L40S_NO_SKIPS"):
        reporter.write_line(f"\n{skipped} skipped: what they need is missing on this machine (L40S_NO_SKIPS)", red=True)
        session.exitstatus = 1
