"""The gateway as its clients and its operators see it, in front of a real engine."""

from __future__ import annotations

import http.client
import json
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from lab_support import CHECKOUT, LAB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

testinfra_hosts = ["ansible://gateways"]

LAB_DIRECTORY = CHECKOUT / "build" / "lab" / LAB
ADDRESSES = json.loads((LAB_DIRECTORY / "addresses.json").read_text())
ADDRESS = ADDRESSES["gw-01"]
CLIENT_KEY = (LAB_DIRECTORY / "secrets" / "client_key").read_text()
ENGINE_KEY = (LAB_DIRECTORY / "secrets" / "engine_api_key").read_text()
CHAT = "/v1/chat/completions"
LIMIT_BYTES = 1048576


def ask(
    method: str, path: str, body: Any = None, key: str | None = CLIENT_KEY, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """One request: status, headers, body."""
    connection = http.client.HTTPConnection(ADDRESS, 8080, timeout=60)
    sent = {"Content-Type": "application/json", **(headers or {})}
    if key is not None:
        sent["Authorization"] = f"Bearer {key}"
    text = json.dumps(body) if isinstance(body, dict) else body
    try:
        connection.request(method, path, text, sent, encode_chunked="Transfer-Encoding" in sent)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, **more}


def error_of(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str | None]:
    """Status and OpenAI's error code; the answer must be JSON in OpenAI's form."""
    status, headers, body = answer
    assert headers["content-type"] == "application/json"
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return status, error["code"]


def stream(max_tokens: int, arrivals: list[float]) -> bytes:
    """Stream one completion, note when each chunk came, and return the last line."""
    connection = http.client.HTTPConnection(ADDRESS, 8080, timeout=120)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {CLIENT_KEY}"}
    body = chat("chat", stream=True, max_tokens=max_tokens, ignore_eos=True)
    connection.request("POST", CHAT, json.dumps(body), headers)
    answer = connection.getresponse()
    assert answer.status == 200
    last = b""
    for line in answer:
        if line.startswith(b"data: {"):
            arrivals.append(time.monotonic())
        last = line.strip() or last
    connection.close()
    return last


@pytest.fixture(scope="module", autouse=True)
def engines_up() -> None:
    """A gateway that has just started takes a moment to see which engines are up."""
    limit = time.monotonic() + 15
    while ask("POST", CHAT, chat("tiny-llama"))[0] == 503 and time.monotonic() < limit:
        time.sleep(0.2)


@pytest.mark.parametrize("model", ["tiny-llama", "chat", "org/chat"])
def test_a_model_answers_under_each_of_its_names(model: str) -> None:
    if model == "org/chat":
        # The engine itself does not know this name, so its own 404 shows that the request came through.
        status, headers, body = ask("POST", CHAT, chat(model))
        assert (status, headers.get("server")) == (404, "uvicorn"), body
        return
    status, _, body = ask("POST", CHAT, chat(model))
    assert status == 200, body
    assert json.loads(body)["usage"]["completion_tokens"] >= 1


def test_other_paths_of_the_engine_are_routed_by_the_body_too() -> None:
    assert ask("POST", "/v1/completions", {"model": "chat", "prompt": "Hi", "max_tokens": 2})[0] == 200
    assert json.loads(ask("POST", "/tokenize", {"model": "chat", "prompt": "Hi"})[2])["count"] >= 1


def test_both_instances_are_used(host: Any) -> None:
    def served() -> list[int]:
        fetch = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8404/metrics').read().decode())"
        metrics = host.check_output("python3 -c %s", fetch)
        name = 'haproxy_server_http_responses_total{proxy="model_tiny-llama",server="tiny-llama-'
        return [
            int(line.split()[-1]) for line in metrics.splitlines() if line.startswith(name) and 'code="2xx"' in line
        ]

    before = served()
    for _ in range(4):
        ask("POST", CHAT, chat("chat"))
    assert [after - earlier for after, earlier in zip(served(), before, strict=True)] == [2, 2]


