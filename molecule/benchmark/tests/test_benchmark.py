"""One of two instances is benchmarked out of traffic, while the other one serves."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from lab_support import CHECKOUT, LAB

if TYPE_CHECKING:
    from pathlib import Path

testinfra_hosts = ["ansible://gateways"]

LAB_DIRECTORY = CHECKOUT / "build" / "lab" / LAB
ADDRESSES = json.loads((LAB_DIRECTORY / "addresses.json").read_text())
CLIENT_KEY = (LAB_DIRECTORY / "secrets" / "client_key").read_text()
ENGINE_KEY = (LAB_DIRECTORY / "secrets" / "engine_api_key").read_text()
MODELS = CHECKOUT / "molecule" / "benchmark" / "files" / "models.yml"
SWEEP = [1, 4, 16]


def benchmark(directory: Path, *arguments: str, **variables: Any) -> subprocess.CompletedProcess[str]:
    """Runs the playbook as an operator does."""
    given = {"fleet_models_file": str(MODELS), "benchmark_directory": str(directory), "benchmark_concurrency": SWEEP}
    given |= {"benchmark_rounds": 3, "benchmark_step_limit_s": 150, **variables}
    command = ["ansible-playbook", "--inventory", CHECKOUT / "inventory" / "lab" / "hosts.yml", *arguments]
    command += ["--extra-vars", json.dumps(given), CHECKOUT / "playbooks" / "benchmark.yml"]
    environment = {**os.environ, "L40S_LAB": LAB, "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg")}
    environment |= {"ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    # Ansible folds long messages.
    done.stdout = " ".join(done.stdout.split())
    return done


def complete() -> int:
    """A request through the gateway; its status."""
    connection = http.client.HTTPConnection(ADDRESSES["gw-01"], 8080, timeout=60)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {CLIENT_KEY}"}
    body = json.dumps({"model": "chat", "prompt": "Hello", "max_tokens": 4})
    try:
        connection.request("POST", "/v1/completions", body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


class Users:
    """A request every half second, as long as the benchmark runs; statuses and errors are counted."""

    def __init__(self) -> None:
        self.statuses: Counter[int | str] = Counter()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Users:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._over.wait(0.5):
            try:
                self.statuses[complete()] += 1
            except OSError as error:
                self.statuses[str(error)] += 1


def servers(host: Any) -> dict[str, str]:
    """Instances by name, and how HAProxy has them."""
    program = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8404/stats;csv').read().decode())"
    lines = host.check_output("python3 -c %s", program).splitlines()
    names = lines[0].lstrip("# ").split(",")
    rows = [dict(zip(names, line.split(","), strict=False)) for line in lines[1:]]
    return {row["svname"]: row["status"] for row in rows if row["svname"].startswith("tiny-llama-")}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    limit = time.monotonic() + 30
    while complete() != 200:
        assert time.monotonic() < limit, "no instance answers through the gateway"
        time.sleep(0.5)
    directory = tmp_path_factory.mktemp("benchmarks")
    with Users() as users:
        done = benchmark(directory, "-vvv", benchmark_model="chat")
    return {"done": done, "directory": directory, "statuses": users.statuses}


def test_the_sweep_ends_well_and_names_the_peak(ran):
    done = ran["done"]
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "tiny-llama-1: throughput peaks at" in done.stdout
    for clients in SWEEP:
        assert f"{clients} concurrent: " in done.stdout


def test_figures_are_kept_beside_what_was_predicted(ran):
    (path,) = ran["directory"].glob("tiny-llama-1-*.json")
    kept = json.loads(path.read_text())
    assert [step["concurrency"] for step in kept["steps"]] == SWEEP
    assert [(step["failed"], step["completed"] - step["requests"]) for step in kept["steps"]] == [(0, 0)] * len(SWEEP)
    rates = {step["concurrency"]: step["output_tokens_per_s"] for step in kept["steps"]}
    assert min(rates.values()) > 0
    assert kept["peak"]["output_tokens_per_s"] == max(rates.values())
    assert rates[kept["peak"]["concurrency"]] == max(rates.values())
    assert all(step["ttft_ms"]["p95"] >= step["ttft_ms"]["p50"] > 0 for step in kept["steps"])
    assert all(step["predicted"]["output_tokens_per_s"] > 0 for step in kept["steps"])
    assert kept["prediction"]["comparable"] is False


def test_the_plot_is_kept(ran):
    (path,) = ran["directory"].glob("tiny-llama-1-*.html")
    page = path.read_text()
    assert "throughput peaks at" in page
    assert page.count('<polyline class="curve sustained"') == 4
    assert "<script" not in page


def test_users_noticed_nothing(ran):
    assert set(ran["statuses"]) == {200}
    assert ran["statuses"][200] > 10


def test_the_instance_is_back_in_traffic(ran, host):
    assert ran["done"].returncode == 0
    assert servers(host) == {"tiny-llama-1": "UP", "tiny-llama-2": "UP"}


def test_no_secret_is_shown_at_vvv(ran):
    assert ENGINE_KEY not in ran["done"].stdout + ran["done"].stderr


def test_an_instance_that_fails_its_benchmark_is_put_back(ran, host, tmp_path):
    done = benchmark(
        tmp_path, benchmark_instance="tiny-llama-2", benchmark_step_limit_s=1, benchmark_concurrency=[1, 4]
    )
    assert "1 concurrent: not done in time, stopped" in done.stdout
    assert "4 concurrent: " not in done.stdout
    assert "tiny-llama-2: no request was answered." in done.stdout
    assert servers(host) == {"tiny-llama-1": "UP", "tiny-llama-2": "UP"}


def test_an_unknown_instance_is_refused_in_one_line(tmp_path):
    done = benchmark(tmp_path, benchmark_instance="tiny-llama-7")
    assert done.returncode != 0
    assert "tiny-llama-7 is not in the plan; its instances are: tiny-llama-1, tiny-llama-2" in done.stdout
    assert "Traceback" not in done.stdout
