"""The engine is there, works for an unprivileged user, and what cannot be installed is refused in one line."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from lab_support import CHECKOUT, LAB

testinfra_hosts = ["ansible://l40s-01"]

ENGINE = "/opt/vllm/0.32.0"


def play(host, *arguments):
    """Runs this scenario's playbook on the node under test."""
    command = ["ansible-playbook", "--inventory", CHECKOUT / "inventory" / "lab" / "hosts.yml", "--limit"]
    command += [host.backend.host, *arguments, CHECKOUT / "molecule" / "vllm" / "converge.yml"]
    environment = {**os.environ, "L40S_LAB": LAB, "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg")}
    environment |= {"ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_engine_is_complete_and_says_from_what_it_was_built(host):
    marker = json.loads(host.file(f"{ENGINE}/.complete").content_string)
    assert (marker["version"], marker["accelerator"]) == ("0.32.0", "cpu")
    assert host.file(f"{ENGINE}/.complete-{marker['digest']}").exists


def test_engine_works_for_an_unprivileged_user(host):
    version = host.check_output(
        "cd / && setpriv --reuid=65534 --clear-groups env HOME=/tmp %s/bin/vllm --version", ENGINE
    )
    assert version.split()[-1] == "0.32.0+cpu"


def test_what_the_engine_loads_from_the_system_is_there(host):
    extensions = host.check_output("find %s -name _C*.so -path */vllm/*", ENGINE).split()
    assert extensions
    missing = host.run("ldd %s | grep 'not found' | grep -v -e libtorch -e libc10", extensions[0]).stdout
    assert missing == ""


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"vllm_version": "0.1.0"}, "vllm_version: there is no lock file for 0.1.0 on cpu"),
        ({"vllm_accelerator": "tpu"}, "value of vllm_accelerator must be one of: cuda, cpu, got: tpu"),
        (
            {"vllm_accelerator": "cuda", "vllm_version": "0.33.0"},
            "needs CUDA 13.0, which is NVIDIA driver 580 or newer",
        ),
        ({"vllm_prefix": "/opt/vllm/elsewhere"}, "/opt/vllm/elsewhere cannot be written: Read-only file system"),
    ],
)
def test_what_cannot_be_installed_is_refused_in_one_line(host, variables, problem):
    done = play(host, "--extra-vars", json.dumps(variables))
    assert done.returncode != 0
    assert problem in " ".join(done.stdout.split())
    assert "Traceback" not in done.stdout
