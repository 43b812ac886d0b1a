from __future__ import annotations

import ipaddress

import pytest
import yaml
from lab_code import CHECKOUT, lab_sysfs, lab_topology

Lab, NODES, GPU_HOSTS = lab_topology.Lab, lab_topology.NODES, lab_topology.GPU_HOSTS


def test_inventory_and_lab_have_the_same_nodes():
    groups = yaml.safe_load((CHECKOUT / "inventory/lab/hosts.yml").read_text())["fleet"]["children"]
    assert tuple(groups["gpu_hosts"]["hosts"]) == GPU_HOSTS
    assert tuple(groups["gateways"]["hosts"]) == lab_topology.GATEWAYS


def test_labs_side_by_side_share_no_address():
    labs = [Lab("demo"), Lab("test"), Lab("a")]
    addresses = [lab.address(node) for lab in labs for node in NODES]
    macs = [lab.mac_address(node) for lab in labs for node in NODES]
    assert len(set(addresses)) == len(set(macs)) == len(labs) * len(NODES)
    assert all(ipaddress.ip_address(address) in ipaddress.ip_network("198.18.0.0/15") for address in addresses)


def test_mac_addresses_are_locally_administered_and_unicast():
    assert int(Lab("demo").mac_address("gw-01").split(":")[0], 16) & 0b11 == 0b10


@pytest.mark.parametrize("name", ["", "Demo", "1st", "a-b", "../x", "a" * 17])
def test_other_names_are_refused_in_one_line(name):
    with pytest.raises(lab_topology.LabError, match="a lab's name") as caught:
        Lab(name)
    assert "\n" not in str(caught.value)


def test_twelve_gpus_four_a_host_over_two_numa_nodes():
    gpus = [gpu for node in NODES for gpu in lab_topology.gpus_of(node)]
    assert len({gpu.uuid for gpu in gpus}) == 12
    assert len({gpu.serial for gpu in gpus}) == 12
    for node in GPU_HOSTS:
        assert [gpu.numa_node for gpu in lab_topology.gpus_of(node)] == [0, 0, 1, 1]
        assert len({gpu.bus for gpu in lab_topology.gpus_of(node)}) == 4


@pytest.mark.parametrize(
    ("cpu_count", "ranges"),
    [(1, ((0, 0), (0, 0))), (2, ((0, 0), (1, 1))), (3, ((0, 0), (1, 2))), (64, ((0, 31), (32, 63)))],
)
def test_cpus_of_numa_nodes_exist_on_this_machine(cpu_count, ranges):
    assert lab_topology.cpu_ranges(cpu_count) == ranges


def test_sysfs_tree_is_linked_as_a_real_one(tmp_path):
    root = tmp_path / "sys"
    lab_sysfs.write_sysfs(root, "l40s-01", cpu_count=2)
    devices = root / "bus/pci/devices"
    bridges = {link.name for link in devices.iterdir() if (link / "class").read_text().strip() == "0x060400"}
    switches = []
    for gpu in lab_topology.gpus_of("l40s-01"):
        device = (devices / gpu.sysfs_address).resolve(strict=True)
        assert (device / "vendor").read_text() + (device / "device").read_text() == "0x10de\n0x26b9\n"
        assert (device / "numa_node").read_text() == f"{gpu.numa_node}\n"
        assert (device / "driver").resolve(strict=True) == root / "bus/pci/drivers/nvidia"
        above = [parent.name for parent in device.parents if parent.name.startswith("0000:")]
        assert len(above) == 3
        assert set(above) <= bridges
        switches.append(above[1])
    assert switches[0] == switches[1] != switches[2] == switches[3]


def test_sysfs_tree_is_made_anew(tmp_path):
    root = tmp_path / "sys"
    lab_sysfs.write_sysfs(root, "l40s-01", cpu_count=2)
    fault = root / "bus/pci/devices/0000:17:00.0/current_link_width"
    fault.write_text("8\n")
    lab_sysfs.write_sysfs(root, "l40s-01", cpu_count=2)
    assert fault.read_text() == "16\n"


def test_gateways_have_no_gpu(tmp_path):
    lab_sysfs.write_sysfs(tmp_path / "sys", "gw-01", cpu_count=2)
    assert list((tmp_path / "sys/bus/pci/devices").iterdir()) == []
    assert "[gpu]" not in lab_topology.nvml_description("gw-01", cpu_count=2)
