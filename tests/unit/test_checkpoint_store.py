from __future__ import annotations

import hashlib
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from fleet.checkpoint_store import NOTE, CheckpointStore, Wanted, WantedFile, parse_wanted
from fleet.errors import FleetError

if TYPE_CHECKING:
    from pathlib import Path

CONTENTS = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 64, "extra/template.jinja": b"{{ x }}"}
DIGEST = "ab" * 32


def wanted_of(contents: dict[str, bytes] = CONTENTS) -> Wanted:
    files = {name: WantedFile(len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()}
    return Wanted("tiny", DIGEST, "/source", files)


def copy(directory: Path, contents: dict[str, bytes]) -> None:
    """What ansible.builtin.copy does between the two calls of the module."""
    for name, data in contents.items():
        (directory / name).write_bytes(data)


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "models")


def bring(store: CheckpointStore, wanted: Wanted, contents: dict[str, bytes] = CONTENTS) -> None:
    state = store.inspect(wanted)
    names = store.to_copy(wanted, state)
    store.prepare_staging(wanted, names)
    copy(store.staging(wanted), {name: contents[name] for name in names})
    store.promote(wanted, state)


@pytest.fixture
def present(store):
    wanted = wanted_of()
    bring(store, wanted)
    return wanted


def test_a_new_checkpoint_comes_whole_to_its_final_name(store, present):
    assert store.path(present).name == f"tiny-{DIGEST[:12]}"
    assert {name: (store.path(present) / name).read_bytes() for name in CONTENTS} == CONTENTS
    assert not store.staging(present).exists()
    state = store.inspect(present)
    assert state.whole
    assert state.noted
    for parent, _, names in os.walk(store.path(present)):
        assert os.stat(parent).st_mode & 0o777 == 0o755
        assert {os.stat(os.path.join(parent, name)).st_mode & 0o777 for name in names} == {0o644}


def test_a_quick_look_reads_no_file(store, present):
    path = store.path(present) / "model.safetensors"
    stamp = path.stat()
    path.write_bytes(bytes(len(CONTENTS["model.safetensors"])))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert store.inspect(present).whole, "size and time are as noted, so the file was not read"
    assert store.inspect(present, full=True).damaged == ("model.safetensors",)


def test_a_file_that_was_touched_is_read_again_and_noted(store, present):
    os.utime(store.path(present) / "config.json", ns=(1, 1))
    state = store.inspect(present)
    assert (state.whole, state.noted) == (True, False)
    store.promote(present, state)
    assert store.inspect(present).noted


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_found_and_mended_by_copying_that_file_alone(store, present, damage):
    path = store.path(present) / "model.safetensors"
    opened = path.open("rb")
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "flip":
        data[100] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-1])
    state = store.inspect(present)
    assert not state.whole
    assert store.to_copy(present, state) == ("model.safetensors",)
    bring(store, present)
    assert store.inspect(present, full=True).whole
    assert opened.read() == CONTENTS["model.safetensors"], "who had the file open goes on with what it opened"
    opened.close()


def test_a_file_that_does_not_belong_there_is_removed(store, present):
    (store.path(present) / "model-00002.safetensors").write_bytes(b"x")
    state = store.inspect(present)
    assert state.unexpected == ("model-00002.safetensors",)
    store.promote(present, state)
    assert store.inspect(present).whole


def test_a_wrong_copy_never_gets_the_final_name(store):
    wanted = wanted_of()
    wrong = CONTENTS | {"model.safetensors": bytes(len(CONTENTS["model.safetensors"]))}
    with pytest.raises(FleetError, match=r"model\.safetensors: is not the file that was planned"):
        bring(store, wanted, wrong)
    assert not store.path(wanted).exists()
    assert store.to_copy(wanted, store.inspect(wanted)) == ("model.safetensors",), "the others need not come again"
    bring(store, wanted)
    assert store.inspect(wanted, full=True).whole


def test_an_interrupted_copy_is_continued(store):
    wanted = wanted_of()
    state = store.inspect(wanted)
    store.prepare_staging(wanted, store.to_copy(wanted, state))
    copy(store.staging(wanted), {"config.json": CONTENTS["config.json"], "model.safetensors": b"half"})
    (store.staging(wanted) / ".ansible_tmp").write_bytes(b"left by a killed run")
    with pytest.raises(FleetError, match=r"is not the file that was planned|was not copied"):
        store.promote(wanted, state)
    assert set(store.to_copy(wanted, state)) == {"model.safetensors", "extra/template.jinja"}
    bring(store, wanted)
    assert sorted(store.path(wanted).rglob("*.json*")) == [
        store.path(wanted) / NOTE,
        store.path(wanted) / "config.json",
    ]
    assert not (store.path(wanted) / ".ansible_tmp").exists()


def test_what_does_not_fit_on_the_disk_is_refused_with_both_figures(store, tmp_path):
    free = shutil.disk_usage(tmp_path).free
    store.check_space(0)
    store.check_space(1)
    with pytest.raises(FleetError, match=r"models: [\d.]+ GiB to copy and 1.0 GiB to leave, but only [\d.]+ GiB free"):
        store.check_space(free)


def test_checkpoints_of_unknown_models_are_forgotten_and_moved_models_are_kept(store, present, tmp_path):
    bring(store, Wanted("tiny-2", "cd" * 32, "", present.files))
    assert store.forgotten(["tiny", "other"]) == (tmp_path / "models" / "tiny-2-cdcdcdcdcdcd",)
    store.remove(store.forgotten([]))
    assert list((tmp_path / "models").iterdir()) == []


def test_staging_that_nobody_waits_for_is_abandoned(store, present):
    waiting = Wanted("soon", "ef" * 32, "", present.files)
    for wanted in (waiting, Wanted("never", "12" * 32, "", present.files), present):
        store.prepare_staging(wanted, ["config.json"])
    assert {path.name for path in store.abandoned([waiting, present])} == {
        ".staging-never-121212121212",
        f".staging-tiny-{DIGEST[:12]}",
    }


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"digest": "abc"}, r"checkpoints\[0\]\.digest: must be 64 hexadecimal digits"),
        ({"files": {"../x": {"bytes": 1, "sha256": DIGEST}}}, r"checkpoints\[0\]\.files: '\.\./x' is no path inside"),
        ({"files": {"/etc/passwd": {"bytes": 1, "sha256": DIGEST}}}, "is no path inside"),
        ({"files": {"a": {"bytes": 1, "sha256": "no"}}}, r"files\[a\]\.sha256: must be 64"),
    ],
)
def test_bad_input_names_its_place(change, problem):
    item = {"name": "tiny", "digest": DIGEST, "files": {}} | change
    with pytest.raises(FleetError, match=problem):
        parse_wanted([item])
