"""Every fault that the probe knows, injected into a lab host, through to what the plan makes of it.

Kernel log lines, the simulated NVML and the sysfs tree are spoiled; then probe, host document and plan do what they do
in a run. ``test_probe_faults`` looks at the verdicts, their evidence and remedies one by one.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml
from fleet.hardware import gpu_by_name
from fleet.host_document import parse_hosts
from fleet.host_notices import notices_of
from fleet.link_classes import with_link_classes
from fleet.memory import CONTEXT_BYTES
from fleet.plan_document import instance_document
from fleet.probe_nvml import PendingReading
from plan_samples import model, plan
from probe_node import BOOT_ID, CHECKOUT, GPUS, HOST, RELEASE, UUIDS, Node, check
from test_driver_probe import HELD, NEXT, kernel, packages
from test_probe_faults import (
    BUS_ID,
    VICTIM,
    bound_to,
    lost_on_the_bus,
    mismatch,
    needs_newer_cuda,
    not_blacklisted,
    nvml,
    other_module,
    quarantine,
    runs_what_is_gone,
    secure_boot,
    set_aside,
    sysfs,
    translated,
    xid,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fleet.host_document import HostDocument
    from fleet.plan_document import Plan

L40S = gpu_by_name("L40S", where="test")
ORPHAN = "Id=vllm@old-3.service\nLoadState=loaded\nActiveState=failed\nMainPID=0"
FOUR = model("m", replicas={"min": 4, "max": 4})
SMALL = model("m", replicas={"min": 4, "max": 4}, max_model_len=2048, quantization="fp8")
PAIRS = model("m", tensor_parallel=2, replicas={"min": 2, "max": 2})


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


class Fault(NamedTuple):
    """What is done to the host, and the check that must speak up: of the GPU, or of the whole host."""

    name: str
    check: str
    inject: Callable[[Node], object]


def faults(*rows: tuple[str, str, Callable[[Node], object]]) -> Any:
    return pytest.mark.parametrize("fault", [pytest.param(Fault(*row), id=row[0]) for row in rows])


def probed(node: Node, fault: Fault) -> tuple[dict[str, Any], HostDocument]:
    fault.inject(node)
    document = node.probe()
    (host,) = parse_hosts({"schema": 1, "hosts": {HOST: document}}, where="facts.json")
    return document, host


def made(document: dict[str, Any], entry: dict[str, Any] = FOUR, current: Any = ()) -> Plan:
    return plan({"schema": 1, "hosts": {HOST: document}}, [entry], current)


def used(found: Plan) -> set[str]:
    return {gpu for one in found.instances for shard in one.shards for gpu in shard.gpus}


def row_of(health: dict[str, Any], fault: Fault, status: str) -> dict[str, str]:
    row = check(health, fault.check)
    assert row["status"] == status, row
    assert row["remedy"]
    return row


def kept_test(node: Node, **parts: Any) -> None:
    """A link test that was kept for this driver and topology, of GPUs unless it says otherwise."""
    result = {
        "schema": 1,
        "key": node.probe()["topology_key"],
        "backend": "nccl",
        "engine": "0.33.0",
        "gpus": [{"uuid": uuid, "status": "verified", "link_generation": 4} for uuid in UUIDS],
        "pairs": [],
        "all_reduce": [],
    }
    node.write("link_test.json", json.dumps(result | parts))


def wrote_wrong(node: Node) -> None:
    gpus = [{"uuid": uuid, "status": "verified"} for uuid in UUIDS]
    gpus[VICTIM] |= {"status": "failed", "reason": "cpu to cuda:0: 3 of 16777216 words arrived wrong"}
    kept_test(node, gpus=gpus)


def slow_under_load(node: Node) -> None:
    gpus: list[dict[str, Any]] = [{"uuid": uuid, "status": "verified", "link_generation": 4} for uuid in UUIDS]
    gpus[VICTIM]["link_generation"] = 1
    kept_test(node, gpus=gpus)


def seen_rise(node: Node) -> None:
    mark = {"uuid": UUIDS[VICTIM], "reason": "remapped rows rose from 0 to 1", "marked_at": "2026-11-24T12:00:00Z"}
    quarantine(node, gpus={"0000:3b:00.0": mark})


def test_a_sound_host_is_used_as_a_whole(node: Node) -> None:
    document, host = probed(node, Fault("", "", lambda _: None))
    assert used(made(document)) == set(UUIDS)
    assert made(document).refused == ()
    assert notices_of([host]) == []


def on_disk(release: str, **parts: Any) -> Callable[[Node], object]:
    """A kernel on the host's disk, beside the running one with its module, and a driver from packages."""

    def fault(node: Node) -> None:
        node.write("root/var/lib/dpkg/status", HELD)
        if release != RELEASE:
            kernel(node, RELEASE)
        kernel(node, release, **parts)

    return fault


