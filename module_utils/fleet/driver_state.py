"""The state of a host's driver beside its packages: loaded module, kernels, Secure Boot, and what only a boot mends."""

from __future__ import annotations

import base64
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .driver_kernels import Kernels, read_kernels
from .driver_packages import installed_driver, is_driver, read_packages
from .driver_plan import kernel_faults
from .probe_host import Kernel, Paths, read_kernel

if TYPE_CHECKING:
    from pathlib import Path

# What the machine owner's keys are kept in, by shim, readable in the running system.
_MOK_LISTS = (
    "firmware/efi/mok-variables/MokListRT",
    "firmware/efi/efivars/MokListRT-605dab50-e046-4300-abb6-3dd810dd8b23",
)
_UNIT = "nvidia-persistenced.service"
_UNIT_DIRECTORIES = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
# With which key DKMS signs modules: its own, or the one of Ubuntu's shim-signed.
_SIGNING_KEYS = ("var/lib/shim-signed/mok/MOK.der", "var/lib/dkms/mok.pub")


@dataclass(frozen=True)
class DriverState:
    """What was read.

    Args:
        kernel: the running kernel, with the loaded nvidia module.
        kernels: those on disk.
        installed: version of the driver's packages; None without any, or where dpkg does not manage them.
        held: how many of the packages are held, and of how many.
        container: modules are the business of the machine below.
        signing_key: path of the key that modules are signed with; None where there is none yet.
        key_enrolled: the firmware accepts that key; None when that could not be seen.
        persistence_command: with which the persistence daemon is started; None where it is not installed.
    """

    kernel: Kernel
    kernels: Kernels
    installed: str | None
    held: tuple[int, int]
    container: bool
    signing_key: str | None
    key_enrolled: bool | None
    persistence_command: str | None

    @property
    def reboot_reasons(self) -> list[str]:
        """What only a boot mends; empty in a container, where a boot of it mends nothing."""
        if self.container:
            return []
        loaded, reasons = self.kernel.module_version, []
        if self.kernel.nouveau_loaded:
            reasons.append("nouveau is loaded")
        if loaded is not None and self.installed is not None and loaded != self.installed:
            reasons.append(f"kernel module {loaded} is loaded, driver {self.installed} is installed")
        if loaded is None and self.installed is not None:
            here = self.kernels.facts[self.kernels.running]
            if here.nvidia_module is not None:
                reasons.append(f"the module is built for {here.release} and not loaded")
            elif self.kernels.following not in (None, self.kernels.running):
                reasons.append(f"kernel {here.release} has no nvidia module, {self.kernels.following} boots next")
        return reasons

    @property
    def secure_boot_steps(self) -> list[str]:
        """What a person has to do at the console before a module is loaded; empty when nothing has to be done."""
        if not self.kernel.secure_boot or self.key_enrolled or self.container:
            return []
        if self.kernel.module_version is not None:
            return []
        key = f"/{self.signing_key}" if self.signing_key else "/var/lib/dkms/mok.pub"
        return [
            *(
                ["install dkms and build the module: its first build makes the signing key"]
                if not self.signing_key
                else []
            ),
            f"run `mokutil --import {key}` and choose a one-time password",
            "reboot, and at the console choose Enroll MOK, Continue, Yes, and give that password",
            "run this playbook again",
        ]

    def document(self) -> dict[str, Any]:
        """Return it as a document."""
        return {
            "loaded_version": self.kernel.module_version,
            "open_module": self.kernel.open_module,
            "installed_version": self.installed,
            "packages": self.held[1],
            "held_packages": self.held[0],
            "container": self.container,
            "running_kernel": self.kernels.running,
            "next_kernel": self.kernels.following,
            "kernels": [asdict(facts) for _, facts in sorted(self.kernels.facts.items())],
            "kernel_faults": kernel_faults(self.kernels),
            "nouveau_loaded": self.kernel.nouveau_loaded,
            "nouveau_blacklist": self.kernel.nouveau_blacklist,
            "initramfs_stale": self.kernel.initramfs_stale,
            "secure_boot": self.kernel.secure_boot,
            "secure_boot_key": self.signing_key and f"/{self.signing_key}",
            "secure_boot_key_enrolled": self.key_enrolled,
            "secure_boot_steps": self.secure_boot_steps,
            "persistence_command": self.persistence_command,
            "reboot_reasons": self.reboot_reasons,
        }


def read_state(paths: Paths) -> DriverState:
    """Read the driver's state from sysfs, procfs, dpkg's files and the boot directory."""
    kernel = read_kernel(paths)
    packages = {name: one for name, one in read_packages(paths.root).items() if is_driver(name)}
    installed = [one for one in packages.values() if one.state == "installed"]
    key = next((path for path in _SIGNING_KEYS if (paths.root / path).is_file()), None)
    return DriverState(
        kernel=kernel,
        kernels=read_kernels(paths.root, kernel.release),
        installed=installed_driver(packages),
        held=(sum(one.want == "hold" for one in installed), len(installed)),
        container=any((paths.root / path).exists() for path in ("run/.containerenv", "run/systemd/container")),
        signing_key=key,
        key_enrolled=_enrolled(paths, paths.root / key) if key is not None else None,
        persistence_command=_persistence_command(paths.root),
    )


def _persistence_command(root: Path) -> str | None:
    for directory in _UNIT_DIRECTORIES:
        try:
            unit = (root / directory / _UNIT).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        found = re.search(r"^ExecStart=(.+)$", unit, re.MULTILINE)
        return found[1].strip() if found else None
    return None


def _enrolled(paths: Paths, key: Path) -> bool | None:
    """Whether the certificate is in the list of the machine owner's keys, which holds certificates as they are."""
    try:
        certificate = key.read_bytes()
    except OSError:
        return None
    found = re.search(rb"-----BEGIN CERTIFICATE-----(.+?)-----END", certificate, re.DOTALL)
    if found:
        certificate = base64.b64decode(found[1])
    for name in _MOK_LISTS:
        try:
            return certificate in (paths.sysfs / name).read_bytes()
        except OSError:
            continue
    return None
