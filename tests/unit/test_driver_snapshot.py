"""What a host had before a change, and whether it is that again."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from fleet.driver_apt import Outcome, run_program, wait_for_dpkg
from fleet.driver_packages import Package, parse_status, without_holds
from fleet.driver_snapshot import Snapshot, differences, read_file, snapshot_from_json, write_file
from fleet.driver_staging import Staging
from fleet.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LIBCUDA = Package("libcuda1", "535.1-1", "hold", "installed")
GONE = Package("old", "1-1", "deinstall", "config-files")
BEFORE = Snapshot({"libcuda1": LIBCUDA, "old": GONE}, frozenset({"libcuda1"}), {"/etc/a": b"x\xff", "/etc/b": None})


def now(**changed: Package | None) -> Snapshot:
    packages = {**BEFORE.packages, **changed}
    return Snapshot({name: one for name, one in packages.items() if one}, BEFORE.manual, BEFORE.files)


class TestDifferences:
    def test_none(self) -> None:
        assert differences(BEFORE, BEFORE) == []

    @pytest.mark.parametrize(
        ("after", "line"),
        [
            (now(libcuda1=None), "libcuda1 is not installed, was 535.1-1 (installed, held)"),
            (
                now(libcuda1=Package("libcuda1", "580.1-1", "hold", "installed")),
                "libcuda1 is 580.1-1 (installed, held)",
            ),
            (
                now(libcuda1=Package("libcuda1", "535.1-1", "install", "installed")),
                "libcuda1 is 535.1-1 (installed), was",
            ),
            (now(new=Package("new", "1-1", "install", "half-configured")), "new is 1-1 (half-configured), was not"),
            (Snapshot(BEFORE.packages, frozenset(), BEFORE.files), "the mark of libcuda1"),
            (Snapshot(BEFORE.packages, BEFORE.manual, {"/etc/a": b"y", "/etc/b": None}), "/etc/a has changed"),
        ],
    )
    def test_each_is_a_line(self, after: Snapshot, line: str) -> None:
        (found,) = differences(BEFORE, after)
        assert found.startswith(line)

    def test_what_only_its_configuration_was_left_of_may_be_gone(self) -> None:
        assert differences(BEFORE, now(old=None)) == []

    def test_kept_as_text(self) -> None:
        assert snapshot_from_json(BEFORE.to_json()) == BEFORE


def test_files_are_written_whole_and_removed(tmp_path: Path) -> None:
    assert write_file(tmp_path, "/etc/x/a", b"1")
    assert not write_file(tmp_path, "/etc/x/a", b"1")
    assert [path.name for path in (tmp_path / "etc/x").iterdir()] == ["a"]
    assert write_file(tmp_path, "/etc/x/a", None)
    assert not write_file(tmp_path, "/etc/x/a", None)
    assert read_file(tmp_path, "/etc/x/a") is None


def test_a_way_back_waits_for_another_apt_and_not_for_ever(tmp_path: Path) -> None:
    lock = tmp_path / "var/lib/dpkg/lock"
    lock.parent.mkdir(parents=True)
    wait_for_dpkg(tmp_path, timeout_s=0)
    held = "import fcntl,sys,time; f=open(sys.argv[1],'w'); fcntl.lockf(f,2); print('held',flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", held, lock], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            with pytest.raises(FleetError, match="another program has been changing packages"):
                wait_for_dpkg(tmp_path, timeout_s=0.3)
        finally:
            other.kill()


def test_a_program_that_is_not_there_is_one_line() -> None:
    with pytest.raises(FleetError, match="no-such-program: cannot be started"):
        run_program(["no-such-program"])


def test_planning_sees_no_holds_of_the_driver_and_all_others() -> None:
    text = "\n\n".join(f"Package: {name}\nStatus: hold ok installed\nVersion: 1" for name in ("libcuda1", "bash"))
    found = parse_status(without_holds(text))
    assert (found["libcuda1"].want, found["bash"].want) == ("install", "hold")


class TestStaging:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        for path, text in {
            "etc/apt/sources.list.d/debian.sources": "Types: deb\n",
            "etc/apt/sources.list.d/mine.sources": "old\n",
            "var/lib/apt/lists/m_Packages": "lists\n",
            "var/lib/dpkg/status": "",
        }.items():
            write_file(tmp_path, path, text.encode())
        return tmp_path

    def stage(self, root: Path, run: Sequence[Outcome] = ()) -> Staging:
        files = {
            "/etc/apt/sources.list.d/mine.sources": "Signed-By: /etc/apt/keyrings/mine.asc\n",
            "/etc/apt/keyrings/mine.asc": "KEY",
            "/etc/apt/preferences.d/mine": "Pin: version @driver_version@-*\n",
            "/etc/modprobe.d/other.conf": "not apt's",
        }
        answers = iter(run)
        return Staging(lambda _: next(answers), root, root / "state/staging", files)

    def test_the_hosts_own_files_stay_as_they_are(self, root: Path) -> None:
        staging = self.stage(root)
        staged = root / "state/staging"
        source = (staged / "sources.list.d/mine.sources").read_text()
        assert source == f"Signed-By: {staged}/mine.asc\n"
        assert (staged / "sources.list.d/debian.sources").exists()
        staging.settle("580.95.05")
        assert (staged / "preferences.d/mine").read_text() == "Pin: version 580.95.05-*\n"
        assert (root / "etc/apt/sources.list.d/mine.sources").read_text() == "old\n"
        staging.remove()
        assert not staged.exists()

    def test_lists_are_given_to_the_host_at_the_end(self, root: Path) -> None:
        staging = self.stage(root)
        (root / "state/staging/lists/own_Packages").write_text("new\n")
        staging.publish_lists()
        assert {path.name for path in (root / "var/lib/apt/lists").iterdir()} == {"m_Packages", "own_Packages"}

    def test_a_source_that_does_not_answer_is_a_failure(self, root: Path) -> None:
        staging = self.stage(root, [Outcome(100, "E: The repository 'http://m  Release' is not signed.\n")])
        with pytest.raises(FleetError, match="is not signed"):
            staging.update_own()

    def test_another_source_that_does_not_answer_is_none(self, root: Path) -> None:
        self.stage(root, [Outcome(100, "E: Failed to fetch http://elsewhere\n")]).update_all()
