from pathlib import Path

import pytest
import yaml
from fleet.errors import FleetError
from fleet.host_policy import VARIABLES, HostPolicy, parse_policies

ROLE = Path(__file__).parents[2] / "roles" / "fleet"


def test_every_variable_of_the_role_is_known():
    specs = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    # Versions of engines are of the roles vllm and triton by name.
    named = {name for name in (*specs, *defaults) if not name.startswith(("vllm_", "triton_"))}
    assert named <= set(VARIABLES)
    assert "fleet_exclude_gpus" in named


def test_policy_of_a_host():
    variables = {
        "ansible_host": "192.0.2.1",
        "fleet_exclude_gpus": [1, "GPU-x"],
        "fleet_labels": ["b", "a"],
        "fleet_state": "gone",
        "fleet_address": "192.0.2.9",
        "fleet_allow_partial": "true",
        "fleet_engine_port_base": "9000",
    }
    assert parse_policies({"h": variables}) == {
        "h": HostPolicy(exclude_gpus=(1, "GPU-x"), labels=("a", "b"), state="gone", address="192.0.2.9")
    }
    assert parse_policies({"h": {}}) == {"h": HostPolicy()}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fleet_exclude_gpu", [1], "fleet_exclude_gpu: unknown variable, did you mean 'fleet_exclude_gpus'?"),
        ("fleet_exclude_gpus", 1, "fleet_exclude_gpus: must be a list, got 1"),
        ("fleet_exclude_gpus", [True], "fleet_exclude_gpus[0]: must be the index or the UUID of a GPU, got True"),
        ("fleet_exclude_gpus", [0, 1.5], "fleet_exclude_gpus[1]: must be the index or the UUID of a GPU, got 1.5"),
        ("fleet_labels", "a", "fleet_labels: must be a list, got 'a'"),
        ("fleet_labels", [3], "fleet_labels[0]: must be a string, got 3"),
        ("fleet_state", "absent", "fleet_state: must be present or gone, got 'absent'"),
        ("fleet_address", 3, "fleet_address: must be a string that is not empty, got 3"),
        ("fleet_engine_port_base", 70000, "fleet_engine_port_base: must be a port number, got 70000"),
        ("fleet_optimize", "maybe", "fleet_optimize: must be true or false, got 'maybe'"),
    ],
)
def test_faults_name_host_and_variable(name, value, message):
    with pytest.raises(FleetError) as caught:
        parse_policies({"l40s-01": {name: value}, "l40s-02": {}})
    assert str(caught.value) == f"host_vars l40s-01: {message}"


def test_a_fault_of_a_group_variable_is_told_once():
    with pytest.raises(FleetError) as caught:
        parse_policies({f"h{n}": {"fleet_stat": "present"} for n in range(9)})
    assert str(caught.value) == (
        "group_vars of all GPU hosts: fleet_stat: unknown variable, did you mean 'fleet_state'?"
    )
