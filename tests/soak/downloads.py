"""Downloads that are killed at random moments: whatever was killed, the next run has to give the same bytes.

It uses the playbooks of the scenario model_store: a simulated hub on the gateway node, two hosts that copy from each
other.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import signal
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLAYBOOKS = ROOT / "molecule" / "model_store"
STORE = "/var/lib/l40s-fleet/models"
HUB = "/opt/simulated-hub"
HOSTS = ("l40s-01", "l40s-02")
# What dies: the run on the controller, the service that fetches, or both at once.
VICTIMS = ("run", "service", "both")


def downloads(seed: int, count: int) -> dict:
    """Kill at random moments of the transfer.

    What has to hold: nothing half under its final name after the kill; after the second run both hosts have the bytes
    of the source, and nothing is left half-way.
    """
    chance = random.Random(seed)  # noqa: S311 (moments, not secrets)
    lab = os.environ["L40S_LAB"]
    _play("prepare.yml", {})
    source = _on(lab, "gw-01", f"cd {HUB}/root/lab/tiny-slow && sha256sum * | sort")
    size = int(_on(lab, "gw-01", f"cat {HUB}/root/lab/tiny-slow/* | wc -c"))
    figures = []
    for number in range(count):
        for host in HOSTS:
            _on(lab, host, f"rm -rf {STORE}")
        _faults(lab, [{"path": "^/content/.*slow", "kind": "slow", "times": 99, "bytes_per_s": 400_000}])
        run = _start("converge.yml", {"scenario_models": ["tiny-slow"]})
        share = chance.uniform(0.02, 0.9)
        victim = VICTIMS[number % len(VICTIMS)]
        limit = time.monotonic() + 60
        while _part_bytes(lab) < share * size and run.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        part = _part_bytes(lab)
        assert 0 < part < size, f"it is not half-way: {part} of {size} bytes are there"
        if victim != "run":
            _on(lab, HOSTS[0], "systemctl kill --signal=SIGKILL l40s-fleet-fetch 2>/dev/null; true")
        if victim != "service":
            os.killpg(run.pid, signal.SIGKILL)
        if victim == "both":
            _on(lab, HOSTS[0], "systemctl stop l40s-fleet-fetch; true")
        output, _ = run.communicate()
        # A service that is killed goes on by itself, and the run does not notice.
        assert (run.returncode == 0) == (victim == "service"), output[-6000:]
        for host in HOSTS:
            _check_final_names(lab, host, source)
        _faults(lab, [])
        begun = time.monotonic()
        _play("converge.yml", {"scenario_models": ["tiny-slow"]})
        seconds = time.monotonic() - begun
        for host in HOSTS:
            assert _check_final_names(lab, host, source) == 1, host
            left = _on(lab, host, f"find {STORE} -maxdepth 1 -name '.*' ! -name .blobs")
            assert left == "", left
        figures.append({"victim": victim, "part_bytes": part, "of_bytes": size} | {"second_run_s": round(seconds, 1)})
        print(f"[soak] downloads {number + 1}/{count}: {figures[-1]}", flush=True)
    return {"seed": seed, "downloads": figures}


def _part_bytes(lab: str) -> int:
    """What has come to the host that fetches, and is not verified yet."""
    sizes = _on(lab, HOSTS[0], f"find {STORE}/.incoming -type f -printf '%s\\n' 2>/dev/null; true").split()
    return sum(int(one) for one in sizes)


def _check_final_names(lab: str, host: str, source: str) -> int:
    """How many checkpoints have their final name; each must be the source's."""
    found = _on(lab, host, f"ls -d {STORE}/tiny-slow-* 2>/dev/null; true").split()
    for directory in found:
        assert _on(lab, host, f"cd {directory} && sha256sum * | sort") == source, f"{host}: {directory}"
    return len(found)


def _on(lab: str, node: str, script: str) -> str:
    line = ["podman", "exec", f"{lab}-{node}", "sh", "-c", script]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout


def _faults(lab: str, entries: list[dict]) -> None:
    _on(lab, "gw-01", f"cat >{HUB}/faults <<'EOF'\n{json.dumps(entries)}\nEOF")


def _start(playbook: str, variables: dict) -> subprocess.Popen[str]:
    line = ["ansible-playbook", "--inventory", str(ROOT / "inventory" / "lab" / "hosts.yml")]
    return subprocess.Popen(
        [*line, "--extra-vars", json.dumps(variables), str(PLAYBOOKS / playbook)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _play(playbook: str, variables: dict) -> None:
    run = _start(playbook, variables)
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output[-6000:]