def two_hosts(bad: dict[str, Any], sound: dict[str, Any]) -> dict[str, Any]:
    """A second host with GPUs of its own, last by name."""
    text = json.dumps(sound)
    for uuid in UUIDS:
        text = text.replace(uuid, f"{uuid}-z")
    return {"schema": 1, "hosts": {HOST: bad, "z-sound": json.loads(text)}}


@faults(
    ("lost", "answers", nvml("fail = GPU_IS_LOST")),
    ("reset required", "answers", nvml("fail = RESET_REQUIRED")),
    ("no handle", "answers", nvml("fail.nvmlDeviceGetHandleByIndex = GPU_IS_LOST")),
    ("not counted", "answers", lost_on_the_bus),
    ("nouveau has it", "kernel_driver", bound_to("nouveau")),
    ("a guest has it", "kernel_driver", bound_to("vfio-pci")),
    ("Xid 48", "xid", xid(48, "DBE (double bit error) ECC error")),
    ("Xid 64", "xid", xid(64, "Row Remapper: failed")),
    ("Xid 79", "xid", xid(79, "GPU has fallen off the bus.")),
    ("Xid 119", "xid", xid(119, "Timeout after 6s of waiting for RPC response from GPU0 GSP!")),
    ("Xid 120", "xid", xid(120, "GSP task exception")),
    ("in quarantine", "quarantine", set_aside),
    ("in quarantine, in another slot", "quarantine", seen_rise),
    ("rows pending", "remapped_rows", nvml("remapped_rows_pending = 1")),
    ("rows failed", "remapped_rows", nvml("remapped_rows_failure = 1")),
    ("MIG", "mig", nvml("mig_current = 1")),
    ("vGPU manager", "virtualization", nvml("virtualization_mode = 3")),
    ("prohibited", "compute_mode", nvml("compute_mode = 2")),
    ("write and verify", "write_and_verify", wrote_wrong),
)
def test_a_blocked_gpu_is_never_used(node: Node, fault: Fault) -> None:
    before = node.probe()
    running = made(before).instances
    document, host = probed(node, fault)
    (victim,) = [gpu for gpu in document["gpus"] if gpu["pci_bus_id"] == BUS_ID]
    row = row_of(victim["health"], fault, "blocked")
    (line,) = [line for line in notices_of([host]) if "is not used" in line]
    assert f"{fault.check}: {row['evidence']}" in line

    anew = made(document)
    assert used(anew) == {uuid for uuid in UUIDS if uuid != UUIDS[VICTIM]}
    assert [refusal.model for refusal in anew.refused] == ["m"]

    # What ran there has to leave; what runs elsewhere stays where it is.
    document["instances"] = [instance_document(one) for one in running]
    after = made(document, current=running)
    assert used(after) == used(anew)
    # A GPU that does not tell its UUID any more cannot be told from another card in its slot.
    silent = fault.name in ("lost", "reset required", "no handle", "not counted")
    assert [move.cause for move in after.moves] == ["lost" if silent else "unhealthy"]


def test_a_gpu_that_fell_silent_is_known_by_what_the_watch_saw_in_its_slot(node: Node) -> None:
    running = made(node.probe()).instances
    quarantine(node, known={gpu.sysfs_address: {"uuid": uuid} for gpu, uuid in zip(GPUS, UUIDS, strict=True)})
    node.gpu(VICTIM, "fail = GPU_IS_LOST")
    document = node.probe()
    assert [gpu["uuid"] for gpu in document["gpus"]] == UUIDS
    document["instances"] = [instance_document(one) for one in running]
    assert [move.cause for move in made(document, current=running).moves] == ["unhealthy"]


