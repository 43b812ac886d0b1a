"""Checkpoints that real llm-compressor made of a tiny model, judged, and served by real vLLM behind the gateway."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
from contextlib import closing

import pytest
from lab_support import CHECKOUT, LAB

testinfra_hosts = ["ansible://l40s-01"]

LAB_DIRECTORY = CHECKOUT / "build" / "lab" / LAB
GATEWAY = json.loads((LAB_DIRECTORY / "addresses.json").read_text())["gw-01"]
CLIENT_KEY = (LAB_DIRECTORY / "secrets" / "client_key").read_text()
MODELS = "/var/lib/l40s-fleet/models"
RECORDS = "/var/lib/l40s-fleet/quantize"
# Weights and activations as config.json says them.
MADE = {
    "tiny-awq": ("awq", "pack-quantized", 4, None),
    "tiny-gptq": ("gptq", "pack-quantized", 4, None),
    "tiny-int8": ("int8", "int-quantized", 8, 8),
    "tiny-fp8": ("fp8_dynamic", "float-quantized", 8, 8),
}


def recipe_of(host, model):
    (path,) = host.check_output("ls -d %s/%s-*/recipe.json", MODELS, model).split()
    return path, json.loads(host.file(path).content_string)


def instance(host, model):
    return json.loads(host.file(f"/etc/l40s-fleet/instances/{model}-1/instance.json").content_string)


def complete(model):
    body = json.dumps({"model": model, "prompt": "The class statement", "max_tokens": 8, "temperature": 0})
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {CLIENT_KEY}"}
    with closing(http.client.HTTPConnection(GATEWAY, 8080, timeout=60)) as connection:
        connection.request("POST", "/v1/completions", body, headers)
        answer = connection.getresponse()
        text = answer.read()
    assert answer.status == 200, text
    return json.loads(text)


@pytest.mark.parametrize("model", sorted(MADE))
def test_checkpoint_is_what_was_asked_for_with_its_recipe_and_figures(host, model):
    path, record = recipe_of(host, model)
    method, form, weight_bits, activation_bits = MADE[model]
    assert record["recipe"]["method"] == method
    assert record["versions"]["llmcompressor"] == "0.14.0.1"
    source = host.check_output("ls -d %s/%s-%s", MODELS, model, record["source_digest"][:12])
    assert (
        host.file(path.replace("recipe.json", "model.safetensors")).size < host.file(f"{source}/model.safetensors").size
    )
    config = json.loads(host.file(path.replace("recipe.json", "config.json")).content_string)["quantization_config"]
    (group,) = config["config_groups"].values()
    assert (config["format"], group["weights"]["num_bits"]) == (form, weight_bits)
    assert (group["input_activations"] or {}).get("num_bits") == activation_bits
    figures = record["figures"]
    print(f"{model}: {figures}, {record['seconds']}")
    assert figures["agreement"] >= record["limits"]["min_agreement"]
    assert 0.9 < figures["perplexity_ratio"] <= record["limits"]["max_perplexity_ratio"]
    assert figures["tokens"] > 2000


@pytest.mark.parametrize("model", sorted(MADE))
def test_vllm_serves_it_through_the_gateway(host, model):
    path, _ = recipe_of(host, model)
    assert instance(host, model)["engine_args"]["model"] == path.removesuffix("/recipe.json")
    answer = complete(model)
    assert answer["model"] == model
    assert answer["usage"]["completion_tokens"] >= 1
    journal = host.check_output("journalctl --unit vllm@%s-1 --output cat --no-pager", model)
    assert "quantization=compressed-tensors" in journal


def test_a_bad_recipe_was_stopped_by_the_gate_and_planned_around(host):
    (path,) = host.check_output("ls %s/rejected/*.json", RECORDS).split()
    record = json.loads(host.file(path).content_string)
    print(record["why"], record["figures"])
    assert record["model"] == "tiny-bad"
    assert record["figures"]["agreement"] < record["limits"]["min_agreement"]
    assert not host.file(f"{MODELS}/tiny-bad-{record['key'][:12]}").exists
    served = instance(host, "tiny-bad")
    assert served["engine_args"]["model"] == f"{MODELS}/tiny-bad-{record['source_digest'][:12]}"
    assert any("the quality gate refused it: it chooses the source's token" in reason for reason in served["reasons"])
    assert complete("tiny-bad")["usage"]["completion_tokens"] >= 1


def test_jobs_ran_without_rights_and_left_nothing(host):
    lines = host.check_output("journalctl --unit 'fleet-quantize@*' --output json --no-pager _TRANSPORT=stdout")
    users = {json.loads(line)["_UID"] for line in lines.splitlines()}
    assert users
    assert "0" not in users
    assert host.check_output("ls /etc/l40s-fleet/quantize /var/lib/l40s-fleet-quantize").split() == [
        "/etc/l40s-fleet/quantize:",
        "/var/lib/l40s-fleet-quantize:",
    ]
    exposure = host.check_output("systemd-analyze security --no-pager fleet-quantize@x.service | tail -n 1")
    assert float(exposure.split()[-3]) < 1.5


def test_a_job_that_was_killed_is_finished_by_the_next_run(host):
    _, record = recipe_of(host, "tiny-fp8")
    key = hashlib.sha256(b"another").hexdigest()
    job = {name: record[name] for name in ("model", "source_digest", "recipe", "limits", "tool")}
    job |= {"key": key, "judged": {"tokens": 2048, "sequence_length": 2048}}
    unit = f"fleet-quantize@tiny-fp8-{key[:12]}.service"

    def step(name, **more):
        return host.ansible("fleet_quantize", json.dumps({"step": name, "job": job, **more}), check=False, become=True)

    assert step("start")["outcome"] == "running"
    time.sleep(2)
    host.check_output("systemctl kill --signal=KILL %s", unit)
    assert step("watch", seen=1e12, wait_s=10)["running"] is False
    assert step("finish")["msg"].startswith(f"{unit}: ")
    assert not host.file(f"{MODELS}/tiny-fp8-{key[:12]}").exists
    assert step("start")["outcome"] == "running"
    while step("watch", seen=1e12, wait_s=30)["running"]:
        pass
    assert step("finish")["outcome"] == "accepted"
    assert step("look")["outcome"] == "accepted"
    host.check_output("rm -r %s/tiny-fp8-%s", MODELS, key[:12])
