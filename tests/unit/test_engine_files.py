from __future__ import annotations

import json
import subprocess

import pytest
import yaml
from fleet.engine_files import engine_files, render_config, render_environment
from fleet.errors import FleetError
from fleet.instances import listen_address


def test_switches_that_are_off_are_said_by_their_negative_form():
    """vLLM's loader drops false values; some switches have no negative form and are off when left out."""
    arguments = {"enable_prefix_caching": False, "enforce_eager": True, "headless": False}
    text = render_config(arguments, "10.0.0.7", 8100, 30)
    document = yaml.safe_load(text)
    assert document["no-enable-prefix-caching"] is True
    assert document["enforce-eager"] is True
    assert not [name for name in document if "headless" in name or "_" in name or document[name] is False]
    assert listen_address(text) == ("10.0.0.7", 8100)


def test_objects_keep_their_names_and_are_json_in_lists():
    arguments = {"speculative_config": {"num_speculative_tokens": 3}, "lora_modules": [{"name": "a", "path": "/p"}]}
    document = yaml.safe_load(render_config(arguments, "::", 8100, 30))
    assert document["speculative-config"] == {"num_speculative_tokens": 3}
    assert json.loads(document["lora-modules"][0]) == {"name": "a", "path": "/p"}


def test_what_is_not_set_is_left_out_and_what_is_set_wins():
    document = yaml.safe_load(render_config({"quantization": None, "x": [], "shutdown_timeout": 5}, "::", 1, 30))
    assert set(document) == {"disable-access-log-for-endpoints", "host", "port", "shutdown-timeout"}
    assert document["shutdown-timeout"] == 5


def test_same_arguments_in_any_order_give_the_same_bytes():
    assert render_config({"a": 1, "b": 2}, "::", 1, 30) == render_config({"b": 2, "a": 1}, "::", 1, 30)


def test_environment_survives_what_a_shell_would_expand():
    """systemd's EnvironmentFile and a POSIX shell agree on double quotes."""
    values = {"A": 'say "$HOME" `id` \\ done', "B": ""}
    text = render_environment(values)
    script = "set -a\n" + text + 'printf "%s\\0%s" "$A" "$B"'
    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout == f"{values['A']}\0"


def test_environment_of_several_lines_is_refused():
    with pytest.raises(FleetError, match=r"^env\.A: must be one line$"):
        render_environment({"A": "x\ny"})


def test_an_instance_sees_the_gpus_of_its_own_host_only():
    instance = {
        "id": "big-1",
        "engine_args": {"model": "/m"},
        "env": {"NCCL_P2P_LEVEL": "NODE", "SHARED": "instance"},
        "port": 8100,
        "shards": [{"host": "a", "gpus": ["GPU-1", "GPU-2"], "rank": 0}, {"host": "b", "gpus": ["GPU-3"], "rank": 1}],
    }
    made = engine_files(
        instance,
        this_host="a",
        engine_directory="/opt/vllm/0.33.0",
        listen="10.0.0.7",
        shutdown_timeout_s=30,
        environment={"SHARED": "host"},
    )
    assert made["record"] == instance
    assert made["environment"].splitlines()[1:] == [
        'CUDA_VISIBLE_DEVICES="GPU-1,GPU-2"',
        'FLEET_ENGINE_DIRECTORY="/opt/vllm/0.33.0"',
        'NCCL_P2P_LEVEL="NODE"',
        'SHARED="instance"',
    ]
