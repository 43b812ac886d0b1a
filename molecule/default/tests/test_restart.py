"""A restart of a container stands in for the reboot of a host."""

from __future__ import annotations

testinfra_hosts = ["ansible://l40s-03"]


def test_restart_keeps_address_and_files(host, restart_node):
    address = host.check_output("hostname --all-ip-addresses")
    booted = host.check_output("systemctl show --property=UserspaceTimestampMonotonic --value")
    host.check_output("touch /var/tmp/lab-test")
    restart_node()
    assert host.check_output("systemctl is-system-running --wait") == "running"
    assert host.check_output("hostname --all-ip-addresses") == address
    assert host.check_output("systemctl show --property=UserspaceTimestampMonotonic --value") != booted
    assert host.check_output("rm /var/tmp/lab-test && echo kept") == "kept"
