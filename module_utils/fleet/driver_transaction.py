"""Brings a host's driver packages to what is wanted, as one step: done and checked, or the host is as it was."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .driver_apt import Apt, find_archive, run_program
from .driver_kernels import build_failure, read_kernels
from .driver_packages import installed_driver, is_driver, read_packages
from .driver_plan import (
    Change,
    Record,
    apt_arguments,
    choose_version,
    contents,
    guard,
    header_packages,
    is_satisfied,
    kernel_faults,
    parse_record,
    superseded,
    to_hold,
)
from .driver_snapshot import GONE, read_file, roll_back, snapshot_from_json, take_snapshot, write_file
from .driver_staging import Staging
from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .driver_apt import Outcome, Step
    from .driver_packages import Package
    from .driver_plan import Wanted
    from .driver_snapshot import Snapshot


# What was installed for the driver's sake goes with it, also where something recommends it that did without it before.
_NOTHING_BUT_DEPENDS = ("-o=APT::AutoRemove::RecommendsImportant=false", "-o=APT::AutoRemove::SuggestsImportant=false")


@dataclass(frozen=True)
class DriverHost:
    """A host whose driver is changed.

    Args:
        running: release of the running kernel.
        root: of the host.
        state: directory of the transaction's own files: record, kept package files, staging.
        run: starts a program.
    """

    running: str
    root: Path = Path("/")
    state: Path = Path("/var/lib/l40s-fleet/driver")
    run: Callable[[Sequence[str]], Outcome] = run_program

    @property
    def apt(self) -> Apt:
        """The host's apt, with its own configuration."""
        return Apt(self.run)

    @property
    def record_path(self) -> Path:
        """Where the record of the last change is."""
        return self.state / "driver.json"

    @property
    def pending_path(self) -> Path:
        """Where the state before a change is kept while it is made."""
        return self.state / "transaction.json"

    @property
    def archives(self) -> tuple[Path, Path]:
        """Directories that hold package files."""
        return (self.state / "packages", self.root / "var/cache/apt/archives")

    def apply(self, wanted: Wanted, *, check: bool = False) -> Change:
        """Make the host have what is wanted.

        Args:
            wanted: the driver.
            check: find out what would change, and change nothing.

        Raises:
            FleetError: it cannot be had; the host is as it was, or the message says what differs.
        """
        if self.pending_path.exists() and not check:
            before = snapshot_from_json(self.pending_path.read_text(encoding="utf-8"))
            left = self._undo(before)
            if left:
                raise FleetError("driver", f"an unfinished change could not be rolled back: {left}")
        record = parse_record(read_file(self.root, str(self.record_path)))
        packages = read_packages(self.root)
        _refuse_broken(packages)
        files = contents(wanted, record.version)
        files_are_so = all(read_file(self.root, path) == content for path, content in files.items())
        if files_are_so and is_satisfied(wanted, record, packages, read_kernels(self.root, self.running)):
            return Change()
        # Where the state lies in check mode, nothing may appear, not even an empty directory.
        parent = Path(tempfile.mkdtemp(prefix="l40s-driver-")) if check else self.state
        staging = Staging(self.run, self.root, parent / "staging", wanted.files)
        try:
            return _Attempt(self, wanted, record, packages, staging).make(check=check)
        finally:
            staging.remove()
            if check:
                shutil.rmtree(parent, ignore_errors=True)

    def _undo(self, before: Snapshot) -> str:
        left = roll_back(self.apt, self.root, before, self.archives)
        if not left:
            self.pending_path.unlink(missing_ok=True)
        return "; ".join(left[:8])


