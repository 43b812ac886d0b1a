"""Every fault that the probe knows, put into a simulated host: the verdict, its evidence and its remedy."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, NamedTuple

import pytest
from probe_node import BOOT_ID, CUDA_DRIVER_VERSION, DRIVER_VERSION, GPUS, RELEASE, Node, check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from _pytest.mark import ParameterSet

VICTIM = 2
BUS_ID = GPUS[VICTIM].sysfs_address


class Fault(NamedTuple):
    """What is done to the host, and what one check must then say."""

    check: str
    inject: Callable[[Node], object]
    status: str
    evidence: str
    remedy: str


def named(faults: list[Fault]) -> list[ParameterSet]:
    return [pytest.param(fault, id=f"{fault.check}: {fault.evidence}") for fault in faults]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def nvml(*lines: str) -> Callable[[Node], object]:
    return lambda node: node.gpu(VICTIM, *lines)


def sysfs(name: str, content: str) -> Callable[[Node], object]:
    return lambda node: node.write_device(BUS_ID, name, content)


def xid(number: int, words: str) -> Callable[[Node], object]:
    return lambda node: node.log(f"NVRM: Xid (PCI:{BUS_ID[:-2]}): {number}, {words}")


def bound_to(driver: str) -> Callable[[Node], object]:
    def fault(node: Node) -> None:
        link = node.paths.sysfs / "bus/pci/devices" / BUS_ID / "driver"
        link.unlink()
        target = node.paths.sysfs / "bus/pci/drivers" / driver
        target.mkdir()
        link.symlink_to(target)

    return fault


def quarantine(node: Node, **parts: object) -> None:
    empty: dict[str, object] = {"schema": 1, "gpus": {}, "known": {}, "acknowledged": {}}
    node.write("quarantine.json", json.dumps(empty | parts))


def set_aside(node: Node) -> None:
    mark = {"uuid": None, "reason": "Xid 79: the GPU has fallen off the bus", "marked_at": "2026-11-24T12:00:00Z"}
    quarantine(node, gpus={BUS_ID: mark})


def xid_before_clear(node: Node) -> None:
    node.log(f"NVRM: Xid (PCI:{BUS_ID[:-2]}): 79, GPU has fallen off the bus.")
    quarantine(node, acknowledged={BUS_ID: {"boot_id": BOOT_ID, "sequence": 1}})


def remapped_and_reset(node: Node) -> None:
    node.log(f"NVRM: Xid (PCI:{BUS_ID[:-2]}): 63, Row Remapper: New row marked for remapping")
    node.gpu(VICTIM, "remapped_rows_uncorrected = 1")


GPU_FAULTS = [
    Fault("answers", nvml("fail = GPU_IS_LOST"), "blocked", "GPU is lost", "reset the GPU"),
    Fault("answers", nvml("fail = RESET_REQUIRED"), "blocked", "requires restart", f"--gpu-reset -i {BUS_ID}"),
    Fault("answers", nvml("fail.nvmlDeviceGetHandleByIndex = GPU_IS_LOST"), "blocked", "GPU is lost", "reboot"),
    Fault("kernel_driver", bound_to("nouveau"), "blocked", "bound to nouveau", "blacklist nouveau"),
    Fault("kernel_driver", bound_to("vfio-pci"), "blocked", "bound to vfio-pci", "release it from vfio-pci"),
    Fault("xid", xid(48, "DBE (double bit error) ECC error"), "blocked", "Xid 48", "replace the card"),
    Fault("xid", xid(64, "Row Remapper: failed"), "blocked", "Xid 64", "drain"),
    Fault("xid", xid(79, "GPU has fallen off the bus."), "blocked", "fallen off the bus", "drain"),
    Fault(
        "xid", xid(119, "Timeout after 6s of waiting for RPC response from GPU0 GSP!"), "blocked", "Xid 119", "drain"
    ),
    Fault("xid", xid(120, "GSP task exception"), "blocked", "Xid 120", "drain"),
    Fault("xid", xid(63, "Row Remapper: New row"), "ok", "reset that it needed is done", ""),
    Fault("xid", xid(31, "pid=4711, name=python, Ch 00000008"), "ok", "31", ""),
    Fault("xid", xid_before_clear, "ok", "none in this boot", ""),
    Fault(
        "quarantine", set_aside, "blocked", "in quarantine since 2026-11-24T12:00:00Z: Xid 79", "clear_quarantine.yml"
    ),
    Fault("remapped_rows", nvml("remapped_rows_pending = 1"), "blocked", "waits for a reset", "--gpu-reset"),
    Fault("remapped_rows", nvml("remapped_rows_failure = 1"), "blocked", "could not be remapped", "replace the card"),
    Fault("remapped_rows", remapped_and_reset, "ok", "1 rows remapped", ""),
    Fault("ecc_errors", nvml("ecc_uncorrected_volatile = 3"), "degraded", "3 uncorrected", "--gpu-reset"),
    Fault("ecc_mode", nvml("ecc_current = 0", "ecc_pending = 0"), "degraded", "off", "-e 1"),
    Fault("ecc_mode", nvml("ecc_pending = 0"), "degraded", "on, and off after the next reset", "plan again"),
    Fault("mig", nvml("mig_current = 1"), "blocked", "MIG is on", f"-i {BUS_ID} -mig 0"),
    Fault("virtualization", nvml("virtualization_mode = 2"), "blocked", "vGPU inside a guest", "pass the whole GPU"),
    Fault("virtualization", nvml("virtualization_mode = 3"), "blocked", "serves vGPUs", "exclude the GPU"),
    Fault("virtualization", nvml("virtualization_mode = 1"), "ok", "passed through", ""),
    Fault("compute_mode", nvml("compute_mode = 2"), "blocked", "prohibited", "-c 0"),
    Fault("compute_mode", nvml("compute_mode = 3"), "degraded", "exclusive", "-c 0"),
    Fault("pcie_width", nvml("link_width = 8"), "degraded", "x8 of x16", "reseat"),
    Fault("pcie_width", nvml("link_width = 8", "link_width_max = 8"), "degraded", "x8 of x16", "slot"),
    Fault(
        "pcie_generation",
        nvml("link_generation_max = 3", "link_generation = 3"),
        "degraded",
        "slot allows generation 3",
        "slot",
    ),
    Fault(
        "pcie_generation",
        nvml("link_generation = 2", "performance_state = 0", "throttle_reasons = 0"),
        "degraded",
        "generation 2 at work, 4 is possible",
        "retraining",
    ),
    Fault("pcie_generation", nvml("link_generation = 1"), "ok", "generation 1 while idle", ""),
    Fault("pcie_replays", nvml("pcie_replay_counter = 5000"), "degraded", "5000 replays", "reseat"),
    Fault(
        "power_limit", nvml("power_limit_mw = 275000"), "degraded", "275 W, the card's is 350 W", f"-i {BUS_ID} -pl 350"
    ),
    Fault("clocks", nvml("throttle_reasons = 0x40"), "degraded", "hardware thermal slowdown", "air flow"),
    Fault("clocks", nvml("throttle_reasons = 0x88"), "degraded", "external power brake", "power supply"),
    Fault("temperature", nvml("temperature_c = 93"), "degraded", "93 C, clocks are cut at 95 C", "fans"),
    Fault("persistence_mode", nvml("persistence_mode = 0"), "degraded", "off", "nvidia-persistenced"),
    Fault("foreign_memory", nvml("memory_used_mib = 9000"), "degraded", "9000 MiB", "fleet_exclude_gpus"),
    Fault("numa_node", sysfs("numa_node", "-1"), "degraded", "names no NUMA node, and the host has 2", "BIOS"),
]


@pytest.mark.parametrize("fault", named(GPU_FAULTS))
def test_a_fault_of_a_gpu_is_found_on_that_gpu_alone(node: Node, fault: Fault) -> None:
    fault.inject(node)
    gpus = node.probe()["gpus"]
    assert len(gpus) == len(GPUS)
    row = check(gpus[VICTIM]["health"], fault.check)
    assert row["status"] == fault.status, row
    assert fault.evidence in row["evidence"]
    assert fault.remedy in row["remedy"]
    assert bool(row["remedy"]) == (fault.status != "ok")
    if fault.status != "ok":
        assert gpus[VICTIM]["health"]["status"] == fault.status
    assert [gpu["health"]["status"] for gpu in gpus if gpu["index"] != VICTIM] == ["ok"] * (len(GPUS) - 1)


def blacklisted(node: Node, initramfs_age_s: int) -> None:
    node.write(f"root/lib/modules/{RELEASE}/kernel/drivers/gpu/drm/nouveau/nouveau.ko.xz", "")
    blacklist = node.write("root/etc/modprobe.d/nvidia.conf", "blacklist nouveau")
    initramfs = node.write(f"root/boot/initrd.img-{RELEASE}", "")
    written_s = blacklist.stat().st_mtime - initramfs_age_s
    os.utime(initramfs, (written_s, written_s))


def secure_boot(state: bytes) -> Callable[[Node], object]:
    def fault(node: Node) -> None:
        variable = node.write("sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", "")
        variable.write_bytes(b"\x06\x00\x00\x00" + state)
        node.remove("sys/module/nvidia")

    return fault


def translated(node: Node) -> None:
    for gpu in GPUS:
        node.write(f"sys/bus/pci/devices/{gpu.sysfs_address}/iommu_group/type", "DMA-FQ")


def lost_on_the_bus(node: Node) -> None:
    # NVML no longer counts the GPU: it goes from the description, and stays in sysfs.
    node.description.pop(1 + VICTIM)


def needs_newer_cuda(node: Node) -> None:
    node.required_cuda_driver_version = CUDA_DRIVER_VERSION + 10


def mismatch(node: Node) -> None:
    node.machine("fail.nvmlInit = LIB_RM_VERSION_MISMATCH")


def other_module(node: Node) -> None:
    node.write("sys/module/nvidia/version", "575.57.08")


def not_blacklisted(node: Node) -> None:
    blacklisted(node, initramfs_age_s=0)
    node.remove("root/etc/modprobe.d/nvidia.conf")


def runs_what_is_gone(node: Node) -> None:
    path = f"{node.paths.models}/llama-3-8b-0123456789ab"
    node.instance("chat-0", {"id": "chat-0", "engine_args": {"model": path}})


HOST_FAULTS = [
    Fault(
        "nvml", lambda node: node.machine("fail.nvmlInit = DRIVER_NOT_LOADED"), "blocked", "Driver Not Loaded", "reboot"
    ),
    Fault("nvml", lambda node: node.machine("fail.nvmlDeviceGetCount = UNKNOWN"), "blocked", "Unknown Error", "NVRM"),
    Fault("driver_versions", mismatch, "blocked", "version mismatch", "reboot"),
    Fault("driver_versions", other_module, "blocked", f"575.57.08, user space {DRIVER_VERSION}", "reboot"),
    Fault("cuda_driver", needs_newer_cuda, "blocked", "speaks CUDA 13.0, the engine needs 13.1", "cuda-compat"),
    Fault("all_gpus_answer", lost_on_the_bus, "degraded", BUS_ID, "drain and reboot"),
    Fault(
        "nouveau",
        lambda node: node.write("sys/module/nouveau/refcnt", "0"),
        "blocked",
        "is loaded",
        "blacklist",
    ),
    Fault(
        "nouveau_blacklist",
        lambda node: blacklisted(node, 60),
        "degraded",
        "newer than the initramfs",
        "update-initramfs",
    ),
    Fault("nouveau_blacklist", lambda node: blacklisted(node, -60), "ok", "nvidia.conf", ""),
    Fault(
        "nouveau_blacklist",
        not_blacklisted,
        "degraded",
        "not blacklisted",
        "nvidia_driver",
    ),
    Fault("secure_boot", secure_boot(b"\x01"), "blocked", "on, and no nvidia module is loaded", "mokutil --import"),
    Fault("secure_boot", secure_boot(b"\x00"), "ok", "off", ""),
    Fault(
        "vgpu_guest",
        lambda node: node.gpu(0, "virtualization_mode = 2"),
        "blocked",
        "1 GPUs are vGPUs",
        "pass whole GPUs",
    ),
    Fault(
        "kernel_taint",
        lambda node: node.write("proc/sys/kernel/tainted", str(1 << 7)),
        "degraded",
        "oops",
        "drain",
    ),
    Fault(
        "kernel_taint",
        lambda node: node.write("proc/sys/kernel/tainted", str(1 << 4)),
        "degraded",
        "machine check",
        "drain",
    ),
    Fault("iommu", translated, "degraded", "translates for", "iommu=pt"),
    Fault("acs", lambda node: node.write_bridges(0x001D), "degraded", "redirects peer traffic", "ACS"),
    Fault("acs", lambda node: node.write_bridges(0x0001), "ok", "no redirection", ""),
    Fault("shm", lambda node: node.remove("root/dev/shm"), "blocked", "no /dev/shm", "tmpfs"),
    Fault(
        "instance_records",
        lambda node: node.instance("chat-0", '{"id": "chat-'),
        "degraded",
        "chat-0/instance.json",
        "site.yml",
    ),
    Fault(
        "instance_records", lambda node: node.instance("chat-0", {"id": "other-1"}), "degraded", "'other-1'", "site.yml"
    ),
    Fault("instance_records", lambda node: node.instance("chat-0", "[]"), "degraded", "not a JSON object", "site.yml"),
    Fault(
        "applied_plan",
        lambda node: node.write("applied.json", '{"schema": 1,'),
        "degraded",
        "applied.json",
        "site.yml",
    ),
    Fault(
        "checkpoints",
        lambda node: node.write("models/.staging-llama-3-8b-0123456789ab/model-00001.safetensors", "half"),
        "degraded",
        ".staging-llama-3-8b-0123456789ab: it was not put together to its end",
        "playbooks/models.yml",
    ),
    Fault(
        "checkpoints",
        lambda node: node.write("models/llama-3-8b-0123456789ab/model-00001.safetensors.incomplete", "half"),
        "degraded",
        "model-00001.safetensors.incomplete was not finished",
        "playbooks/models.yml",
    ),
    Fault(
        "checkpoints",
        lambda node: node.write("models/.incoming/0123456789ab", "half"),
        "degraded",
        "1 files that were fetched in part",
        "playbooks/models.yml",
    ),
    Fault("checkpoints", lambda node: node.write("models/.blobs/0123456789ab", "whole"), "ok", "none", ""),
    Fault(
        "checkpoints",
        lambda node: node.write("models/llama-3-8b-0123456789ab/model.safetensors", "whole, as far as we know"),
        "degraded",
        "it was never verified",
        "playbooks/models.yml",
    ),
    Fault(
        "checkpoints", runs_what_is_gone, "degraded", "it is not there, 0.0 GiB on disk, wanted by chat-0", "site.yml"
    ),
    Fault(
        "quarantine_file",
        lambda node: node.write("quarantine.json", '{"schema": 1}'),
        "degraded",
        "quarantine.json: not a quarantine",
        "l40s-fleet-quarantine.service",
    ),
]


@pytest.mark.parametrize("fault", named(HOST_FAULTS))
def test_a_fault_of_the_host_is_found(node: Node, fault: Fault) -> None:
    fault.inject(node)
    health = node.probe()["health"]
    row = check(health, fault.check)
    assert row["status"] == fault.status, row
    assert fault.evidence in row["evidence"]
    assert fault.remedy in row["remedy"]
    if fault.status == "blocked":
        assert health["status"] == "blocked"


def test_a_sound_host_is_ok_throughout(node: Node) -> None:
    node.write_bridges(0)
    document = node.probe()
    assert document["health"]["status"] == "ok"
    assert [gpu["health"]["status"] for gpu in document["gpus"]] == ["ok"] * 4
    assert document["unseen"] == []
    unknown = {row["name"] for gpu in document["gpus"] for row in gpu["health"]["checks"] if row["status"] == "unknown"}
    assert unknown == {"write_and_verify"}
    # Simulated GPU memory is not compared with the host's.
    assert [row["name"] for row in document["health"]["checks"] if row["status"] == "unknown"] == ["host_memory"]


def test_a_row_remapping_that_waits_for_its_reset_shows_in_both_checks(node: Node) -> None:
    node.log(f"NVRM: Xid (PCI:{BUS_ID[:-2]}): 63, Row Remapper: New row marked for remapping")
    node.gpu(VICTIM, "remapped_rows_pending = 1")
    health = node.probe()["gpus"][VICTIM]["health"]
    assert check(health, "xid")["status"] == "degraded"
    assert check(health, "remapped_rows")["status"] == "blocked"
    assert health["status"] == "blocked"
