"""The kernels of a host, and whether each has what the NVIDIA driver needs: headers and a built module."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

# A saved or chosen entry of GRUB names the kernel somewhere, as in ``gnulinux-6.1.0-50-amd64-advanced-UUID``.
_GRUB_ENTRY = re.compile(r"^(next_entry|saved_entry)=(.+)$", re.MULTILINE)
_NVIDIA_MODULE = re.compile(r"^(\S*/nvidia(?:-current)?(?:-\w+)*\.ko(?:\.\w+)?):", re.MULTILINE)
# What make and the compiler say when they give up; the first such line is the cause, the rest follows from it.
_BUILD_ERROR = re.compile(
    r"^.*(?:\berror:|\bfatal:|Killed|No space left|cannot allocate|\*\*\* ).*$", re.MULTILINE | re.I
)
_SHOWN_CHARACTERS = 240
_PARTS = re.compile(r"(?:modeset|drm|uvm|peermem|fs)\.ko")


@dataclass(frozen=True)
class KernelFacts:
    """What one kernel on disk has.

    Args:
        release: as ``uname -r`` prints it.
        headers: modules can be built for it.
        nvidia_module: path of the nvidia module below /lib/modules/RELEASE; None without one.
        dkms: what DKMS says of its NVIDIA sources for this kernel, ``name/version: added|built|installed``.
    """

    release: str
    headers: bool
    nvidia_module: str | None
    dkms: tuple[str, ...]

    @property
    def dkms_installed(self) -> bool:
        """Whether DKMS has NVIDIA sources and all of them are installed for this kernel."""
        return bool(self.dkms) and all(line.endswith(": installed") for line in self.dkms)


@dataclass(frozen=True)
class Kernels:
    """The kernels of a host.

    Args:
        running: release of the running kernel.
        following: release of the kernel that boots next; None where none is on disk, as in a container.
        facts: by release, of every kernel on disk, and of the running one in any case.
    """

    running: str
    following: str | None
    facts: dict[str, KernelFacts]


def read_kernels(root: Path, running: str) -> Kernels:
    """Read the kernels on disk.

    Args:
        root: holds boot, lib/modules and var/lib/dkms.
        running: release of the running kernel.
    """
    boot = root / "boot"
    on_disk = sorted(
        (path.name.removeprefix("vmlinuz-") for path in _list(boot) if path.name.startswith("vmlinuz-")),
        key=_release_key,
    )
    on_disk = [release for release in on_disk if "rescue" not in release]
    return Kernels(
        running=running,
        following=_following(boot, on_disk),
        facts={release: _facts(root, release) for release in {*on_disk, running}},
    )


def build_failure(root: Path) -> str | None:
    """Return what the log of a failed DKMS build of the driver says first; None where there is no such log.

    The tree of a build is there only after a failure, and goes when the packages do.

    Args:
        root: holds var/lib/dkms.
    """
    for log in sorted((root / "var/lib/dkms").glob("nvidia*/*/build/make.log")):
        try:
            text = log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        said = _BUILD_ERROR.search(text)
        last = text.strip().rpartition("\n")[2]
        return f"{log.parts[-4]}/{log.parts[-3]} did not build: {(said.group() if said else last)[:_SHOWN_CHARACTERS]}"
    return None


def _facts(root: Path, release: str) -> KernelFacts:
    modules = root / "lib/modules" / release
    # The file that modules are built with; `build` alone can be a dangling link.
    headers = (modules / "build/Makefile").exists() or (root / f"usr/src/linux-headers-{release}/Makefile").exists()
    return KernelFacts(release, headers, _nvidia_module(modules), _dkms(root / "var/lib/dkms", release))


def _nvidia_module(modules: Path) -> str | None:
    try:
        names = (modules / "modules.dep").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return next((name for name in _NVIDIA_MODULE.findall(names) if not _PARTS.search(name)), None)


def _dkms(tree: Path, release: str) -> tuple[str, ...]:
    lines = []
    for module in _list(tree):
        if not module.name.startswith("nvidia"):
            continue
        for version in _list(module):
            if not (version / "source").exists() or version.is_symlink():
                continue
            built = any((version / release).glob("*/module/*.ko*"))
            links = [link for link in _list(module) if link.name.startswith(f"kernel-{release}-") and link.is_symlink()]
            current = any(Path(os.readlink(link)).parts[:1] == (version.name,) for link in links)
            state = "installed" if built and current else "built" if built else "added"
            lines.append(f"{module.name}/{version.name}: {state}")
    return tuple(lines)


def _following(boot: Path, on_disk: list[str]) -> str | None:
    """Return the kernel that boots next: GRUB's chosen entry where it names one, else the newest on disk."""
    if not on_disk:
        return None
    for name in ("grub/grubenv", "grub2/grubenv"):
        try:
            chosen = dict(_GRUB_ENTRY.findall((boot / name).read_text(encoding="utf-8", errors="replace")))
        except OSError:
            continue
        for variable in ("next_entry", "saved_entry"):
            entry = chosen.get(variable, "")
            named = [release for release in on_disk if release in entry]
            if named:
                return max(named, key=len)
    return on_disk[-1]


def _release_key(release: str) -> list[tuple[int, int | str]]:
    """Return a key that orders releases as people do: numbers by value, the rest as text."""
    return [(1, int(part)) if part.isdigit() else (0, part) for part in re.findall(r"\d+|\D+", release)]


def _list(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []
