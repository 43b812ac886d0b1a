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
from .quantize_recipes import why_not_served
from .sources import DRAFT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .engine_options import EngineOptions
    from .hardware import GpuModel
    from .memory import MemoryEstimate
    from .model_facts import ModelFacts
    from .plan_document import CheckpointReference
    from .quantization import PrecisionChoice
    from .quantization_config import QuantizationFacts
    from .requests import ModelRequest
    from .sources import FurtherSource, Source

_GIB = 1024**3
# Precisions that exist only as a checkpoint: the engine cannot make them of full-precision weights while it loads.
NEEDS_CHECKPOINT = ("int8", "awq", "gptq", "mxfp4")
# Those that the engine makes of full-precision weights while it loads.
ON_LOAD = ("fp8",)
# Less faithful than need be, as ``Shape.precision`` names it: the weights, the KV cache, both.
LESS_FAITHFUL = ("fp8", "kv_fp8", "fp8+kv_fp8")
# Chunks of prompts that are tried beside vLLM's default: a decode step is as long as the prompt tokens in it make it.
_CHUNK_TOKENS = (384, 512, 768, 1024, 4096)
# The first that is tried: with the running sequences its steps still fit the largest CUDA graph. Then, those near the
# better of it and the default.
_FIRST_CHUNK = 512
_NEAR_FIRST, _NEAR_DEFAULT, _BETWEEN = (384, 768), (1024, 4096), (768,)
# What has to be on one GPU before tensor parallelism over PCIe is given more than two ranks.
_PREFERRED_TENSOR_PARALLEL = 2
# Tensor groups of more GPUs than this carry less over PCIe than the same GPUs in smaller groups.
_WIDEST_OVER_PCIE = 4
# A larger configuration has to carry so much more than smaller ones on as many GPUs, another chunk than the default.
_WORTH_IT = 1.02
# The bound on a capacity differs by less than this with the room that other chunks leave, and by interpolation.
_BOUND_SLACK = 1.1
# Configurations on up to so many times the fewest GPUs are looked at.
_MOST_TIMES_FEWEST = 4


