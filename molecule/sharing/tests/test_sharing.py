"""Two engines on one simulated GPU."""

from __future__ import annotations

import json
import re

import pytest

testinfra_hosts = ["ansible://l40s-01"]

IDS = ("tiny-llama-1", "tiny-qwen-1")
ROOT = "/etc/l40s-fleet/instances"
# The key stays in its file: on a command line it would be in the journal.
ASK = """
import json, sys, urllib.request
port, path, body = json.loads(sys.argv[1])
key = open("/etc/l40s-fleet/engine.env").read().strip().partition("=")[2]
headers = {"Authorization": "Bearer " + key, "Content-Type": "application/json"}
data = None if body is None else json.dumps(body).encode()
request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""


@pytest.fixture(scope="module")
def records(host):
    """Records of both instances, by id."""
    return {name: json.loads(host.check_output(f"cat {ROOT}/{name}/instance.json")) for name in IDS}


def ask(host, port, path, body=None):
    return host.check_output("python3 -c %s %s", ASK, json.dumps([port, path, body]))


def test_both_are_given_the_same_gpu(host, records):
    gpus = {name: records[name]["shards"][0]["gpus"] for name in IDS}
    assert gpus["tiny-llama-1"] == gpus["tiny-qwen-1"]
    assert len(gpus["tiny-llama-1"]) == 1
    for name in IDS:
        assert f'CUDA_VISIBLE_DEVICES="{gpus[name][0]}"' in host.check_output(f"cat {ROOT}/{name}/environment")


def test_one_started_after_the_other_was_healthy(host, records):
    first, second = sorted(IDS, key=lambda name: records[name]["sharing"]["seat"])
    assert records[second]["sharing"]["starts_after"] == [first]

    def moment(name, event):
        return int(host.check_output(f"systemctl show --property={event}Monotonic --value vllm@{name}.service"))

    assert 0 < moment(first, "ActiveEnterTimestamp") <= moment(second, "InactiveExitTimestamp")


@pytest.mark.parametrize("name", IDS)
def test_each_serves_with_the_kv_cache_that_was_planned(host, records, name):
    record = records[name]
    metrics = ask(host, record["port"], "/metrics")
    shown = dict(
        re.findall(r'(\w+)="([^"]*)"', re.search(r"^vllm:cache_config_info\{(.*)\}", metrics, re.MULTILINE)[1])
    )
    assert int(shown["kv_cache_size_tokens"]) == record["memory"]["kv_cache_tokens"]
    body = {"model": record["model"], "prompt": "Hello", "max_tokens": 4}
    answer = json.loads(ask(host, record["port"], "/v1/completions", body))
    assert answer["usage"]["completion_tokens"] >= 1
