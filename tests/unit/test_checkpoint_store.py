from __future__ import annotations

import hashlib
import math
import os
import random
import shutil
from typing import TYPE_CHECKING

import pytest
from fleet import checkpoint_note, checkpoint_prune, checkpoint_samples
from fleet.checkpoint_note import NOTE, read_note
from fleet.checkpoint_promote import promote
from fleet.checkpoint_samples import cursor_of, damage_in_turn
from fleet.checkpoint_store import CheckpointStore, Wanted, WantedFile, parse_wanted
from fleet.errors import FleetError

if TYPE_CHECKING:
    from pathlib import Path

CONTENTS = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 64, "extra/template.jinja": b"{{ x }}"}
DIGEST = "ab" * 32


def wanted_of(contents: dict[str, bytes] = CONTENTS, name: str = "tiny", digest: str = DIGEST) -> Wanted:
    files = {path: WantedFile(len(data), hashlib.sha256(data).hexdigest()) for path, data in contents.items()}
    return Wanted(name, digest, files)


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "models")


def fetch(store: CheckpointStore, wanted: Wanted, contents: dict[str, bytes] = CONTENTS) -> list[str]:
    """What the fetching service does between the two calls of the module; returns what was needed."""
    store.prepare_incoming()
    needed = store.needed([(wanted, store.inspect(wanted))])
    for one in needed:
        store.incoming(one.sha256).write_bytes(contents[one.name])
        store.incoming(one.sha256).chmod(0o600)
    return [one.name for one in needed]


def bring(store: CheckpointStore, wanted: Wanted, contents: dict[str, bytes] = CONTENTS) -> list[str]:
    needed = fetch(store, wanted, contents)
    promote(store, wanted, store.inspect(wanted))
    checkpoint_prune.remove_empty(store)
    return needed


@pytest.fixture
def present(store):
    wanted = wanted_of()
    bring(store, wanted)
    return wanted


def test_a_new_checkpoint_comes_whole_to_its_final_name(store, present):
    assert store.path(present).name == f"tiny-{DIGEST[:12]}"
    assert {name: (store.path(present) / name).read_bytes() for name in CONTENTS} == CONTENTS
    assert sorted(path.name for path in store.root.iterdir()) == [".blobs", store.path(present).name]
    state = store.inspect(present)
    assert state.whole
    assert state.noted
    for parent, _, names in os.walk(store.path(present)):
        assert os.stat(parent).st_mode & 0o777 == 0o755
        assert {os.stat(os.path.join(parent, name)).st_mode & 0o777 for name in names} == {0o644}


def test_models_share_files_and_only_what_is_new_is_fetched(store, present):
    other = wanted_of(CONTENTS | {"config.json": b'{"a": 1}'}, "other", "cd" * 32)
    assert bring(store, other, CONTENTS | {"config.json": b'{"a": 1}'}) == ["config.json"]
    assert (store.path(other) / "model.safetensors").samefile(store.path(present) / "model.safetensors")
    assert not (store.path(other) / "config.json").samefile(store.path(present) / "config.json")
    twin = wanted_of(name="twin", digest="12" * 32)
    assert bring(store, twin) == []
    assert store.inspect(twin, full=True).whole


def test_a_file_that_several_checkpoints_need_is_needed_once(store):
    one, two = wanted_of(), wanted_of(name="other", digest="cd" * 32)
    assert len(store.needed([(each, store.inspect(each)) for each in (one, two)])) == len(CONTENTS)


def flip(path: Path, at: int = 100) -> None:
    """One bit, with the time of change as before: what a disk does."""
    stamp = path.stat()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def damaged(store, wanted, verify, **options):
    ((_, state),) = store.inspect_all([wanted], verify, **options)
    return state.damaged


@pytest.mark.parametrize("verify", ["sampled", "full"])
def test_a_bit_that_flipped_under_an_unchanged_stamp_is_found_and_every_later_look_knows_it(store, present, verify):
    flip(store.path(present) / "model.safetensors")
    assert damaged(store, present, "quick") == (), "size, time and inode are as noted, so the file was not read"
    assert damaged(store, present, verify, remember=False) == ("model.safetensors",)
    assert damaged(store, present, "quick") == (), "a check run writes nothing down"
    assert damaged(store, present, verify) == ("model.safetensors",)
    assert damaged(store, present, "quick") == ("model.safetensors",)
    ((_, state),) = inspected = store.inspect_all([present], "quick")
    assert [one.name for one in store.needed(inspected)] == ["model.safetensors"]
    fetch_needed(store, present, state)
    promote(store, present, state)
    assert damaged(store, present, "full") == ()
    assert store.inspect(present).noted


def in_small_pieces(store, monkeypatch, pieces=64):
    """A checkpoint of two files, both cut into pieces of 1 KiB."""
    for module in (checkpoint_note, checkpoint_samples):
        monkeypatch.setattr(module, "PIECE_BYTES", 1 << 10)
    chance = random.Random(7)  # noqa: S311 (bytes to look at)
    data = {"config.json": chance.randbytes(700), "model.safetensors": chance.randbytes((pieces << 10) - 100)}
    wanted = wanted_of(data)
    bring(store, wanted, data)
    assert [len(one["crc32"]) for one in read_note(store.path(wanted)).values()] == [1, pieces]
    return wanted


