"""The checks of one GPU. Each is a small function from what was read to a verdict; ``GPU_CHECKS`` lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .probe_kernel_log import FATAL_XIDS, REMAP_XID
from .probe_pci import ABSENT, PciGpu
from .probe_verdict import Check, Verdict, blocked, degraded, ok, unknown

if TYPE_CHECKING:
    from .probe_kernel_log import Xid
    from .probe_links import GpuTest
    from .probe_nvml import GpuReading
    from .quarantine_state import Mark

_MIB = 1 << 20

# Replays repair bit errors of the link and are rare on a sound one; NVIDIA publishes no limit. Above this many since
# the driver was loaded the link deserves a look.
_REPLAYS_TOLERATED = 100
# A driver keeps some hundred MiB on an idle GPU; more than this without a process to account for it is someone else's.
_UNATTRIBUTED_TOLERATED_BYTES = 1024 * _MIB
_TEMPERATURE_MARGIN_C = 5
# P0 to P2 are states of work; from P5 on a GPU idles and lets its link fall back to a lower generation.
_IDLE_PERFORMANCE_STATE = 5
_CLOCK_IDLE = 0x1
_CLOCK_SLOWDOWNS = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "external power brake",
}
_EXCLUSIVE_PROCESS, _PROHIBITED = 3, 2
_VGPU_GUEST, _VGPU_HOSTS = 2, (3, 4)
_TEST_AGAIN = "playbooks/probe.yml -e fleet_link_test=true -e probe_link_test_force=true"


@dataclass(frozen=True)
class GpuView:
    """All that was read about one GPU.

    Args:
        bus_id: as ``0000:3b:00.0``, or ``index N`` for a GPU that NVML counts and does not describe.
        nvml: nothing read in it when NVML does not answer or does not count this GPU.
        pci: ``ABSENT`` when sysfs does not show it.
        nvml_answers: NVML answers on this host.
        counted: NVML counts this GPU.
        xids: of this GPU, in this boot; None when the kernel log could not be read.
        attributed_bytes: memory of all processes that the driver lists.
        foreign_bytes: memory of those that belong to no instance of the fleet, and what no process accounts for.
        foreign_pids: their process ids.
        numa_nodes: of the host.
        quarantine: why the watch set this GPU aside; None when it did not.
        tested: what a kept link test says about it; None without one.
    """

    bus_id: str
    nvml: GpuReading
    pci: PciGpu
    nvml_answers: bool
    counted: bool
    xids: tuple[Xid, ...] | None
    attributed_bytes: int = 0
    foreign_bytes: int = 0
    foreign_pids: tuple[int, ...] = ()
    numa_nodes: int = 1
    quarantine: Mark | None = None
    tested: GpuTest | None = None

    def why(self, field: str) -> Verdict:
        """Return the verdict for a field that was not read."""
        if not self.counted:
            return unknown("no driver answers for this GPU")
        return unknown(f"NVML: {self.nvml.missing.get(field, 'no answer')}")

    @property
    def idle(self) -> bool:
        """True unless the GPU is known to be at work: an idle link runs below what it can do."""
        if self.nvml.clock_reasons is not None and self.nvml.clock_reasons & _CLOCK_IDLE:
            return True
        return self.nvml.performance_state is None or self.nvml.performance_state >= _IDLE_PERFORMANCE_STATE

    @property
    def link_width(self) -> int | None:
        """Lanes in use."""
        return _first(self.nvml.link_width, self.pci.link_width)

    @property
    def link_max_width(self) -> int | None:
        """Lanes of the card. NVML's figure is already cut down to the slot's, so sysfs comes first."""
        return _first(self.pci.link_max_width, self.nvml.link_max_width)

    @property
    def link_current_generation(self) -> int | None:
        """Generation at this moment."""
        return _first(self.nvml.link_generation, self.pci.link_generation)

    @property
    def link_slot_generation(self) -> int | None:
        """The highest generation of card and slot together."""
        return _first(self.nvml.link_max_generation, self.link_card_generation)

    @property
    def link_card_generation(self) -> int | None:
        """The highest generation of the card."""
        return _first(
            self.nvml.link_card_generation,
            self.pci.link_max_generation,
            self.nvml.link_max_generation,
        )

    @property
    def link_generation(self) -> int | None:
        """Generation under load: as tested, else an idle link is taken for what card and slot allow."""
        if self.idle and self.tested is not None and self.tested.link_generation is not None:
            return self.tested.link_generation
        if self.idle:
            return _first(self.link_slot_generation, self.link_current_generation)
        return self.link_current_generation


def unattributed_bytes(used_bytes: int | None, attributed_bytes: int) -> int:
    """Return the memory in use that no process accounts for, once it is more than a driver keeps for itself."""
    rest = (used_bytes or 0) - attributed_bytes
    return rest if rest > _UNATTRIBUTED_TOLERATED_BYTES else 0


def _answers(gpu: GpuView) -> Verdict:
    if not gpu.nvml_answers:
        return unknown("NVML does not answer on this host")
    if not gpu.counted:
        return blocked(
            "on the PCI bus, but NVML does not count it",
            f"read the kernel log for NVRM lines of {gpu.bus_id}; drain the host and reboot it; if it stays away, "
            "reseat or replace the card",
        )
    if gpu.nvml.failure is not None:
        return blocked(
            f"NVML: {gpu.nvml.failure}",
            f"drain the host, then reset the GPU (nvidia-smi --gpu-reset -i {gpu.bus_id}) or reboot; if it comes back, "
            "replace the card",
        )
    return ok("answers")


def _kernel_driver(gpu: GpuView) -> Verdict:
    if gpu.pci == ABSENT:
        return unknown("not found in sysfs")
    if gpu.pci.driver == "nvidia":
        return ok("bound to nvidia")
    if gpu.pci.driver is None:
        return unknown("no kernel driver is bound to it")
    if gpu.pci.driver == "nouveau":
        return blocked("bound to nouveau", "blacklist nouveau, rebuild the initramfs and reboot (role nvidia_driver)")
    return blocked(
        f"bound to {gpu.pci.driver}",
        f"release it from {gpu.pci.driver}: it is set aside for something else, such as a guest",
    )


def _xid(gpu: GpuView) -> Verdict:
    if gpu.xids is None:
        return unknown("the kernel log could not be read", "run the probe as root")
    fatal = [xid for xid in gpu.xids if xid.number in FATAL_XIDS]
    if fatal:
        last = fatal[-1]
        return blocked(
            f"Xid {last.number} in this boot's kernel log: {FATAL_XIDS[last.number]} ({last.text})",
            f"drain the host and reboot it, or reset the GPU (nvidia-smi --gpu-reset -i {gpu.bus_id}); replace the "
            "card if it comes back",
        )
    if any(xid.number == REMAP_XID for xid in gpu.xids):
        if gpu.nvml.remapped_pending == 0:
            return ok("Xid 63: a memory row was remapped, and the reset that it needed is done")
        return degraded(
            "Xid 63: a memory row is to be remapped",
            f"drain the GPU and reset it: nvidia-smi --gpu-reset -i {gpu.bus_id}",
        )
    others = sorted({xid.number for xid in gpu.xids})
    return ok(f"Xids of applications only: {', '.join(map(str, others))}" if others else "none in this boot")


def _quarantine(gpu: GpuView) -> Verdict:
    if gpu.quarantine is None:
        return ok("none")
    return blocked(
        f"in quarantine since {gpu.quarantine.marked_at}: {gpu.quarantine.reason}",
        f"drain the host, reset the GPU (nvidia-smi --gpu-reset -i {gpu.bus_id}) or replace the card, then lift it: "
        f"ansible-playbook playbooks/clear_quarantine.yml --limit HOST -e quarantine_gpu={gpu.bus_id}",
    )


def _write_and_verify(gpu: GpuView) -> Verdict:
    if gpu.tested is None:
        return unknown("no link test of this driver and topology is kept")
    if gpu.tested.failure is not None:
        return blocked(
            f"the link test wrote to it and could not verify: {gpu.tested.failure}",
            f"drain the host, reset the GPU (nvidia-smi --gpu-reset -i {gpu.bus_id}) and test again: {_TEST_AGAIN}; "
            "replace the card if it fails again",
        )
    return ok("what was written came back right")


def _remapped_rows(gpu: GpuView) -> Verdict:
    if gpu.nvml.remapped_failed is None:
        return gpu.why("remapped_failed")
    if gpu.nvml.remapped_failed:
        return blocked("a memory row could not be remapped", "replace the card")
    if gpu.nvml.remapped_pending:
        return blocked(
            "a memory row waits for a reset to be remapped",
            f"drain the GPU and reset it: nvidia-smi --gpu-reset -i {gpu.bus_id}",
        )
    return ok(f"{gpu.nvml.remapped_uncorrectable} rows remapped for uncorrectable errors, none pending")


def _ecc_errors(gpu: GpuView) -> Verdict:
    if gpu.nvml.ecc_uncorrected_count is None:
        return gpu.why("ecc_uncorrected_count")
    count = gpu.nvml.ecc_uncorrected_count
    if count:
        return degraded(
            f"{count} uncorrected memory errors since the driver was loaded",
            f"drain the GPU, reset it (nvidia-smi --gpu-reset -i {gpu.bus_id}) and watch the count",
        )
    return ok("no uncorrected memory errors since the driver was loaded")


def _ecc_mode(gpu: GpuView) -> Verdict:
    if gpu.nvml.ecc_mode is None:
        return gpu.why("ecc_mode")
    names = ("off", "on")
    mode, pending = gpu.nvml.ecc_mode, gpu.nvml.ecc_mode_pending
    if pending is not None and pending != mode:
        return degraded(
            f"{names[mode]}, and {names[pending]} after the next reset, which changes the GPU's memory",
            f"drain and reset the GPU (nvidia-smi --gpu-reset -i {gpu.bus_id}), then plan again",
        )
    if not mode:
        return degraded(
            "off: memory errors go unnoticed", f"nvidia-smi -i {gpu.bus_id} -e 1, then reset the GPU and plan again"
        )
    return ok("on")


def _mig(gpu: GpuView) -> Verdict:
    if not gpu.counted:
        return gpu.why("mig_mode")
    if gpu.nvml.mig_mode is None:
        return ok(f"no MIG (NVML: {gpu.nvml.missing.get('mig_mode', 'no answer')})")
    if gpu.nvml.mig_mode:
        return blocked("MIG is on: the fleet places on whole GPUs", f"nvidia-smi -i {gpu.bus_id} -mig 0")
    return ok("off")


def _virtualization(gpu: GpuView) -> Verdict:
    if gpu.nvml.virtualization_mode is None:
        return gpu.why("virtualization_mode")
    mode = gpu.nvml.virtualization_mode
    if mode == _VGPU_GUEST:
        return blocked(
            "a vGPU inside a guest: memory and speed are a share of the card's",
            "pass the whole GPU through to the guest, or run on the host",
        )
    if mode in _VGPU_HOSTS:
        return blocked("the card serves vGPUs to guests", "take the vGPU manager off this host, or exclude the GPU")
    return ok("passed through to this guest" if mode == 1 else "bare metal")


def _compute_mode(gpu: GpuView) -> Verdict:
    if gpu.nvml.compute_mode is None:
        return gpu.why("compute_mode")
    remedy = f"nvidia-smi -i {gpu.bus_id} -c 0"
    if gpu.nvml.compute_mode == _PROHIBITED:
        return blocked("compute mode is prohibited", remedy)
    if gpu.nvml.compute_mode == _EXCLUSIVE_PROCESS:
        return degraded("compute mode is exclusive: instances cannot share this GPU", remedy)
    return ok("default")


def _pcie_width(gpu: GpuView) -> Verdict:
    width, most = gpu.link_width, gpu.link_max_width
    if width is None or most is None:
        return unknown("the link's width could not be read")
    if width < most:
        return degraded(f"x{width} of x{most}", "reseat the card, and check slot, riser and the board's lane split")
    return ok(f"x{width}")


def _pcie_generation(gpu: GpuView) -> Verdict:
    now, slot, card = gpu.link_current_generation, gpu.link_slot_generation, gpu.link_card_generation
    if now is None or slot is None or card is None:
        return unknown("the link's generation could not be read")
    if slot < card:
        return degraded(
            f"the slot allows generation {slot}, the card {card}", "move the card to a better slot, or set the BIOS"
        )
    if now < slot and not gpu.idle:
        return degraded(
            f"generation {now} at work, {slot} is possible", "look for link retraining in the BIOS, reseat the card"
        )
    loaded = gpu.tested.link_generation if gpu.tested is not None else None
    if loaded is not None and loaded < slot:
        return degraded(
            f"generation {loaded} in the link test, {slot} is possible",
            f"look for link retraining in the BIOS, reseat the card, then test again: {_TEST_AGAIN}",
        )
    return ok(f"generation {now}" if now == slot else f"generation {now} while idle, {slot} is possible")


def _pcie_replays(gpu: GpuView) -> Verdict:
    if gpu.nvml.replay_count is None:
        return gpu.why("replay_count")
    count = gpu.nvml.replay_count
    if count > _REPLAYS_TOLERATED:
        return degraded(f"{count} replays on the link", "reseat the card or its riser: the link has bit errors")
    return ok(f"{count} replays")


def _power_limit(gpu: GpuView) -> Verdict:
    if gpu.nvml.power_limit_mw is None or gpu.nvml.power_limit_default_mw is None:
        return gpu.why("power_limit_mw")
    limit_w, default_w = gpu.nvml.power_limit_mw // 1000, gpu.nvml.power_limit_default_mw // 1000
    if limit_w < default_w:
        return degraded(f"{limit_w} W, the card's is {default_w} W", f"nvidia-smi -i {gpu.bus_id} -pl {default_w}")
    return ok(f"{limit_w} W")


def _clocks(gpu: GpuView) -> Verdict:
    if gpu.nvml.clock_reasons is None:
        return gpu.why("clock_reasons")
    reasons = [name for bit, name in _CLOCK_SLOWDOWNS.items() if gpu.nvml.clock_reasons & bit]
    if reasons:
        return degraded(f"clocks are held down: {', '.join(reasons)}", "check air flow, fans and the power supply")
    return ok("not held down")


def _temperature(gpu: GpuView) -> Verdict:
    if gpu.nvml.temperature_c is None:
        return gpu.why("temperature_c")
    now, limit = gpu.nvml.temperature_c, gpu.nvml.temperature_slowdown_c
    if limit is None:
        return ok(f"{now} C")
    if now >= limit - _TEMPERATURE_MARGIN_C:
        return degraded(f"{now} C, clocks are cut at {limit} C", "check air flow and fans")
    return ok(f"{now} C of {limit} C")


def _persistence_mode(gpu: GpuView) -> Verdict:
    if gpu.nvml.persistence_mode is None:
        return gpu.why("persistence_mode")
    if not gpu.nvml.persistence_mode:
        return degraded(
            "off: the GPU is set up anew for every first process", "systemctl enable --now nvidia-persistenced"
        )
    return ok("on")


def _foreign_memory(gpu: GpuView) -> Verdict:
    if gpu.nvml.processes is None:
        return gpu.why("processes")
    if gpu.foreign_pids or gpu.foreign_bytes:
        mib = gpu.foreign_bytes // _MIB
        owner = (
            f"processes {', '.join(map(str, gpu.foreign_pids))}" if gpu.foreign_pids else "no process that is listed"
        )
        return degraded(
            f"{mib} MiB are held from outside the fleet, by {owner}",
            "end them, or exclude the GPU with fleet_exclude_gpus",
        )
    return ok("none")


def _numa(gpu: GpuView) -> Verdict:
    if gpu.pci == ABSENT:
        return unknown("not found in sysfs")
    if gpu.pci.numa_node is None and gpu.numa_nodes > 1:
        return degraded(
            f"the firmware names no NUMA node, and the host has {gpu.numa_nodes}",
            "update the BIOS; until then no CPU binding",
        )
    return ok(f"node {gpu.pci.numa_node or 0}")


GPU_CHECKS: tuple[Check[GpuView], ...] = (
    Check("answers", _answers),
    Check("kernel_driver", _kernel_driver),
    Check("xid", _xid),
    Check("quarantine", _quarantine),
    Check("write_and_verify", _write_and_verify),
    Check("remapped_rows", _remapped_rows),
    Check("ecc_errors", _ecc_errors),
    Check("ecc_mode", _ecc_mode),
    Check("mig", _mig),
    Check("virtualization", _virtualization),
    Check("compute_mode", _compute_mode),
    Check("pcie_width", _pcie_width),
    Check("pcie_generation", _pcie_generation),
    Check("pcie_replays", _pcie_replays),
    Check("power_limit", _power_limit),
    Check("clocks", _clocks),
    Check("temperature", _temperature),
    Check("persistence_mode", _persistence_mode),
    Check("foreign_memory", _foreign_memory),
    Check("numa_node", _numa),
)


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
