"""The link test of one host: every GPU, every pair of GPUs, and the all-reduce curve of groups.

The probe's host document says which GPUs there are, and under which key the result is kept: driver, GPUs and topology.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .link_runner import Engine, Outcome, run_task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SCHEMA = 1
Item = TypeVar("Item")
GROUP_SIZES = (2, 4, 8)
SMALLEST_BYTES = 1 << 10
_SPEED = re.compile(r"^([0-9.]+) GT/s")
_GENERATIONS = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}
# States of a unit that hold or want a GPU.
_AT_WORK = ("active", "activating", "reloading", "deactivating")


@dataclass(frozen=True)
class Settings:
    """How to test.

    Args:
        engine_version: whose torch and NCCL are used.
        largest_bytes: of the all-reduce curve.
        timeout_s: of a GPU or a pair; a group gets twice as much.
        sysfs: where the links' speeds are read.
        hangs: GPUs and pairs that are made to hang, as ``0`` or ``0-1`` by index, to see the time-out work.
    """

    engine_version: str
    largest_bytes: int = 256 << 20
    timeout_s: float = 60.0
    sysfs: Path = Path("/sys")
    hangs: tuple[str, ...] = ()


@dataclass(frozen=True)
class LinkGpu:
    """A GPU that takes part: its index and UUID, and its PCI bus id in the kernel's spelling."""

    index: int
    uuid: str
    pci_bus_id: str


def why_not_now(document: Mapping[str, Any]) -> str | None:
    """Return why the GPUs of this host cannot be tested now; None when they can.

    Args:
        document: the host document that the probe returned.
    """
    if document["provisional"]:
        return f"NVML does not answer: {document.get('provisional_because')}"
    units = [*document["instances"], *document["orphan_units"]]
    serving = [f"{one['id']} ({one['unit_state']})" for one in units if one["unit_state"] in _AT_WORK]
    if serving:
        return f"instances run on this host: {', '.join(serving)}; drain it first"
    busy = sorted({process["pid"] for gpu in document["gpus"] for process in gpu["processes"]})
    if busy:
        return f"other processes use its GPUs: {', '.join(map(str, busy))}"
    return None


def gpus_to_test(document: Mapping[str, Any]) -> tuple[LinkGpu, ...]:
    """Return the GPUs that are not blocked, by index; one that an earlier test blocked may be tested again."""

    def blocked(gpu: Mapping[str, Any]) -> bool:
        checks = gpu["health"]["checks"]
        return any(check["status"] == "blocked" and check["name"] != "write_and_verify" for check in checks)

    gpus = [gpu for gpu in document["gpus"] if not blocked(gpu)]
    return tuple(
        LinkGpu(gpu["index"], gpu["uuid"], gpu["pci_bus_id"]) for gpu in sorted(gpus, key=lambda g: g["index"])
    )


def read_kept(path: Path, key: str, gpus: Sequence[LinkGpu], backend: str) -> dict[str, Any] | None:
    """Return the kept result when it is of this driver and topology and of all these GPUs; None otherwise."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if (kept["schema"], kept["key"], kept["backend"]) != (SCHEMA, key, backend):
            return None
        tested = {gpu["uuid"] for gpu in kept["gpus"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(kept) if tested.issuperset(gpu.uuid for gpu in gpus) else None


def write_kept(path: Path, result: Mapping[str, Any]) -> None:
    """Keep a result, in one step."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=2)
        file.write("\n")
        os.fchmod(file.fileno(), 0o644)
    Path(temporary).replace(path)


