"""The probe's checks of driver packages, DKMS and the next kernel: each fault put into a simulated host."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
from probe_node import RELEASE, Node, check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NEXT = "6.1.0-99-amd64"
HELD = "Package: libcuda1\nStatus: hold ok installed\nVersion: 580.95.05-1\n"


class Fault(NamedTuple):
    """What is done to the host, and what one check must then say."""

    check: str
    inject: Callable[[Node], object]
    status: str
    evidence: str
    remedy: str


def kernel(node: Node, release: str, *, headers: bool = True, module: bool = True, dkms: str = "installed") -> None:
    """Puts a kernel on the disk of the host."""
    node.write(f"root/boot/vmlinuz-{release}", "")
    if headers:
        node.write(f"root/lib/modules/{release}/build/Makefile", "")
    node.write(f"root/lib/modules/{release}/modules.dep", "updates/dkms/nvidia.ko:" if module else "")
    source = "root/var/lib/dkms/nvidia/580.95.05"
    node.write(f"{source}/source/dkms.conf", "")
    if dkms == "installed":
        node.write(f"{source}/{release}/x86_64/module/nvidia.ko", "")
        (node.directory / f"root/var/lib/dkms/nvidia/kernel-{release}-x86_64").symlink_to(f"580.95.05/{release}/x86_64")


def packages(text: str) -> Callable[[Node], object]:
    return lambda node: node.write("root/var/lib/dpkg/status", text)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A host with a driver from packages, for the running kernel."""
    node = Node(tmp_path)
    kernel(node, RELEASE)
    node.write("root/var/lib/dpkg/status", HELD)
    return node


FAULTS = [
    Fault(
        "next_kernel",
        lambda node: kernel(node, NEXT, module=False, dkms="added"),
        "degraded",
        f"kernel {NEXT} boots next and has no nvidia module (DKMS: nvidia/580.95.05: added)",
        f"`dkms autoinstall -k {NEXT}` before the next boot",
    ),
    Fault(
        "next_kernel",
        lambda node: kernel(node, NEXT, headers=False, module=False, dkms="added"),
        "degraded",
        f"kernel {NEXT} boots next and has neither an nvidia module nor headers to build one",
        f"install linux-headers-{NEXT}",
    ),
    Fault(
        "dkms",
        lambda node: (node.remove("root/var/lib/dkms"), kernel(node, RELEASE, module=False, dkms="added")),
        "degraded",
        f"nvidia/580.95.05: added for the running kernel {RELEASE}",
        f"`dkms autoinstall -k {RELEASE}`",
    ),
    Fault(
        "driver_packages",
        packages(HELD.replace("hold", "install")),
        "degraded",
        "driver 580.95.05: 1 of 1 packages are not held",
        "an upgrade below a loaded module stops NVML",
    ),
    Fault(
        "driver_packages",
        packages(f"{HELD}\n{HELD.replace('libcuda1', 'nvidia-smi').replace('ok installed', 'ok half-configured')}"),
        "degraded",
        "not fully installed: nvidia-smi",
        "run `dpkg --configure -a`",
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.check}: {fault.evidence}")
def test_fault_is_found_and_the_remedy_given(node: Node, fault: Fault) -> None:
    before = check(node.probe()["health"], fault.check)
    assert before["status"] == "ok", before
    fault.inject(node)
    found = check(node.probe()["health"], fault.check)
    assert found["status"] == fault.status
    assert fault.evidence in found["evidence"]
    assert fault.remedy in found["remedy"]


def test_a_host_without_packages_and_kernels_is_ok(tmp_path: Path) -> None:
    health = Node(tmp_path).probe()["health"]
    assert {check(health, name)["status"] for name in ("next_kernel", "dkms", "driver_packages")} == {"ok"}


def test_a_kernel_of_a_host_whose_driver_is_no_package_is_ok(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.write(f"root/boot/vmlinuz-{NEXT}", "")
    assert check(node.probe()["health"], "next_kernel")["status"] == "ok"
