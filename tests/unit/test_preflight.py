"""What the preflight makes of what its script printed on many kinds of hosts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fleet.preflight import CHECKS, Requirements, Row, judge, parse_report, table
from fleet.preflight_probe import judge_documents

CHECKOUT = Path(__file__).resolve().parents[2]
SCRIPT = CHECKOUT / "playbooks/files/preflight.sh"
GIB_KIB = 1 << 20


def recorded(name: str) -> str:
    """A text that the script printed: on a lab node, on real Ubuntu machines, and under BusyBox."""
    return (CHECKOUT / "tests/data/preflight" / f"{name}.txt").read_text()


SOUND = recorded("debian-12-lab-node")


def like_sound(**changed: str | None) -> str:
    """The recording of a sound host with other values for some keys; None leaves the key out, newlines make several."""
    lines = [line for line in SOUND.splitlines() if line.partition("=")[0] not in {*changed, "preflight"}]
    for key, value in changed.items():
        lines += [f"{key}={part}" for part in value.split("\n")] if value is not None else []
    return "\n".join(["preflight=begin", *lines, "preflight=end"])


def disks(*, opt: int = 100, var: int = 100, mode: str = "rw", one: bool = False) -> str:
    """Disk lines, sizes in GiB; ``one`` puts all paths on one file system."""
    mounts = ("/", "/", "/") if one else ("/opt", "/var", "/")
    sizes = (opt, opt, opt) if one else (opt, var, 100)
    paths = ("/opt", "/var/lib", "/etc")
    return "\n".join(
        f"{path} {size * GIB_KIB} {mode} {mount}" for path, size, mount in zip(paths, sizes, mounts, strict=True)
    )


def blocked(text: str | None, **options: list[str]) -> list[str]:
    rows = judge({"h": text}, Requirements(clock_s=1795521000.0), **options)
    return [row.line() for row in rows if row.status == "blocked"]


def test_a_recorded_lab_node_is_ok_throughout() -> None:
    rows = judge({"l40s-01": SOUND}, Requirements())
    assert [row.name for row in rows] == [check.name for check in CHECKS]
    assert {row.status for row in rows} == {"ok"}


@pytest.mark.parametrize(
    ("system", "version"),
    [
        ("debian", "13"),
        ("ubuntu", "22.04"),
        ("ubuntu", "24.04"),
        ("rhel", "9.4"),
        ("rocky", "9.5"),
        ("almalinux", "9.4"),
    ],
)
def test_supported_systems_are_taken(system: str, version: str) -> None:
    assert blocked(like_sound(os_id=system, os_version_id=version)) == []


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (
            {"sudo": "refused"},
            "h: sudo: user ops cannot run sudo without a password; add a NOPASSWD rule or give ansible_become_password",
        ),
        ({"sudo": "missing"}, "h: sudo: sudo is not installed; install sudo and let ops use it, or log in as root"),
        (
            {"os_id": "alpine", "os_version_id": "3.22.1"},
            "h: system: alpine 3.22.1 is not supported; use one of: debian",
        ),
        ({"os_id": "debian", "os_version_id": "11"}, "h: system: debian 11 is not supported"),
        ({"os_id": "ubuntu", "os_version_id": "25.10"}, "h: system: ubuntu 25.10 is not supported"),
        ({"os_id": "rhel", "os_version_id": "90.1"}, "h: system: rhel 90.1 is not supported"),
        ({"os_id": None, "os_version_id": None}, "h: system: unknown is not supported"),
        ({"python": "python3 3.8.10"}, "h: python: python 3.8.10 is older than 3.10; install Python 3.10"),
        ({"python": "python3 3.9.18\npython3.8 3.8.2"}, "h: python: python 3.9.18 is older than 3.10"),
        ({"python": None}, "h: python: no python3 was found"),
        ({"python": "python3 "}, "h: python: no python3 was found"),
        ({"systemd": "no", "init": "runit"}, "h: systemd: systemd does not run the host, runit does"),
        ({"architecture": "aarch64"}, "h: architecture: aarch64 is not supported; use one of: x86_64"),
        ({"tool": None}, "h: packages: neither apt-get and dpkg nor dnf and rpm were found"),
        ({"tool": "dpkg"}, "h: packages: neither apt-get and dpkg"),
        ({"memory_kib": "1000000"}, "h: memory: 977 MiB of memory, 2.0 GiB are needed; add memory"),
        ({"disk": disks(opt=3)}, "h: disk: 3.0 GiB free on /opt, 10.0 GiB are needed for /opt; free some space"),
        ({"disk": disks(var=1)}, "h: disk: 1.0 GiB free on /var, 5.0 GiB are needed for /var/lib"),
        # Enough for each path alone, but they share it.
        (
            {"disk": disks(opt=12, one=True)},
            "h: disk: 12.0 GiB free on /, 15.0 GiB are needed for /opt and /var/lib and /etc",
        ),
        ({"disk": disks(mode="ro")}, "h: disk: /opt is on /opt, which is mounted read-only; check the disk"),
        ({"disk": None}, "h: disk: free space of /etc, /opt, /var/lib could not be read"),
        ({"clock": "1795521900"}, "h: clock: the clock is 15 minutes ahead of the controller's; set it"),
        ({"clock": "1795519800"}, "h: clock: the clock is 20 minutes behind the controller's"),
        ({"shm": "no"}, "h: shm: there is no /dev/shm, which engines need; mount a tmpfs"),
        ({"listens": "22\n8100\n8101"}, "h: engine_ports: something listens on 8100, 8101; stop it (ss -ltnp"),
    ],
)
def test_one_thing_that_is_wrong_is_one_line(changed: dict[str, str | None], line: str) -> None:
    (found,) = blocked(like_sound(**changed))
    assert found.startswith(line)


@pytest.mark.parametrize(
    "changed",
    [
        {"sudo": "root", "user": "root", "uid": "0"},
        {"python": "python3 3.9.18\npython3.11 3.11.9"},
        {"python": "python3 3.100.0"},
        {"tool": "dnf\nrpm", "os_id": "rhel", "os_version_id": "9.4"},
        {"disk": disks(opt=10, var=5)},
    ],
)
def test_what_is_unusual_but_enough_is_taken(changed: dict[str, str | None]) -> None:
    assert blocked(like_sound(**changed)) == []


def test_a_password_that_was_given_for_sudo_is_believed() -> None:
    refused = like_sound(sudo="refused")
    assert blocked(refused, become_password_hosts=["h"]) == []
    assert len(blocked(refused, become_password_hosts=["other"])) == 1
    assert len(blocked(like_sound(sudo="missing"), become_password_hosts=["h"])) == 1


def test_a_host_without_an_engine_needs_less_disk() -> None:
    small = like_sound(disk=disks(opt=1, var=2))
    assert len(blocked(small)) == 1
    assert blocked(small, engine_hosts=[]) == []
    assert len(blocked(small, engine_hosts=["h"])) == 1


def test_the_engine_that_lacks_space_is_named_and_one_that_is_there_needs_none() -> None:
    required = Requirements(engine_free_bytes={"/opt": 12 << 30}, engine_version="0.33.0")

    def lines(**changed: str) -> list[str]:
        rows = judge({"h": like_sound(disk=disks(opt=3), **changed)}, required)
        return [row.line() for row in rows if row.status == "blocked"]

    short = "h: disk: 3.0 GiB free on /opt, 12.0 GiB are needed for vLLM 0.33.0 in /opt"
    assert [line.partition(";")[0] for line in lines()] == [short]
    assert len(lines(engine="0.32.0")) == 1
    assert lines(engine="0.32.0\n0.33.0") == []


@pytest.mark.parametrize("text", ["", "Sorry, this account is not available.", SOUND[: len(SOUND) // 2]])
def test_half_an_answer_is_one_line_and_not_ten(text: str) -> None:
    (line,) = blocked(text)
    assert line.startswith("h: answer: the preflight script did not run to its end; log in as Ansible does")


def test_a_port_of_an_instance_is_no_strangers() -> None:
    own = like_sound(listens="8100\n8101", own_port="8100 8101")
    assert {row.status for row in judge({"h": own}, Requirements())} == {"ok"}
    # Beside instances of the fleet a further port is told, and stops nothing.
    more = like_sound(listens="8100\n8102", own_port="8100")
    rows = [row for row in judge({"h": more}, Requirements()) if row.status != "ok"]
    assert [(row.name, row.status, row.evidence) for row in rows] == [
        ("engine_ports", "degraded", "something listens on 8102")
    ]
    assert blocked(like_sound(listens="8100"), engine_hosts=[]) == []


def check_row(name: str, status: str) -> dict[str, str]:
    return {"name": name, "status": status, "evidence": f"what {name} saw", "remedy": "mend it"}


def test_what_the_probe_found_is_in_the_same_table() -> None:
    gpus = [
        {"index": 0, "health": {"checks": [check_row("xid", "ok"), check_row("pcie_width", "degraded")]}},
        {"index": 1, "health": {"checks": [check_row("xid", "blocked"), check_row("mig", "unknown")]}},
    ]
    host = {"health": {"checks": [check_row("iommu", "degraded"), check_row("nvml", "blocked")]}, "gpus": gpus}
    rows = judge_documents({"l40s-01": host})
    assert [(row.name, row.status) for row in rows] == [
        ("iommu", "degraded"),
        # The driver's stage mends it, or the driver's own check stops the run.
        ("nvml", "degraded"),
        ("GPU 0 pcie_width", "degraded"),
        ("GPU 1 xid", "not used"),
    ]
    shown = table([*judge({"l40s-01": SOUND}, Requirements()), *rows]).splitlines()
    assert shown[-1] == "l40s-01  not used  GPU 1 xid: what xid saw; mend it"
    assert len(shown) == 5


@pytest.mark.parametrize("name", ["vgpu_guest", "shm", "disk"])
def test_what_no_stage_mends_stops_the_run(name: str) -> None:
    host = {"health": {"checks": [check_row(name, "blocked")]}, "gpus": []}
    assert [row.status for row in judge_documents({"h": host})] == ["blocked"]


def test_banners_and_a_terminals_carriage_returns_are_passed_over() -> None:
    text = "Welcome! user=nobody\r\n" + SOUND.replace("\n", "\r\n") + "Shared connection closed.\r\n"
    values, complete = parse_report(text)
    assert complete
    assert values["user"] == ["ops"]
    assert blocked(text) == []


def test_recorded_hosts_say_all_that_is_wrong_with_them() -> None:
    assert blocked(recorded("ubuntu-24.04-root-no-systemd")) == [
        "h: systemd: systemd does not run the host, process_api does; boot the host with systemd"
    ]
    assert [line.split(": ")[1] for line in blocked(recorded("ubuntu-24.04-no-sudo"))] == ["sudo", "systemd"]
    # BusyBox: no Python and no package manager were on its path.
    assert [line.split(": ")[1] for line in blocked(recorded("busybox"))] == ["python", "systemd", "packages"]


def test_the_table_has_one_line_for_a_host_where_all_is_well() -> None:
    poor = like_sound(sudo="refused", disk=disks(opt=3))
    rows = judge({"l40s-01": SOUND, "l40s-002": poor, "gw": None}, Requirements())
    assert table(rows).splitlines() == [
        "HOST      STATUS",
        "l40s-01   ok           sudo without a password, python 3.11.2, debian 12, x86_64, 23.5 GiB of memory, "
        "68.7 GiB free on /",
        "l40s-002  blocked      sudo: user ops cannot run sudo without a password; add a NOPASSWD rule or give "
        "ansible_become_password",
        "l40s-002  blocked      disk: 3.0 GiB free on /opt, 10.0 GiB are needed for /opt; free some space, or mount a "
        "larger file system there",
        "gw        unreachable  answer: could not be reached; it is left out of this run, and what it serves is left "
        "as it is",
    ]


def test_an_unreachable_host_is_left_out_and_stops_nothing() -> None:
    (row,) = judge({"h": None}, Requirements())
    assert row.status == "unreachable"
    assert isinstance(row, Row)
    assert blocked(None) == []


@pytest.mark.parametrize("shell", ["sh", "bash", "dash"])
def test_the_script_runs_to_its_end_on_this_machine(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, SCRIPT], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    values, complete = parse_report(done.stdout)
    assert complete
    assert values["user"]
    state = os.statvfs("/etc")
    path, free_kib, mode, _ = next(line for line in values["disk"] if line.startswith("/etc ")).split(" ", 3)
    assert (path, mode) == ("/etc", "rw")
    assert abs(int(free_kib) * 1024 - state.f_bavail * state.f_frsize) < 8 << 30
    known = {"uid", "user", "sudo", "python", "os_id", "os_version_id", "systemd", "init", "architecture", "kernel"}
    known |= {"clock", "shm", "listens", "own_port"}
    assert values.keys() <= known | {"tool", "memory_kib", "disk"}


def test_the_module_fails_with_a_line_for_each_blocked_thing() -> None:
    arguments: dict[str, Any] = {
        "hosts": {"l40s-01": SOUND, "l40s-02": like_sound(sudo="refused", python="python3 3.8.10")},
        "expected_hosts": ["l40s-01", "l40s-02", "l40s-03"],
    }
    failed = run_module(arguments, fails=True)
    assert [line.split(": ")[:2] for line in failed["msg"].splitlines()] == [["l40s-02", "sudo"], ["l40s-02", "python"]]
    assert failed["left_out"] == ["l40s-03"]
    assert "l40s-01  ok" in failed["table"]

    arguments["hosts"] = {"l40s-01": SOUND}
    passed = run_module(arguments, fails=False)
    assert passed["changed"] is False
    assert {row["status"] for row in passed["rows"] if row["host"] == "l40s-01"} == {"ok"}
    assert passed["left_out"] == ["l40s-02", "l40s-03"]


def test_the_module_names_an_option_that_makes_no_sense() -> None:
    result = run_module({"hosts": {"h": SOUND}, "min_free_bytes": {"/etc": "much"}}, fails=True)
    assert result["msg"] == "min_free_bytes: must hold a number of bytes for each path"


def run_module(arguments: dict[str, Any], *, fails: bool) -> dict[str, Any]:
    """Runs the module through Ansible on this machine and returns its result."""
    done = subprocess.run(
        [
            "ansible",
            "localhost",
            "-m",
            "fleet_preflight",
            "-a",
            json.dumps(arguments),
            "-i",
            "localhost,",
            "-c",
            "local",
        ],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PATH": f"{CHECKOUT / '.venv/bin'}:{os.environ['PATH']}",
            "ANSIBLE_LIBRARY": str(CHECKOUT / "library"),
            "ANSIBLE_MODULE_UTILS": str(CHECKOUT / "module_utils"),
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        },
    )
    # Above the result of a failed task Ansible 2.21 writes the error once more, in words.
    _, _, text = done.stdout.partition("localhost | FAILED! => " if fails else "localhost | SUCCESS => ")
    assert text, done.stdout + done.stderr
    result, _ = json.JSONDecoder().raw_decode(text)
    return dict(result)