@pytest.mark.parametrize("key", [CLIENT_KEY, "a-second-key"])
def test_known_keys_are_accepted(key: str) -> None:
    assert ask("GET", "/v1/models", key=key)[0] == 200


@pytest.mark.parametrize(
    ("key", "code"),
    [(None, None), ("wrong", "invalid_api_key"), ("", "invalid_api_key"), (ENGINE_KEY, "invalid_api_key")],
)
def test_other_keys_are_refused(key: str | None, code: str | None) -> None:
    assert error_of(ask("POST", CHAT, chat("chat"), key=key)) == (401, code)
    assert error_of(ask("GET", "/v1/models", key=key)) == (401, code)


def test_health_needs_no_key() -> None:
    assert ask("GET", "/health", key=None)[0] == 200


def test_models_are_listed_as_planned() -> None:
    _, _, body = ask("GET", "/v1/models")
    listed = json.loads(body)
    assert listed["object"] == "list"
    assert [entry["id"] for entry in listed["data"]] == ["down", "tiny-llama", "chat", "org/chat"]
    for path in ("/v1/models/chat", "/v1/models/org/chat", "/v1/models/org%2Fchat"):
        status, _, body = ask("GET", path)
        assert (status, json.loads(body)["root"]) == (200, "tiny-llama")
    assert error_of(ask("GET", '/v1/models/no"pe')) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", CHAT, chat('no "such" model\\'), (404, "model_not_found")),
        ("POST", CHAT, chat("down"), (503, "model_not_ready")),
        ("POST", CHAT, chat("unplaced"), (503, "model_not_placed")),
        ("POST", CHAT, b"{not json", (400, "invalid_body")),
        ("POST", CHAT, b'["chat"]', (400, "invalid_body")),
        ("POST", CHAT, b"", (400, "invalid_body")),
        ("POST", CHAT, {"messages": [{"model": "chat"}]}, (400, "invalid_body")),
        ("POST", CHAT, chat("chat", pad="x" * LIMIT_BYTES), (413, "request_too_large")),
        ("POST", CHAT, chat("chat", pad="x" * 5 * LIMIT_BYTES), (413, "request_too_large")),
        ("POST", "/v1/nothing", chat("chat"), (404, "not_found")),
        ("GET", CHAT, None, (405, "method_not_allowed")),
    ],
)
def test_mistakes_are_answered_as_openai_would(method: str, path: str, body: Any, expected: tuple[int, str]) -> None:
    assert error_of(ask(method, path, body)) == expected


def test_a_body_of_unknown_length_is_limited_too() -> None:
    def pieces(total: int) -> Iterator[bytes]:
        yield b'{"model": "chat", "prompt": "'
        for _ in range(total // 65536):
            yield b"x" * 65536
        yield b'"}'

    headers = {"Transfer-Encoding": "chunked"}
    answer = ask("POST", "/tokenize", pieces(3 * LIMIT_BYTES), headers=headers)  # type: ignore[arg-type]
    assert error_of(answer) == (413, "request_too_large")
    assert ask("POST", "/tokenize", pieces(65536), headers=headers)[0] == 200  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "the \\"model\\": \\"x\\"", "other": {"model": "x"}, "model": "ch\\u0061t"}',
        b'\xef\xbb\xbf{"prompt": "a byte order mark", "model": "chat"}',
        b'{"prompt": "deep", "x": ' + b'{"a": ' * 40 + b"1" + b"}" * 40 + b', "model": "chat"}',
        b'{"prompt": "' + b"x" * 900000 + b'", "model": "chat", "truncate_prompt_tokens": 1}',
    ],
    ids=["escapes", "byte order mark", "deep", "long"],
)
def test_the_model_is_found_wherever_it_stands(body: bytes) -> None:
    """The engine answers, whatever it thinks of the rest."""
    assert ask("POST", "/tokenize", body)[1].get("server") == "uvicorn"


