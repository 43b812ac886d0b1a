"""The lab's nodes are what real hosts would be: systemd, SSH, sudo, GPUs that say that they are simulated."""

from __future__ import annotations

import pytest


def test_systemd_runs(host):
    assert host.check_output("systemctl is-system-running") == "running"


def test_user_is_unprivileged_and_may_use_sudo(host):
    with host.sudo("ops"):
        assert host.check_output("id -un") == "ops"
        assert host.run("cat /etc/shadow").failed
        assert host.check_output("sudo -n id -u") == "0"


def test_ssh_takes_keys_only(host):
    settings = host.check_output("/usr/sbin/sshd -T").splitlines()
    assert "passwordauthentication no" in settings
    assert "hostkey /etc/l40s-lab/ssh/ssh_host_ed25519_key" in settings


def test_resources_that_engines_need(host):
    assert int(host.check_output("df --output=size -B1 /dev/shm | tail -1")) >= 2**30
    assert host.check_output("python3 -c 'import sys; print(sys.version_info >= (3, 10))'") == "True"


@pytest.mark.parametrize("other", ["l40s-01", "l40s-02", "l40s-03", "gw-01"])
def test_nodes_know_each_other(host, other):
    assert host.addr(other).port(22).is_reachable