@faults(
    ("library and module differ", "driver_versions", other_module),
    ("CUDA too old", "cuda_driver", needs_newer_cuda),
    ("nouveau is loaded", "nouveau", lambda node: node.write("sys/module/nouveau/refcnt", "0")),
    ("vGPU in a guest", "vgpu_guest", lambda node: node.gpu(0, "virtualization_mode = 2")),
    ("no shared memory", "shm", lambda node: node.remove("root/dev/shm")),
)
def test_a_blocked_host_gets_nothing_new_and_keeps_what_it_has(node: Node, fault: Fault) -> None:
    running = made(
        node.probe(), model("m", replicas={"min": 1, "max": 1}, placement={"pins": [{"host": HOST}]})
    ).instances
    document, host = probed(node, fault)
    row_of(document["health"], fault, "blocked")
    assert fault.check in str(host.closed)
    assert notices_of([host])[0].startswith(f"{HOST} gets nothing new: ")
    anew = made(document)
    assert used(anew) == set()
    assert [refusal.model for refusal in anew.refused] == ["m"]
    if fault.check != "vgpu_guest":
        document["instances"] = [instance_document(one) for one in running]
        after = made(document, model("m", replicas={"min": 1, "max": 1}), current=running)
        assert [one.id for one in after.instances] == ["m-1"]


@faults(
    ("no driver", "nvml", lambda node: node.machine("fail.nvmlInit = DRIVER_NOT_LOADED")),
    ("versions differ", "driver_versions", mismatch),
    ("Secure Boot", "secure_boot", secure_boot(b"\x01")),
)
def test_without_nvml_the_plan_is_provisional(node: Node, fault: Fault) -> None:
    node.machine("fail.nvmlInit = DRIVER_NOT_LOADED") if fault.check == "secure_boot" else None
    document, host = probed(node, fault)
    row_of(document["health"], fault, "blocked")
    assert host.provisional
    found = made(document)
    assert {one.provisional for one in found.instances} <= {True}
    assert any("before its driver confirmed" in note for note in found.summary.notes)


def starts_beside(instance: Any, foreign_bytes: int) -> bool:
    """Whether vLLM's condition at start holds: its share of the whole card is free, beside its own CUDA context."""
    budget = instance.engine_args["gpu_memory_utilization"] * L40S.torch_visible_bytes
    return bool(budget + CONTEXT_BYTES + foreign_bytes <= L40S.torch_visible_bytes)


@pytest.mark.parametrize(("held_mib", "utilization"), [(2000, 0.92), (3000, 0.9), (9000, 0.75), (30000, 0.3)])
def test_a_gpu_whose_memory_others_hold_is_planned_with_what_is_free(
    node: Node, held_mib: int, utilization: float
) -> None:
    document, host = probed(node, Fault("", "foreign_memory", nvml(f"memory_used_mib = {held_mib}")))
    row = check(document["gpus"][VICTIM]["health"], "foreign_memory")
    assert row["status"] == "degraded"
    assert "fleet_exclude_gpus" in row["remedy"]
    assert host.gpus[VICTIM].foreign_bytes == held_mib << 20
    found = made(document, SMALL)
    assert used(found) == set(UUIDS)
    for one in found.instances:
        victim = one.shards[0].gpus == (UUIDS[VICTIM],)
        assert one.engine_args["gpu_memory_utilization"] == (utilization if victim else 0.92)
        assert starts_beside(one, held_mib << 20 if victim else 0)
        assert any("others hold memory on the GPU" in line for line in one.reasons) == victim
    line = f"{HOST} GPU {VICTIM} is planned with {utilization:.0%} of its memory: foreign_memory: {held_mib} MiB"
    assert any(notice.startswith(line) for notice in notices_of([host]))


