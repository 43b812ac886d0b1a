"""A vLLM worker whose ranks share one real GPU: what each rank of a TPxPP layout holds, on a machine with one GPU.

The model parts, the profile run and the KV cache are the engine's own. Simulated: the ranks' links. NCCL refuses two
ranks on one GPU, so collectives go over gloo through host memory: no time measured here means anything, and NCCL's
buffers are missing from the memory outside PyTorch. Written for vLLM 0.24.0.
"""

from __future__ import annotations

import os

import pynvml
import torch
from vllm.platforms import current_platform
from vllm.v1.worker.gpu_worker import Worker
from vllm.v1.worker.worker_base import CompilationTimes

_MOST_RANKS = 8


def _own_bytes() -> int:
    """What this process holds of the GPU, by NVML; CUDA's own figure counts every rank."""
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
        if process.pid == os.getpid() and process.usedGpuMemory is not None:
            return int(process.usedGpuMemory)
    raise RuntimeError(f"NVML tells no memory of process {os.getpid()}")


class SharedGpuWorker(Worker):
    """vLLM's GPU worker with every rank on GPU 0, alone on it as far as it can see."""

    def init_device(self) -> None:
        """Start as vLLM's worker does, on GPU 0."""
        total = torch.cuda.mem_get_info(0)[1]
        torch.cuda.mem_get_info = lambda *_: (total - _own_bytes(), total)
        torch.accelerator.device_count = lambda: _MOST_RANKS
        platform = type(current_platform)
        platform.logical_device_id_to_visible_device_id = classmethod(lambda *_: 0)
        platform.dist_backend = "gloo"
        super().init_device()

    def compile_or_warm_up_model(self) -> CompilationTimes:
        """Nothing: memory is known by now, and gloo sends nothing from a GPU to the next stage."""
        return CompilationTimes(0.0, 0.0)
