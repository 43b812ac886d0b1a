"""Drafted tokens in real engines: by n-grams and by a draft model that was brought beside the model's checkpoint."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
from contextlib import closing

import pytest
import yaml
from fleet.engine_reports import attention_backends, cache_config, drafting, kv_cache_tokens
from lab_support import CHECKOUT, LAB

testinfra_hosts = ["ansible://l40s-01"]

LAB_DIRECTORY = CHECKOUT / "build" / "lab" / LAB
GATEWAY = json.loads((LAB_DIRECTORY / "addresses.json").read_text())["gw-01"]
CLIENT_KEY = (LAB_DIRECTORY / "secrets" / "client_key").read_text()
STORE = "/var/lib/l40s-fleet/models"
MODELS = ("tiny-drafted", "tiny-ngram")


def record(host, model):
    return json.loads(host.file(f"/etc/l40s-fleet/instances/{model}-1/instance.json").content_string)


def metrics(host, model):
    url = f"http://127.0.0.1:{record(host, model)['port']}/metrics"
    program = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=30).read().decode())"
    return host.check_output("python3 -c %s %s", program, url)


def complete(model, tokens=24):
    body = json.dumps({"model": model, "prompt": "Once more, once more", "max_tokens": tokens, "temperature": 0})
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {CLIENT_KEY}"}
    with closing(http.client.HTTPConnection(GATEWAY, 8080, timeout=60)) as connection:
        connection.request("POST", "/v1/completions", body, headers)
        answer = connection.getresponse()
        text = answer.read()
    assert answer.status == 200, text
    return json.loads(text)


def test_the_draft_is_a_checkpoint_in_the_store_and_named_to_the_engine(host):
    one = record(host, "tiny-drafted")
    (draft,) = one["further_checkpoints"]
    directory = f"{STORE}/tiny-drafted_draft-{draft['digest'][:12]}"
    assert one["engine_args"]["speculative_config"]["model"] == directory
    config = yaml.safe_load(host.file("/etc/l40s-fleet/instances/tiny-drafted-1/config.yaml").content_string)
    assert config["speculative-config"] == {
        "method": "draft_model",
        "model": directory,
        "num_speculative_tokens": 3,
    }
    sums = host.check_output("sha256sum %s/model.safetensors", directory).split()[0]
    assert host.file(f"{STORE}/.blobs/{sums}").exists


@pytest.mark.parametrize("model", MODELS)
def test_the_planned_cache_is_the_reported_one(host, model):
    assert kv_cache_tokens(cache_config(metrics(host, model))) == record(host, model)["memory"]["kv_cache_tokens"]


def test_a_drafts_layers_take_their_part_of_the_cache(host):
    tokens = {model: record(host, model)["memory"]["kv_cache_tokens"] for model in MODELS}
    # A token takes two layers of two heads, and one layer of one head of the draft's besides.
    assert tokens["tiny-drafted"] == pytest.approx(tokens["tiny-ngram"] * 4 / 5, rel=0.01)


@pytest.mark.parametrize("model", MODELS)
def test_drafted_tokens_are_accepted(host, model):
    before = drafting(metrics(host, model))
    assert complete(model)["usage"]["completion_tokens"] == 24
    after = drafting(metrics(host, model))
    drafted, accepted = after.draft_tokens - before.draft_tokens, after.accepted_tokens - before.accepted_tokens
    print(f"{model}: {accepted} of {drafted} accepted")
    assert drafted >= 12
    assert accepted >= 6


def test_a_journal_says_which_attention_backend_an_engine_took(host):
    journal = host.check_output("journalctl --unit vllm@tiny-drafted-1 --output cat --no-pager")
    assert attention_backends(journal) == ("CPU_ATTN",)


def test_verify_shows_what_was_accepted(host):
    command = ["ansible-playbook", "-i", "inventory/lab/hosts.yml", "playbooks/verify.yml"]
    models_file = CHECKOUT / "molecule" / "speculation" / "files" / "models.yml"
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "L40S_LAB": LAB}
    done = subprocess.run(
        [*command, "-e", f"fleet_models_file={models_file}"],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    found = dict(re.findall(r"(tiny-\w+)-1 on l40s-01: ([\d,]+) of [\d,]+ accepted", done.stdout))
    assert sorted(found) == sorted(MODELS), done.stdout[-4000:]
    assert all(int(count.replace(",", "")) > 0 for count in found.values())