def test_a_model_that_is_too_large_for_what_is_free_goes_elsewhere(node: Node) -> None:
    document, _ = probed(node, Fault("", "", nvml("memory_used_mib = 36000")))
    found = made(document)
    assert used(found) == {uuid for uuid in UUIDS if uuid != UUIDS[VICTIM]}
    assert [refusal.model for refusal in found.refused] == ["m"]


def test_a_gpu_that_others_hold_nearly_all_of_gets_nothing(node: Node) -> None:
    document, host = probed(node, Fault("", "", nvml("memory_used_mib = 45000")))
    assert used(made(document, SMALL)) == {uuid for uuid in UUIDS if uuid != UUIDS[VICTIM]}
    (notice,) = notices_of([host])
    assert notice == (
        f"{HOST} GPU {VICTIM} gets nothing new: foreign_memory: 45000 MiB are held from outside the fleet."
    )


def test_a_utilization_that_was_asked_for_is_not_placed_where_it_would_not_start(node: Node) -> None:
    document, _ = probed(node, Fault("", "", nvml("memory_used_mib = 9000")))
    asked = {**SMALL, "engine_args": {"gpu_memory_utilization": 0.95}}
    assert used(made(document, asked)) == {uuid for uuid in UUIDS if uuid != UUIDS[VICTIM]}
    less = {**SMALL, "engine_args": {"gpu_memory_utilization": 0.6}}
    assert used(made(document, less)) == set(UUIDS)


def test_what_others_hold_may_change_and_nothing_starts_anew(node: Node) -> None:
    document, _ = probed(node, Fault("", "", nvml("memory_used_mib = 9000")))
    first = made(document, SMALL)
    # It grows, shrinks, leaves; what runs keeps the share it was started with.
    for held_mib in (9500, 3000, 20000, 45000, 0):
        later = Node(node.directory / str(held_mib))
        if held_mib:
            later.gpu(VICTIM, f"memory_used_mib = {held_mib}")
        again = made(later.probe(), SMALL, first.instances)
        assert again.moves == ()
        assert [one.engine_args for one in again.instances] == [one.engine_args for one in first.instances]


def test_memory_that_an_engine_leaves_free_anyway_may_be_held_by_others(node: Node) -> None:
    document, _ = probed(node, Fault("", "", nvml("memory_used_mib = 2000")))
    assert document["gpus"][VICTIM]["memory_foreign_bytes"] == 2000 << 20
    assert used(made(document)) == set(UUIDS)


def test_an_instance_that_has_its_memory_stays_beside_others(node: Node) -> None:
    running = made(node.probe()).instances
    node.gpu(VICTIM, "memory_used_mib = 9000")
    document = node.probe()
    document["instances"] = [instance_document(one) for one in running]
    after = made(document, current=running)
    assert used(after) == set(UUIDS)
    assert after.moves == ()


@faults(
    ("half the lanes", "pcie_width", nvml("link_width = 8")),
    ("a narrow slot", "pcie_width", sysfs("max_link_width", "32")),
    ("an old slot", "pcie_generation", nvml("link_generation_max = 3", "link_generation = 3")),
    (
        "retrained at work",
        "pcie_generation",
        nvml("link_generation = 2", "performance_state = 0", "throttle_reasons = 0"),
    ),
    ("slow under load", "pcie_generation", slow_under_load),
)
def test_a_link_below_the_card_costs(node: Node, fault: Fault) -> None:
    document, host = probed(node, fault)
    row_of(document["gpus"][VICTIM]["health"], fault, "degraded")
    assert any(f"GPU {VICTIM} is used though degraded: {fault.check}" in line for line in notices_of([host]))
    if fault.name == "a narrow slot":
        return
    (classed,) = with_link_classes([host])
    links = [gpu.model.links for gpu in classed.gpus if gpu.model is not None]
    assert [one is None for one in links] == [position != VICTIM for position in range(len(GPUS))]
    slow = links[VICTIM]
    assert slow is not None
    assert "slower" in slow.source
    # A tensor group takes sound links while there are enough.
    (pair,) = made(document, model("m", tensor_parallel=2)).instances
    assert UUIDS[VICTIM] not in pair.shards[0].gpus


