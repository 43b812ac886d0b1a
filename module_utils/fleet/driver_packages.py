"""The driver's packages as dpkg knows them, read from its status file: no program is started."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

STATUS_FILE = "var/lib/dpkg/status"

# Names of packages that are part of an NVIDIA driver, in Debian, Ubuntu and NVIDIA's repository.
DRIVER_PATTERNS = (
    "nvidia-*",
    "libnvidia-*",
    "xserver-xorg-video-nvidia*",
    "libcuda1",
    "libcudadebugger1",
    "libnvcuvid1",
    "libnvoptix1",
    "libxnvctrl0",
    "libegl-nvidia*",
    "libgl1-nvidia*",
    "libgles-nvidia*",
    "libglx-nvidia*",
    "firmware-nvidia-*",
    "glx-alternative-nvidia",
    "glx-alternative-mesa",
    "glx-diversions",
    "update-glx",
    "cuda-drivers*",
    "cuda-compat-*",
    "linux-modules-nvidia-*",
    "linux-objects-nvidia-*",
)
# Of those, the ones that belong to something else than a driver, whatever their names say.
_NOT_A_DRIVER = (
    "nvidia-cuda-*",
    "nvidia-container-*",
    "libnvidia-container*",
    "nvidia-cudnn*",
    "nvidia-cg-*",
    "nvidia-docker*",
    "nvidia-fs*",
    "nvidia-texture-tools",
)
_FIELD = re.compile(r"^(Status|Version|Architecture): (.*)$", re.MULTILINE)
# Packages whose upstream version is the driver's own, one of which is in every driver.
_CARRY_THE_VERSION = ("libnvidia-ml1*", "libnvidia-*-ml1", "libnvidia-compute*", "libcuda1", "nvidia-*-kernel-dkms")


@dataclass(frozen=True)
class Package:
    """One package that dpkg knows.

    Args:
        name: with ``:architecture`` only where it is not the host's own.
        version: Debian's, as in ``535.261.03-1``.
        want: what is to become of it: ``install``, ``hold``, ``deinstall``, ``purge``.
        state: what it is: ``installed``, ``config-files``, ``half-configured``, ``unpacked`` ...
    """

    name: str
    version: str
    want: str
    state: str

    @property
    def upstream(self) -> str:
        """The version without epoch and Debian's revision: ``535.261.03``."""
        return upstream_of(self.version)


def read_packages(root: Path, patterns: Sequence[str] = ()) -> dict[str, Package]:
    """Return what dpkg knows, by name; with patterns only packages that match one.

    Returns:
        An empty mapping where there is no dpkg.
    """
    try:
        text = (root / STATUS_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return parse_status(text, patterns)


def parse_status(text: str, patterns: Sequence[str] = ()) -> dict[str, Package]:
    """Parse dpkg's status file; see ``read_packages``."""
    wanted = _matcher(patterns) if patterns else None
    found: dict[str, Package] = {}
    for stanza in text.split("\n\n"):
        # dpkg writes the name first.
        name = stanza.lstrip("\n").partition("\n")[0].removeprefix("Package: ")
        if not name or (wanted is not None and not wanted.match(name)):
            continue
        fields = dict(_FIELD.findall(stanza))
        words = fields.get("Status", "").split()
        if len(words) != 3:
            continue
        # Of a package that is there for two architectures, the foreign one gets the longer name.
        key = name if name not in found else f"{name}:{fields.get('Architecture', 'foreign')}"
        found[key] = Package(key, fields.get("Version", ""), words[0], words[2])
    return found


def without_holds(text: str) -> str:
    """Return dpkg's status file without the holds on driver packages."""
    stanzas = text.split("\n\n")
    for position, stanza in enumerate(stanzas):
        name = stanza.lstrip("\n").partition("\n")[0].removeprefix("Package: ")
        if "\nStatus: hold " in stanza and is_driver(name):
            stanzas[position] = stanza.replace("\nStatus: hold ", "\nStatus: install ", 1)
    return "\n\n".join(stanzas)


def upstream_of(version: str) -> str:
    """Return a package version without epoch and revision."""
    bare = version.rpartition(":")[2]
    return bare.rpartition("-")[0] or bare


def is_driver(name: str) -> bool:
    """Whether a package of this name is part of a driver."""
    return matches(name, DRIVER_PATTERNS) and not matches(name, _NOT_A_DRIVER)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name matches one of the shell patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def installed_driver(packages: Mapping[str, Package]) -> str | None:
    """Return the driver version of the installed packages: the newest where they disagree, None without one."""
    versions = {
        package.upstream
        for name, package in packages.items()
        if package.state == "installed" and matches(name, _CARRY_THE_VERSION) and package.upstream[:1].isdigit()
    }
    return max(versions, key=version_key, default=None)


def version_key(version: str) -> tuple[int, ...]:
    """Return a key that orders driver versions: the numbers in it."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _matcher(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{fnmatch.translate(pattern)})" for pattern in patterns))
