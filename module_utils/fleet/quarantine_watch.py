"""The program behind ``l40s-fleet-quarantine.timer``: sets GPUs aside that must not be used, stops what uses them.

It looks at the kernel log and at NVML, marks GPUs in a file that the probe reads, and stops the instances on them,
whose engines drain; the gateway's checks take them out. Only ``clear`` takes a mark away.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .probe_instances import read_all_records, unit_of_record
from .probe_kernel_log import read_kernel_log
from .probe_nvml import read_nvml
from .quarantine_state import STATE_PATH, Quarantine, Rows, lift, observe, read_state, write_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .probe_kernel_log import KernelLog

_NVML_TIMEOUT_S = 20.0
_SYSTEMCTL_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Places:
    """Where the watch reads and writes; the lab and tests have places of their own."""

    state: Path = STATE_PATH
    instances: Path = Path("/etc/l40s-fleet/instances")
    triton: Path = Path("/etc/l40s-fleet/triton")
    kernel_log: Path = Path("/dev/kmsg")
    boot_id: Path = Path("/proc/sys/kernel/random/boot_id")
    nvml_library: str | None = None


def systemctl(arguments: Sequence[str]) -> str:
    """Run systemctl and return what it printed.

    Raises:
        OSError: it is not there.
        subprocess.SubprocessError: it failed, or did not answer in time.
    """
    command = ["systemctl", *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=_SYSTEMCTL_TIMEOUT_S, stdin=subprocess.DEVNULL
    ).stdout


class Watch:
    """One look at the host.

    Args:
        places: where things are.
        nvml: the module pynvml, or None without one.
        control: runs systemctl.
        say: takes one line for the journal.
    """

    def __init__(
        self,
        places: Places,
        nvml: Any,
        *,
        control: Callable[[Sequence[str]], str] = systemctl,
        say: Callable[[str], object] = lambda line: sys.stdout.write(line + "\n"),
    ) -> None:
        self._places, self._nvml, self._control, self._say = places, nvml, control, say

    def run(self) -> Quarantine:
        """Mark what has to be marked and stop what runs there; return the state.

        Raises:
            OSError: the state cannot be read or written.
            ValueError: the state file is damaged.
        """
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with self._locked():
            before = read_state(self._places.state)
            state = observe(before, self._rows(), self._log().xids or (), self._boot_id(), now)
            # The mark is kept before anything is stopped: it counts even when stopping fails.
            write_state(self._places.state, state)
        for bus_id in sorted(set(state.gpus) - set(before.gpus)):
            self._say(f"{bus_id} ({state.gpus[bus_id].uuid}) is in quarantine: {state.gpus[bus_id].reason}")
        self._drain(state)
        return state

    def clear(self, wanted: Sequence[str], *, pretend: bool = False) -> tuple[str, ...]:
        """Lift the quarantine of GPUs, and return their bus ids.

        Args:
            wanted: bus ids or UUIDs, or ``all``.
            pretend: say what would be lifted, and change nothing.

        Raises:
            KeyError: a GPU is not in quarantine.
            OSError: the state cannot be read or written.
            ValueError: the state file is damaged.
        """
        with self._locked():
            last = {xid.pci_bus_id: xid.sequence for xid in self._log().xids or ()}
            before = read_state(self._places.state)
            state, lifted = lift(before, wanted, self._rows(), last, self._boot_id())
            if not pretend:
                write_state(self._places.state, state)
        return lifted

    def _drain(self, state: Quarantine) -> None:
        marked = {mark.uuid for mark in state.gpus.values() if mark.uuid is not None}
        if not marked:
            return
        unseen: list[str] = []
        for record in read_all_records(self._places.instances, self._places.triton, unseen):
            used = marked.intersection(_gpus(record))
            unit = unit_of_record(record)
            if used and self._wanted(unit):
                self._say(f"stopping {unit}, which uses {', '.join(sorted(used))}")
                # Disabled as well: it must not come back with the next boot. The engine drains before it stops.
                # A unit of Triton may be generated, which cannot be disabled: after a boot it is stopped again.
                if record.get("engine") != "triton":
                    self._control(["disable", "--quiet", unit])
                self._control(["stop", "--no-block", unit])
        for line in unseen:
            self._say(line)

    def _wanted(self, unit: str) -> bool:
        """Whether the unit runs, is about to, or would at the next boot."""
        shown = self._control(["show", "--property=ActiveState,UnitFileState", unit])
        values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
        running = values.get("ActiveState") in ("active", "activating", "reloading")
        return running or values.get("UnitFileState") == "enabled"

    def _rows(self) -> dict[str, Rows]:
        reading = read_nvml(self._nvml, self._places.nvml_library, _NVML_TIMEOUT_S)
        if reading.failure is not None:
            self._say(f"NVML: {reading.failure}")
        return {
            gpu.pci_bus_id: Rows(
                gpu.uuid,
                _sum(gpu.remapped_correctable, gpu.remapped_uncorrectable),
                bool(gpu.remapped_pending),
                bool(gpu.remapped_failed),
            )
            for gpu in reading.gpus
            if gpu.pci_bus_id is not None and gpu.uuid is not None
        }

    def _log(self) -> KernelLog:
        log = read_kernel_log(self._places.kernel_log)
        if log.xids is None:
            self._say(log.unseen)
        return log

    def _boot_id(self) -> str:
        return self._places.boot_id.read_text(encoding="ascii").strip()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep a clear and a look apart: each would write over what the other wrote."""
        self._places.state.parent.mkdir(parents=True, exist_ok=True)
        with self._places.state.with_suffix(".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _sum(*counts: int | None) -> int | None:
    return None if None in counts else sum(count or 0 for count in counts)


def _gpus(record: dict[str, Any]) -> set[str]:
    """UUIDs that an instance holds; none where the record is damaged."""
    try:
        return {str(gpu) for shard in record["shards"] for gpu in shard["gpus"]}
    except (KeyError, TypeError):
        return set()


def main(nvml: Any, arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``watch``, ``status`` or ``clear``. Exit status 1 and one line on stderr for a failure."""
    parser = argparse.ArgumentParser(prog="l40s-fleet-quarantine", description="GPUs of this host that are set aside")
    parser.add_argument("--state", type=Path, default=STATE_PATH, help="where the marks are kept (%(default)s)")
    parser.add_argument("--kernel-log", type=Path, default=Path("/dev/kmsg"), help="device or text file (%(default)s)")
    parser.add_argument("--nvml-library", help="the NVML library; default is the one that the loader finds")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("watch", help="look once: mark GPUs with fatal errors, and stop the instances on them")
    commands.add_parser("status", help="print the marks as JSON")
    clear = commands.add_parser("clear", help="lift the quarantine of GPUs that were mended; prints JSON")
    clear.add_argument("--pretend", action="store_true", help="change nothing")
    clear.add_argument("gpu", nargs="+", help="PCI bus id or UUID, or all")
    given = parser.parse_args(arguments)
    places = Places(state=given.state, kernel_log=given.kernel_log, nvml_library=given.nvml_library)
    try:
        if given.command == "watch":
            Watch(places, nvml).run()
        elif given.command == "clear":
            watch = Watch(places, nvml, say=lambda line: sys.stderr.write(line + "\n"))
            sys.stdout.write(json.dumps({"lifted": watch.clear(given.gpu, pretend=given.pretend)}) + "\n")
        else:
            marks = {bus: vars(mark) for bus, mark in read_state(places.state).gpus.items()}
            sys.stdout.write(json.dumps(marks, indent=2, sort_keys=True) + "\n")
    except KeyError as error:
        sys.stderr.write(f"{given.state}: {error.args[0]} is not in quarantine\n")
        return 1
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"{given.state}: {error}\n")
        return 1
    return 0
