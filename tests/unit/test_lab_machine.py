from __future__ import annotations

import os
import subprocess
import sys

import pytest
import yaml
from lab_code import CHECKOUT, lab_engine, lab_image, lab_nodes, lab_topology


def test_engine_version_is_the_inventory_s():
    variables = yaml.safe_load((CHECKOUT / "inventory/lab/group_vars/all/fleet.yml").read_text())
    assert lab_engine.version() == variables["vllm_version"]


def test_engine_versions_of_the_lab_run_on_one_torch():
    """So that a second version costs neither its download nor its disk."""
    locks = lab_engine.INSTALLER.parent
    versions = sorted(path.name.split("-")[2] for path in locks.glob("requirements-cpu-*-torch.txt"))
    assert len(versions) > 1
    assert lab_engine.version() in versions
    for kind in ("torch", "torch-cpu"):
        assert len({(locks / f"requirements-cpu-{version}-{kind}.txt").read_text() for version in versions}) == 1


def test_wheel_directories_come_from_the_environment_and_from_pip_s_configuration(tmp_path, monkeypatch):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "more").mkdir()
    (tmp_path / "pip.conf").write_text(f"[global]\nfind-links =\n  {tmp_path}/more\n  https://wheels.example/\n")
    monkeypatch.setattr(lab_engine, "PIP_CONFIGURATIONS", (str(tmp_path / "pip.conf"),))
    monkeypatch.delenv("UV_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path}/wheels {tmp_path}/absent")
    assert lab_engine.find_links() == [f"{tmp_path}/more", f"{tmp_path}/wheels"]


@pytest.mark.parametrize("name", ["https_proxy", "NO_PROXY", "UV_DEFAULT_INDEX", "PIP_INDEX_URL", "SSL_CERT_FILE"])
def test_variables_that_reach_the_installer(name):
    assert lab_engine.NETWORK_VARIABLES.fullmatch(name)


@pytest.mark.parametrize("name", ["PIP_FIND_LINKS", "UV_CACHE_DIR", "HOME", "HF_TOKEN", "AWS_CA_BUNDLE"])
def test_variables_that_do_not(name):
    assert not lab_engine.NETWORK_VARIABLES.fullmatch(name)


def test_apt_options_that_nodes_share():
    keep = ['Acquire::http::Proxy "http://proxy.example:3128";', 'Acquire::Check-Valid-Until "false";']
    drop = ['Acquire::cdrom::mount "/media/cdrom/";', 'Acquire::http "";', 'APT::Sandbox::User "root";']
    assert [line for line in keep + drop if lab_image.APT_OPTIONS.match(line)] == keep


def test_apt_sources_of_this_machine_have_the_release_itself_or_nothing():
    sources = lab_image.apt_sources()
    assert all(line.split()[0] == "deb" and line.split()[3] == "main" for line in sources)
    assert not sources or any(line.split()[2] == lab_image.RELEASE for line in sources)


def test_apt_sources_follow_the_mirrors_of_another_release():
    listing = """\
http://mirror.example/debian/ trixie main
http://mirror.example/debian/ trixie non-free
http://mirror.example/debian/ trixie-updates main
http://mirror.example/security/ trixie-security main
https://apt.example/tools stable main
"""
    assert lab_image.sources_for_nodes(listing, "trixie") == [
        "deb http://mirror.example/debian/ bookworm main",
        "deb http://mirror.example/debian/ bookworm-updates main",
        "deb http://mirror.example/security/ bookworm-security main",
    ]


@pytest.mark.parametrize("listing", ["", "file:/srv/mirror/ trixie main\n", "http://m.example/ trixie-updates main\n"])
def test_apt_sources_that_nodes_cannot_follow_are_left_to_mmdebstrap(listing):
    assert lab_image.sources_for_nodes(listing, "trixie") == []


def test_ssh_configuration_is_what_ssh_makes_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lab_nodes, "STATE", tmp_path)
    nodes = lab_nodes.LabNodes(lab_topology.Lab("demo"))
    nodes.ssh_config.parent.mkdir(parents=True)
    nodes.ssh_config.write_text(nodes._ssh_config())
    shown = subprocess.run(
        ["ssh", "-G", "-F", nodes.ssh_config, "l40s-02"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {"hostname 198.18.41.12", "user ops", "stricthostkeychecking true", "identitiesonly yes"} <= set(shown)
    # A path of a socket holds 107 bytes, of which ssh appends 17 while it makes one.
    control_path = next(line for line in shown if line.startswith("controlpath ")).split()[1]
    assert len(control_path) <= 107 - 17


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["up", "--name", "A B"], 1, "scripts/lab: --name A B: a lab's name is"),
        (["ssh", "--name", "neverup", "gw-01"], 1, "scripts/lab: lab neverup is not up"),
        (["ssh", "nowhere"], 2, "invalid choice: 'nowhere'"),
    ],
)
def test_mistakes_of_the_user_are_told_in_one_line(arguments, status, message):
    done = subprocess.run(
        [sys.executable, CHECKOUT / "scripts/lab", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_root_is_asked_for():
    done = subprocess.run(
        ["python3", "-c", "import lab_host; lab_host.require_machine()"],
        env={"PATH": "/usr/bin:/bin"},
        cwd=CHECKOUT / "scripts",
        user="nobody",
        capture_output=True,
        text=True,
        check=False,
    )
    assert "LabError: the lab needs root" in done.stderr
