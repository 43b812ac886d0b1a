"""A quantizer installed on a node from its lock file, killed at random layers, and its result served by a real engine.

GPTQModel is the one that `make test` leaves out: the node needs a compiler for it, and a gigabyte of libraries.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time
from contextlib import closing

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "lab")]

from lab_engine import NETWORK_VARIABLES, find_links  # noqa: E402
from lab_host import podman  # noqa: E402
from tiny_models import LLAMA, write  # noqa: E402

NODE = "l40s-01"
MODEL = "tiny-deep"
LAYERS = 12
PREFIX = "/opt/l40s-fleet/quantizers"
STORE = "/var/lib/l40s-fleet/models"
STATUS = "/var/lib/l40s-fleet-quantize/*/status.json"
STAGES = [str(ROOT / "playbooks" / f"{name}.yml") for name in ("probe", "plan", "models", "quantize")]
SUMS = """
import hashlib, json, pathlib, struct, sys
found = {}
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        found[path.name] = hashlib.sha256(data).hexdigest()
        continue
    start = 8 + struct.unpack("<Q", data[:8])[0]
    for name, one in json.loads(data[8:start]).items():
        if name != "__metadata__":
            begin, end = one["data_offsets"]
            found[name] = hashlib.sha256(data[start + begin : start + end]).hexdigest()
# The record and the note of it hold durations.
for name in ("recipe.json", ".fleet-checkpoint.json"):
    found.pop(name, None)
