"""Host memory and disk: what a host has for engines, and what an instance takes of it.

What an engine takes of host memory is an estimate: an API server and an engine core of about 1 GiB each, and a worker a
GPU that maps CUDA's libraries and pins its buffers, 2 GiB. (Hosts of eight L40S were seen to run out, vLLM issue 16916;
the engines of the lab take 1.2 GiB each without CUDA.) The page cache that a checkpoint passes through is not counted:
it is given back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .configurations import ResolvedModel
    from .model_facts import ModelFacts
    from .placement_problem import Shape
    from .plan_document import CheckpointReference

GIB = 1024**3
SERVER_BYTES = 2 * GIB
WORKER_BYTES = 2 * GIB
# For the system, monitoring and the gateway's part.
_RESERVED_BYTES = 2 * GIB
_RESERVED_SHARE = 0.05
_DISK_RESERVED_BYTES = 2 * GIB
_NATIVE_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0}
_QUANTIZED_BYTES = {"int4": 0.56, "mxfp4": 0.56}


def memory_for_engines(total_bytes: int | None) -> int | None:
    """What of a host's memory engines may take; None when its size is not known."""
    return None if total_bytes is None else total_bytes - max(_RESERVED_BYTES, int(total_bytes * _RESERVED_SHARE))


def disk_for_checkpoints(free_bytes: int | None) -> int | None:
    """What of a host's free disk checkpoints may take; None when it is not known."""
    return None if free_bytes is None else max(0, free_bytes - _DISK_RESERVED_BYTES)


def host_memory_bytes(shape: Shape, engine_args: Mapping[str, object]) -> int:
    """Host memory that one replica of this shape takes on each of its hosts."""
    workers = shape.gpus // shape.nodes
    offloaded_gib = _number(engine_args.get("cpu_offload_gb")) * workers
    offloaded_gib += _number(engine_args.get("kv_offloading_size")) + _number(engine_args.get("mm_processor_cache_gb"))
    return SERVER_BYTES + workers * WORKER_BYTES + int(offloaded_gib * GIB)


def checkpoint_bytes(model: ResolvedModel) -> int:
    """What a model takes on disk with all that it is served with: as checkpoints say, else by their parameters."""
    further = sum(_on_disk_bytes(one.checkpoint, one.facts) for one in model.further)
    return _on_disk_bytes(model.checkpoint, model.facts) + further


def _on_disk_bytes(checkpoint: CheckpointReference | None, facts: ModelFacts | None) -> int:
    if checkpoint is not None or facts is None:
        return checkpoint.total_bytes if checkpoint is not None else 0
    each = _NATIVE_BYTES.get(facts.native_dtype, 2.0)
    if facts.quantization is not None:
        each = _QUANTIZED_BYTES.get(facts.quantization.weight_format, 1.0)
    return int(facts.parameters * each)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