@dataclass(frozen=True, slots=True)
class FurtherCheckpoint:
    """A checkpoint that a model is served with, and what it says.

    Args:
        source: where it comes from, and which it is.
        config: its configuration file.
        facts: of a draft model; None for an adapter.
        checkpoint: its identity; None when only the configuration is known.
    """

    source: FurtherSource
    config: Mapping[str, object]
    facts: ModelFacts | None = None
    checkpoint: CheckpointReference | None = None

    @property
    def path(self) -> str:
        """What the engine is given: its directory on a host, or the name that vLLM downloads."""
        return path_on_hosts(self.source.source, self.checkpoint)


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A request with what its checkpoint says.

    Args:
        path: where the request stands, as ``models.yml: models[2]``.
        facts: the model's configuration.
        checkpoint: identity of the checkpoint; None when only the configuration is known.
        notes: what its instances say of it among their reasons.
        embedding_size: numbers of an embedding that it makes; None where that is not known, or it makes none.
        further: the checkpoints that it is served with beside its own, in the order of ``request.further_sources``.
    """

    request: ModelRequest
    path: str
    facts: ModelFacts
    checkpoint: CheckpointReference | None = None
    notes: tuple[str, ...] = ()
    further: tuple[FurtherCheckpoint, ...] = ()
    embedding_size: int | None = None

    def further_by_label(self, label: str) -> FurtherCheckpoint | None:
        """The one that was asked for under this label, or None."""
        return next((one for one in self.further if one.source.label == label), None)


def path_on_hosts(source: Source, checkpoint: CheckpointReference | None) -> str:
    """Where the engine finds a checkpoint: its directory on a host, or else the name that vLLM downloads."""
    if checkpoint is not None:
        return checkpoint.path
    return source.repository or source.path or source.text


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
    """Answers for GPU kinds and engine versions, remembered: the same question is asked for every instance."""

    def __init__(
        self, engine_version: str, carrying: Carrying | None = None, triton_engine_version: str | None = None
    ) -> None:
        self._engine_versions = {"vllm": engine_version, "triton": triton_engine_version or engine_version}
        self._carrying = carrying or Carrying()
        self._known: dict[tuple[str, Shape], Configuration | Misfit] = {}
        self._speeds: dict[tuple[str, Shape, float], dict[str, Any]] = {}
        self._without_objectives: set[str] = set()

    def engine_version(self, model: ResolvedModel) -> str:
        """VLLM's version that serves a model: that of the role vllm, or that of Triton's container."""
        return self._engine_versions[model.request.engine]

    def of_shape(self, model: ResolvedModel, gpu: GpuModel, shape: Shape) -> Configuration | Misfit:
        """The best precision for this shape, or why none fits."""
        key = (model.request.name, shape)
        if key not in self._known:
            examine = self._with_chunk if shape.max_num_batched_tokens else self._examine
            self._known[key] = examine(model, gpu, shape)
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
        self,
        model: ResolvedModel,
        gpu: GpuModel,
        most_gpus: int,
        *,
        precisions: Sequence[str] = (),
        settled: bool = False,
    ) -> tuple[tuple[Configuration, ...], tuple[Misfit, ...]]:
        """The configurations that carry more than smaller ones on as many GPUs, and what does not fit.

        Looked at are the fewest GPUs on which the model fits and up to four times as many: wider ones carry less a GPU
        over PCIe. Each is taken with the chunk of prompts that suits the traffic best.

        Args:
            model: a request with a demand.
            gpu: the kind of GPU.
            most_gpus: on one host.
            precisions: of those in ``LESS_FAITHFUL``, what may be used beside the most faithful one that does.
            settled: only those.
        """
        fitting: list[Configuration] = []
        misfits: list[Misfit] = []
        best = [0.0]
        fewest: int | None = None
        allowed = less_faithful(model)
        for count in range(1, most_gpus + 1):
            if fewest is not None and count > _MOST_TIMES_FEWEST * fewest:
                break
            best.append(_best_of(best, fitting))
            for shape in _shapes(model.request, gpu, count):
                if fewest is not None and _is_too_wide(shape, gpu, model.request):
                    continue
                # A precision that a smaller configuration has anyway is no loss for a larger one.
                needed = {_precision_name(one) for one in fitting if not one.shape.precision}
                seen = set()
                names = [name for name in allowed if name in precisions or (name in needed and not settled)]
                for precision in names if settled else ("", *names):
                    found = self.of_shape(model, gpu, replace(shape, precision=precision))
                    if isinstance(found, Misfit):
                        misfits.append(found)
                        continue
                    fewest = fewest or count
                    if _precision_name(found) in seen:
                        continue
                    seen.add(_precision_name(found))
                    better = self._if_better(model, gpu, found, best[count])
                    if better is not None:
                        fitting.append(better)
                        best[count] = max(best[count], better.capacity_requests_per_s or 0.0)
        return tuple(fitting), tuple(misfits)

    def ignore_objectives(self, model: ResolvedModel) -> None:
        """Answer for this model as if it had no objectives: nothing meets them, and it is to run all the same."""
        self._without_objectives.add(model.request.name)
        self._known = {key: found for key, found in self._known.items() if key[0] != model.request.name}

    def shape_as_run(self, model: ResolvedModel, gpu: GpuModel, shape: Shape, engine_args: Mapping[str, Any]) -> Shape:
        """The shape of an instance that runs with these arguments, where a plan could have chosen them."""
        found = self.of_shape(model, gpu, shape)
        own = found.options if isinstance(found, Configuration) else None
        names = []
        quantization = engine_args.get("quantization")
        if quantization in ON_LOAD and (own is None or own.quantization != quantization):
            names.append(str(quantization))
        if engine_args.get("kv_cache_dtype") == "fp8" and (own is None or own.kv_cache_dtype != "fp8"):
            names.append("kv_fp8")
        precision = "+".join(names)
        if precision in less_faithful(model):
            shape = replace(shape, precision=precision)
        tokens = engine_args.get("max_num_batched_tokens")
        if own is not None and _may_choose_chunk(model, own) and tokens in _CHUNK_TOKENS:
            shape = replace(shape, max_num_batched_tokens=tokens)
        return shape

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
        self, model: ResolvedModel, gpu: GpuModel, found: Configuration, than: float
    ) -> Configuration | None:
        """The configuration with the chunk that suits it; None when it carries no more than ``than``."""
        traffic = Traffic.of(model.request)
        chunks: tuple[int, ...] = ()
        if traffic is not None and _may_choose_chunk(model, found.options) and traffic.objectives.any_limit:
            chunks = tuple(tokens for tokens in _CHUNK_TOKENS if tokens >= found.options.max_num_seqs)
        if traffic is not None and than > 0.0:
            estimate = found.estimate
            bounds = (
                self._carrying.bound(
                    model.facts,
                    gpu,
                    replace(found.options, max_num_batched_tokens=tokens),
                    estimate.kv_cache_tokens_planned,
                    traffic,
                )
                for tokens in ({min(chunks), max(chunks)} if chunks else {found.options.max_num_batched_tokens})
            )
            if max(bounds) * _BOUND_SLACK < than * _WORTH_IT:
                return None
        best = self._better(model, gpu, found.shape, than, None)
        if _FIRST_CHUNK not in chunks:
            return best
        small = replace(found.shape, max_num_batched_tokens=_FIRST_CHUNK)
        best = self._better(model, gpu, small, than, best)
        near: tuple[int, ...] = _BETWEEN
        if best is not None:
            near = _NEAR_FIRST if best.shape.max_num_batched_tokens else _NEAR_DEFAULT
        for tokens in near:
            if tokens in chunks:
                best = self._better(model, gpu, replace(small, max_num_batched_tokens=tokens), than, best)
        return best

    def _better(
        self, model: ResolvedModel, gpu: GpuModel, shape: Shape, than: float, best: Configuration | None
    ) -> Configuration | None:
        """This shape where it carries more than ``than`` and ``best``, otherwise ``best``."""
        one, traffic = self.of_shape(model, gpu, shape), Traffic.of(model.request)
        if isinstance(one, Misfit):
            return best
        floor = max(than, (best.capacity_requests_per_s or 0.0) if best else 0.0)
        if floor > 0.0 and traffic is not None:
            asked = (model.facts, gpu, one.options, one.estimate.kv_cache_tokens_planned)
            if not self._carrying.carries(*asked, traffic, requests_per_second=floor * _WORTH_IT):
                return best
        return self.with_capacity(model, gpu, one)

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

    def _with_chunk(self, model: ResolvedModel, gpu: GpuModel, shape: Shape) -> Configuration | Misfit:
        """The same shape with another chunk of prompts: what it takes in memory, in the precision that was chosen."""
        base = self.of_shape(model, gpu, replace(shape, max_num_batched_tokens=0))
        if isinstance(base, Misfit):
            return replace(base, shape=shape)
        options = replace(base.options, max_num_batched_tokens=shape.max_num_batched_tokens)
        estimate = estimate_memory(model.facts, gpu, options)
        if not estimate.fits:
            return Misfit(shape, "memory", estimate.reason, options, estimate.missing_bytes)
        words = _fitting_words(shape, estimate, base.quantization, options.kv_cache_dtype)
        why = _why_this_chunk(shape, base.options.max_num_batched_tokens)
        return Configuration(shape, options, estimate, base.quantization, (words, *base.reasons[1:], *why))

    def _examine(self, model: ResolvedModel, gpu: GpuModel, shape: Shape) -> Configuration | Misfit:
        request = model.request
        options = replace(
            base_options(model),
            tensor_parallel_size=shape.tensor_parallel,
            pipeline_parallel_size=shape.pipeline_parallel,
            engine_version=self.engine_version(model),
        )
        limit = gpu.start_utilization
        if limit is not None and "gpu_memory_utilization" not in request.engine_args:
            options = replace(options, gpu_memory_utilization=min(limit, options.gpu_memory_utilization))
        refused = self._why_never(model, gpu, options)
        if refused is not None:
            return Misfit(shape, *refused, options)
        traffic = None if request.name in self._without_objectives else Traffic.of(request)

        def why_not(candidate: EngineOptions, estimate: MemoryEstimate) -> str | None:
            if traffic is None:
                return None
            return self._carrying.why_not(model.facts, gpu, candidate, estimate.kv_cache_tokens_planned, traffic)

        names = shape.precision.split("+")
        try:
            choice = choose_precision(
                model.facts,
                gpu,
                options,
                quantization="fp8" if "fp8" in names else request.quantization,
                kv_cache_dtype="fp8" if "kv_fp8" in names else options.kv_cache_dtype,
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
            reasons=(*_reasons(shape, choice.estimate, choice), *_why_this_utilization(choice.options, limit)),
        )

    def _why_never(self, model: ResolvedModel, gpu: GpuModel, options: EngineOptions) -> tuple[str, str] | None:
        """The constraint that no precision and no parallel size would lift, and in words why."""
        request, quantized = model.request, model.facts.quantization
        if quantized is not None and not _is_as_asked(request.quantization, quantized):
            return (
                "quantization",
                f"the checkpoint is quantized ({quantized.method}), {request.quantization} was asked for",
            )
        if quantized is not None and quantized.act_order and quantized.group_size > 0:
            refused = why_not_served("gptq_g_idx", self.engine_version(model))
            if refused is not None:
                return "quantization", refused
        if quantized is None and request.quantization in NEEDS_CHECKPOINT:
            return (
                "quantization",
                f"the checkpoint is not quantized, and the engine cannot make {request.quantization} of it",
            )
        wanted, limit = options.gpu_memory_utilization, gpu.start_utilization
        if limit is not None and (wanted > limit or limit == 0.0):
            words = f"others hold memory on the GPU: an engine that wants more than {limit:g} of it does not start"
            return "memory", f"{words}, and gpu_memory_utilization is {wanted:g}" if limit else words
        return None

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
    options = options_from_engine_args(arguments, where=f"{model.path}.engine_args")
    if options.lora is not None and request.lora is not None:
        found = ((one, model.further_by_label(one.label)) for one in request.lora.adapters)
        adapters = tuple((one.name, one_found.path) for one, one_found in found if one_found is not None)
        options = replace(options, lora=replace(options.lora, adapters=adapters))
    if request.speculative is not None and request.speculative.method != "auto":
        options = with_speculation(model, options, request.speculative.engine_document())
    if request.task != "generate" and "max_num_batched_tokens" not in arguments:
        # Pooling models do not split a prompt into chunks, so that the whole of it has to fit in a batch.
        longest = options.max_model_len or model.facts.max_position_embeddings
        options = replace(options, max_num_batched_tokens=max(options.max_num_batched_tokens, longest))
    return options


def with_speculation(model: ResolvedModel, options: EngineOptions, document: Mapping[str, object]) -> EngineOptions:
    """The options with drafting, as vLLM's ``--speculative-config`` has it; the draft's path on the hosts goes in."""
    draft = model.further_by_label(DRAFT)
    parsed = options_from_engine_args({"speculative_config": document}, where=model.path).speculative
    if parsed is None or draft is None:
        return replace(options, speculative=parsed)
    length = options.max_model_len
    if parsed.method == "draft_model" and length is None and draft.facts is not None:
        # The engine serves no more than the draft reads (config/vllm.py, _limit_max_model_len_to_draft).
        drafted = parsed.max_model_len or draft.facts.max_position_embeddings
        length = drafted if drafted < model.facts.max_position_embeddings else None
    return replace(options, max_model_len=length, speculative=replace(parsed, model=draft.path, draft=draft.facts))


def less_faithful(model: ResolvedModel) -> tuple[str, ...]:
    """Precisions that the model may be served in beside the most faithful one, as ``Shape.precision`` names them."""
    request = model.request
    weights = request.quantization == "auto" and model.facts.quantization is None
    cache = (
        request.kv_cache_dtype == "auto"
        and not {"kv_cache_dtype", "attention_backend"} & request.engine_args.keys()
        and model.facts.layer_kinds[0].attention.kind not in ("mla", "encoder")
    )
    free = {*(("fp8",) if weights else ()), *(("kv_fp8",) if cache else ())}
    return tuple(name for name in LESS_FAITHFUL if set(name.split("+")) <= free)


def gives_up_precision(one: Configuration, among: Sequence[Configuration]) -> bool:
    """Whether it is in a precision that none of them needs to fit or to meet the objectives."""
    needed = {(other.quantization, other.options.kv_cache_dtype) for other in among if not other.shape.precision}
    return bool(one.shape.precision) and (one.quantization, one.options.kv_cache_dtype) not in needed


def _precision_name(one: Configuration) -> str:
    """``Shape.precision`` that gives the configuration's precision."""
    names = [one.quantization] if one.quantization in ON_LOAD else []
    return "+".join([*names, "kv_fp8"] if one.options.kv_cache_dtype == "fp8" else names)