print(json.dumps(found))
"""
LAYERS_DONE = re.compile(r'"step": "quantize", "done": (\d+), "of": \d+, "unit": "layers"')


def quantizers(seed: int, count: int) -> dict:
    """Install, quantize once undisturbed, then killed at random layers, and serve.

    What has to hold: a run after a kill goes on after the last layer that was finished, and gives the tensors of the
    run that was not killed.
    """
    chance = random.Random(seed)  # noqa: S311 (moments, not secrets)
    with tempfile.TemporaryDirectory() as scratch:
        directory = pathlib.Path(scratch)
        write(dataclasses.replace(LLAMA, name=MODEL, num_hidden_layers=LAYERS), directory / MODEL)
        (directory / "models.yml").write_text(json.dumps({"models": [_model(directory)]}))
        variables = {"fleet_models_file": str(directory / "models.yml"), **_as_this_machine_installs()}
        began = time.monotonic()
        _finished(_start(STAGES, variables))
        figures: dict = {"seed": seed, "install_and_first_s": round(time.monotonic() - began, 1), "kills": []}
        installed = json.loads(_on(f"cat {PREFIX}/*/.complete"))
        figures["installed"] = {name: installed[name] for name in ("tool", "version", "requirements")}
        figures["record"] = json.loads(_on(f"cat {STORE}/{MODEL}-*/recipe.json"))
        undisturbed = _sums()
        for number in range(count):
            figures["kills"].append(_killed_once(chance.randint(1, LAYERS - 1), variables))
            assert _sums() == undisturbed
            print(f"[soak] quantizers {number + 1}/{count}: {figures['kills'][-1]}", flush=True)
        _finished(_start([str(ROOT / "molecule" / "quantize" / "converge.yml")], variables))
        figures["answer"] = _complete()
        return figures


def _model(directory: pathlib.Path) -> dict:
    engine = {"dtype": "bfloat16", "enforce_eager": True, "block_size": 128, "kv_cache_memory_bytes": 64 << 20}
    settings = {
        "method": "gptqmodel",
        "samples": 8,
        "sequence_length": 128,
        "judged_tokens": 2048,
        # Twelve layers of random weights choose among near equals: what is judged here is that they are the same.
        "min_agreement": 0.01,
        "max_perplexity_ratio": 9.0,
    }
    return {
        "name": MODEL,
        "source": f"file:{directory / MODEL}",
        "quantization": "gptq",
        "quantize": settings,
        "max_model_len": 1024,
        "placement": {"hosts": [NODE]},
        "engine_args": {**engine, "max_num_seqs": 4},
    }


def _as_this_machine_installs() -> dict:
    """Takes away the shared quantizers, and lets the node install as this machine does: authorities, wheels, index."""
    container = _container()
    _on(f"mountpoint -q {PREFIX} && umount {PREFIX}; true")
    passed = {name: value for name, value in os.environ.items() if NETWORK_VARIABLES.fullmatch(name)}
    authorities = pathlib.Path(passed.get("SSL_CERT_FILE", ""))
    if authorities.is_file():
        _on("mkdir -p /opt/soak")
        podman("cp", str(authorities.resolve()), f"{container}:/opt/soak/authorities.pem")
        passed["SSL_CERT_FILE"] = passed["PIP_CERT"] = "/opt/soak/authorities.pem"
    for number, place in enumerate(find_links()):
        podman("cp", place, f"{container}:/opt/soak/wheels-{number}")
    wheels = [f"/opt/soak/wheels-{number}" for number, _ in enumerate(find_links())]
    return {"quantize_find_links": wheels, "quantize_install_environment": passed}


def _killed_once(layer: int, variables: dict) -> dict:
    """Quantize anew, kill the job once so many layers are done, and run again."""
    _forget_what_was_made()
    first = _start(STAGES, variables)
    seen = _watch_until(first, layer)
    _on("systemctl kill --signal=SIGKILL 'fleet-quantize@*'")
    output, _ = first.communicate(timeout=300)
    assert first.returncode != 0, output[-4000:]
    assert f"fleet-quantize@{MODEL}" in output
    began = time.monotonic()
    second = _start(STAGES, variables)
    again = []
    while second.poll() is None:
        if (done := _layers_done()) and done not in again:
            again.append(done)
        time.sleep(0.1)
    _finished(second)
    # What was finished before is not done again.
    assert again, "no layer was seen"
    assert min(again) >= seen, again
    return {"killed_after_layer": seen, "layers_told_again": again, "second_run_s": round(time.monotonic() - began, 1)}


def _forget_what_was_made() -> None:
    """The quantized checkpoint goes, its source stays."""
    _on(f"cd {STORE} && for d in {MODEL}-*; do [ ! -e $d/quantize_config.json ] || rm -r $d; done")


def _watch_until(run: subprocess.Popen[str], layer: int) -> int:
    limit = time.monotonic() + 240
    while (done := _layers_done()) < layer:
        assert run.poll() is None, run.communicate()[0][-6000:]
        assert time.monotonic() < limit
        time.sleep(0.05)
    return done


def _layers_done() -> int:
    found = LAYERS_DONE.search(_on(f"cat {STATUS} 2>/dev/null; true"))
    return int(found[1]) if found else 0


def _sums() -> dict[str, str]:
    """Sums of what was made: of every tensor, whose order in the file is free, and of the configuration."""
    return json.loads(_on(f"/usr/bin/python3 - $(dirname {STORE}/{MODEL}-*/recipe.json) <<'EOF'\n{SUMS}\nEOF"))


def _complete() -> str:
    directory = ROOT / "build" / "lab" / os.environ["L40S_LAB"]
    gateway = json.loads((directory / "addresses.json").read_text())["gw-01"]
    key = (directory / "secrets" / "client_key").read_text()
    body = json.dumps({"model": MODEL, "prompt": "The class statement", "max_tokens": 8, "temperature": 0})
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    with closing(http.client.HTTPConnection(gateway, 8080, timeout=60)) as connection:
        connection.request("POST", "/v1/completions", body, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
    assert answer.status == 200, text
    return json.loads(text)["choices"][0]["text"]


def _container() -> str:
    return f"{os.environ['L40S_LAB']}-{NODE}"


def _on(script: str) -> str:
    line = ["podman", "exec", _container(), "sh", "-c", script]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout


def _start(playbooks: list[str], variables: dict) -> subprocess.Popen[str]:
    line = ["ansible-playbook", "--inventory", str(ROOT / "inventory" / "lab" / "hosts.yml")]
    line += ["--limit", f"{NODE}:gateways", "--extra-vars", json.dumps(variables)]
    return subprocess.Popen([*line, *playbooks], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _finished(run: subprocess.Popen[str]) -> str:
    output, _ = run.communicate(timeout=900)
    assert run.returncode == 0, output[-8000:]
    return output
