import importlib.util
import pathlib

PATH = pathlib.Path(__file__).parents[2] / "filter_plugins" / "fleet_inventory.py"
SPEC = importlib.util.spec_from_file_location("fleet_inventory", PATH)
filters = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(filters)

HOSTVARS = {
    "a": {
        "ansible_host": "192.0.2.1",
        "fleet_labels": ["x"],
        "fleet_engine_api_key": "secret",
        "probe": {"host": {"n": 1}},
    },
    "b": {"fleet_address": "192.0.2.9", "ansible_host": "192.0.2.2", "probe": {"skipped": True}},
    "c": {},
}


def test_extract_leaves_out_hosts_that_lack_the_path():
    assert filters.fleet_extract(["a", "b", "c"], HOSTVARS, "probe", "host") == {"a": {"n": 1}}


def test_policies_carry_no_secret():
    assert filters.fleet_policies(["a", "b"], HOSTVARS) == {
        "a": {"fleet_labels": ["x"]},
        "b": {"fleet_address": "192.0.2.9"},
    }


def test_addresses_fall_back_to_ansible_host_and_then_the_name():
    assert filters.fleet_addresses(["a", "b", "c"], HOSTVARS) == {"a": "192.0.2.1", "b": "192.0.2.9", "c": "c"}