def _may_choose_chunk(model: ResolvedModel, options: EngineOptions) -> bool:
    """Whether the chunk of prompts is left to the plan: pooling models and images need whole prompts in a step."""
    request = model.request
    given = {"max_num_batched_tokens", "enable_chunked_prefill"} & request.engine_args.keys()
    return request.task == "generate" and not given and not request.limit_mm_per_prompt and options.speculative is None


def _why_this_chunk(shape: Shape, default_tokens: int) -> list[str]:
    tokens, longer = shape.max_num_batched_tokens, shape.max_num_batched_tokens > default_tokens
    why = "so that prompts take fewer steps" if longer else "so that decode steps with prompts beside them stay short"
    return [f"max_num_batched_tokens {tokens:,} instead of {default_tokens:,}, {why}: it carries more this way."]


def _why_this_utilization(options: EngineOptions, limit: float | None) -> list[str]:
    if limit is None:
        return []
    return [
        f"gpu_memory_utilization {options.gpu_memory_utilization:g}: others hold memory on the GPU, and an engine that"
        f" wants more than {limit:g} of it does not start."
    ]


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
            yield Shape(gpu.kind, tensor, pipeline)


def _is_as_asked(asked: str, quantized: QuantizationFacts) -> bool:
    if asked == "auto":
        return True
    if asked in ("awq", "gptq"):
        return quantized.method == asked or (
            quantized.method == "compressed-tensors" and quantized.weight_format == "int4"
        )
    return quantized.weight_format.startswith(asked)


