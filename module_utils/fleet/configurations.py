"""The ways to run one model on one kind of GPU that fit: precision, parallel sizes, engine options, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .engine_options import options_from_engine_args
from .errors import FleetError
from .memory import estimate_memory
from .placement_problem import Shape
from .quantization import choose_precision

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .engine_options import EngineOptions
    from .hardware import GpuModel
    from .memory import MemoryEstimate
    from .model_facts import ModelFacts
    from .plan_document import CheckpointReference
    from .quantization import PrecisionChoice
    from .quantization_config import QuantizationFacts
    from .requests import ModelRequest

_GIB = 1024**3
# Precisions that exist only as a checkpoint: the engine cannot make them of full-precision weights while it loads.
NEEDS_CHECKPOINT = ("int8", "awq", "gptq", "mxfp4")
# What has to be on one GPU before tensor parallelism over PCIe is given more than two ranks.
_PREFERRED_TENSOR_PARALLEL = 2


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A request with what its checkpoint says.

    Args:
        path: where the request stands, as ``models.yml: models[2]``.
        facts: the model's configuration.
        checkpoint: identity of the checkpoint; None when only the configuration is known.
    """

    request: ModelRequest
    path: str
    facts: ModelFacts
    checkpoint: CheckpointReference | None = None


@dataclass(frozen=True, slots=True)
class Configuration:
    """A way to run a model that fits."""

    shape: Shape
    options: EngineOptions
    estimate: MemoryEstimate
    quantization: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Misfit:
    """A way to run a model that does not fit."""

    shape: Shape
    constraint: str
    explanation: str
    options: EngineOptions
    missing_bytes: int = 0


class Configurations:
    """Answers for one GPU kind and engine version, remembered: the same question is asked for every instance."""

    def __init__(self, engine_version: str) -> None:
        self._engine_version = engine_version
        self._known: dict[tuple[str, Shape], Configuration | Misfit] = {}

    def of_shape(self, model: ResolvedModel, gpu: GpuModel, shape: Shape) -> Configuration | Misfit:
        """The best precision for this shape, or why none fits."""
        key = (model.request.name, shape)
        if key not in self._known:
            self._known[key] = self._examine(model, gpu, shape)
        return self._known[key]

    def smallest(
        self, model: ResolvedModel, gpu: GpuModel, most_gpus: int
    ) -> tuple[tuple[Configuration, ...], tuple[Misfit, ...]]:
        """The configurations with the fewest GPUs, the preferred first, and what was found not to fit on the way."""
        misfits: list[Misfit] = []
        for count in range(1, most_gpus + 1):
            fitting = []
            for shape in _shapes(model.request, gpu, count):
                found = self.of_shape(model, gpu, shape)
                if isinstance(found, Configuration):
                    fitting.append(found)
                else:
                    misfits.append(found)
            if fitting:
                return tuple(fitting), tuple(misfits)
        return (), tuple(misfits)

    def _examine(self, model: ResolvedModel, gpu: GpuModel, shape: Shape) -> Configuration | Misfit:
        request = model.request
        options = replace(
            base_options(model),
            tensor_parallel_size=shape.tensor_parallel,
            pipeline_parallel_size=shape.pipeline_parallel,
            engine_version=self._engine_version,
        )
        quantized = model.facts.quantization
        if quantized is not None and not _is_as_asked(request.quantization, quantized):
            problem = f"the checkpoint is quantized ({quantized.method}), {request.quantization} was asked for"
            return Misfit(shape, "quantization", problem, options)
        if quantized is None and request.quantization in NEEDS_CHECKPOINT:
            problem = f"the checkpoint is not quantized, and the engine cannot make {request.quantization} of it"
            return Misfit(shape, "quantization", problem, options)
        try:
            choice = choose_precision(
                model.facts,
                gpu,
                options,
                quantization=request.quantization,
                kv_cache_dtype=options.kv_cache_dtype,
                forbidden=NEEDS_CHECKPOINT,
            )
            if choice.options is None or choice.estimate is None:
                return self._misfit(model.facts, gpu, shape, options, choice)
        except FleetError as error:
            return Misfit(shape, error.where, error.problem, options)
        return Configuration(
            shape=shape,
            options=replace(choice.options, max_model_len=choice.estimate.max_model_len),
            estimate=choice.estimate,
            quantization=choice.quantization or "none",
            reasons=_reasons(shape, choice.estimate, choice),
        )

    def _misfit(
        self, facts: ModelFacts, gpu: GpuModel, shape: Shape, options: EngineOptions, choice: PrecisionChoice
    ) -> Misfit:
        # The last alternative is the smallest.
        last = choice.alternatives[-1]
        quantization = None if last.quantization == "none" or facts.quantization else last.quantization
        smallest = replace(options, quantization=quantization, kv_cache_dtype=last.kv_cache_dtype)
        estimate = estimate_memory(facts, gpu, smallest)
        precision = precision_words(last.quantization, last.kv_cache_dtype)
        return Misfit(
            shape, "memory", f"{precision}: {last.why_not or estimate.reason}", smallest, estimate.missing_bytes
        )


