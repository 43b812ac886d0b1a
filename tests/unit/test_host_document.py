import pytest
from fleet.errors import FleetError
from fleet.host_document import parse_host, parse_hosts, stable_part, with_policy
from fleet.host_policy import HostPolicy
from plan_samples import facts, gpu, host


def changed(**changes):
    return {"gpus": [gpu("h", 0), gpu("h", 1, **changes)]}


def fault(document):
    with pytest.raises(FleetError) as caught:
        parse_hosts({"schema": 1, "hosts": {"h": document}}, where="facts.json")
    return str(caught.value)


def test_only_four_fields_of_a_gpu_are_needed():
    document = {"gpus": [{"index": 0, "uuid": "GPU-1", "name": "NVIDIA L40S", "memory_total_bytes": 48305799168}]}
    (parsed,) = parse_hosts({"schema": 1, "hosts": {"h": document}}, where="facts.json")
    assert parsed.gpus[0].model.name == "L40S"
    assert parsed.gpus[0].blocked is None
    assert not parsed.provisional


def test_unknown_fields_are_left_alone():
    document = host("h") | {"future": {"x": 1}}
    document["gpus"][0]["future"] = 3
    assert len(parse_host("h", document, where="x").gpus) == 4


def test_the_pci_id_decides_before_the_name():
    parsed = parse_host("h", changed(name="", pci_device_id="10de:26b9"), where="x")
    assert parsed.gpus[1].model.name == "L40S"
    assert parse_host("h", changed(name="NVIDIA T4"), where="x").gpus[1].model is None


def test_a_blocked_gpu_says_why():
    health = {
        "status": "blocked",
        "checks": [
            {"name": "ecc", "status": "ok", "evidence": "none"},
            {"name": "xid", "status": "blocked", "evidence": "Xid 79 at boot", "remedy": "replace"},
        ],
    }
    assert parse_host("h", changed(health=health), where="x").gpus[1].blocked == "xid: Xid 79 at boot"
    assert parse_host("h", changed(health={"status": "degraded"}), where="x").gpus[1].blocked is None


def test_a_pci_scan_needs_neither_uuid_nor_memory():
    document = {"provisional": True, "gpus": [{"index": 0, "pci_bus_id": "0000:41:00.0", "pci_device_id": "10de:26b9"}]}
    parsed = parse_host("h", document, where="x")
    assert parsed.gpus[0].uuid == "pci:0000:41:00.0"
    assert parsed.gpus[0].model.name == "L40S"


def test_a_gpu_that_fell_off_the_bus_is_blocked_and_little_else_is_known():
    lost = {"index": 1, "uuid": None, "name": None, "memory_total_bytes": None, "pci_bus_id": "0000:41:00.0"}
    parsed = parse_host("h", {"gpus": [gpu("h", 0), lost | {"health": {"status": "blocked"}}]}, where="x")
    assert (parsed.gpus[1].uuid, parsed.gpus[1].blocked) == ("pci:0000:41:00.0", "no check says why")
    with pytest.raises(FleetError, match=r"gpus\[1\]\.uuid: is required"):
        parse_host("h", {"gpus": [gpu("h", 0), lost]}, where="x")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (3, "hosts.h: must be a mapping, got 3"),
        ({}, "hosts.h.gpus: is required"),
        ({"gpus": {}}, "hosts.h.gpus: must be a list, got {}"),
        (changed(index="1"), "hosts.h.gpus[1].index: must be a whole number, got '1'"),
        (changed(index=-1), "hosts.h.gpus[1].index: must be at least 0, got -1"),
        (changed(index=0), "hosts.h.gpus[1].index: 0 is that of gpus[0] too"),
        (changed(uuid="GPU-h-0"), "hosts.h.gpus[1].uuid: 'GPU-h-0' is that of gpus[0] too"),
        (changed(uuid=None), "hosts.h.gpus[1].uuid: is required"),
        (changed(memory_total_bytes=None), "hosts.h.gpus[1].memory_total_bytes: is required"),
        (changed(memory_total_bytes=0), "hosts.h.gpus[1].memory_total_bytes: must be above 0, got 0"),
        (
            changed(health={"status": "bad"}),
            "hosts.h.gpus[1].health.status: must be one of ok, degraded, blocked, got 'bad'",
        ),
        (host("h") | {"links": [{"a": "GPU-h-0", "b": "GPU-x"}]}, "hosts.h.links[0].b: the host has no GPU 'GPU-x'"),
        (
            host("h") | {"links": [{"a": "GPU-h-0", "b": "GPU-h-1", "path": "NVL"}]},
            "hosts.h.links[0].path: must be one of",
        ),
        (host("h") | {"policy": {"exclude_gpus": [9]}}, "hosts.h.policy.exclude_gpus[0]: the host has no GPU 9"),
        (
            host("h") | {"policy": {"exclude_gpus": [True]}},
            "hosts.h.policy.exclude_gpus[0]: must be the index or the UUID",
        ),
    ],
)
def test_faults_are_one_line_with_the_path(document, message):
    text = fault(document)
    assert text.startswith(f"facts.json: {message}")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "facts.json: must be a mapping with schema and hosts, got []"),
        ({"hosts": {}}, "facts.json: schema: must be 1, got None"),
        ({"schema": True, "hosts": {}}, "facts.json: schema: must be 1, got True"),
        ({"schema": 1}, "facts.json: hosts: must be a mapping of host names, got None"),
    ],
)
def test_faults_of_the_whole_file(document, message):
    with pytest.raises(FleetError) as caught:
        parse_hosts(document, where="facts.json")
    assert str(caught.value) == message


def test_one_machine_under_two_names_is_found():
    document = facts("a", "b")
    document["hosts"]["b"]["gpus"][0]["uuid"] = "GPU-a-2"
    with pytest.raises(FleetError, match=r"hosts\.b\.gpus\[0\]\.uuid: GPU-a-2 is on host a as well"):
        parse_hosts(document, where="facts.json")


def test_an_excluded_gpu_that_is_not_there_names_the_host_variable():
    parsed = parse_host("h", host("h"), where="x")
    with pytest.raises(FleetError) as caught:
        with_policy(parsed, HostPolicy(exclude_gpus=(0, 7)))
    assert str(caught.value) == "host_vars h: fleet_exclude_gpus[1]: no GPU 7 on this host, its indices are 0, 1, 2, 3"


def test_the_stable_part_holds_what_a_plan_needs_and_nothing_that_changes():
    document = host("h", driver_version="580.1", instances=[{"id": "x"}])
    document["gpus"][0]["health"] = {"status": "blocked", "checks": []}
    document["gpus"][0]["temperature_c"] = 40
    stable = stable_part(document, HostPolicy(exclude_gpus=(1,), labels=("a",)))
    assert stable["policy"] == {"exclude_gpus": [1], "labels": ["a"]}
    assert set(stable) == {"gpus", "links", "policy", "driver_version"}
    assert "health" not in stable["gpus"][0]
    assert "temperature_c" not in stable["gpus"][0]
    assert parse_host("h", stable, where="x").policy == HostPolicy(exclude_gpus=(1,), labels=("a",))