def _fitting_words(shape: Shape, estimate: MemoryEstimate, quantization: str, kv_cache_dtype: str) -> str:
    precision = precision_words(quantization, kv_cache_dtype)
    where = f"one {shape.kind}" if shape.gpus == 1 else f"each of {shape.gpus} {shape.kind}"
    if not estimate.num_gpu_blocks_planned:
        return (
            f"{precision[0].upper()}{precision[1:]}: {estimate.weights_bytes / _GIB:.1f} GiB on {where}. An encoder"
            f" keeps no KV cache; a step takes {estimate.max_concurrency:.0f} requests of {estimate.max_model_len:,}"
            " tokens."
        )
    return (
        f"{precision[0].upper()}{precision[1:]}: {estimate.weights_bytes / _GIB:.1f} GiB on {where}, which leaves"
        f" {estimate.kv_cache_tokens_planned:,} tokens of KV cache, {estimate.max_concurrency:.1f} requests of"
        f" {estimate.max_model_len:,} tokens at a time."
    )


def _reasons(shape: Shape, estimate: MemoryEstimate, choice: PrecisionChoice) -> tuple[str, ...]:
    lines = [_fitting_words(shape, estimate, choice.quantization or "none", choice.kv_cache_dtype or "auto")]
    for other in choice.alternatives:
        if other.why_not is not None:
            words = precision_words(other.quantization, other.kv_cache_dtype)
            lines.append(f"{words[0].upper()}{words[1:]} do not do: {other.why_not}.")
    if shape.gpus > 1:
        sizes = f"tensor parallel {shape.tensor_parallel}, pipeline parallel {shape.pipeline_parallel}"
        lines.append(f"{shape.gpus} GPUs ({sizes}).")
    return tuple(lines)
