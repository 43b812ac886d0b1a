"""The probe's checks of what a driver is made of: the next kernel's module, its headers and DKMS, the packages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .driver_kernels import Kernels, read_kernels
from .driver_packages import DRIVER_PATTERNS, Package, installed_driver, is_driver, read_packages
from .probe_verdict import Verdict, degraded, ok

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class DriverParts:
    """What was read.

    Args:
        kernels: those on disk and the running one.
        packages: of the driver, as dpkg knows them; empty where it knows none.
    """

    kernels: Kernels
    packages: Mapping[str, Package]


def read_driver_parts(root: Path, running: str) -> DriverParts:
    """Read what the checks judge.

    Args:
        root: holds boot, lib/modules, var/lib/dkms and var/lib/dpkg.
        running: release of the running kernel.
    """
    packages = {name: one for name, one in read_packages(root, DRIVER_PATTERNS).items() if is_driver(name)}
    return DriverParts(read_kernels(root, running), packages)


def next_kernel(parts: DriverParts) -> Verdict:
    """Judge whether the driver survives the next boot."""
    kernels = parts.kernels
    if kernels.following is None:
        return ok("no kernel on disk: a container, or a host that boots from elsewhere")
    facts = kernels.facts[kernels.following]
    which = "runs and boots next" if kernels.following == kernels.running else "boots next"
    if facts.nvidia_module is not None:
        return ok(f"kernel {facts.release} {which}, module {facts.nvidia_module}")
    if not parts.packages and not facts.dkms:
        return ok(f"kernel {facts.release} {which}; no driver packages are there that could build a module for it")
    said = f" (DKMS: {'; '.join(facts.dkms)})" if facts.dkms else ""
    if not facts.headers:
        return degraded(
            f"kernel {facts.release} {which} and has neither an nvidia module nor headers to build one{said}",
            f"install linux-headers-{facts.release}, then `dkms autoinstall -k {facts.release}`, before the next boot",
        )
    return degraded(
        f"kernel {facts.release} {which} and has no nvidia module{said}",
        f"`dkms autoinstall -k {facts.release}` before the next boot; its make.log says why a build fails",
    )


def dkms(parts: DriverParts) -> Verdict:
    """Judge whether DKMS has done its work for the running kernel."""
    facts = parts.kernels.facts[parts.kernels.running]
    if not facts.dkms:
        return ok("no NVIDIA sources in DKMS")
    if facts.dkms_installed:
        return ok("; ".join(facts.dkms))
    if facts.nvidia_module is not None:
        return ok(f"{'; '.join(facts.dkms)}; the module in use is {facts.nvidia_module}")
    if parts.kernels.following is None:
        return ok(f"{'; '.join(facts.dkms)}; no kernel on disk to build it for")
    lacks = "" if facts.headers else f"; the headers of {facts.release} are not installed"
    return degraded(
        f"{'; '.join(facts.dkms)} for the running kernel {facts.release}{lacks}",
        f"install linux-headers-{facts.release}, then `dkms autoinstall -k {facts.release}`"
        if lacks
        else f"`dkms autoinstall -k {facts.release}`; its make.log says why a build fails",
    )


def driver_packages(parts: DriverParts) -> Verdict:
    """Judge whether the driver's packages are whole and stay as they are."""
    there = {name: one for name, one in parts.packages.items() if one.state not in ("config-files", "not-installed")}
    if not there:
        return ok("the driver does not come from packages, or there is none")
    broken = sorted(name for name, one in there.items() if one.state != "installed")
    if broken:
        return degraded(
            f"not fully installed: {', '.join(broken[:4])}", "run `dpkg --configure -a`, then the drivers stage again"
        )
    version = installed_driver(there)
    # Without a hold an unattended upgrade changes user space below a loaded module, and NVML stops answering.
    loose = sorted(name for name, one in there.items() if one.want != "hold")
    if loose and version is not None:
        return degraded(
            f"driver {version}: {len(loose)} of {len(there)} packages are not held",
            "run the drivers stage, or `apt-mark hold` them: an upgrade below a loaded module stops NVML",
        )
    return ok(f"driver {version}, {len(there)} packages, all held" if version else f"{len(there)} packages")
