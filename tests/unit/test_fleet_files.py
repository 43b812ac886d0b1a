"""The module fleet_files and the filter that sorts the firewall's addresses."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

CHECKOUT = Path(__file__).resolve().parents[2]


def load_filter() -> Any:
    specification = importlib.util.spec_from_file_location(
        "firewall_filters", CHECKOUT / "filter_plugins/fleet_firewall.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


numeric_addresses = load_filter().fleet_numeric_addresses


def run(arguments: dict[str, Any], *options: str, fails: bool = False) -> dict[str, Any]:
    """Runs the module through Ansible on this machine and returns its result."""
    command = [
        "ansible",
        "localhost",
        "-m",
        "fleet_files",
        "-a",
        json.dumps(arguments),
        "-i",
        "localhost,",
        "-c",
        "local",
    ]
    done = subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PATH": f"{CHECKOUT / '.venv/bin'}:{os.environ['PATH']}",
            "ANSIBLE_LIBRARY": str(CHECKOUT / "library"),
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        },
    )
    words = ("FAILED!",) if fails else ("SUCCESS", "CHANGED")
    for word in words:
        _, found, text = done.stdout.partition(f"localhost | {word} => ")
        if found:
            return dict(json.JSONDecoder().raw_decode(text)[0])
    pytest.fail(done.stdout + done.stderr)


def test_files_are_written_once_and_removed(tmp_path: Path) -> None:
    program, rules, old = tmp_path / "bin/program", tmp_path / "rules", tmp_path / "old"
    old.write_text("old")
    wanted = {
        "files": {str(program): "#!/bin/sh\n", str(rules): "a\n"},
        "executable": [str(program)],
        "absent": [str(old)],
    }
    pretended = run(wanted, "--check")
    assert pretended["changed_files"] == sorted(map(str, (program, rules, old)))
    assert not program.exists()
    assert old.exists()

    assert run(wanted)["changed"] is True
    assert (program.stat().st_mode & 0o777, rules.stat().st_mode & 0o777) == (0o755, 0o644)
    assert rules.read_text() == "a\n"
    assert not old.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "rules"]
    assert run(wanted)["changed_files"] == []

    rules.chmod(0o600)
    assert run(wanted)["changed_files"] == [str(rules)]


def test_a_check_that_fails_changes_nothing(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    second.write_text("good\n")
    arguments = {
        "files": {str(first): "x\n", str(second): "bad\n"},
        "checks": {str(second): ["grep", "-q", "good", "{path}"]},
    }
    for options in ((), ("--check",)):
        assert run(arguments, *options, fails=True)["msg"] == f"{second}: grep ended with status 1"
    assert not first.exists()
    assert second.read_text() == "good\n"
    arguments["checks"] = {str(second): ["not-there-yet", "{path}"]}
    assert run(arguments, "--check")["changed"] is True


def test_a_strange_path_is_refused_in_one_line(tmp_path: Path) -> None:
    for arguments in ({"files": {"relative": ""}}, {"files": {}, "executable": [str(tmp_path / "x")]}):
        assert run(arguments, fails=True)["msg"].endswith("must be an absolute path that files holds")


def test_addresses_are_sorted_by_family_and_named_once() -> None:
    given = ["198.18.0.9", "2001:DB8::9", "198.18.0.9/32", "198.18.1.77/24", "localhost"]
    found = numeric_addresses(given, "host_firewall_allowed")
    assert found["ipv4"] == ["127.0.0.1", "198.18.0.9", "198.18.1.0/24"]
    assert "2001:db8::9" in found["ipv6"]


def test_a_name_that_nobody_knows_is_an_error_that_names_the_variable() -> None:
    with pytest.raises(AnsibleFilterError, match=r"host_firewall_allowed: nowhere\.invalid is neither an address nor"):
        numeric_addresses(["nowhere.invalid"], "host_firewall_allowed")