@faults(
    ("ECC errors", "ecc_errors", nvml("ecc_uncorrected_volatile = 3")),
    ("ECC off", "ecc_mode", nvml("ecc_current = 0", "ecc_pending = 0")),
    ("Xid 63", "xid", lambda node: (xid(63, "New row")(node), nvml("remapped_rows_pending = 1")(node))),
    ("exclusive", "compute_mode", nvml("compute_mode = 3")),
    ("replays", "pcie_replays", nvml("pcie_replay_counter = 5000")),
    ("power limit", "power_limit", nvml("power_limit_mw = 275000")),
    ("throttled", "clocks", nvml("throttle_reasons = 0x40")),
    ("hot", "temperature", nvml("temperature_c = 93")),
    ("no persistence", "persistence_mode", nvml("persistence_mode = 0")),
    ("no NUMA node", "numa_node", sysfs("numa_node", "-1")),
)
def test_another_degradation_is_told_and_the_gpu_is_used(node: Node, fault: Fault) -> None:
    document, host = probed(node, fault)
    row_of(document["gpus"][VICTIM]["health"], fault, "degraded")
    if fault.name == "Xid 63":
        # The row that waits blocks the GPU by itself.
        assert used(made(document)) == {uuid for uuid in UUIDS if uuid != UUIDS[VICTIM]}
        return
    assert used(made(document)) == set(UUIDS)
    assert notices_of([host]) == [f"{HOST} GPU {VICTIM} is used though degraded: {fault.check}."]


@faults(
    ("lost on the bus", "all_gpus_answer", lost_on_the_bus),
    ("oops", "kernel_taint", lambda node: node.write("proc/sys/kernel/tainted", str(1 << 7))),
    ("nouveau may come back", "nouveau_blacklist", not_blacklisted),
    ("IOMMU translates", "iommu", translated),
    ("ACS redirects", "acs", lambda node: node.write_bridges(0x001D)),
    ("damaged record", "instance_records", lambda node: node.instance("chat-0", "[]")),
    ("damaged plan", "applied_plan", lambda node: node.write("applied.json", "{")),
    ("partial checkpoint", "checkpoints", lambda node: node.write("models/.staging-m-0123456789ab/model", "half")),
    ("checkpoint is gone", "checkpoints", runs_what_is_gone),
    ("damaged quarantine", "quarantine_file", lambda node: node.write("quarantine.json", "{")),
    ("unit without a record", "orphan_units", lambda node: setattr(node, "units", ORPHAN)),
    ("no module for the next kernel", "next_kernel", on_disk(NEXT, module=False, dkms="added")),
    ("no headers for the next kernel", "next_kernel", on_disk(NEXT, headers=False, module=False, dkms="added")),
    ("DKMS did not build", "dkms", on_disk(RELEASE, module=False, dkms="added")),
    ("packages are not held", "driver_packages", packages(HELD.replace("hold", "install"))),
    ("packages are half there", "driver_packages", packages(HELD.replace("ok installed", "ok half-configured"))),
)
def test_a_degraded_host_is_told_and_used(node: Node, fault: Fault) -> None:
    document, host = probed(node, fault)
    row_of(document["health"], fault, "degraded")
    (notice,) = [line for line in notices_of([host]) if line.startswith(f"{HOST} is degraded: ")]
    assert fault.check in notice
    assert used(made(document, model("m"))) <= set(UUIDS)
    assert len(made(document, model("m")).instances) == 1


def test_a_pair_that_hung_is_in_no_tensor_group_together(node: Node) -> None:
    def pair(a: int, b: int, p2p: str) -> dict[str, Any]:
        reason = None if p2p == "verified" else "no answer within 60 s: it hangs"
        return {"a": UUIDS[a], "b": UUIDS[b], "p2p": p2p, "bytes_per_s": None if reason else 2e10, "reason": reason}

    kept_test(node, pairs=[pair(0, 1, "failed"), pair(2, 3, "failed"), pair(0, 2, "verified"), pair(1, 3, "verified")])
    document = node.probe()
    (link,) = [link for link in document["links"] if {link["a"], link["b"]} == {UUIDS[0], UUIDS[1]}]
    assert (link["p2p"], link["p2p_failure"]) == ("failed", "no answer within 60 s: it hangs")
    groups = [set(shard.gpus) for one in made(document, PAIRS).instances for shard in one.shards]
    assert sorted(groups, key=min) == sorted([{UUIDS[0], UUIDS[2]}, {UUIDS[1], UUIDS[3]}], key=min)


