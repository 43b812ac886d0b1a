"""Every death of an instance that spans hosts: the scenario multi_node with those that `make test` leaves out."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]


def ranks(seed: int, count: int) -> dict:
    """Run the scenario whole; what has to hold is in its tests. There is nothing random and nothing to repeat in it.

    Returns:
        The seconds until it answered again, by death.
    """
    del seed, count
    lab = f"{os.environ['L40S_LAB']}-ranks"
    environment = {**os.environ, "L40S_ALL_DEATHS": "1", "L40S_TEST_LAB": lab}
    subprocess.run([ROOT / "scripts" / "molecule-all", "multi_node"], check=True, env=environment)
    log = (ROOT / "build" / "molecule" / "multi_node.log").read_text()
    found = re.findall(
        r"^(.+?): (?:noticed by both ranks .* )?answers(?: again)? (?:after )?([\d.]+) s", log, re.MULTILINE
    )
    return {"answers_again_after_s": {death: float(seconds) for death, seconds in found}}
