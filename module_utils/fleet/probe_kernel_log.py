"""Finds the NVIDIA driver's Xid errors in the kernel log of this boot."""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .probe_pci import normalized_bus_id

if TYPE_CHECKING:
    from pathlib import Path

# "NVRM: Xid (PCI:0000:3b:00): 79, pid=..., GPU has fallen off the bus."; old drivers leave out "PCI:", new ones may add
# the function. The text after the number is the driver's own and differs between releases.
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:]+)(?:\.[0-7])?\): (\d+)(?:, (.*))?")
# A record of /dev/kmsg: "priority,sequence,microseconds,flags;text"; the sequence counts from 0 at every boot.
_RECORD = re.compile(r"\d+,(\d+),\d+,")
_RECORD_BYTES = 8192

# Xids after which a GPU must not be used, by NVIDIA's Xid catalogue. 63 records a row to be remapped at the next reset.
FATAL_XIDS = {
    48: "an uncorrectable memory error",
    64: "a memory row that could not be remapped",
    79: "the GPU has fallen off the bus",
    119: "the GPU's system processor did not answer",
    120: "the GPU's system processor reported an error",
}
REMAP_XID = 63


@dataclass(frozen=True)
class Xid:
    """One Xid line.

    Args:
        pci_bus_id: the GPU, as ``0000:3b:00.0``.
        number: NVIDIA's Xid number.
        text: what the driver wrote after it.
        sequence: number of its record in this boot; of its line in a log without record numbers.
    """

    pci_bus_id: str
    number: int
    text: str
    sequence: int = 0


@dataclass(frozen=True)
class KernelLog:
    """The Xids of this boot.

    Args:
        xids: in the order of the log; None when the log could not be read.
        unseen: what could not be seen, in words; empty when the log was read from its beginning.
    """

    xids: tuple[Xid, ...] | None
    unseen: str = ""


def read_kernel_log(path: Path) -> KernelLog:
    """Read the kernel log: the device ``/dev/kmsg``, or a text file with such lines."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return KernelLog(None, f"kernel log: {path} does not exist")
    except OSError as error:
        return KernelLog(None, f"kernel log: {path}: {error.strerror} (it needs root, or kernel.dmesg_restrict=0)")
    try:
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            text = _device_text(descriptor)
        else:
            with os.fdopen(os.dup(descriptor), encoding="utf-8", errors="replace") as file:
                text = file.read()
    except OSError as error:
        return KernelLog(None, f"kernel log: {path}: {error.strerror}")
    finally:
        os.close(descriptor)
    return KernelLog(find_xids(text), _overwritten(text))


def find_xids(text: str) -> tuple[Xid, ...]:
    """Return the Xid lines of a kernel log in their order."""
    found = []
    for position, line in enumerate(text.splitlines()):
        match = _XID.search(line)
        if match is None:
            continue
        bus_id, number, words = match.groups()
        record = _RECORD.match(line)
        sequence = int(record.group(1)) if record else position
        # The log leaves the function out; a GPU is function 0.
        found.append(Xid(normalized_bus_id(f"{bus_id}.0"), int(number), (words or "").strip(), sequence))
    return tuple(found)


def _device_text(descriptor: int) -> str:
    """Return the records of /dev/kmsg, which gives one a read and EAGAIN at the end."""
    records = []
    while True:
        try:
            record = os.read(descriptor, _RECORD_BYTES)
        except BlockingIOError:
            break
        except OSError as error:
            # The record was overwritten while we read; the next read goes on behind it.
            if error.errno == errno.EPIPE:
                continue
            raise
        if not record:
            break
        records.append(record.decode(errors="replace"))
    return "".join(records)


def _overwritten(text: str) -> str:
    """Say so when the ring buffer no longer holds the beginning of the boot (records count from 0)."""
    first = _RECORD.match(text)
    if first is None or int(first.group(1)) == 0:
        return ""
    return f"kernel log: {int(first.group(1))} older records of this boot were overwritten"
