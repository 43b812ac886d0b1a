"""Changes of two replicas while clients send requests: another version, one that does not start, and the way back."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from typing import TYPE_CHECKING, Any

import yaml
from lab_support import CHECKOUT, LAB, Run, run_playbook

if TYPE_CHECKING:
    from pathlib import Path

testinfra_hosts = ["ansible://gw-01"]

SERVE = CHECKOUT / "playbooks" / "serve.yml"
INVENTORY = CHECKOUT / "inventory" / "lab" / "hosts.yml"
SCENARIO = CHECKOUT / "molecule" / "rolling"
LAB_DIRECTORY = CHECKOUT / "build" / "lab" / LAB
ADDRESS = json.loads((LAB_DIRECTORY / "addresses.json").read_text())["gw-01"]
CLIENT_KEY = (LAB_DIRECTORY / "secrets" / "client_key").read_text().strip()
ENGINE_KEY = (LAB_DIRECTORY / "secrets" / "engine_api_key").read_text().strip()
INSTANCES = {"tiny-llama-1": "l40s-01", "tiny-llama-2": "l40s-02"}


def play(playbook: Path, *options: str, models: Path = SCENARIO / "files" / "models.yml") -> Run:
    """A playbook, as the operator of this scenario runs it."""
    return run_playbook(playbook, f"--extra-vars=fleet_models_file={models}", *options)


def ask(max_tokens: int, *, stream: bool) -> str:
    """One completion through the gateway; returns how it ended."""
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hello"}], "stream": stream}
    body |= {"max_tokens": max_tokens, "ignore_eos": True}
    headers = {"Authorization": f"Bearer {CLIENT_KEY}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{ADDRESS}:8080/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
        text = answer.read().decode()
    if stream:
        return text.strip().splitlines()[-1]
    return str(json.loads(text)["choices"][0]["finish_reason"])


class Clients:
    """One client that asks for short answers and one that streams long ones, until stopped."""

    def __init__(self) -> None:
        self.done, self.failures = 0, list[str]()
        self._stop = threading.Event()
        kinds = ((4, False, "length"), (200, True, "data: [DONE]"))
        self._threads = [threading.Thread(target=self._loop, args=kind, daemon=True) for kind in kinds]

    def _loop(self, max_tokens: int, stream: bool, expected: str) -> None:
        while not self._stop.is_set():
            try:
                ending = ask(max_tokens, stream=stream)
                if ending != expected:
                    self.failures.append(f"ended with {ending}")
                self.done += 1
            except (OSError, ValueError, LookupError) as error:
                self.failures.append(repr(error))
            # Engines that start need the processor too.
            self._stop.wait(0.7)

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=130)


def on(host: Any, node: str, command: str) -> str:
    """Output of a command on another node, as root."""
    options = {"ansible_inventory": str(INVENTORY), "ssh_config": str(LAB_DIRECTORY / "ssh" / "config"), "sudo": True}
    return type(host).get_host(f"ansible://{node}", **options).check_output(command)


def main_process(host: Any, name: str) -> str:
    unit = f"vllm@{name}.service"
    return on(host, INSTANCES[name], f"systemctl show --property=MainPID --value {unit}").strip()


def engine_of(host: Any, name: str) -> str:
    """The version that runs, from the command line of the process."""
    line = on(host, INSTANCES[name], f"cat /proc/{main_process(host, name)}/cmdline")
    return re.search(r"/opt/vllm/([\d.]+)/", line)[1]


def drained(host: Any) -> bool:
    return host.file("/run/haproxy/l40s-fleet-drained").exists


def test_a_switch_of_the_version_fails_no_request_and_shows_no_key(host: Any) -> None:
    """All stages, with all that Ansible can say, and with the files that hold keys to be written anew."""
    host.check_output("rm /etc/haproxy/clients.map /etc/haproxy/engine_key.map")
    on(host, "l40s-02", "rm /etc/l40s-fleet/engine.env")
    with Clients() as clients:
        run = play(SCENARIO / "converge.yml", "-vvv", "--diff", "--extra-vars=vllm_version=0.31.0")
    print(f"{run.seconds:.0f} s, {clients.done} requests")
    assert run.status == 0, run.output[-6000:]
    assert clients.failures == []
    assert clients.done > 20
    assert {engine_of(host, name) for name in INSTANCES} == {"0.31.0"}
    assert "1 of 2: tiny-llama-1 on l40s-01" in run.output
    assert "2 of 2: tiny-llama-2 on l40s-02" in run.output
    assert not drained(host)
    assert "engine_key.map" in run.output
    assert ENGINE_KEY not in run.output
    assert CLIENT_KEY not in run.output


def test_the_first_that_does_not_serve_goes_back_and_the_others_are_not_touched(host: Any, tmp_path: Path) -> None:
    """Weights of a kind that the checkpoint is not: the parser takes it, and the engine finds nothing to load."""
    document = yaml.safe_load((SCENARIO / "files" / "models.yml").read_text())
    (model,) = document["models"]
    model["source"] = f"file:{CHECKOUT}/build/lab/checkpoints/tiny-llama"
    model["engine_args"] = {**model.get("engine_args", {}), "load_format": "sharded_state"}
    (tmp_path / "models.yml").write_text(yaml.safe_dump(document))
    before = {name: main_process(host, name) for name in INSTANCES}
    with Clients() as clients:
        run = play(SERVE, "--extra-vars=vllm_version=0.31.0", models=tmp_path / "models.yml")
    assert run.status != 0
    assert "vllm@tiny-llama-1.service died while starting; what ran before serves again" in " ".join(
        run.output.split()
    ), run.output
    assert clients.failures == []
    assert main_process(host, "tiny-llama-2") == before["tiny-llama-2"]
    assert main_process(host, "tiny-llama-1") not in ("0", before["tiny-llama-1"])
    assert "sharded_state" not in on(host, "l40s-01", "cat /etc/l40s-fleet/instances/tiny-llama-1/*")
    assert not drained(host)


def test_the_way_back_is_the_same_variable(host: Any) -> None:
    with Clients() as clients:
        run = play(SERVE, "--extra-vars=vllm_version=0.32.0")
    assert run.status == 0, run.output[-6000:]
    assert clients.failures == []
    assert {engine_of(host, name) for name in INSTANCES} == {"0.32.0"}
    assert not drained(host)


def test_a_host_is_drained_for_a_reboot_and_returns_without_a_failed_request(host: Any) -> None:
    before = main_process(host, "tiny-llama-2")
    with Clients() as clients:
        run = play(SCENARIO / "files" / "drain.yml")
    assert run.status == 0, run.output[-6000:]
    assert "tiny-llama-2" in re.search(r"held back: (.*)", run.output)[1]
    assert clients.failures == []
    assert main_process(host, "tiny-llama-2") not in ("0", before)
    assert not drained(host)
