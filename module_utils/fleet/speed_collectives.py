"""Time of collectives between the GPUs of an instance: from a host's measured curve, or a stated default."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from math import exp, log
from typing import TYPE_CHECKING

from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Mapping

Curve = tuple[tuple[int, float], ...]

# Seconds by bytes of the reduced tensor. AIConfigurator 0.12 (Apache-2.0), 16-bit elements.
# L40S over PCIe 4.0: two GPUs with vLLM's custom all-reduce in a CUDA graph up to 8 MB and NCCL 2.27.3 above, as the
# engine chooses; more with NCCL, since the engine switches the custom one off for more than two PCIe GPUs. Hosts differ
# by up to ten times at 4 and 8 GPUs: a host's own measurement replaces this.
PCIE_ALL_REDUCE: Mapping[int, Curve] = {
    2: (
        (4_096, 5.58e-06),
        (16_384, 6.22e-06),
        (65_536, 9.86e-06),
        (262_144, 1.81e-05),
        (1_048_576, 6.02e-05),
        (4_194_304, 2.29e-04),
        (16_777_216, 8.50e-04),
        (67_108_864, 3.36e-03),
        (268_435_456, 1.34e-02),
    ),
    4: (
        (4_096, 1.24e-05),
        (16_384, 1.61e-05),
        (65_536, 3.22e-05),
        (262_144, 1.10e-04),
        (1_048_576, 2.68e-04),
        (4_194_304, 1.24e-03),
        (16_777_216, 4.92e-03),
        (67_108_864, 1.97e-02),
        (268_435_456, 7.84e-02),
    ),
    8: (
        (4_096, 2.58e-05),
        (16_384, 4.17e-05),
        (65_536, 1.65e-04),
        (262_144, 4.26e-04),
        (1_048_576, 8.63e-04),
        (4_194_304, 5.15e-03),
        (16_777_216, 1.94e-02),
        (67_108_864, 5.54e-02),
        (268_435_456, 3.24e-01),
    ),
}

# H100 SXM over NVLink 4: vLLM's custom all-reduce in a CUDA graph.
NVLINK_ALL_REDUCE: Mapping[int, Curve] = {
    2: (
        (4_096, 4.30e-06),
        (65_536, 4.52e-06),
        (262_144, 5.18e-06),
        (1_048_576, 8.34e-06),
        (4_194_304, 2.02e-05),
        (16_777_216, 8.14e-05),
        (67_108_864, 3.07e-04),
        (268_435_456, 8.85e-04),
    ),
    4: (
        (4_096, 4.70e-06),
        (65_536, 5.23e-06),
        (262_144, 7.18e-06),
        (1_048_576, 1.28e-05),
        (4_194_304, 3.02e-05),
        (16_777_216, 9.88e-05),
        (67_108_864, 3.30e-04),
        (268_435_456, 1.18e-03),
    ),
    8: (
        (4_096, 5.55e-06),
        (65_536, 6.41e-06),
        (262_144, 1.08e-05),
        (1_048_576, 1.50e-05),
        (4_194_304, 3.08e-05),
        (16_777_216, 9.24e-05),
        (67_108_864, 3.44e-04),
        (268_435_456, 1.09e-03),
    ),
}


@dataclass(frozen=True, slots=True)
class Links:
    """How the GPUs of an instance reach one another.

    ``all_reduce`` maps a group size to its curve. ``send_bytes_per_s`` and ``send_s`` are of one direction between two
    GPUs, for pipeline stages. ``source`` says where the numbers come from, for the plan's reasons.
    """

    all_reduce: Mapping[int, Curve]
    send_bytes_per_s: float
    send_s: float
    source: str = field(default="default")

    def all_reduce_s(self, gpus: int, size_bytes: float) -> float:
        """Seconds to reduce a tensor of ``size_bytes`` over ``gpus`` GPUs, 0 for one."""
        if gpus <= 1:
            return 0.0
        # A group size between two measured ones is no faster than the next larger one.
        known = min((size for size in self.all_reduce if size >= gpus), default=max(self.all_reduce))
        seconds = _interpolate(self.all_reduce[known], size_bytes)
        # Ring: steps and bytes on the wire grow with (gpus - 1) / gpus beyond what was measured; latency with gpus.
        return seconds if gpus <= known else seconds * gpus / known

    def send_between_stages_s(self, size_bytes: float) -> float:
        """Seconds to hand a tensor to the next pipeline stage."""
        return self.send_s + size_bytes / self.send_bytes_per_s


# Assumed, not measured: 25 GB/s of a PCIe 4.0 x16 link's 32, and about 20 us for NCCL to hand over a tensor.
PCIE_LINKS = Links(PCIE_ALL_REDUCE, send_bytes_per_s=25e9, send_s=20e-6, source="default for PCIe 4.0 x16")
NVLINK_LINKS = Links(NVLINK_ALL_REDUCE, send_bytes_per_s=300e9, send_s=10e-6, source="default for NVLink 4")


def default_links(*, nvlink: bool) -> Links:
    """Links to count with until a host has measured its own."""
    return NVLINK_LINKS if nvlink else PCIE_LINKS


def measured_links(
    curves: Mapping[int, Mapping[int, float]], *, send_bytes_per_s: float | None = None, where: str
) -> Links:
    """Links from a host's link test.

    Args:
        curves: group size to (bytes of the tensor to seconds). Sizes that were not measured keep the PCIe default.
        send_bytes_per_s: measured between two GPUs; the default otherwise.
        where: for errors.

    Raises:
        FleetError: fewer than two sizes, or a time that is not above zero.
    """
    merged = dict(PCIE_ALL_REDUCE)
    for gpus, curve in curves.items():
        if len(curve) < 2:
            raise FleetError(f"{where}.{gpus}", f"needs two sizes or more, got {len(curve)}")
        for size, seconds in curve.items():
            if size <= 0 or seconds <= 0:
                raise FleetError(f"{where}.{gpus}.{size}", f"bytes and seconds must be above 0, got {seconds}")
        merged[gpus] = tuple(sorted(curve.items()))
    return Links(
        merged,
        send_bytes_per_s=send_bytes_per_s or PCIE_LINKS.send_bytes_per_s,
        send_s=PCIE_LINKS.send_s,
        source="measured on the host",
    )


def _interpolate(curve: Curve, size_bytes: float) -> float:
    """Linear in the logarithms; flat below the smallest size, proportional to bytes above the largest."""
    if size_bytes <= curve[0][0]:
        return curve[0][1]
    if size_bytes >= curve[-1][0]:
        return curve[-1][1] * size_bytes / curve[-1][0]
    index = bisect_right(curve, (int(size_bytes), float("inf")))
    (low_bytes, low_s), (high_bytes, high_s) = curve[index - 1], curve[index]
    share = log(size_bytes / low_bytes) / log(high_bytes / low_bytes)
    return low_s * exp(share * log(high_s / low_s))
