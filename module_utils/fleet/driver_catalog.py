"""Which packages make a driver on which system, and where they come from. Read on the controller only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Mapping

SOURCES = ("nvidia_repo", "distro", "cuda_compat", "none")
NVIDIA_REPOSITORIES = "https://developer.download.nvidia.com/compute/cuda/repos"
# The branch that is installed when none is given and the engine asks for no newer one: NVIDIA's long term support
# branch with CUDA 13.
DEFAULT_BRANCH = 580
CUDA_COMPAT_PACKAGE = "cuda-compat-13-0"


@dataclass(frozen=True)
class System:
    """A distribution that is supported.

    Args:
        manager: ``apt`` or ``dnf``.
        repository: the name under which NVIDIA's network repository has it.
        key: file name of the repository's public key.
        distro_branches: driver branches of the distribution itself, its own default first.
        components: of the distribution, that hold the driver.
    """

    manager: str
    repository: str
    key: str
    distro_branches: tuple[int, ...]
    components: tuple[str, ...] = ()


# Only Debian is tested; what the others have is from NVIDIA's driver installation guide and the distributions' indexes.
_DEBIAN_COMPONENTS = ("contrib", "non-free", "non-free-firmware")
_SYSTEMS: Mapping[tuple[str, str], System] = {
    ("debian", "12"): System("apt", "debian12", "3bf863cc.pub", (535,), _DEBIAN_COMPONENTS),
    ("debian", "13"): System("apt", "debian13", "8793F200.pub", (550, 535), _DEBIAN_COMPONENTS),
    ("ubuntu", "22.04"): System("apt", "ubuntu2204", "3bf863cc.pub", (580, 570, 550, 535), ("restricted",)),
    ("ubuntu", "24.04"): System("apt", "ubuntu2404", "3bf863cc.pub", (580, 570, 550, 535), ("restricted",)),
    ("rhel", "9"): System("dnf", "rhel9", "D42D0685.pub", ()),
}
_LIKE_RHEL = ("rhel", "rocky", "almalinux", "redhat")


@dataclass(frozen=True)
class DriverSet:
    """What is to be installed.

    Args:
        manager: ``apt`` or ``dnf``.
        branch: of the driver; 0 when whatever is there stays.
        packages: asked for by name.
        versioned: patterns of the packages that carry the driver's version.
        components: of the distribution, that have to be among its sources.
        repository: URL of NVIDIA's repository; empty when the packages come from the distribution.
        key: URL of its public key.
        beside: the packages come beside the driver that is there.
    """

    manager: str
    branch: int
    packages: tuple[str, ...]
    versioned: tuple[str, ...]
    components: tuple[str, ...] = ()
    repository: str = ""
    key: str = ""
    beside: bool = False


def find_system(os_id: str, os_version: str) -> System:
    """Return what is known of a distribution, named as in /etc/os-release.

    Raises:
        FleetError: nothing is.
    """
    os_id = "rhel" if os_id in _LIKE_RHEL else os_id
    for version in (os_version, os_version.partition(".")[0]):
        found = _SYSTEMS.get((os_id, version))
        if found is not None:
            return found
    raise FleetError("nvidia_driver_source", f"no driver packages are known for {os_id} {os_version}; use none")


def default_branch(system: System, source: str, needed_branch: int) -> int:
    """Return the branch that is installed when none is given.

    Args:
        system: the host's distribution.
        source: where packages come from.
        needed_branch: the first branch that the engine runs on.
    """
    if source == "distro" and system.distro_branches:
        return next((branch for branch in system.distro_branches if branch >= needed_branch), system.distro_branches[0])
    return max(DEFAULT_BRANCH, needed_branch)


def driver_set(
    os_id: str, os_version: str, source: str, *, branch: int = 0, open_modules: bool = True, needed_branch: int = 0
) -> DriverSet:
    """Return the packages of a driver.

    Args:
        os_id: as in /etc/os-release, as ``os_version``.
        os_version: see ``os_id``.
        source: ``nvidia_repo``, ``distro`` or ``cuda_compat``.
        branch: of the driver; 0 for the default.
        open_modules: NVIDIA's open kernel modules rather than the proprietary ones.
        needed_branch: the first branch that the engine runs on.

    Raises:
        FleetError: there is no such driver for the system.
    """
    system = find_system(os_id, os_version)
    repository = f"{NVIDIA_REPOSITORIES}/{system.repository}/x86_64/"
    key = f"{repository}{system.key}"
    if source == "cuda_compat":
        return DriverSet(system.manager, 0, (CUDA_COMPAT_PACKAGE,), (), repository=repository, key=key, beside=True)
    branch = branch or default_branch(system, source, needed_branch)
    if source == "nvidia_repo":
        packages, versioned = _nvidia_packages(os_id, system, branch, open_modules=open_modules)
        return DriverSet(system.manager, branch, packages, versioned, repository=repository, key=key)
    if branch not in system.distro_branches:
        have = ", ".join(str(one) for one in system.distro_branches) or "none"
        raise FleetError(
            "nvidia_driver_branch", f"{os_id} {os_version} has driver branches {have} itself, {branch} was asked for"
        )
    packages, versioned = _distro_packages(os_id, os_version, system, branch, open_modules=open_modules)
    return DriverSet(system.manager, branch, packages, versioned, components=system.components)


def _nvidia_packages(
    os_id: str, system: System, branch: int, *, open_modules: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """NVIDIA's own packages, compute only."""
    if system.manager == "dnf":
        module = "kmod-nvidia-open-dkms" if open_modules else "kmod-nvidia-latest-dkms"
        return ("nvidia-driver-cuda", module, "nvidia-persistenced"), ("*nvidia*",)
    if os_id == "ubuntu":
        # From branch 590 on the names no longer end in the branch.
        end = f"-{branch}" if branch < 590 else ""
        module = f"nvidia-dkms{end}-open" if open_modules else f"nvidia-dkms{end}"
        names = (f"libnvidia-compute{end}", module, f"nvidia-utils{end}", f"nvidia-compute-utils{end}")
        return names, names
    module = "nvidia-kernel-open-dkms" if open_modules else "nvidia-kernel-dkms"
    packages = ("nvidia-driver-cuda", module)
    return packages, packages


def _distro_packages(
    os_id: str, os_version: str, system: System, branch: int, *, open_modules: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The distribution's own packages, compute only."""
    if os_id == "ubuntu":
        end = f"-{branch}-server"
        module = f"nvidia-dkms{end}-open" if open_modules else f"nvidia-dkms{end}"
        names = (f"libnvidia-compute{end}", module, f"nvidia-utils{end}", f"nvidia-compute-utils{end}")
        return names, names
    if branch == system.distro_branches[0]:
        module = "nvidia-open-kernel-dkms" if open_modules else "nvidia-kernel-dkms"
        versioned = (module, "libcuda1", "libnvidia-ml1", "libnvidia-cfg1", "nvidia-smi")
        return (*versioned, "nvidia-persistenced"), versioned
    # Debian keeps older branches under the name of the Tesla line, with the proprietary module only.
    if open_modules:
        raise FleetError(
            "nvidia_driver_open_modules",
            f"{os_id} {os_version} has driver {branch} with the proprietary kernel module only: set it to false",
        )
    tesla = f"tesla-{branch}"
    versioned = (
        f"nvidia-{tesla}-kernel-dkms",
        f"libnvidia-{tesla}-cuda1",
        f"libnvidia-{tesla}-ml1",
        f"libnvidia-{tesla}-cfg1",
        f"nvidia-{tesla}-smi",
    )
    return (*versioned, "nvidia-persistenced"), versioned