def test_a_measured_curve_is_what_the_plan_counts_with(node: Node) -> None:
    curve = [{"gpus": 2, "bytes": 1 << power, "seconds": 1e-4 * (1 << power) / 1024} for power in range(10, 29, 2)]
    kept_test(node, all_reduce=curve)
    (host,) = with_link_classes(parse_hosts({"schema": 1, "hosts": {HOST: node.probe()}}, where="facts.json"))
    assert host.all_reduce[2][1024] == 1e-4
    links = [gpu.model.links for gpu in host.gpus if gpu.model is not None]
    assert {one.source for one in links if one is not None} == {"measured on the host"}
    assert None not in links


def test_a_curve_of_simulated_gpus_is_not(node: Node) -> None:
    curve = [{"gpus": 2, "bytes": 1 << power, "seconds": 1.0} for power in range(10, 29, 2)]
    verified = {"a": UUIDS[0], "b": UUIDS[1], "p2p": "verified", "bytes_per_s": 1e6}
    kept_test(node, backend="gloo", all_reduce=curve, pairs=[verified])
    (host,) = parse_hosts({"schema": 1, "hosts": {HOST: node.probe()}}, where="facts.json")
    assert host.all_reduce == {}
    assert {(link.p2p, link.bytes_per_s) for link in host.links} == {("verified", None), ("untested", None)}
    assert with_link_classes([host]) == (host,)


def test_a_lifted_quarantine_gives_the_gpu_back(node: Node) -> None:
    node.log(f"NVRM: Xid (PCI:{BUS_ID[:-2]}): 79, GPU has fallen off the bus.")
    assert UUIDS[VICTIM] not in used(made(node.probe()))
    quarantine(node, acknowledged={BUS_ID: {"boot_id": BOOT_ID, "sequence": 1}})
    assert used(made(node.probe())) == set(UUIDS)


@faults(
    ("ECC errors", "ecc_errors", nvml("ecc_uncorrected_volatile = 3")),
    ("throttled", "clocks", nvml("throttle_reasons = 0x40")),
    ("hot", "temperature", nvml("temperature_c = 93")),
    ("half the lanes", "pcie_width", nvml("link_width = 8")),
    ("an old slot", "pcie_generation", nvml("link_generation_max = 3", "link_generation = 3")),
    ("replays", "pcie_replays", nvml("pcie_replay_counter = 5000")),
    ("power limit", "power_limit", nvml("power_limit_mw = 275000")),
    ("a little of others", "foreign_memory", nvml("memory_used_mib = 2000")),
)
def test_a_degraded_gpu_is_the_last_to_be_used_and_what_runs_there_stays(node: Node, fault: Fault) -> None:
    # The victim is the first of its switch, and first in line while it is sound.
    sound = node.probe()
    three = model("m", replicas={"min": 3, "max": 3})
    running = made(sound, three).instances
    document, _ = probed(node, fault)
    row_of(document["gpus"][VICTIM]["health"], fault, "degraded")
    assert used(made(document, three)) == {uuid for uuid in UUIDS if uuid != UUIDS[VICTIM]}
    # Four are wanted: then it is used as well.
    assert used(made(document)) == set(UUIDS)
    # What stands on it stays, alone and in a tensor group.
    for entry in (three, FOUR, PAIRS):
        before = made(sound, entry).instances
        after = made(document, entry, before)
        assert after.moves == ()
        assert [one.shards for one in after.instances] == [one.shards for one in before]
        assert [one.engine_args for one in after.instances] == [one.engine_args for one in before]
    assert {one.id for one in running} == {"m-1", "m-2", "m-3"}


