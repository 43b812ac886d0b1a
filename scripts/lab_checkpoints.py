"""The lab's checkpoints: made on the spot, the same bytes for every lab."""

from __future__ import annotations

import hashlib

from lab_host import CHECKOUT, LAB_SOURCES, STATE, LabError, locked, run, say

CHECKPOINTS = STATE / "checkpoints"
MAKER = LAB_SOURCES / "tiny_models.py"


def make_checkpoints(lab: str) -> None:
    """Makes build/lab/checkpoints, unless what is there was made by the same program."""
    program = b"".join(path.read_bytes() for path in sorted(LAB_SOURCES.glob("tiny_*.py")))
    digest = hashlib.sha256(program).hexdigest()
    marker = CHECKPOINTS / ".made-by"
    with locked(STATE / ".checkpoints.lock"):
        if marker.exists() and marker.read_text() == digest:
            return
        say(lab, "making the tiny models")
        interpreter = CHECKOUT / ".venv" / "bin" / "python"
        if not interpreter.exists():
            raise LabError(f"{interpreter}: not there (run `make setup`)")
        CHECKPOINTS.mkdir(parents=True, exist_ok=True)
        run([interpreter, MAKER, CHECKPOINTS])
        marker.write_text(digest)
