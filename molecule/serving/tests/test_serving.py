"""One instance, as its users, its operator and an attacker see it. Tests that end its process come last."""

from __future__ import annotations

import json
import re
import time

import pytest
from lab_support import CHECKOUT, LAB

testinfra_hosts = ["ansible://l40s-01"]

UNIT = "vllm@tiny-llama-1.service"
START_LIMIT_S = 90
KEY = (CHECKOUT / "build" / "lab" / LAB / "secrets" / "engine_api_key").read_text().strip()


# Runs on the node, where the key is read from its file: on a command line it would be in the journal.
REQUEST = """
import json, sys, urllib.error, urllib.request
path, body, key = json.loads(sys.argv[1])
if key == "the engine's":
    key = open("/etc/l40s-fleet/engine.env").read().strip().partition("=")[2]
headers = {"Content-Type": "application/json", **({"Authorization": "Bearer " + key} if key else {})}
data = None if body is None else json.dumps(body).encode()
try:
    request = urllib.request.Request("http://127.0.0.1:8100" + path, data, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        print(json.dumps([answer.status, answer.read().decode()]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, error.read().decode()]))
except OSError:
    print(json.dumps([0, ""]))
"""


def ask(host, path, body=None, key="the engine's"):
    """(status, JSON or None) of a request to the engine, from its own host."""
    status, text = json.loads(host.check_output("python3 -c %s %s", REQUEST, json.dumps([path, body, key])))
    try:
        return status, json.loads(text)
    except ValueError:
        return status, None


def chat(host, **options):
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    return ask(host, "/v1/chat/completions", body, **options)


def processes(host):
    """Every process of the instance."""
    return host.check_output("ps -eo pid=,unit= | awk -v unit=%s '$2 == unit { print $1 }'", UNIT).split()


def wait_until_it_answers(host, since):
    """Seconds until the unit is active again and the engine answers."""
    while time.monotonic() - since < START_LIMIT_S:
        if host.service(UNIT).is_running and chat(host)[0] == 200:
            return time.monotonic() - since
        time.sleep(1)
    pytest.fail(f"{UNIT} does not answer after {START_LIMIT_S} s")


def test_unit_runs_starts_at_boot_and_listens(host):
    assert host.service(UNIT).is_running
    assert host.service(UNIT).is_enabled
    assert host.socket("tcp://0.0.0.0:8100").is_listening
    assert ask(host, "/health", key=None)[0] == 200


def test_model_answers_under_its_name_and_its_alias(host):
    status, models = ask(host, "/v1/models")
    assert status == 200
    assert [model["id"] for model in models["data"]] == ["tiny-llama", "chat"]
    status, completion = chat(host)
    assert status == 200
    assert completion["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("key", [None, "wrong-key-wrong-key"])
def test_without_the_key_there_is_no_answer(host, key):
    assert chat(host, key=key)[0] == 401


def test_engine_took_every_argument_of_the_plan(host):
    journal = host.check_output("journalctl --unit=%s --output=cat --no-pager", UNIT)
    arguments = re.findall(r"non-default args: (\{.*\})", journal)[-1]
    for expected in (
        "'served_model_name': ['tiny-llama', 'chat']",
        "'max_model_len': 1024",
        "'enable_prefix_caching': False",
        "'enforce_eager': True",
        "'override_generation_config': {'temperature': 0.5}",
        "'kv_cache_memory_bytes': 67108864",
        "'shutdown_timeout': 30",
    ):
        assert expected in arguments
    # 64 MiB over 2 layers x 2 KV heads x 64 x 2 (key and value) x 2 bytes a token.
    assert "KV cache size: 65,536 tokens" in journal


def test_processes_are_unprivileged(host):
    found = processes(host)
    assert len(found) >= 3, "the server, the engine core and its worker"
    for pid in found:
        status = host.check_output("cat /proc/%s/status", pid)
        assert re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE)[1] not in ("0", "1000")
        assert re.search(r"^CapEff:\s+0{16}$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
        assert re.search(r"^Seccomp:\s+2$", status, re.MULTILINE)


def test_unit_is_hardened(host):
    verdict = host.check_output("systemd-analyze security --no-pager %s", UNIT).splitlines()[-1]
    assert float(re.search(r"level for .*: ([\d.]+)", verdict)[1]) <= 2.0


def test_files_belong_to_root_and_only_the_key_is_hidden(host):
    root = "/etc/l40s-fleet"
    assert host.file(f"{root}/engine.env").mode == 0o600
    for name in ("config.yaml", "environment", "instance.json"):
        file = host.file(f"{root}/instances/tiny-llama-1/{name}")
        assert (file.mode, file.user, file.group) == (0o644, "root", "root")
        assert KEY not in file.content_string
    assert json.loads(host.file(f"{root}/instances/tiny-llama-1/instance.json").content_string)["port"] == 8100


@pytest.fixture(scope="module")
def pattern(host):
    """A file on the node that holds the key: on a command line the key itself would be in the journal and in ps."""
    file = "/run/test-pattern"
    host.check_output("umask 077 && sed s/^VLLM_API_KEY=// /etc/l40s-fleet/engine.env > %s", file)
    yield file
    host.check_output("rm -f %s", file)


@pytest.mark.parametrize(
    "command",
    [f"systemctl show {UNIT}", f"systemctl cat {UNIT}", "ps -ewwo args", "journalctl --no-pager --output=export"],
)
def test_key_shows_nowhere(host, pattern, command):
    found = f"grep --text --fixed-strings --count --file={pattern}"
    assert host.run(f"{command} | {found}").stdout.strip() == "0"
    assert host.run(f"{found} /etc/l40s-fleet/engine.env").stdout.strip() == "1"


def test_another_user_cannot_read_the_engines_environment(host):
    pid = processes(host)[0]
    assert host.run("sudo -u nobody cat /proc/%s/environ", pid).rc != 0
    assert KEY in host.check_output("cat /proc/%s/environ", pid)


def test_kill_9_of_the_engine_core(host):
    """The server follows its engine core, by itself and with status 0 or not, and systemd starts both again."""
    main = host.check_output("systemctl show --property=MainPID --value %s", UNIT)
    since = time.monotonic()
    host.check_output("pkill -9 -f ^VLLM::EngineCore")
    while host.check_output("systemctl show --property=MainPID --value %s", UNIT) == main:
        assert time.monotonic() - since < START_LIMIT_S, "the server outlived its engine core"
        time.sleep(0.5)
    wait_until_it_answers(host, since)


def test_restart_of_the_node(host, restart_node):
    since = time.monotonic()
    restart_node()
    wait_until_it_answers(host, since)
