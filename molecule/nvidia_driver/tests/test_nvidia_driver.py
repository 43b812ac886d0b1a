"""The driver's packages on Debian 12 and 13: held, pinned, changed as a whole or not at all, gone without a trace."""

from __future__ import annotations

import json

import pytest
from driver_nodes import CHECKOUT, LAB, NODES, on, on_all, play, state, versions
from driver_repository import Repositories

# What Debian's non-free has; the open module of Debian 12 is older than the security updates of its user space.
DISTRO = {"l40s-01": "535.", "l40s-02": "550."}
MODULE = "nvidia-kernel-open-dkms"


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    network = json.loads((CHECKOUT / "build" / "lab" / LAB / "addresses.json").read_text())["l40s-01"]
    gateway = network.rpartition(".")[0] + ".1"
    # The lab keeps downloaded packages, and apt takes one of the right name and size without another look.
    on_all("rm -f /var/cache/apt/archives/*_580.* /var/cache/apt/archives/*_590.*")
    with Repositories(tmp_path_factory.mktemp("repositories"), gateway) as served:
        yield served


@pytest.fixture
def nvidia(repositories):
    """Plays the role with NVIDIA's repository, which is one of the test's."""

    def from_repository(name, **variables):
        source = {"nvidia_driver_source": "nvidia_repo", "nvidia_driver_repository": repositories.url(name)}
        return play(**source, nvidia_driver_repository_key=str(repositories.key), **variables)

    return from_repository


@pytest.mark.parametrize("node", NODES)
def test_driver_of_the_distribution_is_whole_and_held(node):
    found = versions(node)
    parts = ("nvidia-open-kernel-dkms", "libcuda1", "libnvidia-ml1", "nvidia-smi", "libnvidia-ptxjitcompiler1")
    assert len({found[part] for part in parts if "dkms" not in part} | {found["firmware-nvidia-gsp"]}) == 1
    assert all(found[part].startswith(f"*{DISTRO[node]}") for part in parts)
    assert found["nvidia-persistenced"].startswith("*")
    assert not found["dkms"].startswith("*")


@pytest.mark.parametrize("node", NODES)
def test_upgrade_of_the_system_leaves_the_driver(node):
    would = on(node, "apt-get -qq --simulate dist-upgrade")
    assert "nvidia" not in would
    assert "libcuda1" not in would
    # Also where somebody lifts the holds.
    installed = versions(node)["libcuda1"].lstrip("*")
    assert f"Candidate: {installed}" in on(node, "apt-cache policy libcuda1")


@pytest.mark.parametrize("node", NODES)
def test_nouveau_is_kept_out_and_the_persistence_daemon_starts_at_boot(node):
    assert "blacklist nouveau" in on(node, "cat /etc/modprobe.d/l40s-fleet-nouveau.conf").splitlines()
    assert on(node, "systemctl is-enabled nvidia-persistenced").strip() == "enabled"


def test_check_mode_tells_what_would_come_and_changes_nothing(repositories):
    before = state()
    done = play(
        "--check",
        "--diff",
        nvidia_driver_source="nvidia_repo",
        nvidia_driver_repository=repositories.url("good"),
        nvidia_driver_repository_key=str(repositories.key),
    )
    assert done.ok, done.output
    assert done.output.count(f"+{MODULE} 580.95.05-1") == len(NODES)
    assert "-nvidia-open-kernel-dkms" in done.output
    assert state() == before


@pytest.mark.parametrize(
    ("repository", "variables", "problem"),
    [
        ("missing", {}, "does not have a Release file"),
        ("stranger", {}, "not signed"),
        ("corrupt", {}, "libcuda1"),
        ("good", {"nvidia_driver_version": "580.10.01"}, "no version 580.10.01 that all packages have"),
        ("good", {"nvidia_driver_repository_key_sha256": "0" * 64}, "the key's SHA-256 is not 0000"),
    ],
)
def test_repository_that_is_not_right_changes_nothing(nvidia, repository, variables, problem):
    before = state()
    done = nvidia(repository, **variables)
    assert not done.ok
    assert problem in done.words, done.output
    assert "Traceback" not in done.output
    assert state() == before


def test_package_that_cannot_be_configured_is_rolled_back(nvidia):
    before = state()
    done = nvidia("unconfigurable")
    assert not done.ok
    assert done.words.count("rolled back, the host is as it was") >= len(NODES), done.output
    assert "rolled back, but" not in done.words
    assert "post-installation script" in done.words
    assert state() == before


def test_kernel_that_boots_next_without_a_module_is_rolled_back(nvidia):
    on_all("mkdir -p /boot /lib/modules/6.99.0-1-amd64; touch /boot/vmlinuz-6.99.0-1-amd64")
    try:
        before = state()
        done = nvidia("good")
        assert not done.ok
        assert "kernel 6.99.0-1-amd64 has no nvidia module (its headers are not installed)" in done.words
        assert state() == before
    finally:
        on_all("rm -r /boot/vmlinuz-6.99.0-1-amd64 /lib/modules/6.99.0-1-amd64")


def test_nvidia_repository_takes_over_from_the_distribution(nvidia):
    done = nvidia("good")
    assert done.ok, done.output
    for node in NODES:
        found = versions(node)
        assert found[MODULE] == found["libcuda1"] == found["nvidia-smi"] == "*580.95.05-1"
        # Nothing of the distribution's driver stays.
        assert not {"nvidia-open-kernel-dkms", "nvidia-alternative", "firmware-nvidia-gsp"} & set(found)
    assert nvidia("good").changed == 0


def test_downgrade_upgrade_and_a_newer_branch_that_is_not_taken(nvidia):
    done = nvidia("good", nvidia_driver_version="580.82.07")
    assert done.ok, done.output
    assert {versions(node)["libcuda1"] for node in NODES} == {"*580.82.07-1"}
    # Of the branch and installed: stays, though a newer one is offered.
    assert nvidia("good").ok
    assert {versions(node)[MODULE] for node in NODES} == {"*580.82.07-1"}
    done = nvidia("good", nvidia_driver_upgrade=True)
    assert done.ok, done.output
    assert {versions(node)[MODULE] for node in NODES} == {"*580.95.05-1"}


def test_forward_compatibility_comes_beside_the_driver(repositories):
    done = play(
        nvidia_driver_source="cuda_compat",
        nvidia_driver_repository=repositories.url("good"),
        nvidia_driver_repository_key=str(repositories.key),
    )
    assert done.ok, done.output
    for node in NODES:
        found = versions(node)
        assert found["cuda-compat-13-0"].startswith("*")
        assert found[MODULE] == "*580.95.05-1"
        unit = on(node, "cat /etc/systemd/system/vllm@.service.d/l40s-fleet-cuda-compat.conf")
        assert "VLLM_ENABLE_CUDA_COMPATIBILITY=1" in unit


def test_removal_leaves_nothing_behind():
    done = play(nvidia_driver_state="absent", nvidia_driver_source="nvidia_repo")
    assert done.ok, done.output
    for node in NODES:
        listing = r"dpkg-query -W -f '${Package} ${Version} ${db:Status-Abbrev}\n'"
        before, now = on(node, "cat /root/packages-before").splitlines(), on(node, listing).splitlines()
        assert [line for line in now if not line.endswith("un ")] == before
        assert on(node, "apt-mark showhold") == ""
        assert (
            on(node, "ls /etc/apt/sources.list.d /etc/apt/preferences.d /etc/modprobe.d | grep l40s", check=False) == ""
        )
    assert play(nvidia_driver_state="absent", nvidia_driver_source="nvidia_repo").changed == 0
