"""The vLLM arguments that memory and speed depend on, under vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .model_facts import ModelFacts

DEFAULT_ENGINE_VERSION = "0.33.0"
DEFAULT_GPU_MEMORY_UTILIZATION = 0.92
DTYPES = ("auto", "bfloat16", "float16", "float32")
ONLINE_QUANTIZATION = frozenset({"fp8"})
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
ATTENTION_BACKENDS = (
    "FLASH_ATTN",
    "FLASHINFER",
    "TRITON_ATTN",
    "FLEX_ATTENTION",
    "TRITON_MLA",
    "FLASH_ATTN_MLA",
    "FLASHMLA",
    "FLASHINFER_MLA",
    "CPU_ATTN",
)
WEIGHT_KERNELS = ("marlin", "machete")
KV_CACHE_DTYPES = ("auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2")


@dataclass(frozen=True, slots=True)
class LoraOptions:
    """Room for adapters, as ``--enable-lora --max-loras --max-lora-rank``; ``adapters``: (name, path) of each."""

    max_loras: int = 1
    max_lora_rank: int = 16
    adapters: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class SpeculativeOptions:
    """``--speculative-config``. ``draft`` holds the facts of the draft model where the method has one.

    ``further`` are vLLM's other keys with their values, which neither memory nor speed depends on.
    """

    method: str
    num_speculative_tokens: int
    model: str | None = None
    draft: ModelFacts | None = None
    draft_tensor_parallel_size: int | None = None
    max_model_len: int | None = None
    use_heterogeneous_vocab: bool = False
    draft_sample_method: str = "greedy"
    further: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """One way to start the engine. The defaults are those of ``vllm serve`` on a 48 GB GPU.

    ``quantization`` is vLLM's flag: online ``fp8`` and the like on an unquantized checkpoint. None leaves it out, and
    a quantized checkpoint then says its own method. ``engine_version`` chooses among constants, it is no argument of
    vLLM. ``weight_kernel`` is the kernel of INT4 weights, ``marlin`` or ``machete``; None is what the GPU gets: Machete
    on Hopper, Marlin elsewhere (and on Hopper with VLLM_DISABLED_KERNELS=MacheteLinearKernel).
    """

    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    pipeline_layers: tuple[int, ...] | None = None
    enforce_eager: bool = False
    gpu_memory_utilization: float = DEFAULT_GPU_MEMORY_UTILIZATION
    kv_cache_memory_bytes: int | None = None
    block_size: int | None = None
    attention_backend: str | None = None
    speculative: SpeculativeOptions | None = None
    lora: LoraOptions | None = None
    limit_mm_per_prompt: tuple[tuple[str, int], ...] | None = None
    weight_kernel: str | None = None
    engine_version: str = DEFAULT_ENGINE_VERSION

    @property
    def world_size(self) -> int:
        """GPUs of one instance."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


def options_from_engine_args(engine_args: Mapping[str, object], *, where: str) -> EngineOptions:
    """Pick out of vLLM arguments those that memory depends on. Others are ignored.

    Raises:
        FleetError: a known argument has a value of the wrong type or range; the path names it.
    """
    values: dict[str, object] = {}
    for name, value in engine_args.items():
        key = name.replace("-", "_")
        check = _CHECKS.get(key)
        if check is not None and value is not None:
            values[key] = check(value, f"{where}.{name}")
    options = _options(values)
    if options.max_num_batched_tokens < options.max_num_seqs:
        raise FleetError(
            f"{where}.max_num_batched_tokens",
            f"must be at least max_num_seqs {options.max_num_seqs}, got {options.max_num_batched_tokens}",
        )
    return options


def engine_args_document(options: EngineOptions) -> dict[str, object]:
    """The vLLM ``EngineArgs`` of these options, exactly vLLM's names and values.

    What equals vLLM's default is left out, and so is the quantization of a checkpoint, which the engine reads off it:
    only what the engine does online is a flag.
    """
    document: dict[str, object] = {}
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name not in _NOT_ARGUMENTS and value != field.default:
            document[field.name] = value
    if options.quantization not in ONLINE_QUANTIZATION:
        document.pop("quantization", None)
    if options.speculative is not None:
        document["speculative_config"] = _speculative_document(options.speculative)
    if options.lora is not None:
        document |= {
            "enable_lora": True,
            "max_loras": options.lora.max_loras,
            "max_lora_rank": options.lora.max_lora_rank,
        }
        if options.lora.adapters:
            document["lora_modules"] = [{"name": name, "path": path} for name, path in options.lora.adapters]
    if options.limit_mm_per_prompt is not None:
        document["limit_mm_per_prompt"] = dict(options.limit_mm_per_prompt)
    return document


_NOT_ARGUMENTS = frozenset(
    {"engine_version", "speculative", "lora", "limit_mm_per_prompt", "pipeline_layers", "weight_kernel"}
)