@dataclass(frozen=True)
class _Attempt:
    """One change of one host."""

    host: DriverHost
    wanted: Wanted
    record: Record
    packages: Mapping[str, Package]
    staging: Staging

    def make(self, *, check: bool) -> Change:
        """Find out what is to change and, but for a check, change it."""
        host, wanted = self.host, self.wanted
        self.staging.update_own()
        if not self.staging.has_lists:
            self.staging.update_all()
        try:
            version, arguments, steps = self._prepare(download=not check)
        except FleetError:
            # Old lists name packages that are gone from the mirror.
            self.staging.update_all()
            version, arguments, steps = self._prepare(download=not check)
        files = contents(wanted, version)
        before = take_snapshot(host.apt, host.root, [*files, str(host.record_path)])
        touched = {step.name for step in steps}
        change = Change(
            before=tuple(f"{step.name} {step.old}" for step in steps if step.old is not None),
            after=tuple(f"{step.name} {step.new}" for step in steps if step.new is not None),
            files={path: (before.files[path], content) for path, content in files.items()},
            holds=tuple(
                name
                for name in (to_hold(self.packages) if wanted.packages else ())
                if name not in touched and self.packages[name].want != "hold"
            ),
        )
        if check:
            return change
        host.state.mkdir(parents=True, exist_ok=True)
        host.pending_path.write_text(before.to_json(), encoding="utf-8")
        try:
            self._commit(version, arguments, steps, files)
        except (FleetError, OSError) as error:
            # What the build said goes with the packages.
            build = build_failure(host.root)
            said = f"{error}; {build}" if build else str(error)
            left = host._undo(before)
            problem = f"rolled back, but {left}" if left else "rolled back, the host is as it was"
            raise FleetError("driver", f"{said}; {problem}") from error
        self._keep_archives()
        self.staging.publish_lists()
        host.pending_path.unlink()
        return change

    def _prepare(self, *, download: bool) -> tuple[str, list[str], list[Step]]:
        """Return the version, what apt-get is to be told and what it will do: checked, downloaded, with a way back."""
        version = ""
        if self.wanted.versioned:
            version = choose_version(self.staging.apt.offered(self.wanted.versioned), self.packages, self.wanted)
            self.staging.settle(version)
        headers = []
        if self.wanted.packages and self.wanted.headers:
            kernels = read_kernels(self.host.root, self.host.running)
            headers = [name for name in header_packages(kernels, self.packages) if self._is_offered(name)]
        # What was asked for by name before may be a dependency now: then it stays.
        old = superseded(self.wanted, self.record, self.packages)
        without = apt_arguments(self.wanted, self.record, self.packages, headers, version, needed=old)
        needed = [step.name for step in self.staging.trial.simulate(*without) if step.new] if old and without else []
        arguments = apt_arguments(self.wanted, self.record, self.packages, headers, version, needed=needed)
        if not arguments:
            return version, [], []
        steps = self.staging.trial.simulate(*arguments)
        guard(steps, self.packages, self.record, self.wanted, version)
        if download:
            for step in steps:
                if step.old is not None:
                    self._secure_way_back(step.name, step.old)
            self.staging.trial.get("--download-only", *arguments)
        return version, arguments, steps

    def _is_offered(self, name: str) -> bool:
        command = ["apt-cache", *self.staging.apt.options, "show", "--no-all-versions", name]
        return self.host.run(command).status == 0

    def _secure_way_back(self, name: str, version: str) -> None:
        if find_archive(self.host.archives, name, version) is not None:
            return
        kept = self.host.archives[0]
        kept.mkdir(parents=True, exist_ok=True)
        self.host.run(["sh", "-c", 'cd "$0" && exec apt-get download "$1"', str(kept), f"{name}={version}"])
        if find_archive(self.host.archives, name, version) is None:
            raise FleetError(
                name,
                f"the installed version {version} is in no archive any more, so that a failed change could not be "
                f"rolled back: put its .deb into {kept}, or remove the package first",
            )

    def _commit(
        self, version: str, arguments: Sequence[str], steps: Sequence[Step], files: Mapping[str, bytes | None]
    ) -> None:
        host, wanted = self.host, self.wanted
        held_now = [name for name, one in self.packages.items() if one.want == "hold" and self._is_ours(name)]
        host.apt.mark("unhold", held_now)
        if arguments:
            self.staging.apt.get(*arguments)
        installed = {*self.record.installed, *(step.name for step in steps if step.old is None)}
        left_over = [
            step.name
            for step in host.apt.simulate("autoremove", *_NOTHING_BUT_DEPENDS)
            if step.new is None and (step.name in installed or is_driver(step.name))
        ]
        if left_over:
            host.apt.get("purge", "--allow-change-held-packages", *left_over)
        for path, content in files.items():
            write_file(host.root, path, content)
        packages = read_packages(host.root)
        _refuse_broken(packages)
        held = to_hold(packages) if wanted.packages else {}
        self._check_result(packages, version)
        host.apt.mark("hold", sorted(held))
        asked = dict.fromkeys([*wanted.packages, *(self.record.asked if wanted.beside else ())])
        record = Record(
            digest=wanted.digest,
            version=version,
            asked=tuple(asked),
            packages=held,
            installed=tuple(sorted(name for name in installed if _is_installed(packages, name))),
        )
        write_file(host.root, str(host.record_path), record.to_bytes() if wanted.packages else None)

    def _check_result(self, packages: Mapping[str, Package], version: str) -> None:
        if not self.wanted.packages:
            return
        driver = installed_driver(packages)
        if version and driver != version:
            raise FleetError("packages", f"{version} was chosen, installed is {driver}")
        faults = kernel_faults(read_kernels(self.host.root, self.host.running)) if self.wanted.modules else []
        if faults:
            raise FleetError("kernel modules", "; ".join(faults))

    def _is_ours(self, name: str) -> bool:
        return name in self.record.packages or is_driver(name)

    def _keep_archives(self) -> None:
        """Keep the package files of the installed driver: the next change may have to go back to them."""
        kept = self.host.archives[0]
        if not self.wanted.packages:
            shutil.rmtree(kept, ignore_errors=True)
            return
        kept.mkdir(parents=True, exist_ok=True)
        held = to_hold(read_packages(self.host.root))
        found = [find_archive(self.host.archives, name, version) for name, version in held.items()]
        names = {path.name for path in found if path is not None}
        for path in found:
            if path is not None and path.parent != kept:
                target = kept / path.name
                try:
                    os.link(path, target)
                except OSError:
                    shutil.copyfile(path, target)
        for path in kept.iterdir():
            if path.name not in names:
                path.unlink()


def _refuse_broken(packages: Mapping[str, Package]) -> None:
    broken = sorted(name for name, one in packages.items() if one.state not in (*GONE, "installed"))
    if broken:
        raise FleetError("dpkg", f"not fully installed: {', '.join(broken[:5])}; run `dpkg --configure -a` first")


def _is_installed(packages: Mapping[str, Package], name: str) -> bool:
    return name in packages and packages[name].state == "installed"
