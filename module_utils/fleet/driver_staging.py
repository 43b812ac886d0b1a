"""apt's configuration as it will be, beside the one that counts: what would fail, fails there, before any change."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from .driver_apt import Apt, Outcome, error_line, staged_options
from .driver_packages import STATUS_FILE, without_holds
from .driver_plan import VERSION_MARK
from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_APT = "/etc/apt/"
_SOURCES = _APT + "sources.list.d/"
_PREFERENCES = _APT + "preferences.d/"


class Staging:
    """A copy of apt's sources, preferences and lists with the wanted files in it.

    ``apt`` works on the host with that configuration. ``trial`` moreover sees no holds on driver packages: apt changes
    a held package only where it is asked for by name, not as a dependency.

    Args:
        run: starts a program.
        root: of the host.
        directory: where the copy is made; what was there before is removed.
        files: the wanted files by path, None for one that is to go. Those below /etc/apt are staged.
    """

    def __init__(
        self, run: Callable[[Sequence[str]], Outcome], root: Path, directory: Path, files: Mapping[str, str | None]
    ) -> None:
        self._directory = directory
        self._lists = root / "var/lib/apt/lists"
        self._own = directory / "own.sources.d"
        shutil.rmtree(directory, ignore_errors=True)
        for part in ("sources.list.d", "preferences.d"):
            (directory / part).mkdir(parents=True)
            if (root / f"etc/apt/{part}").is_dir():
                shutil.copytree(root / f"etc/apt/{part}", directory / part, dirs_exist_ok=True)
        self._own.mkdir()
        self._stage(files)
        _link_tree(self._lists, directory / "lists")
        (directory / "lists/partial").mkdir(exist_ok=True)
        for path in (directory.parent, directory, directory / "lists"):
            path.chmod(0o755)  # apt's unprivileged user reads there
        staged = {
            "Dir::Etc::sourceparts": directory / "sources.list.d",
            "Dir::Etc::preferencesparts": directory / "preferences.d",
            "Dir::State::lists": directory / "lists",
            "Dir::Cache::pkgcache": directory / "pkgcache.bin",
            "Dir::Cache::srcpkgcache": directory / "srcpkgcache.bin",
        }
        self.apt = Apt(run, staged_options(staged))
        status = directory / "status"
        status.write_text(without_holds((root / STATUS_FILE).read_text(encoding="utf-8", errors="replace")))
        caches = {"Dir::Cache::pkgcache": directory / "trial.bin", "Dir::State::status": status}
        self.trial = Apt(run, staged_options({**staged, **caches}))

    def _stage(self, files: Mapping[str, str | None]) -> None:
        keys = {path: self._directory / path.rpartition("/")[2] for path in files if path.startswith(_APT + "keyrings")}
        for path, text in files.items():
            name = path.rpartition("/")[2]
            if path in keys and text is not None:
                keys[path].write_text(text, encoding="utf-8")
            elif path.startswith((_SOURCES, _PREFERENCES)):
                part = "sources.list.d" if path.startswith(_SOURCES) else "preferences.d"
                staged = self._directory / part / name
                staged.unlink(missing_ok=True)
                if text is None:
                    continue
                shown = text
                for final, key in keys.items():
                    shown = shown.replace(final, str(key))
                staged.write_text(shown, encoding="utf-8")
                if part == "sources.list.d":
                    (self._own / name).write_text(shown, encoding="utf-8")

    def update_own(self) -> None:
        """Fetch the lists of the wanted sources.

        Raises:
            FleetError: one of them cannot be reached, or its signature is not good.
        """
        if not any(self._own.iterdir()):
            return
        self.apt.get(
            "update",
            "-o=Dir::Etc::sourcelist=/dev/null",
            f"-o=Dir::Etc::sourceparts={self._own}",
            "-o=APT::Get::List-Cleanup=false",
            "-o=APT::Update::Error-Mode=any",
        )

    def update_all(self) -> None:
        """Fetch the lists of all sources. One of the host's own that does not answer is no failure."""
        done = self.apt.run(["apt-get", *self.apt.options, "update"])
        if done.status != 0 and not self.has_lists:
            raise FleetError("apt-get update", error_line(done.output))

    def settle(self, version: str) -> None:
        """Put the version that was chosen into the preferences."""
        for path in (self._directory / "preferences.d").iterdir():
            text = path.read_text(encoding="utf-8", errors="replace")
            if VERSION_MARK in text:
                path.write_text(text.replace(VERSION_MARK, version), encoding="utf-8")

    @property
    def has_lists(self) -> bool:
        """Whether the host has fetched any package lists at all."""
        return any(self._lists.glob("*_Packages*"))

    def publish_lists(self) -> None:
        """Give the host the lists that were fetched, as ``apt-get update`` would have left them."""
        for path in (self._directory / "lists").iterdir():
            target = self._lists / path.name
            if path.is_file() and not (target.exists() and target.samefile(path)):
                beside = target.with_name(f".{path.name}.new")
                shutil.copy2(path, beside)
                os.replace(beside, target)

    def remove(self) -> None:
        """Remove the copy."""
        shutil.rmtree(self._directory, ignore_errors=True)


def _link_tree(source: Path, target: Path) -> None:
    """Give every file a second name: apt replaces lists and never writes into one."""
    target.mkdir()
    for path in source.iterdir() if source.is_dir() else ():
        if path.is_file() and path.name != "lock":
            try:
                os.link(path, target / path.name)
            except OSError:
                shutil.copy2(path, target / path.name)
