"""The unit of the serving role, as it is rendered for GPU hosts and for the lab."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import jinja2
import pytest
import yaml

ROLE = Path(__file__).resolve().parents[2] / "roles" / "serving"
VARIABLES = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())


@pytest.fixture(params=["cuda", "cpu"])
def unit(request, tmp_path):
    """(accelerator, file of the unit, its directives as (name, value)), helpers being where this test can make them."""
    source = (ROLE / "templates" / "vllm@.service.j2").read_text()
    template = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined).from_string(source)  # noqa: S701
    text = template.render(
        ansible_managed="managed",
        vllm_accelerator=request.param,
        serving_devices=VARIABLES["serving_devices_by_accelerator"][request.param],
        serving_start_timeout_s=900,
        serving_stop_timeout_s=60,
    )
    file = tmp_path / "vllm@.service"
    file.write_text(text.replace("/usr/local/lib/l40s-fleet", str(ROLE / "files")))
    lines = [line.split("=", 1) for line in text.splitlines() if re.match(r"\w+=", line)]
    return request.param, file, [(name, value) for name, value in lines]


def test_gpu_devices_are_opened_on_gpu_hosts_only(unit):
    accelerator, _, directives = unit
    allowed = {value for name, value in directives if name == "DeviceAllow"}
    names = {name for name, _ in directives}
    assert ("DevicePolicy", "closed") in directives
    if accelerator == "cuda":
        assert {"char-nvidia-frontend rw", "char-nvidia-uvm rw", "char-nvidia-caps rw", "/dev/nvidiactl rw"} <= allowed
        assert ("LimitMEMLOCK", "infinity") in directives
        assert ("After", "l40s-fleet-uvm.service") in directives, "the device nodes come first"
        assert "PrivateDevices" not in names, "a private /dev has no GPUs"
    else:
        assert allowed == set()
        assert ("PrivateDevices", "yes") in directives


def test_no_secret_is_in_the_unit(unit):
    _, _, directives = unit
    files = [value for name, value in directives if name == "EnvironmentFile"]
    assert files[0] == "/etc/l40s-fleet/engine.env"
    assert not [value for name, value in directives if name in ("Environment", "ExecStart") and "KEY" in value]


def test_systemd_drains_longer_than_the_engine_does(unit):
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    assert VARIABLES["serving_stop_timeout_s"] == "{{ serving_shutdown_timeout_s + 30 }}"
    assert int(dict(unit[2])["TimeoutStopSec"]) > defaults["serving_shutdown_timeout_s"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_it_and_finds_it_safe(unit):
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit[1]]
    verdict = subprocess.run(command, capture_output=True, text=True, check=False)
    complaints = [line for line in verdict.stderr.splitlines() if "vllm@" in line]
    assert (verdict.returncode, complaints) == (0, [])
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", unit[1]]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(re.search(r"exposure level for .*: ([\d.]+)", shown)[1]) <= 2.0