@pytest.mark.parametrize("seed", range(12))
def test_samples_find_a_flipped_bit_of_any_file_at_any_place_within_as_many_runs_as_it_takes(store, monkeypatch, seed):
    wanted = in_small_pieces(store, monkeypatch)
    chance = random.Random(seed)  # noqa: S311 (places)
    budget = 8 << 10
    # Some runs before the damage: it may come behind the place that is next.
    for _ in range(chance.randrange(9)):
        assert damaged(store, wanted, "sampled", sample_bytes=budget) == ()
    name = ("config.json", "model.safetensors")[seed % 3 > 0]
    size = wanted.files[name].bytes
    flip(store.path(wanted) / name, at=(0, size - 1, chance.randrange(size))[seed % 3])
    runs = math.ceil(65 / 8)
    found = [damaged(store, wanted, "sampled", sample_bytes=budget) for _ in range(runs)]
    assert (name,) in found
    assert damaged(store, wanted, "quick") == (name,)


def test_samples_read_no_more_than_they_may(store, monkeypatch):
    wanted = in_small_pieces(store, monkeypatch)
    read = []
    real = checkpoint_samples._piece_crc
    monkeypatch.setattr(checkpoint_samples, "_piece_crc", lambda path, n: read.append((path.name, n)) or real(path, n))
    cursor = cursor_of(store.root)
    for _ in range(3):
        damage_in_turn([store.path(wanted)], 8 << 10, cursor, advance=True)
    assert read == [("config.json", 0), *(("model.safetensors", n) for n in range(24))]
    read.clear()
    damage_in_turn([store.path(wanted)], 1 << 20, cursor, advance=False)
    assert len(read) == 65, "everything where it is no more than the budget"
    read.clear()
    cursor.write_text("damaged")
    damage_in_turn([store.path(wanted)], 1, cursor, advance=True)
    assert read == [("config.json", 0)], "one that says nothing means the beginning"


def test_the_turn_names_no_checkpoint_that_was_removed(store, present):
    cursor = cursor_of(store.root)
    damage_in_turn([store.path(present)], 1, cursor, advance=True)
    checkpoint_samples.forget(cursor, [store.root / "another"])
    assert present.name in cursor.read_text()
    checkpoint_samples.forget(cursor, [store.path(present)])
    assert not cursor.exists()


def test_a_file_that_was_touched_is_read_again_and_noted(store, present):
    os.utime(store.path(present) / "config.json", ns=(1, 1))
    state = store.inspect(present)
    assert (state.whole, state.noted) == (True, False)
    promote(store, present, state)
    assert store.inspect(present).noted


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_found_and_mended_by_fetching_that_file_alone(store, present, damage):
    twin = wanted_of(name="twin", digest="12" * 32)
    bring(store, twin)
    path = store.path(present) / "model.safetensors"
    opened = path.open("rb")
    if damage == "flip":
        flip(path)
    elif damage == "truncate":
        os.truncate(path, 10)
    else:
        path.unlink()
    ((_, state),) = store.inspect_all([present], "full")
    assert not state.whole
    assert [one.name for one in store.needed([(present, state)])] == (
        [] if damage == "remove" else ["model.safetensors"]
    )
    fetch_needed(store, present, state)
    promote(store, present, state)
    assert store.inspect(present, full=True).whole
    assert store.inspect(twin, full=True).whole, "who shared the damaged file has the new one too"
    assert store.inspect(twin).noted
    assert len(opened.read()) == (10 if damage == "truncate" else len(CONTENTS["model.safetensors"])), (
        "an engine goes on"
    )
    opened.close()


def fetch_needed(store, wanted, state):
    store.prepare_incoming()
    for one in store.needed([(wanted, state)]):
        store.incoming(one.sha256).write_bytes(CONTENTS[one.name])


def test_a_file_that_does_not_belong_there_is_removed(store, present):
    (store.path(present) / "model-00002.safetensors").write_bytes(b"x")
    state = store.inspect(present)
    assert state.unexpected == ("model-00002.safetensors",)
    promote(store, present, state)
    assert store.inspect(present).whole


def test_wrong_bytes_never_get_the_final_name(store):
    wanted = wanted_of()
    wrong = CONTENTS | {"model.safetensors": bytes(len(CONTENTS["model.safetensors"]))}
    with pytest.raises(FleetError, match=r"tiny: model\.safetensors: is not the file that was planned"):
        bring(store, wanted, wrong)
    assert not store.path(wanted).exists()
    assert bring(store, wanted) == ["model.safetensors"], "what was right need not come again"
    assert store.inspect(wanted, full=True).whole


