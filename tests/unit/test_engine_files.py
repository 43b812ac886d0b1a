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


WIDE = {
    "id": "big-1",
    "engine_args": {"model": "/m", "nnodes": 2, "master_port": 29502, "distributed_executor_backend": "mp"},
    "env": {"NCCL_P2P_LEVEL": "NODE", "SHARED": "instance"},
    "port": 8100,
    "shards": [{"host": "a", "gpus": ["GPU-1", "GPU-2"], "rank": 0}, {"host": "b", "gpus": ["GPU-3"], "rank": 1}],
}


def of_host(host: str, instance: dict = WIDE, version: str = "0.33.0", environment: dict | None = None) -> dict:
    return engine_files(
        instance,
        this_host=host,
        engine_directory=f"/opt/vllm/{version}",
        listen="10.0.0.7",
        shutdown_timeout_s=30,
        environment=environment or {"SHARED": "host"},
        addresses={"a": "10.0.0.7"},
    )


def revision(made: dict) -> str:
    return next(line for line in made["environment"].splitlines() if line.startswith("FLEET_RANK_REVISION"))


def test_an_instance_sees_the_gpus_of_its_own_host_only():
    made = of_host("a")
    assert made["record"] == WIDE
    assert made["environment"].splitlines()[1:] == [
        'CUDA_VISIBLE_DEVICES="GPU-1,GPU-2"',
        'FLEET_ENGINE_DIRECTORY="/opt/vllm/0.33.0"',
        'FLEET_RANK="0"',
        'FLEET_RANKS="2"',
        'FLEET_RANK_LINK="10.0.0.7 29503"',
        revision(made),
        'NCCL_P2P_LEVEL="NODE"',
        'SHARED="instance"',
    ]


def test_each_rank_is_told_its_place_and_followers_do_not_listen():
    documents = {host: yaml.safe_load(of_host(host)["config_yaml"]) for host in "ab"}
    common = {"nnodes": 2, "master-port": 29502, "master-addr": "10.0.0.7", "distributed-executor-backend": "mp"}
    assert all(document.items() >= common.items() for document in documents.values())
    assert [documents[host]["node-rank"] for host in "ab"] == [0, 1]
    assert ["headless" in documents[host] for host in "ab"] == [False, True]
    assert listen_address(of_host("b")["config_yaml"]) is None


def test_ranks_start_together_only_when_they_are_configured_alike():
    assert (
        revision(of_host("a")) == revision(of_host("b")) == revision(of_host("b", environment={"NCCL_DEBUG": "INFO"}))
    )
    changed = WIDE | {"engine_args": WIDE["engine_args"] | {"max_model_len": 64}}
    reworded = WIDE | {"reasons": ["other words"]}
    assert revision(of_host("a", changed)) != revision(of_host("a"))
    assert revision(of_host("a", version="0.32.0")) != revision(of_host("a"))
    assert revision(of_host("a", reworded)) == revision(of_host("a"))


def test_an_instance_is_held_where_one_of_its_hosts_was_not_reached():
    options = {"engine_directory": "/e", "listen": "::", "shutdown_timeout_s": 30, "environment": {}}
    held = [engine_files(WIDE, this_host="a", frozen=frozen, **options)["held"] for frozen in ([], ["b"], ["c"])]
    assert held == [False, True, False]


def test_an_instance_of_one_host_has_no_ranks():
    one = {"id": "m-1", "engine_args": {"model": "/m"}, "port": 8100, "shards": [{"host": "a", "gpus": ["G"]}]}
    made = of_host("a", one)
    assert "FLEET_RANK" not in made["environment"]
    assert "node-rank" not in made["config_yaml"]
