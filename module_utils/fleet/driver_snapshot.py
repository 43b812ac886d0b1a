"""What a host had before its driver was changed, and the way back to exactly that."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .driver_apt import find_archive, wait_for_dpkg
from .driver_packages import Package, read_packages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from .driver_apt import Apt

# States of a package of which nothing but configuration is left, or not even that.
GONE = ("not-installed", "config-files")


@dataclass(frozen=True)
class Snapshot:
    """A host's packages and the files that a transaction may change.

    Args:
        packages: all that dpkg knows, by name.
        manual: names of packages that are marked as installed by hand.
        files: contents by path; None where there is no file.
    """

    packages: Mapping[str, Package]
    manual: frozenset[str]
    files: Mapping[str, bytes | None]

    def to_json(self) -> str:
        """Return the snapshot as text, so that a killed transaction can be rolled back by the next run."""
        return json.dumps(
            {
                "packages": {name: [one.version, one.want, one.state] for name, one in self.packages.items()},
                "manual": sorted(self.manual),
                "files": {
                    path: None if content is None else base64.b64encode(content).decode()
                    for path, content in self.files.items()
                },
            }
        )


def snapshot_from_json(text: str) -> Snapshot:
    """Parse what ``Snapshot.to_json`` wrote."""
    document: dict[str, Any] = json.loads(text)
    return Snapshot(
        packages={name: Package(name, *values) for name, values in document["packages"].items()},
        manual=frozenset(document["manual"]),
        files={
            path: None if content is None else base64.b64decode(content) for path, content in document["files"].items()
        },
    )


def take_snapshot(apt: Apt, root: Path, files: Sequence[str]) -> Snapshot:
    """Read packages, marks and files as they are now."""
    return Snapshot(read_packages(root), apt.manual(), {path: read_file(root, path) for path in files})


def roll_back(apt: Apt, root: Path, before: Snapshot, archives: Sequence[Path]) -> list[str]:
    """Bring packages, holds, marks and files back to what they were.

    Args:
        apt: the host's apt.
        root: of the host.
        before: what is to be brought back.
        archives: directories that hold the package files of the versions that were installed.

    Returns:
        What still differs; empty when the host is as it was.

    Raises:
        FleetError: another program does not stop changing packages.
    """
    # The apt of a run that was killed may go on.
    wait_for_dpkg(root)
    now = read_packages(root)
    added = [name for name, one in now.items() if one.state not in GONE and _state(before.packages, name) in GONE]
    # Only their configuration was there before: removing them leaves it, purging them would not.
    remembered = [name for name in added if _state(before.packages, name) == "config-files"]
    # One by one where all at once fails: a script that fails must not keep the others installed.
    for verb, names in (("--purge", [name for name in added if name not in remembered]), ("--remove", remembered)):
        removal = ["dpkg", "--force-depends", "--force-remove-reinstreq", verb]
        if names and apt.run([*removal, *names]).status != 0:
            for name in names:
                apt.run([*removal, name])
    lost = [
        one
        for name, one in before.packages.items()
        if one.state == "installed" and _differs(one, read_one(now, name)) and name not in added
    ]
    files = [find_archive(archives, one.name, one.version) for one in lost]
    known = [str(path) for path in files if path is not None]
    if known:
        apt.run(["dpkg", "--force-depends", "--force-downgrade", "--force-confold", "--install", *known])
    apt.run(["dpkg", "--configure", "--pending"])
    _restore_marks(apt, root, before)
    for path, content in before.files.items():
        write_file(root, path, content)
    return differences(before, take_snapshot(apt, root, list(before.files)))


def differences(before: Snapshot, now: Snapshot) -> list[str]:
    """Return in words what is not as it was."""
    lines = []
    for name in sorted({*before.packages, *now.packages}):
        old, new = read_one(before.packages, name), read_one(now.packages, name)
        if old.state in GONE and new.state in GONE:
            continue
        if _differs(old, new) or old.want != new.want:
            lines.append(f"{name} is {_words(new)}, was {_words(old)}")
    marks = before.manual ^ now.manual
    lines += [f"the mark of {name} (manual or automatic) has changed" for name in sorted(marks & {*now.packages})]
    lines += [f"{path} has changed" for path, content in before.files.items() if now.files.get(path) != content]
    return lines


def read_one(packages: Mapping[str, Package], name: str) -> Package:
    """Return a package, as not installed where dpkg does not know it."""
    return packages.get(name) or Package(name, "", "unknown", "not-installed")


def read_file(root: Path, path: str) -> bytes | None:
    """Return a file's contents; None where there is none."""
    try:
        return (root / path.lstrip("/")).read_bytes()
    except FileNotFoundError:
        return None


def write_file(root: Path, path: str, content: bytes | None) -> bool:
    """Write a file whole and readable for all, or remove it; return whether that changed anything."""
    target = root / path.lstrip("/")
    if read_file(root, path) == content:
        return False
    if content is None:
        target.unlink()
        return True
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.new")
    beside.write_bytes(content)
    beside.chmod(0o644)
    os.replace(beside, target)
    return True


def _restore_marks(apt: Apt, root: Path, before: Snapshot) -> None:
    now = read_packages(root)
    installed = {name for name, one in now.items() if one.state == "installed"}
    manual = apt.manual()
    for verb, names in (
        ("auto", (manual - before.manual) & installed),
        ("manual", (before.manual - manual) & installed),
        ("hold", {name for name in installed if _want(before, name) == "hold" != now[name].want}),
        ("unhold", {name for name in installed if now[name].want == "hold" != _want(before, name)}),
    ):
        if names:
            apt.run(["apt-mark", verb, *sorted(names)])


def _state(packages: Mapping[str, Package], name: str) -> str:
    return read_one(packages, name).state


def _want(before: Snapshot, name: str) -> str:
    return read_one(before.packages, name).want


def _differs(old: Package, new: Package) -> bool:
    return (old.version, old.state) != (new.version, new.state)


def _words(package: Package) -> str:
    held = ", held" if package.want == "hold" else ""
    return f"{package.version} ({package.state}{held})" if package.state not in GONE else "not installed"
