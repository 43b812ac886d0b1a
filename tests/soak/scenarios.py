"""Scenarios that `make test` has no time for, or not all of: what has to hold is in their own tests."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
_AGAIN = re.compile(r"^(.+?): (?:noticed by both ranks .* )?answers(?: again)? (?:after )?([\d.]+) s", re.MULTILINE)


def ranks(seed: int, count: int) -> dict:
    """Every death of an instance that spans hosts. There is nothing random and nothing to repeat in it.

    Returns:
        The seconds until it answered again, by death.
    """
    del seed, count
    log = _run("multi_node", L40S_ALL_DEATHS="1")
    return {"answers_again_after_s": {death: float(seconds) for death, seconds in _AGAIN.findall(log)}}


def benchmark(seed: int, count: int) -> dict:
    """One instance measured out of traffic, and what the page says of it.

    Returns:
        The last line of its tests.
    """
    del seed, count
    return {"tests": _last_line_of_tests("benchmark")}


def rolling(seed: int, count: int) -> dict:
    """Another version and back, a change that does not work, and a drained host, each under a loop of requests.

    Returns:
        The last line of its tests.
    """
    del seed, count
    return {"tests": _last_line_of_tests("rolling")}


def _last_line_of_tests(scenario: str) -> str:
    return re.findall(r"^=+ (.*) =+$", _run(scenario), re.MULTILINE)[-1]


def _run(scenario: str, **variables: str) -> str:
    """The log of a scenario that passed, on nodes of its own."""
    lab = (os.environ["L40S_LAB"] + scenario.replace("_", ""))[:16]
    environment = {**os.environ, **variables, "L40S_TEST_LAB": lab}
    subprocess.run([ROOT / "scripts" / "molecule-all", scenario], check=True, env=environment)
    return (ROOT / "build" / "molecule" / f"{scenario}.log").read_text()