@faults(
    ("lost on the bus", "all_gpus_answer", lost_on_the_bus),
    ("oops", "kernel_taint", lambda node: node.write("proc/sys/kernel/tainted", str(1 << 7))),
    ("nouveau may come back", "nouveau_blacklist", not_blacklisted),
    ("no module for the next kernel", "next_kernel", on_disk(NEXT, module=False, dkms="added")),
    ("DKMS did not build", "dkms", on_disk(RELEASE, module=False, dkms="added")),
    ("packages are not held", "driver_packages", packages(HELD.replace("hold", "install"))),
)
def test_a_host_that_may_not_come_back_is_the_last_to_be_used(node: Node, fault: Fault) -> None:
    document, _ = probed(node, fault)
    other = two_hosts(document, Node(node.directory / "other").probe())
    (one,) = plan(other, [model("m")]).instances
    assert one.hosts == ("z-sound",)
    # With the fault on neither, the first by name has it; what runs on the bad host stays.
    fine = two_hosts(Node(node.directory / "again").probe(), Node(node.directory / "other").probe())
    running = plan(fine, [model("m")]).instances
    assert running[0].hosts == (HOST,)
    assert plan(other, [model("m")], running).moves == ()


class SimulatedFileSystem(NamedTuple):
    """What statvfs says of a file system that is small, full or read-only."""

    f_blocks: int
    f_bavail: int
    f_flag: int = 0
    f_frsize: int = 4096


@pytest.mark.parametrize(
    ("name", "status", "file_system"),
    [
        ("shm", "degraded", SimulatedFileSystem(f_blocks=16 << 10, f_bavail=16 << 10)),
        ("disk", "degraded", SimulatedFileSystem(f_blocks=1 << 28, f_bavail=1 << 19)),
        ("disk", "blocked", SimulatedFileSystem(f_blocks=1 << 28, f_bavail=1 << 28, f_flag=os.ST_RDONLY)),
    ],
)
def test_scarce_file_systems(
    node: Node, monkeypatch: pytest.MonkeyPatch, name: str, status: str, file_system: SimulatedFileSystem
) -> None:
    real = os.statvfs

    def statvfs(path: Path) -> Any:
        return file_system if str(path).endswith("dev/shm") == (name == "shm") else real(path)

    monkeypatch.setattr(os, "statvfs", statvfs)
    document = node.probe()
    row = row_of(document["health"], Fault("", name, lambda _: None), status)
    (host,) = parse_hosts({"schema": 1, "hosts": {HOST: document}}, where="facts.json")
    if status == "blocked":
        assert notices_of([host])[0].startswith(f"{HOST} gets nothing new: {name}: {row['evidence']}")
        assert used(made(document)) == set()
    else:
        assert f"{HOST} is degraded: {name}." in notices_of([host])
        assert used(made(document)) == set(UUIDS)


def test_little_host_memory_is_told_and_limits_what_is_placed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.write("proc/meminfo", f"MemTotal: {13 << 20} kB\nMemAvailable: {12 << 20} kB")
    wait = PendingReading.wait
    # The check leaves simulated GPUs alone: their memory is none.
    monkeypatch.setattr(PendingReading, "wait", lambda *given: dataclasses.replace(wait(*given), simulated=False))
    document = node.probe()
    row = row_of(document["health"], Fault("", "host_memory", lambda _: None), "degraded")
    assert "13 GiB for 179 GiB of GPU memory" in row["evidence"]
    found = made(document)
    assert 0 < len(used(found)) < len(UUIDS)
    assert [refusal.constraint for refusal in found.refused] == ["host_memory"]


def test_a_plan_from_a_pci_scan_is_marked_and_refused_beyond_a_check(node: Node) -> None:
    node.machine("fail.nvmlInit = DRIVER_NOT_LOADED")
    document = node.probe()
    found = made(document)
    assert found.instances
    assert all(one.provisional for one in found.instances)
    # playbooks/plan.yml refuses on this word alone, and names it.
    (play,) = yaml.safe_load((CHECKOUT / "playbooks/plan.yml").read_text())
    (guard,) = [task for task in play["pre_tasks"] if "ansible.builtin.assert" in task]
    assert document["provisional_because"]
    assert "provisional_because" in guard["vars"]["plan_unconfirmed"]
    assert guard["when"] == "not ansible_check_mode"
