"""Reads NVML through nvidia-ml-py, which the caller hands in: the core imports neither it nor ansible.

NVML is read in a child process with a time limit. A GPU that fell off the bus can leave a call waiting in the kernel
for ever, and a broken library can take its process down; the probe has to report both instead of sharing their fate.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from .probe_pci import normalized_bus_id

if TYPE_CHECKING:
    from collections.abc import Callable

SIMULATED_SYMBOL = "l40sFleetSimulatedNvml"

# NVML's numbers (nvml.h): the device no longer answers, or answers only after a reset.
_LOST = (15, 16)
_FUNCTION_NOT_FOUND = 13

_PATH_CLASSES = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}


@dataclass(frozen=True)
class GpuProcess:
    """A compute process on a GPU; ``used_bytes`` is None where the driver does not tell."""

    pid: int
    used_bytes: int | None


@dataclass(frozen=True)
class GpuReading:
    """What NVML says about one GPU.

    A field is None when NVML did not answer; ``missing`` then says why, by field name. ``failure`` is the error of a
    GPU that no longer answers at all. Powers are in milliwatts and temperatures in degrees Celsius, as NVML gives them.
    """

    index: int
    failure: str | None = None
    uuid: str | None = None
    name: str | None = None
    pci_bus_id: str | None = None
    pci_device_id: str | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    link_generation: int | None = None
    link_width: int | None = None
    link_max_generation: int | None = None
    link_max_width: int | None = None
    link_card_generation: int | None = None
    replay_count: int | None = None
    performance_state: int | None = None
    power_limit_mw: int | None = None
    power_limit_default_mw: int | None = None
    clock_reasons: int | None = None
    temperature_c: int | None = None
    temperature_slowdown_c: int | None = None
    persistence_mode: int | None = None
    compute_mode: int | None = None
    virtualization_mode: int | None = None
    mig_mode: int | None = None
    ecc_mode: int | None = None
    ecc_mode_pending: int | None = None
    ecc_uncorrected_count: int | None = None
    remapped_correctable: int | None = None
    remapped_uncorrectable: int | None = None
    remapped_pending: int | None = None
    remapped_failed: int | None = None
    processes: tuple[GpuProcess, ...] | None = None
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PairReading:
    """What NVML says about the way between two GPUs, by their positions in ``NvmlReading.gpus``."""

    a: int
    b: int
    path: str | None
    p2p_reported: bool | None


@dataclass(frozen=True)
class NvmlReading:
    """All that NVML says about a host. ``failure`` is set, and the rest empty, when NVML does not answer."""

    failure: str | None = None
    driver_version: str | None = None
    nvml_version: str | None = None
    cuda_driver_version: int | None = None
    simulated: bool = False
    gpus: tuple[GpuReading, ...] = ()
    pairs: tuple[PairReading, ...] = ()


@dataclass(frozen=True)
class PendingReading:
    """NVML while it is read by a child process, so that the caller can look at other things meanwhile."""

    child: int
    read_end: int
    started_s: float

    def wait(self, timeout_s: float) -> NvmlReading:
        """Return what NVML says; ``timeout_s`` after its start it is given up and reported as a failure."""
        try:
            text = _read_all(self.read_end, self.started_s + timeout_s)
        finally:
            os.close(self.read_end)
        if text is None:
            os.kill(self.child, signal.SIGKILL)
            # A process that waits in the kernel cannot be killed, so it is not waited for either.
            os.waitpid(self.child, os.WNOHANG)
            return NvmlReading(failure=f"NVML did not answer within {timeout_s:g} s")
        _, status = os.waitpid(self.child, 0)
        if not text:
            return NvmlReading(failure=f"reading NVML ended with {_ending(status)}")
        return _from_json(json.loads(text))


def start_reading(load: Callable[[], Any], library: str | None) -> PendingReading:
    """Begin to read NVML.

    Args:
        load: imports the module pynvml and returns it, or None where it is missing. The child calls it: it takes as
            long as all else that is done there.
        library: path of the NVML library; None for the one the loader finds.
    """
    read_end, write_end = os.pipe()
    started_s = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _answer(write_end, load, library)
    os.close(write_end)
    return PendingReading(child, read_end, started_s)


def read_nvml(nvml: Any, library: str | None, timeout_s: float) -> NvmlReading:
    """Read NVML within a time limit.

    Args:
        nvml: the module pynvml, or None when it could not be imported.
        library: path of the NVML library; None for the one the loader finds.
        timeout_s: seconds after which the reading is given up and reported as a failure.
    """
    return start_reading(lambda: nvml, library).wait(timeout_s)


def _answer(write_end: int, load: Callable[[], Any], library: str | None) -> None:
    """Read NVML and write the reading, in the child process; never returns."""
    try:
        try:
            nvml = load()
            if nvml is None:
                reading = NvmlReading(failure="pynvml.py is not beside the module: run scripts/setup on the controller")
            else:
                reading = _read(nvml, library)
        except Exception as error:  # the parent must hear of any failure
            reading = NvmlReading(failure=f"reading NVML failed: {type(error).__name__}: {error}")
        with os.fdopen(write_end, "w", encoding="utf-8") as pipe:
            json.dump(asdict(reading), pipe)
    finally:
        os._exit(0)


def _read_all(descriptor: int, deadline: float) -> bytes | None:
    """Return all that is written to the descriptor until it is closed, or None when that takes too long."""
    received = b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        chunk = os.read(descriptor, 1 << 16)
        if not chunk:
            return received
        received += chunk


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit status {os.WEXITSTATUS(status)}"


def _from_json(document: dict[str, Any]) -> NvmlReading:
    gpus = []
    for gpu in document.pop("gpus"):
        processes = gpu.pop("processes")
        gpus.append(
            GpuReading(**gpu, processes=None if processes is None else tuple(GpuProcess(**each) for each in processes))
        )
    pairs = tuple(PairReading(**pair) for pair in document.pop("pairs"))
    return NvmlReading(**document, gpus=tuple(gpus), pairs=pairs)


def _read(nvml: Any, library: str | None) -> NvmlReading:
    try:
        if library is not None:
            nvml.nvmlLib = ctypes.CDLL(library)
        nvml.nvmlInit()
    except OSError as error:
        return NvmlReading(failure=str(error))
    except nvml.NVMLError as error:
        return NvmlReading(failure=f"nvmlInit: {error}")
    try:
        driver_version = _system(nvml, nvml.nvmlSystemGetDriverVersion)
        gpus, handles = _gpus(nvml)
        return NvmlReading(
            driver_version=driver_version,
            nvml_version=_system(nvml, nvml.nvmlSystemGetNVMLVersion),
            cuda_driver_version=_system(nvml, nvml.nvmlSystemGetCudaDriverVersion),
            simulated=hasattr(nvml.nvmlLib, SIMULATED_SYMBOL) or str(driver_version).endswith("-simulated"),
            gpus=gpus,
            pairs=_pairs(nvml, handles),
        )
    except nvml.NVMLError as error:
        return NvmlReading(failure=f"NVML: {error}")
    finally:
        nvml.nvmlShutdown()


def _system(nvml: Any, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except nvml.NVMLError:
        return None


def _gpus(nvml: Any) -> tuple[tuple[GpuReading, ...], list[Any]]:
    gpus: list[GpuReading] = []
    handles: list[Any] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as error:
            gpus.append(GpuReading(index=index, failure=str(error)))
            handles.append(None)
            continue
        gpus.append(_gpu(nvml, index, handle))
        handles.append(handle)
    return tuple(gpus), handles


def _gpu(nvml: Any, index: int, handle: Any) -> GpuReading:
    values: dict[str, Any] = {}
    missing: dict[str, str] = {}
    failure = None
    for names, read in _READERS:
        try:
            answer = read(nvml, handle)
        except nvml.NVMLError as error:
            missing.update(dict.fromkeys(names, str(error)))
            if error.value in _LOST:
                failure = str(error)
            continue
        values.update(zip(names, answer if len(names) > 1 else (answer,), strict=True))
    return GpuReading(index=index, failure=failure, missing=missing, **values)


def _newest(nvml: Any, name: str, older: str, *arguments: Any) -> Any:
    """Call the NVML function, or its predecessor where the driver is too old to have it."""
    try:
        return getattr(nvml, name)(*arguments)
    except nvml.NVMLError as error:
        if error.value != _FUNCTION_NOT_FOUND:
            raise
        return getattr(nvml, older)(*arguments)


def _pci(nvml: Any, handle: Any) -> tuple[str, str]:
    info = nvml.nvmlDeviceGetPciInfo_v3(handle)
    bus_id = info.busId.decode() if isinstance(info.busId, bytes) else info.busId
    # NVML packs both ids into one number, the vendor in the lower half.
    return normalized_bus_id(bus_id), f"{info.pciDeviceId & 0xFFFF:04x}:{info.pciDeviceId >> 16:04x}"


def _memory(nvml: Any, handle: Any) -> tuple[int, int]:
    try:
        # The second version leaves what the driver reserves out of "used".
        info = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except nvml.NVMLError as error:
        if error.value != _FUNCTION_NOT_FOUND:
            raise
        info = nvml.nvmlDeviceGetMemoryInfo(handle)
    return info.total, info.used


def _processes(nvml: Any, handle: Any) -> tuple[GpuProcess, ...]:
    found = nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)
    return tuple(GpuProcess(each.pid, each.usedGpuMemory) for each in sorted(found, key=lambda each: int(each.pid)))


# Field names of GpuReading, and the one NVML call that answers them.
_READERS: tuple[tuple[tuple[str, ...], Callable[[Any, Any], Any]], ...] = (
    (("uuid",), lambda nvml, gpu: nvml.nvmlDeviceGetUUID(gpu)),
    (("name",), lambda nvml, gpu: nvml.nvmlDeviceGetName(gpu)),
    (("pci_bus_id", "pci_device_id"), _pci),
    (("memory_total_bytes", "memory_used_bytes"), _memory),
    (("link_generation",), lambda nvml, gpu: nvml.nvmlDeviceGetCurrPcieLinkGeneration(gpu)),
    (("link_width",), lambda nvml, gpu: nvml.nvmlDeviceGetCurrPcieLinkWidth(gpu)),
    (("link_max_generation",), lambda nvml, gpu: nvml.nvmlDeviceGetMaxPcieLinkGeneration(gpu)),
    (("link_max_width",), lambda nvml, gpu: nvml.nvmlDeviceGetMaxPcieLinkWidth(gpu)),
    (("link_card_generation",), lambda nvml, gpu: nvml.nvmlDeviceGetGpuMaxPcieLinkGeneration(gpu)),
    (("replay_count",), lambda nvml, gpu: nvml.nvmlDeviceGetPcieReplayCounter(gpu)),
    (("performance_state",), lambda nvml, gpu: nvml.nvmlDeviceGetPerformanceState(gpu)),
    (("power_limit_mw",), lambda nvml, gpu: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu)),
    (("power_limit_default_mw",), lambda nvml, gpu: nvml.nvmlDeviceGetPowerManagementDefaultLimit(gpu)),
    (
        ("clock_reasons",),
        lambda nvml, gpu: _newest(
            nvml, "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons", gpu
        ),
    ),
    (
        ("temperature_c",),
        lambda nvml, gpu: _newest(
            nvml, "nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature", gpu, nvml.NVML_TEMPERATURE_GPU
        ),
    ),
    (
        ("temperature_slowdown_c",),
        lambda nvml, gpu: nvml.nvmlDeviceGetTemperatureThreshold(gpu, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
    ),
    (("persistence_mode",), lambda nvml, gpu: nvml.nvmlDeviceGetPersistenceMode(gpu)),
    (("compute_mode",), lambda nvml, gpu: nvml.nvmlDeviceGetComputeMode(gpu)),
    (("virtualization_mode",), lambda nvml, gpu: nvml.nvmlDeviceGetVirtualizationMode(gpu)),
    (("mig_mode",), lambda nvml, gpu: nvml.nvmlDeviceGetMigMode(gpu)[0]),
    (("ecc_mode", "ecc_mode_pending"), lambda nvml, gpu: nvml.nvmlDeviceGetEccMode(gpu)),
    (
        ("ecc_uncorrected_count",),
        lambda nvml, gpu: nvml.nvmlDeviceGetTotalEccErrors(
            gpu, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        ),
    ),
    (
        ("remapped_correctable", "remapped_uncorrectable", "remapped_pending", "remapped_failed"),
        lambda nvml, gpu: nvml.nvmlDeviceGetRemappedRows(gpu),
    ),
    (("processes",), _processes),
)


def _pairs(nvml: Any, handles: list[Any]) -> tuple[PairReading, ...]:
    pairs = []
    for b, handle_b in enumerate(handles):
        for a, handle_a in enumerate(handles[:b]):
            if handle_a is None or handle_b is None:
                continue
            pairs.append(PairReading(a, b, _path(nvml, handle_a, handle_b), _p2p(nvml, handle_a, handle_b)))
    return tuple(sorted(pairs, key=lambda pair: (pair.a, pair.b)))


def _path(nvml: Any, a: Any, b: Any) -> str | None:
    try:
        return _PATH_CLASSES.get(nvml.nvmlDeviceGetTopologyCommonAncestor(a, b))
    except nvml.NVMLError:
        return None


def _p2p(nvml: Any, a: Any, b: Any) -> bool | None:
    """Return whether the driver claims peer-to-peer writes. Hosts were seen that claim them and hang."""
    try:
        return bool(nvml.nvmlDeviceGetP2PStatus(a, b, nvml.NVML_P2P_CAPS_INDEX_WRITE) == nvml.NVML_P2P_STATUS_OK)
    except nvml.NVMLError:
        return None
