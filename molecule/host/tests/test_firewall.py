"""The firewall from outside, node to node, and what may happen to its rules."""

from __future__ import annotations

import socket

import pytest
from host_lab import ADDRESSES, CONNECT, changed, connects, play

testinfra_hosts = ["ansible://l40s-01"]
TABLE = "nft list table inet l40s_fleet"


def loaded(host):
    return host.run(TABLE).rc == 0


def test_engines_are_open_to_the_gateway_alone():
    for port in (8100, 8101):
        assert connects("gw-01", "l40s-01", port)
        assert not connects("l40s-02", "l40s-01", port)
    # Nor from the machine that carries the lab.
    with pytest.raises(ConnectionRefusedError), socket.create_connection((ADDRESSES["l40s-01"], 8100), timeout=3):
        pass


def test_a_refusal_is_quick_and_counted(host):
    before = host.check_output(TABLE)
    assert not connects("l40s-02", "l40s-01", 8100)
    assert host.check_output(TABLE) != before


def test_the_host_reaches_its_own_engines(host):
    assert connects("l40s-01", "l40s-01", 8100)
    assert host.run("python3 -c %s 127.0.0.1 8100", CONNECT).rc == 0


def test_other_ports_are_left_alone(host):
    assert connects("l40s-02", "l40s-01", 22)
    host.check_output("systemd-run --quiet --unit=lab-other-port python3 -m http.server 8200")
    try:
        assert any(connects("l40s-02", "l40s-01", 8200) for _ in range(5))
    finally:
        host.check_output("systemctl stop lab-other-port")


def test_ports_of_workers_are_closed_to_everybody_else(host):
    host.check_output("systemd-run --quiet --unit=lab-worker python3 -m http.server 40123")
    try:
        assert any(connects("l40s-01", "l40s-01", 40123) for _ in range(5))
        assert not connects("l40s-02", "l40s-01", 40123)
        assert not connects("gw-01", "l40s-01", 40123)
        # This host's own connections, whose answers arrive at such ports.
        assert connects("l40s-01", "gw-01", 22)
    finally:
        host.check_output("systemctl stop lab-worker")


def test_the_sets_hold_who_was_named(host):
    table = host.check_output(TABLE)
    for address in (ADDRESSES["gw-01"], "198.18.0.9", "2001:db8::9", "198.18.1.0/24"):
        assert address in table
    assert ADDRESSES["l40s-02"] not in table


def test_rules_of_others_stay(host):
    host.check_output("nft 'add table inet others; add chain inet others kept'")
    try:
        host.check_output("systemctl reload l40s-fleet-firewall")
        assert host.run("nft list chain inet others kept").rc == 0
    finally:
        host.check_output("nft delete table inet others")


def test_rules_that_somebody_flushed_come_back_with_the_next_run(host):
    host.check_output("nft flush ruleset")
    assert not loaded(host)
    limit = ("--limit", "l40s-01")
    assert changed(play("molecule/host/converge.yml", *limit, "--check")) == {1}
    assert not loaded(host)
    assert changed(play("molecule/host/converge.yml", *limit)) == {1}
    assert loaded(host)


def test_restarting_the_systems_own_firewall_does_not_open_the_ports(host):
    host.check_output("systemctl start nftables")
    host.check_output("systemctl restart nftables")
    assert loaded(host)
    host.check_output("systemctl reload nftables")
    assert loaded(host)
    assert not connects("l40s-02", "l40s-01", 8100)


def test_what_nft_or_the_name_server_refuses_changes_nothing(host):
    before = host.check_output(TABLE)
    for variables, problem in (
        ('{"host_firewall_allowed": ["no-such-host.invalid"]}', "no-such-host.invalid is neither an address nor"),
        ('{"host_firewall_engine_ports": 70000}', "firewall.nft:"),
    ):
        output = play("molecule/host/converge.yml", "--limit", "l40s-01", "--extra-vars", variables, expect=2)
        assert problem in " ".join(output.split())
        assert "Traceback" not in output
    assert host.check_output(TABLE) == before


def test_the_rules_are_there_after_a_restart(host, restart_node):
    restart_node()
    assert loaded(host)
    assert not connects("l40s-02", "l40s-01", 8100)
    assert any(connects("gw-01", "l40s-01", 8100) for _ in range(10))
