"""The ways to run one model on one kind of GPU that fit: precision, parallel sizes, engine options, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .carrying import Carrying, Traffic
from .engine_options import options_from_engine_args
from .errors import FleetError
from .memory import estimate_memory
from .placement_problem import Shape
from .quantization import choose_precision

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
# Those that the engine makes of full-precision weights while it loads.
ON_LOAD = ("fp8",)
# What has to be on one GPU before tensor parallelism over PCIe is given more than two ranks.
_PREFERRED_TENSOR_PARALLEL = 2
# Tensor groups of more GPUs than this carry less over PCIe than the same GPUs in smaller groups.
_WIDEST_OVER_PCIE = 4
# A larger configuration has to carry so much more than smaller ones on as many GPUs.
_WORTH_IT = 1.02


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
    """A way to run a model that fits.

    ``capacity_requests_per_s`` is what one instance carries within the objectives; None without a demand.
    """

    shape: Shape
    options: EngineOptions
    estimate: MemoryEstimate
    quantization: str
    reasons: tuple[str, ...]
    capacity_requests_per_s: float | None = None


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

    def __init__(self, engine_version: str, carrying: Carrying | None = None) -> None:
        self._engine_version = engine_version
        self._carrying = carrying or Carrying()
        self._known: dict[tuple[str, Shape], Configuration | Misfit] = {}
        self._speeds: dict[tuple[str, Shape, float], dict[str, Any]] = {}
        self._without_objectives: set[str] = set()

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

    def useful(
        self, model: ResolvedModel, gpu: GpuModel, most_gpus: int, *, precisions: Sequence[str] = ("",)
    ) -> tuple[tuple[Configuration, ...], tuple[Misfit, ...]]:
        """The configurations that carry more than smaller ones on as many GPUs, and what does not fit.

        Looked at are the fewest GPUs on which the model fits, one more, twice and four times as many: wider ones carry
        less a GPU over PCIe.

        Args:
            model: a request with a demand.
            gpu: the kind of GPU.
            most_gpus: on one host.
            precisions: of the weights, as ``Shape.precision`` has them.
        """
        fitting: list[Configuration] = []
        misfits: list[Misfit] = []
        best = [0.0]
        fewest: int | None = None
        for count in range(1, most_gpus + 1):
            if fewest is not None and count not in (fewest, fewest + 1, 2 * fewest, 4 * fewest):
                if count > 4 * fewest:
                    break
                best.append(_best_of(best, fitting))
                continue
            best.append(_best_of(best, fitting))
            for shape in _shapes(model.request, gpu, count):
                if fewest is not None and _is_too_wide(shape, gpu, model.request):
                    continue
                # A precision that a smaller configuration has anyway is no loss for a larger one.
                also = {one.quantization for one in fitting if one.quantization in ON_LOAD} - {*precisions}
                for precision in (*precisions, *sorted(also)) if _chooses_precision(model) else ("",):
                    found = self._if_better(model, gpu, replace(shape, precision=precision), best[count])
                    if isinstance(found, Misfit):
                        misfits.append(found)
                        continue
                    fewest = fewest or count
                    if found is not None:
                        fitting.append(found)
                        best[count] = max(best[count], found.capacity_requests_per_s or 0.0)
        return tuple(fitting), tuple(misfits)

    def ignore_objectives(self, model: ResolvedModel) -> None:
        """Answer for this model as if it had no objectives: nothing meets them, and it is to run all the same."""
        self._without_objectives.add(model.request.name)
        self._known = {key: found for key, found in self._known.items() if key[0] != model.request.name}

    def precision_of(self, model: ResolvedModel, gpu: GpuModel, shape: Shape, quantization: object) -> str:
        """``Shape.precision`` of an instance that runs with this ``quantization`` argument."""
        found = self.of_shape(model, gpu, shape)
        if not isinstance(quantization, str) or quantization not in ON_LOAD:
            return ""
        own = found.options.quantization if isinstance(found, Configuration) else None
        other = own != quantization and _chooses_precision(model)
        return quantization if other else ""

    def speed(self, model: ResolvedModel, gpu: GpuModel, one: Configuration, share: float) -> dict[str, Any]:
        """The speed of an instance that gets ``share`` requests a second; empty without a demand."""
        traffic = Traffic.of(model.request)
        if traffic is None:
            return {}
        # Instances of one configuration get the same share.
        key = (model.request.name, one.shape, share)
        if key not in self._speeds:
            kv_cache_tokens = one.estimate.kv_cache_tokens_planned
            self._speeds[key] = self._carrying.at_rate(
                model.facts, gpu, one.options, kv_cache_tokens, traffic, requests_per_second=share
            )
        return dict(self._speeds[key])

    def _if_better(
        self, model: ResolvedModel, gpu: GpuModel, shape: Shape, than: float
    ) -> Configuration | Misfit | None:
        """The configuration with its capacity, None when it carries no more than ``than``."""
        found = self.of_shape(model, gpu, shape)
        if isinstance(found, Misfit):
            return found
        traffic = Traffic.of(model.request)
        asked = (model.facts, gpu, found.options, found.estimate.kv_cache_tokens_planned)
        if than > 0.0 and traffic is not None:
            carries = self._carrying.carries(*asked, traffic, requests_per_second=than * _WORTH_IT)
            if not carries:
                return None
        return self.with_capacity(model, gpu, found)

    def with_capacity(self, model: ResolvedModel, gpu: GpuModel, one: Configuration) -> Configuration:
        """The configuration with what it carries."""
        traffic = Traffic.of(model.request)
        if traffic is None or one.capacity_requests_per_s is not None:
            return one
        capacity = self._carrying.capacity(model.facts, gpu, one.options, one.estimate.kv_cache_tokens_planned, traffic)
        # Rounded once, so that whoever adds up the plan's figures gets what was decided on.
        found = replace(one, capacity_requests_per_s=round(capacity.requests_per_second, 6) if capacity else 0.0)
        self._known[model.request.name, one.shape] = found
        return found

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
        traffic = None if request.name in self._without_objectives else Traffic.of(request)

        def why_not(candidate: EngineOptions, estimate: MemoryEstimate) -> str | None:
            if traffic is None:
                return None
            return self._carrying.why_not(model.facts, gpu, candidate, estimate.kv_cache_tokens_planned, traffic)

        try:
            choice = choose_precision(
                model.facts,
                gpu,
                options,
                quantization=shape.precision or request.quantization,
                kv_cache_dtype=options.kv_cache_dtype,
                forbidden=NEEDS_CHECKPOINT,
                accept=why_not,
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
        constraint = "objectives" if estimate.fits else "memory"
        return Misfit(
            shape, constraint, f"{precision}: {last.why_not or estimate.reason}", smallest, estimate.missing_bytes
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


def _chooses_precision(model: ResolvedModel) -> bool:
    return model.request.quantization == "auto" and model.facts.quantization is None


def _best_of(best: Sequence[float], fitting: Sequence[Configuration]) -> float:
    """The most that instances which were found carry together on one GPU more than ``best`` goes to."""
    count = len(best)
    sums = [best[count - one.shape.gpus] + (one.capacity_requests_per_s or 0.0) for one in fitting]
    return max([best[-1], *sums])


def _is_too_wide(shape: Shape, gpu: GpuModel, request: ModelRequest) -> bool:
    forced = request.forced_tensor_parallel is not None
    return not (gpu.nvlink or forced) and shape.tensor_parallel > _WIDEST_OVER_PCIE


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
