"""Memory that others hold on a GPU: an engine is planned with what is free beside it.

vLLM refuses to start when less than its utilization of the whole card is free, so that a GPU on which others hold more
than a little gets engines with a smaller utilization. Utilizations are steps of five hundredths, so that GPUs with
nearly the same share free are of one kind, and memory that comes and goes by a little changes no plan. An instance that
runs keeps the utilization with which it was started: its memory is its own already.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .engine_options import DEFAULT_GPU_MEMORY_UTILIZATION
from .memory import CONTEXT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .hardware import GpuModel
    from .host_document import Gpu, HostDocument
    from .requests import ModelRequest

MARGIN_BYTES = 512 * 1024**2
"""What others may take more than they hold, between the probe and the start of an engine."""

# So little beside an engine needs no engine of another kind: it is in what every utilization leaves.
_TOLERATED_BYTES = 1024**3
_STEPS = 20
# With less of a card than this nothing is planned on it.
_LEAST = 0.1


def free_utilization(gpu: GpuModel, foreign_bytes: int) -> float:
    """The highest utilization with which an engine starts beside what others hold; at most 1, and 0 where none does.

    Args:
        gpu: the card.
        foreign_bytes: what processes outside the fleet hold of it.
    """
    if foreign_bytes <= 0:
        return 1.0
    share = (gpu.torch_visible_bytes - foreign_bytes - MARGIN_BYTES - CONTEXT_BYTES) / gpu.torch_visible_bytes
    return share if share >= _LEAST else 0.0


def start_utilization(gpu: Gpu, wanted: float = DEFAULT_GPU_MEMORY_UTILIZATION) -> float | None:
    """What engines on this GPU are started with at most; None where what others hold does not limit them.

    Args:
        gpu: a GPU that the hardware table knows.
        wanted: the highest utilization that any engine may want.
    """
    free = free_utilization(gpu.model, gpu.foreign_bytes) if gpu.model is not None else 0.0
    if free >= wanted and gpu.foreign_bytes <= _TOLERATED_BYTES:
        return None
    if free >= DEFAULT_GPU_MEMORY_UTILIZATION:
        return DEFAULT_GPU_MEMORY_UTILIZATION
    return math.floor(free * _STEPS) / _STEPS


def with_foreign_memory(hosts: Sequence[HostDocument], requests: Iterable[ModelRequest]) -> tuple[HostDocument, ...]:
    """The hosts with what others leave free of each GPU in its row of the hardware table.

    Args:
        hosts: the hosts.
        requests: what is to run; one that gives a utilization of its own may want more than the default.
    """
    asked = [request.engine_args.get("gpu_memory_utilization") for request in requests]
    wanted = max([DEFAULT_GPU_MEMORY_UTILIZATION, *(float(one) for one in asked if isinstance(one, int | float))])
    return tuple(
        replace(host, gpus=tuple(_limited(gpu, wanted) for gpu in host.gpus))
        if any(gpu.foreign_bytes for gpu in host.gpus)
        else host
        for host in hosts
    )


def as_started(gpu: GpuModel, memory: Mapping[str, Any]) -> GpuModel:
    """The card as it was when an instance was planned on it.

    Args:
        gpu: the card.
        memory: of the instance's record.
    """
    foreign = memory.get("foreign_bytes", 0)
    if not isinstance(foreign, int) or foreign <= 0:
        return replace(gpu, start_utilization=None)
    share = (gpu.torch_visible_bytes - CONTEXT_BYTES - foreign) / gpu.torch_visible_bytes
    return replace(gpu, start_utilization=max(0.0, round(share, 2)))


def _limited(gpu: Gpu, wanted: float) -> Gpu:
    limit = start_utilization(gpu, wanted)
    if gpu.model is None or limit is None:
        return gpu
    return replace(gpu, model=replace(gpu.model, start_utilization=limit))
