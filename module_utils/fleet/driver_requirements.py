"""Which driver an engine needs, and which CUDA a driver speaks. The one place for both."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import FleetError

# The first row whose version is not above the engine's counts: version, CUDA as NVML counts it, first branch with it.
# Read off the requirements of vLLM's wheels: 0.20.0 (torch 2.11.0) to 0.33.0 (torch 2.14.0) bring the libraries of CUDA
# 13, 0.18.1 and 0.19.1 (torch 2.10.0) those of CUDA 12.8, which drivers from 525 on run by minor version compatibility.
_ENGINE_NEEDS: tuple[tuple[tuple[int, int], int, int], ...] = (
    ((0, 20), 13000, 580),
    ((0, 0), 12000, 525),
)
# The last one with CUDA 12, for hosts whose driver stays below 580.
LAST_CUDA_12_ENGINE = "0.19.1"

# CUDA of each driver branch, from the table "CUDA Toolkit and Corresponding Driver Versions" of CUDA's release notes.
_CUDA_OF_BRANCH: tuple[tuple[int, int], ...] = (
    (590, 13010),
    (580, 13000),
    (575, 12090),
    (570, 12080),
    (565, 12070),
    (560, 12060),
    (555, 12050),
    (550, 12040),
    (545, 12030),
    (535, 12020),
    (530, 12010),
    (525, 12000),
    (520, 11080),
    (515, 11070),
    (510, 11060),
    (470, 11040),
    (450, 11000),
)

# The oldest branch whose kernel module CUDA 13's forward compatibility package runs on, data centre cards only
# (NVIDIA's "CUDA Compatibility": the long term support branch R535 and later).
_OLDEST_BRANCH_FOR_COMPAT = 535


@dataclass(frozen=True)
class DriverNeed:
    """What an engine asks of the driver.

    Args:
        engine_version: as in ``0.33.0``.
        cuda_driver_version: as NVML counts, 13000 is CUDA 13.0; 0 when it needs no driver.
        branch: the first driver branch that speaks it; 0 when it needs no driver.
    """

    engine_version: str
    cuda_driver_version: int
    branch: int


def driver_need(engine_version: str, accelerator: str = "cuda") -> DriverNeed:
    """Return what vLLM of a version needs.

    Raises:
        FleetError: not a version.
    """
    parts = engine_version.split(".")
    if len(parts) < 2 or not (parts[0].isdigit() and parts[1].isdigit()):
        raise FleetError("vllm_version", f"must be like 0.33.0, got {engine_version!r}")
    if accelerator != "cuda":
        return DriverNeed(engine_version, 0, 0)
    version = (int(parts[0]), int(parts[1]))
    return next(DriverNeed(engine_version, cuda, branch) for first, cuda, branch in _ENGINE_NEEDS if version >= first)


def branch_of(driver_version: str) -> int | None:
    """Return the branch of a driver: 580 for ``580.95.05`` and for ``580``; None for what is not one."""
    first = driver_version.partition(".")[0]
    return int(first) if first.isdigit() else None


def cuda_of_driver(driver_version: str) -> int | None:
    """Return the CUDA that a driver speaks at least, as NVML counts it; None for an unknown or very old driver."""
    branch = branch_of(driver_version)
    if branch is None:
        return None
    return next((cuda for known, cuda in _CUDA_OF_BRANCH if branch >= known), None)


def runs_with_compat(driver_version: str) -> bool:
    """Whether NVIDIA's cuda-compat package lets CUDA 13 run on the kernel module of this driver."""
    branch = branch_of(driver_version)
    return branch is not None and branch >= _OLDEST_BRANCH_FOR_COMPAT


def cuda_words(version: int) -> str:
    """Return NVML's integer as people write it: 13000 is 13.0."""
    return f"{version // 1000}.{version % 1000 // 10}"


def engine_words(need: DriverNeed) -> str:
    """Return the need as a sentence's part."""
    return (
        f"vLLM {need.engine_version} needs CUDA {cuda_words(need.cuda_driver_version)}, "
        f"which is driver {need.branch} or newer"
    )
