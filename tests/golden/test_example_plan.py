"""The plan of inventory/example, byte for byte. After a change that is meant: UPDATE_GOLDEN=1 pytest tests/golden."""

import os
from pathlib import Path

from fleet.cli import main

EXAMPLE = Path(__file__).parents[2] / "inventory" / "example"
GOLDEN = Path(__file__).parent / "example_plan.json"


def test_the_example_is_planned_whole_and_as_before(tmp_path, capsys):
    output = tmp_path / "plan.json"
    arguments = ["plan", "--facts", str(EXAMPLE / "facts.json"), "--models", str(EXAMPLE / "models.yml")]
    assert main([*arguments, "--output", str(output)]) == 0
    assert capsys.readouterr().err == ""
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_bytes(output.read_bytes())
    assert output.read_text() == GOLDEN.read_text()
    assert main([*arguments, "--current", str(output), "--output", str(tmp_path / "again.json")]) == 0
    assert (tmp_path / "again.json").read_bytes() == output.read_bytes()
