"""GPUs that the planner knows: capacities, rates and the source of each number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .speed_collectives import Links

_MIB = 1024**2
_GIB = 1024**3


@dataclass(frozen=True, slots=True)
class GpuModel:
    """One GPU product.

    ``torch_visible_bytes`` is what ``torch.cuda.mem_get_info`` calls total, which vLLM multiplies by
    ``gpu_memory_utilization``. It is less than NVML's total, and both are less than the number on the box. ``links``
    are those of a host where they are not the default, ``links_of`` names that host where others of the fleet differ.
    ``start_utilization`` is the highest ``gpu_memory_utilization`` with which an engine starts beside what others hold
    on the GPU; None where they hold too little to matter.
    """

    name: str
    pci_ids: tuple[str, ...]
    compute_capability: tuple[int, int]
    multiprocessors: int
    nvml_total_bytes: int
    torch_visible_bytes: int
    memory_bandwidth_bytes_per_s: float
    flops_per_s: Mapping[str, float]
    pcie_generation: int
    pcie_width: int
    nvlink: bool
    power_limit_watts: int
    sources: Mapping[str, str]
    links: Links | None = None
    links_of: str = ""
    start_utilization: float | None = None

    LINKS_OF: ClassVar[str] = " with the links of "

    @property
    def kind(self) -> str:
        """Name of what the planner takes to be equal: product, what is free of it, and links."""
        free = "" if self.start_utilization is None else f" with {self.start_utilization:.0%} free"
        links = f"{self.LINKS_OF}{self.links_of}" if self.links_of else ""
        return f"{self.name}{free}{links}"

    @property
    def supports_fp8(self) -> bool:
        """Whether the tensor cores multiply FP8 (Ada and later)."""
        return self.compute_capability >= (8, 9)

    @property
    def is_hopper(self) -> bool:
        """Whether Hopper-only kernels (FlashAttention 3, Machete) are chosen by the engine."""
        return self.compute_capability[0] == 9


_ADA_DATASHEET = "NVIDIA L40S datasheet (dense rates)"
_H100_DATASHEET = "NVIDIA H100 SXM datasheet (dense rates)"
_H200_DATASHEET = "NVIDIA H200 SXM datasheet (dense rates)"

GPUS: tuple[GpuModel, ...] = (
    GpuModel(
        name="L40S",
        pci_ids=("10de:26b9",),
        compute_capability=(8, 9),
        multiprocessors=142,
        nvml_total_bytes=46068 * _MIB,
        torch_visible_bytes=int(44.39 * _GIB),
        memory_bandwidth_bytes_per_s=864e9,
        flops_per_s={"bfloat16": 362e12, "float16": 362e12, "fp8": 733e12, "int8": 733e12},
        pcie_generation=4,
        pcie_width=16,
        nvlink=False,
        power_limit_watts=350,
        sources={
            "nvml_total_bytes": "NVML on an L40S with ECC on: 46,068 MiB",
            "torch_visible_bytes": "CUDA out-of-memory messages of L40S users (vLLM issues 15664, 23230): 44.39 GiB",
            "memory_bandwidth_bytes_per_s": _ADA_DATASHEET,
            "flops_per_s": _ADA_DATASHEET,
        },
    ),
    GpuModel(
        name="H100",
        pci_ids=("10de:2330",),
        compute_capability=(9, 0),
        multiprocessors=132,
        nvml_total_bytes=81559 * _MIB,
        torch_visible_bytes=85_017_493_504,
        memory_bandwidth_bytes_per_s=3.35e12,
        flops_per_s={"bfloat16": 989e12, "float16": 989e12, "fp8": 1979e12, "int8": 1979e12},
        pcie_generation=5,
        pcie_width=16,
        nvlink=True,
        power_limit_watts=700,
        sources={
            "nvml_total_bytes": "NVML on an H100 80GB HBM3: 81,559 MiB",
            "torch_visible_bytes": "measured on an H100 80GB HBM3 (tests/data/vllm_memory_h100.json)",
            "memory_bandwidth_bytes_per_s": _H100_DATASHEET,
            "flops_per_s": _H100_DATASHEET,
        },
    ),
    GpuModel(
        name="H200",
        pci_ids=("10de:2335",),
        compute_capability=(9, 0),
        multiprocessors=132,
        nvml_total_bytes=143771 * _MIB,
        torch_visible_bytes=150_109_880_320,
        memory_bandwidth_bytes_per_s=4.8e12,
        flops_per_s={"bfloat16": 989e12, "float16": 989e12, "fp8": 1979e12, "int8": 1979e12},
        pcie_generation=5,
        pcie_width=16,
        nvlink=True,
        power_limit_watts=700,
        sources={
            "nvml_total_bytes": "NVML on an H200: 143,771 MiB",
            "torch_visible_bytes": "cudaMemGetInfo on an H200, driver 580.159.04",
            "memory_bandwidth_bytes_per_s": _H200_DATASHEET,
            "flops_per_s": _H200_DATASHEET,
        },
    ),
)

_BY_PCI_ID = {pci_id: gpu for gpu in GPUS for pci_id in gpu.pci_ids}


def gpu_by_name(name: str, *, where: str) -> GpuModel:
    """Find a GPU by its short name or by the name that NVML gives (``NVIDIA L40S``).

    Raises:
        FleetError: the table has no such GPU.
    """
    words = name.upper().replace("-", " ").split()
    for gpu in GPUS:
        if gpu.name in words:
            return gpu
    known = ", ".join(gpu.name for gpu in GPUS)
    raise FleetError(where, f"unknown GPU {name!r}, known are {known}")


def gpu_by_pci_id(vendor_device: str) -> GpuModel | None:
    """Find a GPU by its PCI id, as in ``10de:26b9``. None when the table has no such id."""
    return _BY_PCI_ID.get(vendor_device.lower())
