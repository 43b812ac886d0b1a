"""Limits, shared memory, kernel settings, the clock."""

from __future__ import annotations

testinfra_hosts = ["ansible://l40s-02"]


def test_limits_hold_for_who_logs_in(host):
    assert host.check_output("su --login ops --command 'ulimit -S -n; ulimit -l'").split() == ["16384", "4096"]


def test_shared_memory_has_its_size_now_and_at_the_next_boot(host):
    assert host.check_output("df --output=size -BM /dev/shm | tail -n 1").strip() == "1100M"
    assert host.check_output("grep shm /etc/fstab") == "tmpfs /dev/shm tmpfs rw,nosuid,nodev,size=1100m 0 0"


def test_kernel_settings_are_applied(host):
    assert host.sysctl("net.ipv4.ip_local_reserved_ports") == "8100-8199"
    # An empty value leaves a setting of the role alone.
    assert "numa_balancing" not in host.file("/etc/sysctl.d/60-l40s-fleet.conf").content_string


def test_the_clock_is_kept(host):
    assert host.service("systemd-timesyncd").is_enabled
