"""Every model.json of the seed's twelve GPUs is accepted by vLLM's own AsyncEngineArgs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "unit"))

import engine_python  # noqa: E402
from triton_samples import HOSTS, seed_plan, servers_of  # noqa: E402


def test_every_model_json_is_accepted_and_an_unknown_key_is_not(tmp_path: Path) -> None:
    plan = seed_plan(tmp_path)
    documents = {
        f"{host}:{server['port']}:{model['name']}": json.loads(model["files"]["1/model.json"])
        for host in HOSTS
        for server in servers_of(plan, host)
        for model in server["models"]
    }
    assert len(documents) == 9
    documents["unknown"] = {"model": "x", "cmdline_args": "--max-num-seqs 256"}
    file = tmp_path / "documents.json"
    file.write_text(json.dumps(documents))
    command = [*engine_python.engine_python(), str(HERE / "accept_model_json.py"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answers = json.loads(done.stdout.splitlines()[-1])
    assert "cmdline_args" in answers.pop("unknown")
    assert {name: why for name, why in answers.items() if why is not None} == {}