def test_a_fetch_that_was_cut_off_is_seen_as_such(store):
    wanted = wanted_of()
    fetch(store, wanted)
    sha256 = wanted.files["model.safetensors"].sha256
    store.incoming(sha256).write_bytes(b"half")
    with pytest.raises(FleetError, match=r"model\.safetensors: was not fetched, 4 of 16384 bytes are there"):
        promote(store, wanted, store.inspect(wanted))
    (needed,) = (one for one in store.needed([(wanted, store.inspect(wanted))]) if one.sha256 == sha256)
    assert needed.have_bytes == 4
    bring(store, wanted)
    assert store.inspect(wanted, full=True).whole


def test_what_the_fetching_user_puts_there_is_never_followed(store, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENTS["config.json"])
    wanted = wanted_of()
    fetch(store, wanted)
    path = store.incoming(wanted.files["config.json"].sha256)
    path.unlink()
    path.symlink_to(secret)
    with pytest.raises(FleetError, match=r"config\.json: was not fetched"):
        promote(store, wanted, store.inspect(wanted))
    path.unlink()
    os.link(secret, path)
    with pytest.raises(FleetError, match="is no file of its own"):
        promote(store, wanted, store.inspect(wanted))
    assert not store.path(wanted).exists()


def test_what_does_not_fit_on_the_disk_is_refused_with_what_is_missing(store, tmp_path):
    store.check_space([])
    store.check_space(store.needed([(wanted_of(), store.inspect(wanted_of()))]))
    free = shutil.disk_usage(tmp_path).free
    huge = [
        Wanted(name, digest * 32, {"w": WantedFile(free * 2 // 3, digest * 32)})
        for name, digest in (("a", "ab"), ("b", "cd"))
    ]
    needed = [store.needed([(one, store.inspect(one))])[0] for one in huge]
    store.check_space(needed[:1])
    figures = r"to fetch \(a [\d.]+ GiB, b [\d.]+ GiB\) and 1.0 GiB to leave, [\d.]+ GiB free: [\d.]+ GiB are missing"
    with pytest.raises(FleetError, match=figures):
        store.check_space(needed)


def test_what_is_to_be_quantized_counts_too(store, tmp_path):
    free = shutil.disk_usage(tmp_path).free
    one = Wanted("a", DIGEST, {"w": WantedFile(free * 2 // 3, DIGEST)})
    needed = store.needed([(one, store.inspect(one))])
    store.check_space(needed, free // 10)
    with pytest.raises(FleetError, match=r"to fetch \(a [\d.]+ GiB\), [\d.]+ GiB to quantize and 1\.0 GiB to leave"):
        store.check_space(needed, free // 2)


def names(paths):
    return [path.name for path in paths]


class TestPrune:
    @pytest.fixture
    def second(self, store, present):
        contents = CONTENTS | {"config.json": b'{"newer": 1}'}
        wanted = wanted_of(contents, digest="cd" * 32)
        bring(store, wanted, contents)
        return wanted

    def test_unknown_models_are_forgotten_and_known_ones_kept(self, store, present):
        bring(store, wanted_of(name="tiny-2", digest="cd" * 32))
        bring(store, wanted_of(name="tiny-2_draft", digest="ef" * 32))
        bring(store, wanted_of(name="tiny_draft", digest="ef" * 32))
        assert names(checkpoint_prune.forgotten(store, ["tiny", "other"])) == [
            "tiny-2-cdcdcdcdcdcd",
            "tiny-2_draft-efefefefefef",
        ]

    def test_a_superseded_checkpoint_goes_with_what_it_alone_had(self, store, present, second):
        going = checkpoint_prune.unreferenced(store, {second.directory})
        assert names(going) == [present.directory]
        loose = checkpoint_prune.loose_blobs(store, going)
        assert names(loose) == [present.files["config.json"].sha256]
        assert checkpoint_prune.freed_bytes(going, loose) == (going[0] / NOTE).stat().st_size + len(
            CONTENTS["config.json"]
        )
        checkpoint_prune.remove([*going, *loose])
        assert store.inspect(second, full=True).whole
        assert checkpoint_prune.loose_blobs(store) == []

    def test_nothing_stays_when_nothing_is_wanted(self, store, present, second):
        going = checkpoint_prune.unreferenced(store, set())
        checkpoint_prune.remove([*going, *checkpoint_prune.loose_blobs(store, going)])
        assert [path for path in store.root.rglob("*") if path.is_file()] == []

    def test_other_directories_are_left_alone(self, store, present):
        for name in (".quantizing", "lost+found", "notes"):
            (store.root / name).mkdir()
        assert names(checkpoint_prune.unreferenced(store, set())) == [present.directory]

    def test_leftovers_are_what_no_fetch_will_need(self, store, present):
        waiting = wanted_of({"w": b"soon"}, "soon", "ef" * 32)
        fetch(store, waiting, {"w": b"soon"})
        (store.root / ".incoming" / ("12" * 32)).write_bytes(b"never")
        (store.root / ".staging-never-121212121212").mkdir()
        found = checkpoint_prune.leftovers(store, [one.sha256 for one in waiting.files.values()])
        assert names(found) == [".staging-never-121212121212", "12" * 32]


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
