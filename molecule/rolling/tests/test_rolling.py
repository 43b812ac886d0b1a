"""The engine's version is changed and changed back while clients send requests."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from typing import Any

import pytest
from lab_support import CHECKOUT, LAB, Run, run_playbook

testinfra_hosts = ["ansible://gw-01"]

INVENTORY = CHECKOUT / "inventory" / "lab" / "hosts.yml"
SCENARIO = CHECKOUT / "molecule" / "rolling"
LAB_DIRECTORY = CHECKOUT / "build" / "lab" / LAB
ADDRESS = json.loads((LAB_DIRECTORY / "addresses.json").read_text())["gw-01"]
CLIENT_KEY = (LAB_DIRECTORY / "secrets" / "client_key").read_text().strip()
ENGINE_KEY = (LAB_DIRECTORY / "secrets" / "engine_api_key").read_text().strip()
INSTANCES = {"tiny-llama-1": "l40s-01", "tiny-llama-2": "l40s-02"}


def play(*options: str) -> Run:
    """The scenario's playbook, as its operator runs it."""
    return run_playbook(
        SCENARIO / "converge.yml", f"--extra-vars=fleet_models_file={SCENARIO}/files/models.yml", *options
    )


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
    return type(host).get_host(f"ansible://{node}", ansible_inventory=str(INVENTORY), sudo=True).check_output(command)


def started_at(host: Any, name: str) -> int:
    unit = f"vllm@{name}.service"
    return int(on(host, INSTANCES[name], f"systemctl show --property=ActiveEnterTimestampMonotonic --value {unit}"))


def engine_of(host: Any, name: str) -> str:
    """The version that runs, from the command line of the process."""
    shown = on(host, INSTANCES[name], f"systemctl show --property=MainPID --value vllm@{name}.service")
    return re.search(r"/opt/vllm/([\d.]+)/", on(host, INSTANCES[name], f"cat /proc/{shown.strip()}/cmdline"))[1]


@pytest.mark.parametrize("version", ["0.31.0", "0.32.0"], ids=["forth", "back"])
def test_a_switch_of_the_version_fails_no_request(host: Any, version: str) -> None:
    with Clients() as clients:
        run = play("-e", f"vllm_version={version}")
    print(f"{run.seconds:.0f} s, {clients.done} requests")
    assert run.status == 0, run.output[-6000:]
    assert clients.failures == []
    assert clients.done > 20
    assert {engine_of(host, name) for name in INSTANCES} == {version}
    assert "1 of 2: tiny-llama-1 on l40s-01" in run.output
    assert "2 of 2: tiny-llama-2 on l40s-02" in run.output
