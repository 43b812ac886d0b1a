"""What a host's driver is to be, what a change must not do, and what is remembered of it. No I/O."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from .driver_packages import is_driver, upstream_of, version_key
from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from .driver_apt import Step
    from .driver_kernels import Kernels
    from .driver_packages import Package


# Stands in the text of wanted files for the version that was chosen.
VERSION_MARK = "@driver_version@"


@dataclass(frozen=True)
class Wanted:
    """What a host is to have.

    Args:
        packages: names; empty for no driver at all.
        version: the driver version or its beginning, as in ``580`` or ``580.95.05``; empty for any.
        versioned: names of the packages that have to be of one and the same version.
        files: contents by path, None for a file that is to go; sources, keys and preferences of apt among them.
            ``VERSION_MARK`` in them stands for the version.
        headers: also install the headers of the running kernel and of the one that boots next.
        upgrade: take the newest of the version; otherwise what is installed and satisfies it stays.
        modules: the nvidia module has to be there for the kernels on disk.
        beside: what was asked for before stays, and this comes beside it.
    """

    packages: tuple[str, ...]
    version: str = ""
    versioned: tuple[str, ...] = ()
    files: Mapping[str, str | None] = field(default_factory=dict)
    headers: bool = True
    upgrade: bool = False
    modules: bool = True
    beside: bool = False

    @property
    def digest(self) -> str:
        """Changes with anything that is wanted."""
        parts = [self.packages, self.version, self.versioned, sorted(self.files.items()), self.headers, self.modules]
        return hashlib.sha256(json.dumps([*parts, self.beside]).encode()).hexdigest()


@dataclass(frozen=True)
class Record:
    """What is remembered of the last change.

    Args:
        digest: of what was wanted.
        version: of the driver; empty when none was chosen.
        asked: the packages that were asked for by name.
        packages: version of every driver package, all of them held.
        installed: what was installed for the driver's sake, and goes with it.
    """

    digest: str = ""
    version: str = ""
    asked: tuple[str, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)
    installed: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """Return the file's contents."""
        return (json.dumps(asdict(self), indent=2, sort_keys=True) + "\n").encode()


