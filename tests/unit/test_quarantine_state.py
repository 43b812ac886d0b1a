"""Which GPUs are set aside, when they are not, and what lifting that means."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from fleet.probe_kernel_log import FATAL_XIDS, Xid
from fleet.quarantine_state import (
    Known,
    Mark,
    Quarantine,
    Rows,
    lift,
    observe,
    parse_state,
    read_state,
    write_state,
)

if TYPE_CHECKING:
    from pathlib import Path

BUS, OTHER = "0000:17:00.0", "0000:99:00.0"
BOOT, NOW = "boot-1", "2026-11-24T12:00:00Z"
SOUND = {BUS: Rows("GPU-a", 0, pending=False, failed=False), OTHER: Rows("GPU-b", 2, pending=False, failed=False)}


def look(state: Quarantine | None = None, *xids: Xid, rows: dict[str, Rows] = SOUND, boot: str = BOOT) -> Quarantine:
    return observe(state or Quarantine(), rows, xids, boot, NOW)


@pytest.mark.parametrize("number", sorted(FATAL_XIDS))
def test_a_fatal_xid_sets_its_gpu_aside(number: int) -> None:
    state = look(None, Xid(BUS, number, "as the driver wrote", 7))
    assert set(state.gpus) == {BUS}
    assert state.gpus[BUS].uuid == "GPU-a"
    assert state.gpus[BUS].reason.startswith(f"Xid {number}: ")


@pytest.mark.parametrize("number", [13, 31, 43, 63, 94])
def test_an_xid_of_an_application_does_not(number: int) -> None:
    assert look(None, Xid(BUS, number, "", 7)).gpus == {}


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (Rows("GPU-a", 1, pending=False, failed=False), "remapped rows rose from 0 to 1"),
        (Rows("GPU-a", 0, pending=True, failed=False), "waits for a reset"),
        (Rows("GPU-a", 0, pending=False, failed=True), "could not be remapped"),
    ],
)
def test_remapped_rows_set_a_gpu_aside_when_they_rise(rows: Rows, reason: str) -> None:
    state = look(look(), rows={**SOUND, BUS: rows})
    assert set(state.gpus) == {BUS}
    assert reason in state.gpus[BUS].reason


def test_rows_that_were_remapped_before_the_first_look_do_not() -> None:
    assert look().gpus == {}
    assert look().known[OTHER] == Known("GPU-b", 2)


def test_a_count_that_nvml_did_not_tell_is_no_rise() -> None:
    unknown = look(rows={BUS: Rows("GPU-a", None, pending=False, failed=False)})
    after = look(unknown, rows={BUS: Rows("GPU-a", 5, pending=False, failed=False)})
    assert after.gpus == {}
    assert after.known[BUS] == Known("GPU-a", 5)


def test_another_card_in_the_slot_begins_anew() -> None:
    after = look(look(), rows={BUS: Rows("GPU-new", 9, pending=False, failed=False)})
    assert after.gpus == {}
    assert after.known[BUS] == Known("GPU-new", 9)


def test_a_mark_stays_over_reboots_and_keeps_its_first_reason() -> None:
    state = look(None, Xid(BUS, 79, "", 7))
    later = look(look(state, Xid(BUS, 48, "", 9)), boot="boot-2")
    assert later.gpus == state.gpus


def test_a_gpu_that_fell_off_the_bus_keeps_the_uuid_that_it_had() -> None:
    state = look(look(), Xid(BUS, 79, "", 7), rows={OTHER: SOUND[OTHER]})
    assert state.gpus[BUS].uuid == "GPU-a"


def test_a_marked_card_is_known_in_another_slot() -> None:
    state = look(None, Xid(BUS, 79, "", 7))
    assert state.mark_of("0000:3b:00.0", "GPU-a") == state.gpus[BUS]
    assert state.mark_of("0000:3b:00.0", "GPU-c") is None
    assert state.mark_of("0000:3b:00.0", None) is None


@pytest.mark.parametrize("name", [BUS, "GPU-a", "all"])
def test_what_was_lifted_is_not_marked_again_for_the_same_records(name: str) -> None:
    xid = Xid(BUS, 79, "", 7)
    rows = {**SOUND, BUS: Rows("GPU-a", 3, pending=False, failed=False)}
    state, lifted = lift(look(None, xid), [name], rows, {BUS: 7}, BOOT)
    assert lifted == (BUS,)
    assert state.gpus == {}
    assert look(state, xid, rows=rows).gpus == {}
    assert set(look(state, xid, Xid(BUS, 79, "", 8), rows=rows).gpus) == {BUS}
    # Another boot counts its records from 0.
    assert set(look(state, xid, rows=rows, boot="boot-2").gpus) == {BUS}


def test_lifting_one_leaves_the_others() -> None:
    state = look(None, Xid(BUS, 79, "", 7), Xid(OTHER, 48, "", 8))
    after, lifted = lift(state, ["GPU-b"], SOUND, {}, BOOT)
    assert lifted == (OTHER,)
    assert set(after.gpus) == {BUS}


def test_a_gpu_that_is_not_in_quarantine_cannot_be_lifted() -> None:
    with pytest.raises(KeyError, match="GPU-b"):
        lift(look(None, Xid(BUS, 79, "", 7)), ["GPU-b"], SOUND, {}, BOOT)
    assert lift(look(), ["all"], SOUND, {}, BOOT)[1] == ()


def test_the_file_holds_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.json"
    state, _ = lift(look(None, Xid(BUS, 79, "x", 7), Xid(OTHER, 48, "y", 8)), [OTHER], SOUND, {OTHER: 8}, BOOT)
    write_state(path, state)
    assert read_state(path) == state
    written = path.stat()
    write_state(path, state)
    assert (path.stat().st_ino, path.stat().st_mode & 0o777) == (written.st_ino, 0o644)
    assert [entry.name for entry in tmp_path.iterdir()] == ["quarantine.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "gpus": {"a": {}}}'])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "quarantine.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r".+"):
        read_state(path)


def test_no_file_is_an_empty_quarantine(tmp_path: Path) -> None:
    assert read_state(tmp_path / "none.json") == Quarantine()
    assert parse_state(json.loads('{"schema": 1, "gpus": {}, "known": {}, "acknowledged": {}}')) == Quarantine()
    assert Mark(None, "", NOW) != Mark("GPU-a", "", NOW)
