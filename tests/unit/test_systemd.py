from __future__ import annotations

from pathlib import Path

import pytest
from fleet.errors import FleetError
from fleet.systemd import Systemd, UnitState, last_error, parse_show

RECORDED = Path(__file__).parents[1] / "data" / "engine_failures"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "context_too_long",
            "Value error, User-specified max_model_len (99999) is greater than the derived max_model_len",
        ),
        ("unknown_argument", "vllm: error: unrecognized arguments: --no-such-thing"),
        ("no_model", "OSError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/srv/none'."),
        ("no_kv_memory", "ValueError: No available memory for the cache blocks."),
        ("port_in_use", "OSError: [Errno 98] Address already in use"),
    ],
)
def test_the_engines_own_reason_is_found_in_what_it_really_said(name, message):
    said = last_error((RECORDED / f"{name}.log").read_text())
    assert said.startswith(message)
    assert "\n" not in said


def test_an_engine_that_says_nothing_gives_no_reason():
    assert last_error("\n\n") == ""


def test_a_rank_names_what_happened_on_another_host_where_its_own_engine_has_no_reason():
    told = "RankError: rank 1 of wide-1: the engine of rank 0 ended with status 1"
    assert last_error(f"INFO 11-24 07:54:29 [model.py:733] Resolved\n{told}\nMain process exited\n") == told
    assert last_error(f"ValueError: too long\n{told}\n") == "ValueError: too long"


def test_last_line_where_no_exception_is_named():
    assert last_error("(APIServer pid=7) INFO 11-24 07:54:29 [model.py:733] Resolved\nKilled\n") == "Killed"


def test_states_of_several_units():
    output = (
        "Id=vllm@a.service\nActiveState=active\nSubState=running\nNRestarts=2\nUnitFileState=enabled\n"
        "NeedDaemonReload=no\nResult=success\nInvocationID=abc\n"
        "\nId=vllm@b.service\nActiveState=inactive\nSubState=dead\nNRestarts=0\nUnitFileState=\nNeedDaemonReload=yes\n"
    )
    assert parse_show(output) == {
        "vllm@a.service": UnitState("active", "running", "success", 2, True, False, "abc"),
        "vllm@b.service": UnitState("inactive", "dead", "success", 0, False, True, ""),
    }


def test_a_host_without_systemd_runs_nothing():
    systemd = Systemd(lambda arguments: (127, "", f"{arguments[0]}: not found"))
    assert systemd.states(["vllm@a.service"]) == {"vllm@a.service": UnitState()}
    assert systemd.loaded("vllm@*.service") == []


def test_a_refusal_of_systemd_is_one_line():
    systemd = Systemd(lambda _: (1, "", "Failed to start x\nUnit vllm@a.service not found.\n"))
    with pytest.raises(FleetError, match=r"^systemctl enable --quiet vllm@a.service: Unit vllm@a.service not found\.$"):
        systemd.enable(["vllm@a.service"])