def test_tokens_come_one_by_one() -> None:
    """Chunks are spread over a part of the request's time; a gateway that collects them sends all at its end."""
    arrivals: list[float] = []
    began = time.monotonic()
    assert stream(300, arrivals) == b"data: [DONE]"
    whole_s = time.monotonic() - began
    assert len(arrivals) > 250
    assert arrivals[-1] - arrivals[0] > whole_s / 5
    # On a busy machine the engine's own server sends several at a time.
    assert len({round(arrival, 2) for arrival in arrivals}) >= 4


def test_reloads_drop_nothing(host: Any) -> None:
    """Streams and short requests go on while the gateway is reloaded, and streams run across each reload."""
    ends: list[tuple[float, float, bytes]] = []
    answers: list[int] = []
    stop = threading.Event()

    def streams() -> None:
        while not stop.is_set():
            began = time.monotonic()
            last = stream(900, [])
            ends.append((began, time.monotonic(), last))

    def short_requests() -> None:
        while not stop.is_set():
            answers.append(ask("POST", "/tokenize", {"model": "chat", "prompt": "Hi"})[0])

    threads = [threading.Thread(target=task) for task in (streams, streams, short_requests)]
    for thread in threads:
        thread.start()
    reloads = []
    for _ in range(3):
        time.sleep(0.5)
        host.check_output("systemctl reload haproxy")
        reloads.append(time.monotonic())
    stop.set()
    for thread in threads:
        thread.join()
    assert {last for _, _, last in ends} == {b"data: [DONE]"}
    assert set(answers) == {200}
    across = [reload for reload in reloads if any(began < reload < ended for began, ended, _ in ends)]
    assert across == reloads, "no stream ran across a reload; this run proves nothing"


def running_requests() -> float:
    """What the engine is working on, in its own words."""
    connection = http.client.HTTPConnection(ADDRESSES["l40s-01"], 8100, timeout=10)
    connection.request("GET", "/metrics")
    metrics = connection.getresponse().read().decode()
    connection.close()
    return sum(
        float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("vllm:num_requests_running{")
    )


def wait_for(condition: Callable[[], bool], seconds: float) -> float:
    """Seconds until the condition holds; fails when it never does."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.05)
    return time.monotonic() - began


def test_a_client_that_leaves_frees_its_engine() -> None:
    body = json.dumps(chat("chat", max_tokens=900, ignore_eos=True))
    began = time.monotonic()
    ask("POST", CHAT, body.encode())
    whole_s = time.monotonic() - began
    connection = http.client.HTTPConnection(ADDRESS, 8080, timeout=60)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {CLIENT_KEY}"}
    connection.request("POST", CHAT, body, headers)
    wait_for(lambda: running_requests() == 1, whole_s)
    connection.close()
    assert wait_for(lambda: running_requests() == 0, whole_s) < whole_s / 2


def test_secrets_lie_only_where_they_must(host: Any) -> None:
    assert host.run(f"grep -rlF -- {CLIENT_KEY} /etc").stdout == ""
    assert host.check_output(f"grep -rlF -- {ENGINE_KEY} /etc") == "/etc/haproxy/engine_key.map"
    for name in ("haproxy.cfg", "engine_key.map", "clients.map"):
        file = host.file(f"/etc/haproxy/{name}")
        assert (file.user, file.group, oct(file.mode)) == ("root", "haproxy", "0o640")
    assert host.run(f"cat /proc/{main_process(host)}/environ | grep -qF -- {ENGINE_KEY}").rc == 1
    assert host.run(f"journalctl -u haproxy | grep -qF -e {ENGINE_KEY} -e {CLIENT_KEY}").rc == 1


def test_the_service_is_confined(host: Any) -> None:
    service = host.service("haproxy")
    assert service.is_running
    assert service.is_enabled
    assert {process.user for process in host.process.filter(comm="haproxy")} == {"haproxy"}
    verdict = host.check_output("systemd-analyze security haproxy.service --no-pager | tail -1")
    assert float(verdict.split("service:")[1].split()[0]) <= 1.5
    assert host.socket("tcp://0.0.0.0:8080").is_listening
    assert host.socket("tcp://127.0.0.1:8404").is_listening
    assert not host.socket("tcp://0.0.0.0:8404").is_listening


def test_the_log_names_the_client_and_not_its_key(host: Any) -> None:
    ask("POST", CHAT, chat("tiny-llama"))
    line = host.check_output("journalctl -u haproxy --no-pager --output=cat | grep 'client=' | tail -1")
    assert "client=demo model_tiny-llama/tiny-llama-" in line


def converge(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the scenario's playbook again, as an operator would after an edit."""
    inventory = CHECKOUT / "inventory" / "lab" / "hosts.yml"
    playbook = CHECKOUT / "molecule" / "gateway" / "converge.yml"
    command = ["ansible-playbook", "--inventory", str(inventory), str(playbook), *arguments]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)


