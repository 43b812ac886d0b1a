"""Drives the fleet of the test lab as its operator would: ansible-playbook, an edited inventory, requests."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAB = os.environ.get("L40S_LAB", "test")
LAB_DIR = ROOT / "build" / "lab" / LAB
GPU_HOSTS = ("l40s-01", "l40s-02", "l40s-03")
GATEWAY = "gw-01"
ENVIRONMENT = {**os.environ, "L40S_LAB": LAB, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0", "PY_COLORS": "0"}
RECAP = re.compile(r"^(?P<host>\S+)\s+: (?P<counts>ok=.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished ansible-playbook: what it printed, its exit status, its seconds, its recap by host."""

    output: str
    status: int
    seconds: float
    recap: dict[str, dict[str, int]]

    def changed(self) -> dict[str, int]:
        """Changed tasks by host."""
        return {host: counts["changed"] for host, counts in self.recap.items()}

    def tasks(self) -> dict[str, int]:
        """Tasks by host, skipped ones included: each costs the operator time."""
        return {host: counts["ok"] + counts["skipped"] for host, counts in self.recap.items()}


class Node:
    """A lab node, reached as the machine's owner would reach it when SSH is gone."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.container = f"{LAB}-{name}"

    def sh(self, script: str, *, check: bool = True) -> str:
        done = subprocess.run(
            ["podman", "exec", self.container, "sh", "-c", script], capture_output=True, text=True, check=False
        )
        if check:
            assert done.returncode == 0, f"{self.name}: {script}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def restart(self) -> None:
        subprocess.run(["podman", "restart", "--time", "20", self.container], check=True, capture_output=True)


class Fleet:
    """The test lab's fleet and a copy of its inventory that a test may edit."""

    def __init__(self, inventory: pathlib.Path) -> None:
        self.inventory = inventory
        self.nodes = {name: Node(name) for name in (*GPU_HOSTS, GATEWAY)}
        variables = self.ansible_variables()
        self.gateway_url = f"http://{variables['fleet_address']}:{variables['gateway_port']}"
        self.client_key = variables["fleet_client_keys"][0]["key"]
        self.engine_key = variables["fleet_engine_api_key"]

    def ansible_variables(self) -> dict:
        """The gateway's variables as ansible templates them."""
        command = ["ansible", GATEWAY, "-i", str(self.inventory / "hosts.yml"), "-m", "ansible.builtin.debug"]
        names = ("fleet_address", "fleet_client_keys", "fleet_engine_api_key")
        expression = "{{ {" + ", ".join(f"'{name}': {name}" for name in names)
        expression += ", 'gateway_port': gateway_port | default(8080)} | to_json }}"
        done = subprocess.run(
            [*command, "-a", f"msg={expression}"],
            cwd=ROOT,
            env={**ENVIRONMENT, "ANSIBLE_CALLBACK_RESULT_FORMAT": "json", "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads(done.stdout[done.stdout.index("{") :])["msg"]
        return found if isinstance(found, dict) else json.loads(found)

    def command(self, *arguments: str, playbook: str = "site.yml") -> list[str]:
        return ["ansible-playbook", "-i", str(self.inventory / "hosts.yml"), playbook, *arguments]

    def start(self, *arguments: str, playbook: str = "site.yml") -> subprocess.Popen[str]:
        """Start a playbook in a process group of its own, so that a test can kill all of it."""
        return subprocess.Popen(
            self.command(*arguments, playbook=playbook),
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, expect: int | None = 0, playbook: str = "site.yml") -> Run:
        """Run a playbook to its end; ``expect`` is the exit status to insist on."""
        begun = time.monotonic()
        process = self.start(*arguments, playbook=playbook)
        output, _ = process.communicate(timeout=580)
        seconds = time.monotonic() - begun
        recap = {
            match["host"]: {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", match["counts"])}
            for match in RECAP.finditer(output)
        }
        if expect is not None:
            assert process.returncode == expect, output[-6000:]
        return Run(output, process.returncode, seconds, recap)

    def instances(self) -> dict[str, dict]:
        """Instances by id as the nodes have them: record, host, state and main process id."""
        found = {}
        for host in GPU_HOSTS:
            node = self.nodes[host]
            for path in node.sh("ls -d /etc/l40s-fleet/instances/* 2>/dev/null", check=False).split():
                identifier = path.rsplit("/", 1)[-1]
                shown = node.sh(f"systemctl show -p MainPID,ActiveState vllm@{identifier}.service")
                state = dict(line.split("=", 1) for line in shown.splitlines())
                record = json.loads(node.sh(f"cat {path}/instance.json"))
                found[identifier] = {
                    "host": host,
                    "pid": (host, int(state["MainPID"])),
                    "state": state["ActiveState"],
                    "record": record,
                    "gpus": {gpu for shard in record["shards"] for gpu in shard["gpus"]},
                }
        return found

    def pids(self) -> dict[str, tuple[str, int]]:
        return {identifier: instance["pid"] for identifier, instance in self.instances().items()}

    @property
    def plan_path(self) -> pathlib.Path:
        return LAB_DIR / "state" / "plan.json"

    def plan(self) -> dict:
        return json.loads(self.plan_path.read_text())

    def models(self) -> list[dict]:
        return yaml.safe_load((self.inventory / "models.yml").read_text())["models"]

    def write_models(self, models: list[dict]) -> None:
        (self.inventory / "models.yml").write_text(yaml.safe_dump({"models": models}, sort_keys=False))

    def request(self, path: str, body: dict | None = None, key: str | None = None) -> tuple[int, dict]:
        """One request to the gateway: status and JSON."""
        request = urllib.request.Request(  # noqa: S310 (the lab's own address)
            self.gateway_url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {key or self.client_key}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"{}")

    def complete(self, model: str) -> str:
        """One chat completion through the gateway; the model's name as the engine answered it."""
        status, answer = self.request(
            "/v1/chat/completions",
            {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4},
        )
        assert status == 200, answer
        assert answer["usage"]["completion_tokens"] >= 1, answer
        return answer["model"]


def settled(fleet: Fleet, seconds: float = 120) -> dict[str, dict]:
    """The instances, once every unit is active."""
    limit = time.monotonic() + seconds
    while True:
        instances = fleet.instances()
        if instances and all(instance["state"] == "active" for instance in instances.values()):
            return instances
        assert time.monotonic() < limit, {name: instance["state"] for name, instance in instances.items()}
        time.sleep(1)


class RequestLoop:
    """Completions of every model through the gateway, one after another, until stopped."""

    def __init__(self, fleet: Fleet, models: list[str]) -> None:
        self.fleet, self.models = fleet, models
        self.done, self.failures = 0, []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def _loop(self) -> None:
        while not self._stop.is_set() and self.done < 2000:
            for model in self.models:
                try:
                    self.fleet.complete(model)
                    self.done += 1
                except (AssertionError, OSError) as error:
                    self.failures.append(f"{model}: {error}")
            self._stop.wait(0.5)

    def __enter__(self) -> RequestLoop:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=90)


def working_copy(inventory: pathlib.Path) -> pathlib.Path:
    """The lab's inventory copied to a place where it may be edited, replacing what is there."""
    original = ROOT / "inventory" / "lab"
    shutil.rmtree(inventory, ignore_errors=True)
    shutil.copytree(original, inventory, ignore=shutil.ignore_patterns("state"))
    document = yaml.safe_load((original / "models.yml").read_text())
    for model in document["models"]:
        kind, _, path = model["source"].partition(":")
        if kind == "file" and not path.startswith("/"):
            model["source"] = f"file:{(original / path).resolve()}"
    (inventory / "models.yml").write_text(yaml.safe_dump(document, sort_keys=False))
    return inventory