def base_options(model: ResolvedModel) -> EngineOptions:
    """The engine options of a request, whatever the parallel sizes and the precision of the weights.

    Raises:
        FleetError: an argument has a wrong value.
    """
    request = model.request
    arguments: dict[str, object] = dict(request.engine_args)
    if request.max_model_len is not None:
        arguments["max_model_len"] = request.max_model_len
    if "kv_cache_dtype" in request.model_fields_set or "kv_cache_dtype" not in arguments:
        arguments["kv_cache_dtype"] = request.kv_cache_dtype
    if request.limit_mm_per_prompt is not None:
        arguments["limit_mm_per_prompt"] = request.limit_mm_per_prompt
    if request.lora is not None:
        arguments |= {
            "enable_lora": True,
            "max_loras": request.lora.max_loras,
            "max_lora_rank": request.lora.max_rank,
        }
    if isinstance(request.speculative, dict):
        arguments["speculative_config"] = request.speculative
    options = options_from_engine_args(arguments, where=f"{model.path}.engine_args")
    if request.task != "generate" and "max_num_batched_tokens" not in arguments:
        # Pooling models do not split a prompt into chunks, so that the whole of it has to fit in a batch.
        longest = options.max_model_len or model.facts.max_position_embeddings
        options = replace(options, max_num_batched_tokens=max(options.max_num_batched_tokens, longest))
    return options


def precision_words(quantization: str, kv_cache_dtype: str) -> str:
    """A precision as it is told to people."""
    weights = "unquantized weights" if quantization == "none" else f"{quantization.upper()} weights"
    return weights if kv_cache_dtype == "auto" else f"{weights} and {kv_cache_dtype.upper()} KV cache"


def _shapes(request: ModelRequest, gpu: GpuModel, count: int) -> Iterator[Shape]:
    """The ways to use so many GPUs, the preferred first.

    All-reduce over PCIe costs little between two GPUs and much between more (vLLM then turns its own all-reduce off),
    so that two tensor ranks come first, pipelines next, wider tensor groups last.
    """
    forced_tensor, forced_pipeline = request.forced_tensor_parallel, request.forced_pipeline_parallel
    tensor_sizes = [size for size in range(1, count + 1) if count % size == 0]
    tensor_sizes.sort(key=lambda size: (size > _PREFERRED_TENSOR_PARALLEL, abs(size - _PREFERRED_TENSOR_PARALLEL)))
    for tensor in tensor_sizes:
        pipeline = count // tensor
        if forced_tensor in (None, tensor) and forced_pipeline in (None, pipeline):
            yield Shape(gpu.name, tensor, pipeline)


def _is_as_asked(asked: str, quantized: QuantizationFacts) -> bool:
    if asked == "auto":
        return True
    if asked in ("awq", "gptq"):
        return quantized.method == asked or (
            quantized.method == "compressed-tensors" and quantized.weight_format == "int4"
        )
    return quantized.weight_format.startswith(asked)


def _reasons(shape: Shape, estimate: MemoryEstimate, choice: PrecisionChoice) -> tuple[str, ...]:
    precision = precision_words(choice.quantization or "none", choice.kv_cache_dtype or "auto")
    where = f"one {shape.kind}" if shape.gpus == 1 else f"each of {shape.gpus} {shape.kind}"
    lines = [
        f"{precision[0].upper()}{precision[1:]}: {estimate.weights_bytes / _GIB:.1f} GiB on {where}, which leaves"
        f" {estimate.kv_cache_tokens_planned:,} tokens of KV cache, {estimate.max_concurrency:.1f} requests of"
        f" {estimate.max_model_len:,} tokens at a time."
    ]
    for other in choice.alternatives:
        if other.why_not is not None:
            words = precision_words(other.quantization, other.kv_cache_dtype)
            lines.append(f"{words[0].upper()}{words[1:]} do not do: {other.why_not}.")
    if shape.gpus > 1:
        sizes = f"tensor parallel {shape.tensor_parallel}, pipeline parallel {shape.pipeline_parallel}"
        lines.append(f"{shape.gpus} GPUs ({sizes}).")
    return tuple(lines)
