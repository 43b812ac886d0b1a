"""Checkpoints that real llm-compressor made of a tiny model, judged, and served by real vLLM behind the gateway."""

from __future__ import annotations

import hashlib
import html
import http.client
import json
import os
import re
import subprocess
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


def identity(host, model):
    """The id of its instance on this host."""
    return host.check_output("ls /etc/l40s-fleet/instances | grep ^%s-", model)


def instance(host, model):
    path = f"/etc/l40s-fleet/instances/{identity(host, model)}/instance.json"
    return json.loads(host.file(path).content_string)


def on(node, script):
    """A script on any node, as root."""
    line = ["podman", "exec", f"{LAB}-{node}", "sh", "-c", script]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout


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
    journal = host.check_output("journalctl --unit vllm@%s --output cat --no-pager", identity(host, model))
    assert "quantization=compressed-tensors" in journal


def test_a_bad_recipe_was_stopped_by_the_gate_and_planned_around():
    record = json.loads(on("l40s-02", f"cat {RECORDS}/rejected/*.json"))
    print(record["why"], record["figures"])
    assert record["model"] == "tiny-bad"
    assert record["figures"]["agreement"] < record["limits"]["min_agreement"]
    assert on("l40s-02", f"ls {MODELS} | grep tiny-bad").split() == [f"tiny-bad-{record['source_digest'][:12]}"]
    served = json.loads(on("l40s-02", "cat /etc/l40s-fleet/instances/tiny-bad-1/instance.json"))
    assert served["engine_args"]["model"] == f"{MODELS}/tiny-bad-{record['source_digest'][:12]}"
    assert any("the quality gate refused it: it chooses the source's token" in reason for reason in served["reasons"])
    assert complete("tiny-bad")["usage"]["completion_tokens"] >= 1


def play(*playbooks, expect=0, **variables):
    """Runs stages as an operator does; returns the output, and when its lines came, in seconds from the start."""
    variables |= {"fleet_models_file": str(CHECKOUT / "molecule" / "quantize" / "files" / "models.yml")}
    line = ["ansible-playbook", "--inventory", str(CHECKOUT / "inventory" / "lab" / "hosts.yml")]
    line += [
        "--extra-vars",
        json.dumps(variables),
        *(str(CHECKOUT / "playbooks" / f"{name}.yml") for name in playbooks),
    ]
    environment = {**os.environ, "L40S_LAB": LAB, "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg")}
    environment |= {"ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1", "PYTHONUNBUFFERED": "1"}
    begun, lines = time.monotonic(), []
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        lines = [(time.monotonic() - begun, text.rstrip("\n")) for text in process.stdout]
    output = "\n".join(text for _, text in lines)
    assert process.returncode == expect, output
    return output, lines


def changed(output):
    return sum(map(int, re.findall(r"^\S+ +: ok=\d+ +changed=(\d+)", output, re.MULTILINE)))


def sums(node, model):
    """Sums of a quantized checkpoint, without the record of how it was made, which holds durations."""
    names = "sha256sum *.safetensors *.json | grep -v recipe.json"
    return on(node, f"cd $(dirname {MODELS}/{model}-*/recipe.json) && {names}")


def test_it_was_made_on_one_host_and_copied_to_the_other():
    assert sums("l40s-02", "tiny-fp8") == sums("l40s-01", "tiny-fp8")
    assert len(on("l40s-02", f"ls {MODELS} | grep tiny-fp8").split()) == 1, "its source need not be there"
    assert "tiny-fp8" not in on("l40s-02", "journalctl --no-pager --unit 'fleet-quantize@*'")
    served = on("l40s-01", "journalctl --unit l40s-fleet-peer --output=cat --no-pager")
    assert '" 206' in served
    instances = [on(node, "ls /etc/l40s-fleet/instances | grep tiny-fp8").strip() for node in ("l40s-01", "l40s-02")]
    assert sorted(instances) == ["tiny-fp8-1", "tiny-fp8-2"]
    assert on("l40s-02", f"systemctl is-active vllm@{instances[1]}").strip() == "active"
    # Asked for in turn: both answer.
    assert {complete("tiny-fp8")["model"] for _ in range(4)} == {"tiny-fp8"}


def test_the_report_shows_the_figures_and_what_was_refused(host):
    text = (LAB_DIRECTORY / "state" / "report.html").read_text()
    (section,) = re.findall(r'<section [^>]*id="quantized".*?</section>', text, re.DOTALL)
    shown = html.unescape(re.sub(r"<[^>]*>", " ", section))
    for model in MADE:
        figures = recipe_of(host, model)[1]["figures"]
        assert f"{figures['perplexity']:.2f} / {figures['source_perplexity']:.2f}" in shown
        assert f"{100 * figures['agreement']:.1f} % (at least 40.0 %)" in shown
    assert len(re.findall(r"✓\s+serves", shown)) == len(MADE)
    assert len(re.findall(r"✗\s+refused", shown)) == 1
    assert "Refused: it chooses the source's token at" in shown
    assert "llmcompressor 0.14.0.1" in shown


def test_a_second_run_fetches_and_quantizes_nothing_in_ten_seconds():
    output, lines = play("probe", "plan", "models", "quantize")
    assert changed(output) == 0
    (begun,) = (at for at, text in lines if text.startswith("PLAY [Bring the checkpoints]"))
    ended = max(at for at, text in lines if text.startswith("PLAY RECAP"))
    print(f"models and quantize took {ended - begun:.1f} s")
    assert ended - begun <= 10
    assert "fleet_checkpoint_fetch" not in output
    for task in ("Fetch from where the models come from", "Make the checkpoints", "Install what is missing"):
        assert f": {task}]" not in output


def flip(node, path):
    """One bit, with the time of change as before: what a disk does."""
    change = f"printf X | dd of={path} bs=1 seek=70000 conv=notrunc status=none"
    on(node, f"touch -r {path} /tmp/stamp && {change} && touch -r /tmp/stamp {path}")


def test_flipped_bits_are_found_by_verify_and_mended_by_the_next_run():
    """One checkpoint is copied from the other host, the other one, which no other host has, is made again."""
    right = sums("l40s-02", "tiny-fp8"), sums("l40s-01", "tiny-gptq")
    paths = [
        on(node, f"echo $(dirname {MODELS}/{model}-*/recipe.json)/model.safetensors").strip()
        for node, model in (("l40s-02", "tiny-fp8"), ("l40s-01", "tiny-gptq"))
    ]
    flip("l40s-02", paths[0])
    flip("l40s-01", paths[1])
    assert right != (sums("l40s-02", "tiny-fp8"), sums("l40s-01", "tiny-gptq"))
    output, _ = play("verify", expect=2, fleet_verify_checkpoints="full")
    # Ansible breaks long lines.
    told = " ".join(output.split())
    for node, path in zip(("l40s-02", "l40s-01"), paths, strict=True):
        assert f"{path.removesuffix('/model.safetensors')} on {node}: model.safetensors damaged" in told
    # The default reads none of it: verify has marked what it found.
    output, _ = play("probe", "plan", "models", "quantize", fleet_verify_checkpoints="quick")
    assert right == (sums("l40s-02", "tiny-fp8"), sums("l40s-01", "tiny-gptq"))
    assert "l40s-01: tiny-gptq GPTQ, 4 bits" in output
    assert changed(play("probe", "plan", "models", "quantize", fleet_verify_checkpoints="full")[0]) == 0


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
