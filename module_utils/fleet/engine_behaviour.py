"""What differs between engine versions, each constant with its source. One place for all of them.

Measured means: on an H100 with the budget of an L40S, vLLM 0.24.0, tests/data/vllm_memory_h100.json and
tests/data/vllm_memory_measured.json. For later versions the formulas were read from their source and the constants are
those of 0.24 until they are measured, hence the wider margin.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from .errors import FleetError

_MIB = 1024**2


@dataclass(frozen=True, slots=True)
class EngineBehaviour:
    """Memory behaviour of one range of engine versions."""

    measured: bool
    # vllm/config/vllm.py, DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES; None when every architecture has the second runner.
    second_runner_architectures: frozenset[str] | None
    # gpu/model_runner.py, profile_cudagraph_memory: returns 0 in 0.24's second runner.
    second_runner_estimates_graphs: bool
    # gpu_worker.py: whether buffers made before the profile run come off the KV cache.
    counts_runner_buffers: bool
    # kv_cache_planning.py: whether the start-up check leaves out the null block.
    reserves_null_block: bool
    # config/vllm.py, max_in_flight_tokens: batches in flight that sliding windows reserve for.
    counts_batches_in_flight: bool
    # FlashInfer's workspace is made outside the profile run (measured 0.33: facts/vllm.md): floor in bytes.
    flashinfer_workspace_bytes: int
    margin_bytes: int
    margin_of_weights: float


_V0_24 = EngineBehaviour(
    measured=True,
    second_runner_architectures=frozenset(
        {
            "Qwen3ForCausalLM",
            "DeepseekV2ForCausalLM",
            "Qwen2MoeForCausalLM",
            "GraniteMoeForCausalLM",
            "LlamaForCausalLM",
            "MistralForCausalLM",
        }
    ),
    second_runner_estimates_graphs=False,
    counts_runner_buffers=False,
    reserves_null_block=False,
    counts_batches_in_flight=False,
    flashinfer_workspace_bytes=394 * _MIB,
    margin_bytes=96 * _MIB,
    margin_of_weights=0.002,
)
_V0_33 = EngineBehaviour(
    measured=False,
    second_runner_architectures=None,
    second_runner_estimates_graphs=True,
    counts_runner_buffers=True,
    reserves_null_block=True,
    counts_batches_in_flight=True,
    flashinfer_workspace_bytes=394 * _MIB,
    margin_bytes=256 * _MIB,
    margin_of_weights=0.005,
)
# Nothing before 0.24 was measured or read: taken for the same, with the margin of what was not measured.
_BEFORE_0_24 = replace(
    _V0_24, measured=False, margin_bytes=_V0_33.margin_bytes, margin_of_weights=_V0_33.margin_of_weights
)

# Non-torch memory that the engine finds after its profile run: CUDA modules, cuBLAS, NCCL. Measured with the second
# model runner 241,172,480 in every case; with the first 249,561,088 to 262,144,000.
NON_TORCH_SECOND_RUNNER_BYTES = 241_172_480
NON_TORCH_FIRST_RUNNER_BYTES = 253_755_392
# Each more rank of a tensor-parallel or pipeline group adds NCCL channels and buffers. Not measured (one GPU); a bound
# read off NCCL_BUFFSIZE (4 MiB) times its default channels.
NON_TORCH_PER_PEER_BYTES = 128 * _MIB


@lru_cache(maxsize=32)
def engine_behaviour(version: str) -> EngineBehaviour:
    """The behaviour of ``version``, as in ``0.33.0``.

    Raises:
        FleetError: not a version.
    """
    parts = version.split(".")
    if len(parts) < 2 or not (parts[0].isdigit() and parts[1].isdigit()):
        raise FleetError("engine_version", f"must be like 0.33.0, got {version!r}")
    release = (int(parts[0]), int(parts[1]))
    if release == (0, 24):
        return _V0_24
    return _BEFORE_0_24 if release < (0, 24) else _V0_33