def loaded_revision(host: Any) -> str:
    fetch = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8404/revision').read().decode())"
    return str(host.check_output("python3 -c %s", fetch))


def main_process(host: Any) -> str:
    return str(host.check_output("systemctl show --property MainPID --value haproxy.service"))


def test_a_configuration_that_haproxy_refuses_changes_nothing(host: Any) -> None:
    before, process = loaded_revision(host), main_process(host)
    files = host.check_output("sha256sum /etc/haproxy/*.*")
    run = converge("--extra-vars", "gateway_bind_address=nowhere.invalid")
    assert run.returncode == 2
    assert "/etc/haproxy: refused by haproxy: " in run.stdout
    assert "/etc/haproxy/haproxy.cfg:" in run.stdout
    assert host.check_output("sha256sum /etc/haproxy/*.*") == files
    assert (loaded_revision(host), main_process(host)) == (before, process)
    assert ask("POST", CHAT, chat("chat"))[0] == 200


def test_a_new_key_takes_effect_without_a_restart(host: Any) -> None:
    process = main_process(host)
    keys = json.dumps({"gateway_client_keys": [{"name": "new", "key": "a-new-key"}]})
    run = converge("--extra-vars", keys, "--diff")
    assert run.returncode == 0, run.stdout
    assert "a-new-key" not in run.stdout
    assert ask("GET", "/v1/models", key="a-new-key")[0] == 200
    assert ask("GET", "/v1/models")[0] == 401
    assert converge().returncode == 0
    assert ask("GET", "/v1/models")[0] == 200
    assert main_process(host) == process


def test_a_reload_that_an_interrupted_run_did_not_come_to_is_made_up_for(host: Any) -> None:
    wanted = loaded_revision(host)
    host.check_output("rm -rf /root/wanted && cp -a /etc/haproxy /root/wanted")
    assert converge("--extra-vars", "gateway_upload_timeout_s=61").returncode == 0
    assert loaded_revision(host) != wanted
    host.check_output("cp -a /root/wanted/. /etc/haproxy/ && rm -r /root/wanted")
    run = converge()
    assert run.returncode == 0, run.stdout
    assert loaded_revision(host) == wanted
    assert "changed=0" in converge().stdout


def test_it_comes_back_after_a_death(host: Any) -> None:
    host.check_output("systemctl kill --signal=KILL haproxy.service")
    limit = time.monotonic() + 15
    while time.monotonic() < limit:
        try:
            if ask("POST", CHAT, chat("chat"))[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    pytest.fail("no answer after the gateway was killed")


def test_it_comes_back_after_a_restart_of_the_node(restart_node: Callable[[], None]) -> None:
    restart_node()
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        try:
            if ask("GET", "/v1/models")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    pytest.fail("no answer after the node was restarted")