def run_link_test(
    document: Mapping[str, Any],
    engine: Engine,
    settings: Settings,
    run: Callable[..., Outcome] = run_task,
) -> dict[str, Any]:
    """Test the GPUs of a host and return what is to be kept; see ``probe_links.apply_link_test``.

    Args:
        document: the host document.
        engine: how processes are started.
        settings: how to test.
        run: runs one task; see ``link_runner.run_task``.
    """
    gpus = gpus_to_test(document)
    singles = _at_once(lambda gpu: _single(gpu, engine, settings, run), gpus)
    sound = [gpu for gpu, row in zip(gpus, singles, strict=True) if row["status"] == "verified"]
    pairs: list[dict[str, Any]] = []
    # Disjoint pairs at the same time: each still has its GPUs for itself, and hanging ones cost one time-out together.
    for pairing in disjoint_rounds(sound):
        pairs += _at_once(lambda pair: _pair(pair[0], pair[1], engine, settings, run), pairing)
    verified = {frozenset((pair["a"], pair["b"])) for pair in pairs if pair["p2p"] == "verified"}
    groups, curve = [], []
    for size in GROUP_SIZES:
        group = clique(sound, verified, size)
        if group is None:
            continue
        outcome = run(
            engine,
            {"task": "group", "sizes": curve_sizes(settings.largest_bytes)},
            [gpu.uuid for gpu in group],
            2 * settings.timeout_s,
            hang=_hangs(settings, *group),
        )
        groups.append({"gpus": size, "uuids": [gpu.uuid for gpu in group], "failure": outcome.failure})
        curve += [{"gpus": size, **point} for point in outcome.result.get("all_reduce", ())]
    return {
        "schema": SCHEMA,
        "key": document["topology_key"],
        "driver_version": document["driver_version"],
        "engine": settings.engine_version,
        "backend": engine.backend,
        # Processes on CPUs that stand for GPUs: right values and the time-out are real, the rates are not.
        "simulated": engine.backend == "gloo",
        "gpus": singles,
        "pairs": sorted(pairs, key=lambda pair: (pair["a"], pair["b"])),
        "groups": groups,
        "all_reduce": curve,
    }


def curve_sizes(largest_bytes: int) -> list[int]:
    """Return the sizes of the curve: powers of four from 1 KiB on, and the largest."""
    sizes = []
    size = SMALLEST_BYTES
    while size < largest_bytes:
        sizes.append(size)
        size *= 4
    return [*sizes, largest_bytes]


def disjoint_rounds(gpus: Sequence[LinkGpu]) -> list[list[tuple[LinkGpu, LinkGpu]]]:
    """Return every pair once, in rounds in which no GPU comes twice."""
    left = list(combinations(gpus, 2))
    rounds = []
    while left:
        used: set[str] = set()
        chosen = []
        for pair in left:
            if used.isdisjoint(gpu.uuid for gpu in pair):
                chosen.append(pair)
                used.update(gpu.uuid for gpu in pair)
        left = [pair for pair in left if pair not in chosen]
        rounds.append(chosen)
    return rounds


def clique(gpus: Sequence[LinkGpu], verified: set[frozenset[str]], size: int) -> tuple[LinkGpu, ...] | None:
    """Return the first group of GPUs whose pairs are all verified: neighbours, since indices follow the bus."""
    for start in range(len(gpus)):
        group: list[LinkGpu] = []
        for gpu in gpus[start:]:
            if all(frozenset((gpu.uuid, other.uuid)) in verified for other in group):
                group.append(gpu)
            if len(group) == size:
                return tuple(group)
    return None


def _at_once(test: Callable[[Item], dict[str, Any]], items: Sequence[Item]) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(max_workers=max(1, len(items))) as pool:
        return list(pool.map(test, items))


def _single(gpu: LinkGpu, engine: Engine, settings: Settings, run: Callable[..., Outcome]) -> dict[str, Any]:
    speed_file = settings.sysfs / "bus/pci/devices" / gpu.pci_bus_id / "current_link_speed"
    task = {"task": "single", "link_speed": str(speed_file)}
    outcome = run(engine, task, [gpu.uuid], settings.timeout_s, hang=_hangs(settings, gpu))
    speed = _SPEED.match(outcome.result.get("link_speed") or "")
    return {
        "uuid": gpu.uuid,
        "status": "verified" if outcome.failure is None else "failed",
        "reason": outcome.failure,
        "host_bytes_per_s": outcome.result.get("copy_bytes_per_s"),
        "link_generation": _GENERATIONS.get(float(speed.group(1))) if speed else None,
    }


def _pair(a: LinkGpu, b: LinkGpu, engine: Engine, settings: Settings, run: Callable[..., Outcome]) -> dict[str, Any]:
    outcome = run(engine, {"task": "pair"}, [a.uuid, b.uuid], settings.timeout_s, hang=_hangs(settings, a, b))
    return {
        "a": a.uuid,
        "b": b.uuid,
        "p2p": "verified" if outcome.failure is None else "failed",
        "reason": outcome.failure,
        "bytes_per_s": outcome.result.get("bytes_per_s"),
        "copy_bytes_per_s": outcome.result.get("copy_bytes_per_s"),
        "peer_access": outcome.result.get("peer_access"),
    }


def _hangs(settings: Settings, *gpus: LinkGpu) -> bool:
    return "-".join(str(gpu.index) for gpu in gpus) in settings.hangs
