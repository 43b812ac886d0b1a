"""The units of Triton servers, as they are rendered for the container and for a tritonserver on the host."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import jinja2
import pytest
import yaml

ROLE = Path(__file__).resolve().parents[2] / "roles" / "triton"
SERVER = {"port": 8003, "gpus": ["GPU-a", "GPU-b"], "env": {"X": 'a "b" 100%'}}
IMAGE = "registry.example/tritonserver:26.07-vllm-python-py3@sha256:" + "0" * 64


def rendered(name, server=SERVER, **more):
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined)  # noqa: S701
    environment.filters |= {
        "to_json": json.dumps,
        "from_json": json.loads,
        "hash": lambda text, kind: hashlib.new(kind, text.encode()).hexdigest(),
    }
    variables = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    known = {**defaults, "ansible_managed": "managed", "triton_image": IMAGE, "vllm_version": "0.32.0", **more}
    known |= {key: value for key, value in variables.items() if isinstance(value, str) and "{{" not in value}
    known["triton_server_directory"] = "/opt/triton/2.51.0"
    for path in ("triton_site_packages", "triton_engine_directory"):
        known[path] = environment.from_string(variables[path]).render(known)
    known["triton_arguments"] = [environment.from_string(text).render(known) for text in variables["triton_arguments"]]
    return environment.from_string((ROLE / "templates" / name).read_text()).render({**known, "triton_server": server})


def directives(text):
    joined = text.replace("\\\n", " ")
    return [tuple(line.split("=", 1)) for line in joined.splitlines() if re.match(r"\w+=", line)]


@pytest.mark.parametrize("name", ["triton.service.j2", "triton.container.j2"])
def test_both_servers_are_told_the_same(name):
    found = directives(rendered(name))
    command = next(value for key, value in found if key in ("ExecStart", "Exec")).split()
    for word in (
        "--model-repository=/etc/l40s-fleet/triton/8003/repository",
        "--model-control-mode=explicit",
        "--load-model=*",
        "--exit-on-error=false",
        "--http-port=8003",
        "--grpc-port=8004",
        "--metrics-port=8005",
    ):
        assert word in command
    assert any("CUDA_DEVICE_ORDER=PCI_BUS_ID" in value for key, value in found if key == "Environment")
    assert '"X=a \\"b\\" 100%%"' in [value for key, value in found if key == "Environment"]
    started = next(value for key, value in found if key == "ExecStartPre")
    kind = name.removeprefix("triton").removesuffix(".j2")
    assert started.split()[-2].endswith(f"/triton-8003{kind}")
    assert started.split()[-1] == "/run/l40s-fleet-triton/8003.unit"
    assert ("Restart", "always") in found
    assert ("WantedBy", "multi-user.target") in found


def test_the_container_sees_its_cards_alone_and_nothing_more_than_it_needs():
    found = directives(rendered("triton.container.j2"))
    assert [value for key, value in found if key == "AddDevice"] == ["nvidia.com/gpu=GPU-a", "nvidia.com/gpu=GPU-b"]
    # KIND_GPU counts what the container sees; a variable would make vLLM and Triton count differently.
    assert not [value for key, value in found if "CUDA_VISIBLE_DEVICES" in value]
    assert ("Image", IMAGE) in found
    for wanted in (("ReadOnly", "true"), ("NoNewPrivileges", "true"), ("DropCapability", "all"), ("User", "1000")):
        assert wanted in found
    assert all(value.endswith(":ro") for key, value in found if key == "Volume")
    command = next(value for key, value in found if key == "Exec")
    assert "--cuda-memory-pool-byte-size=0:0" in command
    assert "--cuda-memory-pool-byte-size=1:0" in command
    # Keys of Quadlet's [Container] in Podman 4.4, the oldest that has it.
    section = rendered("triton.container.j2").split("[Container]")[1].split("[Service]")[0]
    assert {key for key, _ in directives(section)} <= {
        *("AddDevice", "ContainerName", "DropCapability", "Environment", "Exec", "Group", "Image", "Network"),
        *("NoNewPrivileges", "PodmanArgs", "ReadOnly", "Tmpfs", "User", "Volume"),
    }


def test_the_openai_front_end_takes_the_place_of_the_server():
    def unit(**arguments):
        model = {"name": "m", "files": {"1/model.json": json.dumps({"model": "/models/m", **arguments})}}
        server = {**SERVER, "models": [model]}
        return rendered("triton.container.j2", server, triton_openai_frontend=True)

    commands = [value.split() for key, value in directives(unit()) if key == "Exec"]
    assert len(commands) == 1
    assert commands[0][:2] == ["python3", "/opt/tritonserver/python/openai/openai_frontend/main.py"]
    for word in (
        "--model-repository=/etc/l40s-fleet/triton/8003/repository",
        "--tokenizer=/models/m",
        "--kserve-http-port=8003",
        "--kserve-grpc-port=8004",
        "--openai-port=8005",
    ):
        assert word in commands[0]
    assert unit() == unit()
    assert unit() != unit(max_model_len=512), "a change of a model restarts the server"
    assert "openai" not in rendered("triton.container.j2")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_the_service(tmp_path):
    text = rendered("triton.service.j2")
    text = re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", text)
    unit = tmp_path / "triton-8003.service"
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
