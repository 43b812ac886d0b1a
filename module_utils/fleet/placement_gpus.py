"""Which GPUs of a host an instance takes: its tensor groups inside one PCIe switch, else inside one NUMA node.

Among places that are equally good in that, those without degraded GPUs come first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .placement_problem import GpuRoom, HostRoom, Shape


def choose_gpus(host: HostRoom, available: Sequence[GpuRoom], shape: Shape) -> tuple[str, ...] | None:
    """Choose GPUs of one host: inside one PCIe switch if possible, else inside one NUMA node, else any.

    Args:
        host: the host.
        available: GPUs that may be taken.
        shape: what is needed.

    Returns:
        UUIDs in the order of the ranks (tensor ranks of a stage beside one another), or None.
    """
    usable = [gpu for gpu in available if gpu.kind == shape.kind]
    if len(usable) < shape.gpus:
        return None
    # Pairs that were not tested may be used, but only where no tested ones are left.
    for verified in (True, False) if shape.tensor_parallel > 1 and host.verified_pairs else (False,):
        for level in ("switch", "numa_node", None):
            groups: dict[int, list[GpuRoom]] = {}
            for gpu in usable:
                groups.setdefault(getattr(gpu, level) if level else 0, []).append(gpu)
            for sound in (True, False) if any(gpu.degraded for gpu in usable) else (False,):
                # The group with the least room that suffices, so that whole groups stay whole.
                for _, group in sorted(groups.items(), key=lambda item: (len(item[1]), item[0])):
                    ordered = sorted(group, key=lambda gpu: (gpu.degraded, gpu.switch, gpu.index))
                    if sound:
                        ordered = [gpu for gpu in ordered if not gpu.degraded]
                    chosen = _ranks(host, ordered, shape, verified=verified) if len(ordered) >= shape.gpus else None
                    if chosen is not None:
                        return chosen
    return None


def _ranks(host: HostRoom, group: Sequence[GpuRoom], shape: Shape, *, verified: bool) -> tuple[str, ...] | None:
    """Fill the stages one by one; GPUs of one tensor group must not include a pair whose peer-to-peer test failed."""
    left = [gpu.uuid for gpu in group]
    chosen: list[str] = []
    for _ in range(shape.pipeline_parallel):
        stages = (_stage(host, seed, left, shape.tensor_parallel, verified=verified) for seed in left)
        stage = next((found for found in stages if found), None)
        if stage is None:
            return None
        chosen += stage
        left = [uuid for uuid in left if uuid not in stage]
    return tuple(chosen)


def _stage(host: HostRoom, seed: str, left: Sequence[str], size: int, *, verified: bool) -> list[str] | None:
    stage = [seed]
    for uuid in left:
        if len(stage) == size:
            break
        if uuid in stage:
            continue
        pairs = [frozenset((uuid, other)) for other in stage]
        if all(pair in host.verified_pairs if verified else pair not in host.failed_pairs for pair in pairs):
            stage.append(uuid)
    return stage if len(stage) == size else None