@dataclass(frozen=True)
class Change:
    """What was, or in check mode would be, changed.

    Args:
        before: ``name version`` of what is replaced or removed.
        after: ``name version`` of what comes.
        files: contents before and after, by path.
        holds: packages that stay and get a hold.
    """

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    files: Mapping[str, tuple[bytes | None, bytes | None]] = field(default_factory=dict)
    holds: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether it is any change at all."""
        return bool(self.before or self.after or self.holds or any(old != new for old, new in self.files.values()))


def parse_record(content: bytes | None) -> Record:
    """Parse a record; a missing or damaged one is an empty one, and everything is looked at anew."""
    try:
        document = json.loads(content or b"{}")
        return Record(
            digest=str(document.get("digest", "")),
            version=str(document.get("version", "")),
            asked=tuple(document.get("asked", ())),
            packages=dict(document.get("packages", {})),
            installed=tuple(document.get("installed", ())),
        )
    except (ValueError, AttributeError, TypeError):
        return Record()


def contents(wanted: Wanted, version: str) -> dict[str, bytes | None]:
    """Return the wanted files with a version in them."""
    return {
        path: None if text is None else text.replace(VERSION_MARK, version).encode()
        for path, text in wanted.files.items()
    }


def choose_version(offered: Mapping[str, Sequence[str]], packages: Mapping[str, Package], wanted: Wanted) -> str:
    """Return the driver version, without Debian's revision, that all packages of one version can have.

    Distributions bring user space and kernel modules forward at different times, and the two have to be the same.

    Args:
        offered: versions by package, as the sources have them.
        packages: all that dpkg knows; a version that is installed and wanted stays, unless an upgrade is asked for.
        wanted: the driver.

    Returns:
        Empty when no package has to be of a version.

    Raises:
        FleetError: there is none.
    """
    if not wanted.versioned:
        return ""
    now = {packages[name].upstream for name in wanted.versioned if name in packages and _is_there(packages[name])}
    if len(now) == 1 and not wanted.upgrade and has_version(min(now), wanted.version):
        return min(now)
    known = {name: {upstream_of(one) for one in offered.get(name, ())} for name in wanted.versioned}
    missing = [name for name, versions in known.items() if not versions]
    if missing:
        raise FleetError("package sources", f"none has {', '.join(missing)}; nothing was changed")
    common = [version for version in set.intersection(*known.values()) if has_version(version, wanted.version)]
    if not common:
        have = "; ".join(f"{name} {', '.join(sorted(versions))}" for name, versions in known.items())
        raise FleetError(
            "package sources", f"no version {wanted.version} that all packages have ({have}); nothing was changed"
        )
    return max(common, key=version_key)


def is_satisfied(wanted: Wanted, record: Record, packages: Mapping[str, Package], kernels: Kernels) -> bool:
    """Whether the packages are as they are wanted, so that no package source has to be asked."""
    if not wanted.packages:
        return not any(is_driver(name) and one.state == "installed" for name, one in packages.items())
    return (
        record.digest == wanted.digest
        and not wanted.upgrade
        and bool(record.packages)
        and all(
            name in packages and (packages[name].version, packages[name].want) == (version, "hold")
            for name, version in record.packages.items()
        )
        and not (wanted.modules and kernel_faults(kernels))
    )


def apt_arguments(
    wanted: Wanted,
    record: Record,
    packages: Mapping[str, Package],
    headers: Sequence[str],
    version: str,
    *,
    needed: Collection[str] = (),
) -> list[str]:
    """Return what apt-get is to be told; empty when there is nothing to install or to remove.

    Args:
        wanted: the driver.
        record: of the last change.
        packages: all that dpkg knows.
        headers: packages of kernel headers that are missing and can be had.
        version: that was chosen.
        needed: packages that the wanted ones depend on, though they were asked for by name before.
    """
    installed = {name for name, one in packages.items() if one.state == "installed"}
    if not wanted.packages:
        return _purge(sorted(name for name in installed if is_driver(name) or name in record.asked))
    names = [name for name in wanted.packages if not _has(wanted, packages, name, version)]
    words = [*names, *headers, *(f"{name}-" for name in superseded(wanted, record, packages) if name not in needed)]
    return ["install", "--purge", "--allow-downgrades", "--allow-change-held-packages", *words] if words else []


def superseded(wanted: Wanted, record: Record, packages: Mapping[str, Package]) -> list[str]:
    """Return what was asked for before, is not any more, and makes way for what takes its place."""
    if wanted.beside:
        return []
    return [
        name
        for name in record.asked
        if name not in wanted.packages and name in packages and _is_there(packages[name]) and is_driver(name)
    ]


def guard(steps: Sequence[Step], packages: Mapping[str, Package], record: Record, wanted: Wanted, version: str) -> None:
    """Refuse a change that would do what nobody asked for.

    Raises:
        FleetError: it would remove something that is no part of a driver, touch a package that somebody else holds, or
            bring another driver version than was asked for.
    """
    own = {*record.asked, *record.packages, *record.installed}
    for step in steps:
        ours = is_driver(step.name) or step.name in own
        one = packages.get(step.name)
        if step.new is None and not ours:
            raise FleetError(step.name, "apt would remove it to make way for the driver; nothing was changed")
        if one is not None and one.want == "hold" and not ours:
            raise FleetError(step.name, "is held, and the driver would need another version; nothing was changed")
        if step.new is not None and step.name in wanted.versioned and upstream_of(step.new) != version:
            raise FleetError(step.name, f"{version} was chosen, apt would take {step.new}; nothing was changed")


def header_packages(kernels: Kernels, packages: Mapping[str, Package]) -> list[str]:
    """Return the packages with which modules are built for the running kernel, the next one, and those to come.

    The metapackage beside an installed kernel metapackage brings the headers with every kernel upgrade. What is
    installed already is left out.
    """
    releases = [release for release in (kernels.running, kernels.following) if release is not None]
    names = [f"linux-headers-{release}" for release in releases if not kernels.facts[release].headers]
    for name, one in sorted(packages.items()):
        flavour = name.removeprefix("linux-image-")
        if one.state == "installed" and name != flavour and flavour[:1].isalpha() and "unsigned" not in flavour:
            names.append(f"linux-headers-{flavour}")
    return [name for name in dict.fromkeys(names) if name not in packages or packages[name].state != "installed"]


def kernel_faults(kernels: Kernels) -> list[str]:
    """Return what keeps the driver from being loaded now or after the next boot; empty also where no kernel is on disk.

    A running kernel without headers is no fault when another one boots next.
    """
    if kernels.following is None:
        return []
    faults = []
    for release in dict.fromkeys((kernels.running, kernels.following)):
        facts = kernels.facts[release]
        if facts.nvidia_module is not None or facts.dkms_installed:
            continue
        if release == kernels.running != kernels.following and not facts.headers:
            continue
        reason = "its headers are not installed" if not facts.headers else "; ".join(facts.dkms) or "no DKMS sources"
        faults.append(f"kernel {release} has no nvidia module ({reason})")
    return faults


def to_hold(packages: Mapping[str, Package]) -> dict[str, str]:
    """Return the version of every installed package of a driver."""
    return {name: one.version for name, one in packages.items() if one.state == "installed" and is_driver(name)}


def has_version(version: str, wanted: str) -> bool:
    """Whether a version is the wanted one or begins with it at a dot: 580 takes 580.95.05 and not 5801.1."""
    return not wanted or version == wanted or version.startswith(f"{wanted}.")


def _purge(names: Sequence[str]) -> list[str]:
    return ["purge", "--allow-change-held-packages", *names] if names else []


def _has(wanted: Wanted, packages: Mapping[str, Package], name: str, version: str) -> bool:
    one = packages.get(name)
    if one is None or not _is_there(one):
        return False
    return one.upstream == version if name in wanted.versioned else not (wanted.upgrade and is_driver(name))


def _is_there(package: Package) -> bool:
    return package.state == "installed"
