"""A reboot: only what needs one, drained before, checked after, and one host at a time.

Nodes are containers, which have no module of their own: what is loaded is what their simulated sysfs and NVML show, and
a reboot that loads the installed driver is a change of both while the node is down.
"""

from __future__ import annotations

import pytest
from driver_nodes import CHECKOUT, LAB, NODES, on, on_all, play, restart_when_down

PLAYBOOK = CHECKOUT / "playbooks" / "drivers.yml"
# The unit of the serving role, with something in place of the engine that says when it is told to finish.
ENGINE = """
cat >/etc/systemd/system/vllm@.service <<'UNIT'
[Service]
ExecStart=/bin/sleep infinity
ExecStop=/bin/sh -c 'date +%%s >>/var/log/drained-%i'
[Install]
WantedBy=multi-user.target
UNIT
rm -f /var/log/drained-simulated-0
systemctl daemon-reload
systemctl enable --now --quiet vllm@simulated-0.service
"""


def show_loaded(node, version):
    """Makes a node show a module and an NVML of this version."""
    files = CHECKOUT / "build" / "lab" / LAB / "nodes" / node
    (files / "sys" / "module" / "nvidia" / "version").write_text(f"{version}\n")
    gpus = files / "gpus.conf"
    lines = [line for line in gpus.read_text().splitlines() if not line.startswith("driver_version")]
    gpus.write_text("\n".join([f"driver_version = {version}", *lines]) + "\n")


def installed(node):
    listing = on(node, "dpkg-query -W -f '${source:Upstream-Version}' libnvidia-ml1")
    return listing.strip()


def boot(node):
    return on(node, "stat --format=%Y /proc/1").strip()


@pytest.fixture
def as_hosts():
    """Nodes that look like hosts with kernels of their own until they are restarted, and that show an old module."""
    on_all("umount /run/.containerenv 2>/dev/null; rm -f /run/.containerenv /run/systemd/container")
    on_all(ENGINE)
    for node in NODES:
        show_loaded(node, "470.256.02")
    yield
    for node in NODES:
        show_loaded(node, installed(node))
    on_all("systemctl disable --now --quiet vllm@simulated-0.service; rm -f /etc/systemd/system/vllm@.service")
    on_all("echo podman >/run/systemd/container")


def drivers(policy):
    # The packages are as they are to be: what is left is the boot.
    return play(
        playbook=PLAYBOOK,
        nvidia_driver_source="none",
        nvidia_driver_reboot=policy,
        fleet_nvml_library="/usr/local/lib/libnvidia-ml.so.1",
    )


def test_reboot_that_is_not_allowed_stops_the_run_and_says_so(as_hosts):
    before = {node: boot(node) for node in NODES}
    done = play(playbook=PLAYBOOK, nvidia_driver_source="none", vllm_accelerator="cuda")
    assert not done.ok
    for node in NODES:
        words = f"A reboot is needed: kernel module 470.256.02 is loaded, driver {installed(node)} is installed"
        assert words in done.words, done.output
    assert {node: boot(node) for node in NODES} == before


def test_host_whose_driver_does_not_come_back_stops_the_others(as_hosts):
    first, second = NODES
    before = {node: boot(node) for node in NODES}
    waiting = restart_when_down(first)
    done = drivers("when_needed")
    waiting.join(60)
    assert not done.ok
    assert "after the reboot NVML says 470.256.02" in done.words, done.output
    assert boot(first) != before[first]
    assert boot(second) == before[second]
    # Drained before the reboot, and not a second time.
    assert len(on(first, "cat /var/log/drained-simulated-0").split()) == 1
    assert on(second, "systemctl is-active vllm@simulated-0").strip() == "active"


def test_hosts_are_drained_rebooted_and_back_in_service_one_after_the_other(as_hosts):
    before = {node: boot(node) for node in NODES}
    planned = {node: installed(node) for node in NODES}
    waiting = [restart_when_down(node, lambda node=node: show_loaded(node, planned[node])) for node in NODES]
    done = drivers("when_needed")
    for thread in waiting:
        thread.join(60)
    assert done.ok, done.output
    after = {node: boot(node) for node in NODES}
    assert all(after[node] != before[node] for node in NODES)
    # The second is drained when the first is back.
    assert int(on(NODES[1], "cat /var/log/drained-simulated-0")) >= int(after[NODES[0]])
    for node in NODES:
        assert on(node, "systemctl is-active vllm@simulated-0").strip() == "active"
    assert drivers("when_needed").changed == 0
