"""Two models on one Triton server, as clients, operators and an attacker see them. What changes models comes last."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf import text_format
from lab_support import CHECKOUT, LAB
from tritonclient.grpc import model_config_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

testinfra_hosts = ["ansible://l40s-01"]

LAB_DIRECTORY = CHECKOUT / "build" / "lab" / LAB
ADDRESSES = json.loads((LAB_DIRECTORY / "addresses.json").read_text())
CLIENT_KEY = (LAB_DIRECTORY / "secrets" / "client_key").read_text()
UNIT = "triton-8000.service"
REPOSITORY = "/etc/l40s-fleet/triton/8000/repository"
SAMPLING = json.dumps({"max_tokens": 8, "temperature": 0, "ignore_eos": True})


def ask(
    method: str, path: str, body: Any = None, *, key: str | None = CLIENT_KEY, gateway: bool = True
) -> tuple[int, str]:
    """Status and body of a request to the gateway, or to Triton itself."""
    address = (ADDRESSES["gw-01"], 8080) if gateway else (ADDRESSES["l40s-01"], 8000)
    connection = http.client.HTTPConnection(*address, timeout=60)
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError as error:
        return 0, str(error)
    finally:
        connection.close()


def generate(model: str, **options: Any) -> tuple[int, str]:
    body = {"text_input": "Hello", "sampling_parameters": SAMPLING, "exclude_input_in_output": True}
    return ask("POST", f"/v2/models/{model}/generate", body, **options)


def stage(host: Any, models: str) -> subprocess.CompletedProcess[str]:
    """The stage that serves, with other models."""
    command = ["ansible-playbook", "-i", "inventory/lab/hosts.yml", "playbooks/serve.yml"]
    command += ["-e", f"fleet_models_file={CHECKOUT}/molecule/triton/files/{models}"]
    environment = {**os.environ, "L40S_LAB": LAB, "NO_COLOR": "1"}
    return subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)


def invocation(host: Any) -> str:
    return str(host.check_output("systemctl show --property=InvocationID --value %s", UNIT))


@pytest.mark.parametrize("model", ["first", "second", "org%2Ffirst"])
def test_generate_answers_through_the_gateway(model: str) -> None:
    status, text = generate(model)
    assert status == 200, text
    document = json.loads(text)
    assert document["model_name"] == ("second" if model == "second" else "first")
    assert document["text_output"]


def test_the_models_differ_and_answer_the_same_again() -> None:
    answers = {model: json.loads(generate(model)[1])["text_output"] for model in ("first", "second")}
    assert answers["first"] != answers["second"]
    assert json.loads(generate("first")[1])["text_output"] == answers["first"]


def test_generate_stream_gives_tokens_as_they_come() -> None:
    body = {"text_input": "Hello", "stream": True, "sampling_parameters": SAMPLING}
    status, text = ask("POST", "/v2/models/first/generate_stream", body)
    assert status == 200
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    assert len([event for event in events if event["text_output"]]) > 1
    whole = json.loads(generate("first")[1])["text_output"]
    assert "".join(event["text_output"] for event in events) == whole


def test_grpc_streams() -> None:
    answers: list[Any] = []
    done = threading.Event()

    def heard(result: Any, error: Any) -> None:
        answers.append(error or result)
        final = error or result.get_response().parameters["triton_final_response"].bool_param
        if final:
            done.set()

    text = triton.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"Hello"], dtype=object))
    stream = triton.InferInput("stream", [1], "BOOL")
    stream.set_data_from_numpy(np.array([True]))
    sampling = triton.InferInput("sampling_parameters", [1], "BYTES")
    sampling.set_data_from_numpy(np.array([SAMPLING.encode()], dtype=object))
    with triton.InferenceServerClient(f"{ADDRESSES['l40s-01']}:8001") as client:
        client.start_stream(callback=heard)
        client.async_stream_infer("second", [text, stream, sampling], enable_empty_final_response=True)
        assert done.wait(30)
        client.stop_stream()
    texts = [answer.as_numpy("text_output") for answer in answers]
    said = b"".join(one[0] for one in texts if one is not None).decode()
    assert said == json.loads(generate("second")[1])["text_output"]


def test_the_ensemble_takes_chat_messages() -> None:
    body = {"messages": json.dumps([{"role": "user", "content": "Hello"}]), "sampling_parameters": SAMPLING}
    status, text = ask("POST", "/v2/models/first-chat/generate", {**body, "stream": False})
    assert status == 200, text
    answer = json.loads(text)["text_output"]
    # What the model makes of the prompt that its template gives, and not the prompt.
    prompt = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
    prompt += "<|start_header_id|>assistant<|end_header_id|>\n\n"
    asked = {"text_input": prompt, "sampling_parameters": SAMPLING, "exclude_input_in_output": True}
    assert answer == json.loads(ask("POST", "/v2/models/first/generate", asked)[1])["text_output"]
    status, text = ask("POST", "/v2/models/first-chat/generate_stream", {**body, "stream": True})
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    assert "".join(event["text_output"] for event in events) == answer


def test_the_gateway_keeps_what_is_not_for_clients() -> None:
    assert ask("GET", "/v2/models/first/ready")[0] == 200
    assert generate("first", key=None)[0] == 401
    assert generate("first", key="wrong-key-wrong-key")[0] == 401
    assert generate("absent")[0] == 404
    assert generate("plain")[0] == 404
    assert ask("GET", "/v2/models/first/generate")[0] == 405
    for path in ("/v2/models/first/unload", "/v2/repository/models/first/unload", "/v2/repository/index"):
        assert ask("POST", path, {})[0] == 404
    listed = json.loads(ask("GET", "/v1/models")[1])["data"]
    assert [one["id"] for one in listed] == ["plain"]
    chat = {"model": "first", "messages": [{"role": "user", "content": "Hello"}]}
    assert ask("POST", "/v1/chat/completions", chat)[0] == 404
    assert ask("POST", "/v1/chat/completions", chat | {"model": "plain", "max_tokens": 4})[0] == 200


def test_the_repository_is_what_tritons_backend_wants(host: Any) -> None:
    for model in ("first", "second"):
        config = model_config_pb2.ModelConfig()
        text_format.Parse(host.file(f"{REPOSITORY}/{model}/config.pbtxt").content_string, config)
        assert (config.name, config.backend, config.max_batch_size) == (model, "vllm", 0)
        assert [group.kind for group in config.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_MODEL]
        arguments = json.loads(host.file(f"{REPOSITORY}/{model}/1/model.json").content_string)
        assert arguments["max_model_len"] == 1024
        completed = json.loads(ask("GET", f"/v2/models/{model}/config")[1])
        assert completed["model_transaction_policy"]["decoupled"] is True


def test_metrics_count_by_model(host: Any) -> None:
    generate("first")
    metrics = host.check_output(
        "python3 -c %s", "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8002/metrics').read().decode())"
    )
    counted = re.findall(r'^vllm:generation_tokens_total\{model="first",version="1"\} ([\d.]+)', metrics, re.MULTILINE)
    assert float(counted[0]) >= 8


def test_the_server_is_unprivileged_and_hardened(host: Any) -> None:
    assert host.service(UNIT).is_running
    assert host.service(UNIT).is_enabled
    processes = host.check_output("ps -eo pid=,unit= | awk -v unit=%s '$2 == unit { print $1 }'", UNIT).split()
    assert len(processes) >= 5, "the server, and a stub and an engine a model"
    for pid in processes:
        status = host.check_output("cat /proc/%s/status", pid)
        assert re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE)[1] not in ("0", "1000")
        assert re.search(r"^CapEff:\s+0{16}$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    verdict = host.check_output("systemd-analyze security --no-pager %s", UNIT).splitlines()[-1]
    assert float(re.search(r"level for .*: ([\d.]+)", verdict)[1]) <= 2.0


@pytest.fixture
def loop() -> Callable[[], list[str]]:
    """Asks the first model all the time. What is returned ends that, and says what went wrong."""
    wrong: list[str] = []
    asked = [0]
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            status, text = generate("first")
            asked[0] += 1
            if status != 200:
                wrong.append(f"{status}: {text[:200]}")
            time.sleep(0.05)

    thread = threading.Thread(target=run)
    thread.start()

    def end() -> list[str]:
        over.set()
        thread.join()
        assert asked[0] > 20
        return wrong

    return end


def test_one_model_is_changed_while_the_other_serves(host: Any, loop: Callable[[], list[str]]) -> None:
    before = invocation(host)
    done = stage(host, "changed.yml")
    assert loop() == []
    assert done.returncode == 0, done.stdout[-3000:]
    assert invocation(host) == before
    assert json.loads(host.file(f"{REPOSITORY}/second/1/model.json").content_string)["max_model_len"] == 512
    assert generate("second", gateway=False)[0] == 200
    long = {"text_input": "word " * 700, "sampling_parameters": SAMPLING}
    assert ask("POST", "/v2/models/second/generate", long, gateway=False)[0] != 200


def test_a_model_that_cannot_be_loaded_is_put_back(host: Any, loop: Callable[[], list[str]]) -> None:
    before = invocation(host)
    done = stage(host, "broken.yml")
    assert loop() == []
    assert done.returncode != 0
    assert "what ran before serves again" in done.stdout
    assert "/nowhere" in done.stdout
    assert invocation(host) == before
    assert json.loads(host.file(f"{REPOSITORY}/second/1/model.json").content_string)["max_model_len"] == 512
    assert generate("second", gateway=False)[0] == 200


def wait_until_both_answer(host: Any) -> None:
    limit = time.monotonic() + 90
    while not host.service(UNIT).is_running or any(
        generate(name, gateway=False)[0] != 200 for name in ("first", "second")
    ):
        assert time.monotonic() < limit, "Triton does not answer"
        time.sleep(1)


def test_a_model_whose_engine_was_killed_comes_back(host: Any) -> None:
    before = invocation(host)
    engines = host.check_output("pgrep -f ^VLLM::EngineCore").split()
    of_triton = [pid for pid in engines if UNIT in host.check_output("cat /proc/%s/cgroup", pid)]
    assert len(of_triton) == 2
    host.check_output("kill -9 %s", of_triton[0])
    wait_until_both_answer(host)
    assert invocation(host) == before, "the server and the other model went on"
    assert "had unloaded itself and is loaded again" in host.check_output(
        "journalctl --unit=l40s-fleet-triton --output=cat"
    )


def test_a_server_that_was_killed_comes_back_with_its_models(host: Any) -> None:
    host.check_output("systemctl kill --signal=KILL %s", UNIT)
    wait_until_both_answer(host)
