"""The quarantine of one host: which GPUs are set aside and why, until somebody says that they are mended.

The state is a file that the watch writes every time it runs and that the probe reads. All of this is standard library:
it runs on managed hosts, without Ansible.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .probe_kernel_log import FATAL_XIDS
from .text_files import replace_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .probe_kernel_log import Xid

STATE_PATH = Path("/var/lib/l40s-fleet/quarantine.json")
SCHEMA = 1


@dataclass(frozen=True)
class Mark:
    """Why a GPU is set aside.

    Args:
        uuid: None for a GPU that NVML never described to the watch.
        reason: in words, with what was read.
        marked_at: UTC, as ``2026-11-24T12:00:00Z``.
    """

    uuid: str | None
    reason: str
    marked_at: str


@dataclass(frozen=True)
class Known:
    """What a GPU was when NVML last described it: one that has fallen off the bus no longer tells its UUID.

    Args:
        remapped_rows: rows that have been remapped so far, which is the count that a rise is measured from; None until
            NVML told it.
    """

    uuid: str
    remapped_rows: int | None = None


@dataclass(frozen=True)
class Acknowledged:
    """Kernel log records of a GPU up to this one were looked at by whoever lifted its quarantine."""

    boot_id: str
    sequence: int


@dataclass(frozen=True)
class Rows:
    """What NVML says about a GPU's remapped rows: how many, whether one waits for a reset, whether one failed.

    ``remapped`` is None where NVML does not tell.
    """

    uuid: str
    remapped: int | None
    pending: bool
    failed: bool


@dataclass(frozen=True)
class Quarantine:
    """The whole state; all mappings are by PCI bus id, as ``0000:3b:00.0``."""

    gpus: Mapping[str, Mark] = field(default_factory=dict)
    known: Mapping[str, Known] = field(default_factory=dict)
    acknowledged: Mapping[str, Acknowledged] = field(default_factory=dict)

    def mark_of(self, pci_bus_id: str, uuid: str | None) -> Mark | None:
        """Return the mark of a GPU, also of a card that was moved to another slot since; None when it has none."""
        if pci_bus_id in self.gpus:
            return self.gpus[pci_bus_id]
        return next((mark for mark in self.gpus.values() if uuid is not None and mark.uuid == uuid), None)

    def is_acknowledged(self, xid: Xid, boot_id: str) -> bool:
        """Whether an Xid is one that the quarantine was lifted after."""
        known = self.acknowledged.get(xid.pci_bus_id)
        return known is not None and known.boot_id == boot_id and xid.sequence <= known.sequence


def observe(state: Quarantine, rows: Mapping[str, Rows], xids: Iterable[Xid], boot_id: str, now: str) -> Quarantine:
    """Return the state after one look at the host: marks are added here, and never taken away.

    Args:
        state: after the last look.
        rows: of every GPU that NVML describes, by PCI bus id.
        xids: of this boot.
        boot_id: the kernel's, as ``/proc/sys/kernel/random/boot_id`` has it.
        now: UTC, for new marks.
    """
    known = dict(state.known)
    reasons: dict[str, str] = {}
    for xid in xids:
        if xid.number in FATAL_XIDS and not state.is_acknowledged(xid, boot_id):
            reasons[xid.pci_bus_id] = f"Xid {xid.number}: {FATAL_XIDS[xid.number]} ({xid.text})"
    for bus_id, now_read in rows.items():
        before = state.known.get(bus_id)
        # Another card in the slot begins anew.
        same_card = before is not None and before.uuid == now_read.uuid
        counted = before.remapped_rows if before is not None and same_card else None
        if counted is None:
            counted = now_read.remapped
        known[bus_id] = Known(now_read.uuid, counted)
        trouble = _trouble(now_read, counted)
        if trouble:
            reasons.setdefault(bus_id, trouble)
    gpus = dict(state.gpus)
    for bus_id, reason in sorted(reasons.items()):
        if bus_id not in gpus:
            gpus[bus_id] = Mark(known[bus_id].uuid if bus_id in known else None, reason, now)
    return replace(state, gpus=gpus, known=known)


def lift(
    state: Quarantine, wanted: Sequence[str], rows: Mapping[str, Rows], last: Mapping[str, int], boot_id: str
) -> tuple[Quarantine, tuple[str, ...]]:
    """Lift the quarantine of some GPUs.

    Args:
        state: as it is.
        wanted: PCI bus ids or UUIDs; ``all`` stands for every GPU that is marked.
        rows: of every GPU that NVML describes now: the counts that a later rise is measured from.
        last: the last record of the kernel log about each GPU, by PCI bus id.
        boot_id: of this boot.

    Returns:
        The new state, and the bus ids that were lifted.

    Raises:
        KeyError: a wanted GPU is not in quarantine.
    """
    lifted = []
    for name in wanted:
        found = [bus for bus, mark in state.gpus.items() if name in ("all", bus, mark.uuid)]
        if not found and name != "all":
            raise KeyError(name)
        lifted += [bus for bus in found if bus not in lifted]
    known, acknowledged = dict(state.known), dict(state.acknowledged)
    for bus in lifted:
        if bus in rows:
            known[bus] = Known(rows[bus].uuid, rows[bus].remapped)
        if bus in last:
            acknowledged[bus] = Acknowledged(boot_id, last[bus])
    gpus = {bus: mark for bus, mark in state.gpus.items() if bus not in lifted}
    return Quarantine(gpus, known, acknowledged), tuple(lifted)


def parse_state(document: Any) -> Quarantine:
    """Return the state from its JSON.

    Raises:
        ValueError: the document is not such a state.
    """
    try:
        if document["schema"] != SCHEMA:
            msg = f"schema must be {SCHEMA}, got {document['schema']!r}"
            raise ValueError(msg)
        return Quarantine(
            gpus={bus: Mark(**mark) for bus, mark in document["gpus"].items()},
            known={bus: Known(**known) for bus, known in document["known"].items()},
            acknowledged={bus: Acknowledged(**one) for bus, one in document["acknowledged"].items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        msg = f"not a quarantine: {type(error).__name__}: {error}"
        raise ValueError(msg) from error


def read_state(path: Path) -> Quarantine:
    """Return the state; an empty one where there is no file yet.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Quarantine()
    return parse_state(json.loads(text))


def write_state(path: Path, state: Quarantine) -> None:
    """Write the state in one step, where it differs: a reader sees the old or the new one."""
    document = {"schema": SCHEMA, **asdict(state)}
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    try:
        if path.read_text(encoding="utf-8") == text:
            return
    except OSError:
        pass
    replace_text(path, text)


def _trouble(rows: Rows, counted: int | None) -> str | None:
    if rows.failed:
        return "a memory row could not be remapped"
    if rows.pending:
        return "a memory row waits for a reset to be remapped"
    if rows.remapped is not None and counted is not None and rows.remapped > counted:
        return f"remapped rows rose from {counted} to {rows.remapped}"
    return None