def _speculative_document(speculative: SpeculativeOptions) -> dict[str, object]:
    document: dict[str, object] = {}
    for field in fields(speculative):
        value = getattr(speculative, field.name)
        if field.name not in ("draft", "further") and value != field.default:
            document[field.name] = value
    return document | dict(speculative.further)


def _positive(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise FleetError(where, f"must be a whole number above 0, got {value!r}")
    return value


def _fraction(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise FleetError(where, f"must be above 0 and at most 1, got {value!r}")
    return float(value)


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise FleetError(where, f"must be true or false, got {value!r}")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise FleetError(where, f"must be a word, got {value!r}")
    return value


def _dtype(value: object, where: str) -> str:
    text = {"half": "float16", "float": "float32"}.get(_text(value, where), _text(value, where))
    if text not in DTYPES:
        raise FleetError(where, f"must be one of {', '.join(DTYPES)}, got {value!r}")
    return text


def _kv_cache_dtype(value: object, where: str) -> str:
    text = _text(value, where)
    if text not in KV_CACHE_DTYPES:
        raise FleetError(where, f"must be one of {', '.join(KV_CACHE_DTYPES)}, got {value!r}")
    return text


def _attention_backend(value: object, where: str) -> str:
    text = _text(value, where)
    if text not in ATTENTION_BACKENDS:
        raise FleetError(where, f"must be one of {', '.join(ATTENTION_BACKENDS)}, got {value!r}")
    return text


def _weight_kernel(value: object, where: str) -> str:
    text = _text(value, where).lower()
    if text not in WEIGHT_KERNELS:
        raise FleetError(where, f"must be one of {', '.join(WEIGHT_KERNELS)}, got {value!r}")
    return text


def _speculative(value: object, where: str) -> SpeculativeOptions:
    if not isinstance(value, dict):
        raise FleetError(where, f"must be a mapping, got {value!r}")
    model, draft_size, length = (value.get(name) for name in ("model", "draft_tensor_parallel_size", "max_model_len"))
    known = {field.name for field in fields(SpeculativeOptions)} - {"draft", "further"}
    return SpeculativeOptions(
        method=_text(value.get("method", "draft_model"), f"{where}.method"),
        num_speculative_tokens=_positive(value.get("num_speculative_tokens"), f"{where}.num_speculative_tokens"),
        model=None if model is None else _text(model, f"{where}.model"),
        draft_tensor_parallel_size=(
            None if draft_size is None else _positive(draft_size, f"{where}.draft_tensor_parallel_size")
        ),
        max_model_len=None if length is None else _positive(length, f"{where}.max_model_len"),
        use_heterogeneous_vocab=_flag(value.get("use_heterogeneous_vocab", False), f"{where}.use_heterogeneous_vocab"),
        draft_sample_method=_text(value.get("draft_sample_method", "greedy"), f"{where}.draft_sample_method"),
        further=tuple(sorted((name, one) for name, one in value.items() if name not in known)),
    )


def _lora_rank(value: object, where: str) -> int:
    rank = _positive(value, where)
    if rank not in LORA_RANKS:
        raise FleetError(where, f"must be one of {', '.join(map(str, LORA_RANKS))}, got {rank}")
    return rank


def _limits(value: object, where: str) -> tuple[tuple[str, int], ...]:
    if not isinstance(value, dict):
        raise FleetError(where, f"must be a mapping of modality to count, got {value!r}")
    limits: list[tuple[str, int]] = []
    for modality, count in sorted(value.items()):
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise FleetError(f"{where}.{modality}", f"must be a whole number, 0 or more, got {count!r}")
        limits.append((str(modality), count))
    return tuple(limits)


_CHECKS = {
    "dtype": _dtype,
    "quantization": _text,
    "kv_cache_dtype": _kv_cache_dtype,
    "max_model_len": _positive,
    "max_num_seqs": _positive,
    "max_num_batched_tokens": _positive,
    "tensor_parallel_size": _positive,
    "pipeline_parallel_size": _positive,
    "enforce_eager": _flag,
    "gpu_memory_utilization": _fraction,
    "kv_cache_memory_bytes": _positive,
    "block_size": _positive,
    "attention_backend": _attention_backend,
    "speculative_config": _speculative,
    "enable_lora": _flag,
    "max_loras": _positive,
    "max_lora_rank": _lora_rank,
    "limit_mm_per_prompt": _limits,
    "engine_version": _text,
    "weight_kernel": _weight_kernel,
}


def _options(values: dict[str, object]) -> EngineOptions:
    lora_given = values.pop("enable_lora", False)
    lora = LoraOptions(
        **{name: values.pop(name) for name in ("max_loras", "max_lora_rank") if name in values}  # type: ignore[arg-type]
    )
    if "speculative_config" in values:
        values["speculative"] = values.pop("speculative_config")
    return EngineOptions(**values, lora=lora if lora_given else None)  # type: ignore[arg-type]
