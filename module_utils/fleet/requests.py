"""models.yml: which models are wanted, how much traffic they carry, and where they may run."""

from __future__ import annotations

from math import isfinite
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from .document_checks import (
    Document,
    check_document,
    faults_error,
    labels_as_tuple,
    list_as_tuple,
    load_yaml,
    nearest,
    path_of,
    shown,
)
from .engine_arguments import RESERVED_ENVIRONMENT, TWINS, argument_faults
from .engine_options import LORA_RANKS, options_from_engine_args
from .errors import FleetError
from .request_quantize import Quantize  # noqa: TC001 - pydantic reads it
from .request_speculative import Speculative, speculative_mapping
from .sources import ADAPTER_CONFIG_NAME, DRAFT, FurtherSource, Source
from .triton_ensemble import ensemble_names
from .triton_releases import ASYNC_ENGINE_ARGUMENTS

if TYPE_CHECKING:
    from collections.abc import Iterable

NAME_PATTERN = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
MAX_NAME_CHARACTERS = 48


def _gpu_reference(value: object) -> object:
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    msg = f"must be the index or the UUID of a GPU, got {shown(value)}"
    raise ValueError(msg)


def _json_value(value: object) -> object:
    if isinstance(value, float) and not isfinite(value):
        msg = f"must be a finite number, got {value}"
        raise ValueError(msg)
    children: Iterable[object] = ()
    if isinstance(value, dict):
        children = value.values()
    elif isinstance(value, list):
        children = value
    for child in children:
        _json_value(child)
    return value


ModelName = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=MAX_NAME_CHARACTERS)]
AliasName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?$", max_length=128)]
GpuReference = Annotated[Any, AfterValidator(_gpu_reference)]
Argument = Annotated[Any, AfterValidator(_json_value)]
Text = Annotated[str, StringConstraints(min_length=1)]
Count = Annotated[int, Field(ge=1)]
EnvironmentName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
EnvironmentValue = Annotated[str, StringConstraints(pattern=r"^[^\x00\n\r]*$")]


class Demand(Document):
    """The traffic of one model."""

    requests_per_second: float = Field(gt=0, description="Mean rate of requests that the model has to carry.")
    prompt_tokens: Count = Field(default=1024, description="Mean length of a prompt, tokens of images included.")
    output_tokens: Count = Field(default=256, description="Mean length of an answer.")


class Objectives(Document):
    """Latencies that have to hold at the demand."""

    ttft_ms: float | None = Field(default=None, gt=0, description="Time to first token. Left out: no limit.")
    tpot_ms: float | None = Field(default=None, gt=0, description="Time per output token. Left out: no limit.")
    percentile: float = Field(default=95, gt=0, lt=100, description="Percent of requests that must meet them.")


class Replicas(Document):
    """How many instances of the model may run."""

    min: Count = Field(default=1, description="At least so many, whatever the demand.")
    max: Count | None = Field(default=None, description="At most so many. Left out: no limit.")


class Availability(Document):
    """What may fail without the model's demand being left."""

    hosts_lost: Annotated[int, Field(ge=0, le=1)] = Field(
        default=0,
        description="1: any one host may be lost and the demand is still carried; without a demand, replicas stand on"
        " two hosts at least.",
    )


class Pin(Document):
    """A place that one replica has to take."""

    host: Text = Field(description="Inventory name of the host.")
    gpus: Annotated[tuple[GpuReference, ...], Field(min_length=1), BeforeValidator(list_as_tuple)] | None = Field(
        default=None, description="Indices or UUIDs of all GPUs of the replica. Left out: any there."
    )


class Placement(Document):
    """Where the model may run."""

    hosts: Annotated[tuple[Text, ...], Field(min_length=1), BeforeValidator(list_as_tuple)] | None = Field(
        default=None, description="The only hosts that may be used. Left out: all of them."
    )
    labels: Annotated[tuple[Text, ...], BeforeValidator(labels_as_tuple)] = Field(
        default=(), description="Labels (fleet_labels) that a host must carry, all of them."
    )
    pins: Annotated[tuple[Pin, ...], BeforeValidator(list_as_tuple)] = Field(
        default=(), description="One entry for each replica that must stand in a given place; other replicas are free."
    )
    spread_over_hosts: bool = Field(
        default=True, description="Replicas go to different hosts where there is room; false fills hosts one by one."
    )
    allow_multi_node: bool = Field(
        default=False, description="One instance may span hosts, where no host alone carries what is asked for."
    )
    share_gpus: Literal["auto", "never"] = Field(
        default="auto",
        description="auto: the model may share a GPU with others, each with KV memory of its own, where something would"
        " be left otherwise.",
    )


class LoraAdapter(Document):
    """One adapter."""

    name: ModelName = Field(description="The model name under which requests reach it.")
    source: Text = Field(description="Where it comes from, written as a model's source.")
    config: Text | None = Field(
        default=None, description="Path of an adapter_config.json, to plan without the adapter. Left out: its own."
    )

    @property
    def label(self) -> str:
        """What distinguishes it among the checkpoints of its model."""
        return f"lora-{self.name}"


class Lora(Document):
    """Room for LoRA adapters."""

    max_loras: Count = Field(default=1, description="Adapters in one batch.")
    max_rank: Count = Field(default=16, description="Largest rank of an adapter.")
    adapters: Annotated[tuple[LoraAdapter, ...], BeforeValidator(list_as_tuple)] = Field(
        default=(), description="Adapters that are served from the start."
    )


class Triton(Document):
    """What a model on Triton has beside itself."""

    chat_ensemble: bool = Field(
        default=False,
        description="An ensemble NAME-chat that takes chat messages and applies the checkpoint's chat template.",
    )


class ModelRequest(Document):
    """One entry of ``models`` in models.yml."""

    name: ModelName = Field(description="The name under which clients ask for the model.")
    source: Text = Field(
        description="hf:org/name@revision, file:/path or https://...; a bare path or org/name works too. Relative paths"
        " are relative to the models file."
    )
    config: Text | None = Field(
        default=None, description="Path of a config.json, to plan without the checkpoint. Left out: its own."
    )
    aliases: Annotated[tuple[AliasName, ...], BeforeValidator(list_as_tuple)] = Field(
        default=(), description="Further names under which clients may ask for the model."
    )
    task: Literal["generate", "embed", "score"] = Field(
        default="generate",
        description="What the model is used for: text, also about images; embeddings; scores of pairs of texts.",
    )
    demand: Demand | None = Field(default=None, description="The traffic. Left out: replicas.min instances, no more.")
    objectives: Objectives = Field(default_factory=Objectives, description="Latencies to hold.")
    max_model_len: Count | None = Field(
        default=None, description="Longest prompt and answer together, in tokens. Left out: the model's own maximum."
    )
    quantization: Literal["auto", "none", "fp8", "int8", "awq", "gptq", "mxfp4"] = Field(
        default="auto", description="Precision of the weights; auto chooses the best quality that fits."
    )
    quantize: Quantize | None = Field(
        default=None,
        description="How a quantized checkpoint is made of a source in full precision. Left out: defaults.",
    )
    kv_cache_dtype: Literal["auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2"] = Field(
        default="auto", description="Precision of the KV cache; auto is the model's own."
    )
    replicas: Replicas = Field(default_factory=Replicas, description="Bounds of the number of instances.")
    availability: Availability = Field(default_factory=Availability, description="What may fail.")
    engine: Literal["vllm", "triton"] = Field(default="vllm", description="The server that runs the model.")
    triton: Triton = Field(default_factory=Triton, description="Options of engine: triton.")
    priority: int = Field(default=0, description="With no room for all, the higher number is placed first.")
    speculative: Annotated[Speculative | None, BeforeValidator(speculative_mapping)] = Field(
        default=None, description="none (the default), auto (method: auto), or how tokens are drafted."
    )
    tensor_parallel: Count | None = Field(
        default=None, description="Forced --tensor-parallel-size. Left out: 1 with pipeline_parallel, else chosen."
    )
    pipeline_parallel: Count | None = Field(
        default=None, description="Forced --pipeline-parallel-size. Left out: 1 with tensor_parallel, else chosen."
    )
    placement: Placement = Field(default_factory=Placement, description="Where the model may run.")
    lora: Lora | None = Field(default=None, description="Room for adapters. Left out: none.")
    limit_mm_per_prompt: dict[str, Annotated[int, Field(ge=0)]] | None = Field(
        default=None, description="Images, videos and so on in one prompt, by modality. Left out: vLLM's default."
    )
    engine_args: dict[str, Argument] = Field(
        default_factory=dict, description="Any other argument of vLLM, written with underscores."
    )
    env: dict[EnvironmentName, EnvironmentValue] = Field(
        default_factory=dict, description="Environment variables of the engine. Not for secrets."
    )

    @property
    def source_path(self) -> str | None:
        """The path of a source that lies on the controller, as it was written. None for one that is fetched."""
        return Source(self.source).path

    @property
    def repository(self) -> str | None:
        """The repository on the Hugging Face hub (``org/name``), or None."""
        return Source(self.source).repository

    @property
    def revision(self) -> str | None:
        """The revision of that repository, or None."""
        return Source(self.source).revision

    @property
    def further_sources(self) -> tuple[FurtherSource, ...]:
        """The checkpoints that the model is served with beside its own."""
        adapters = tuple(
            FurtherSource(
                label=one.label,
                key=f"lora.adapters[{index}].source",
                source=Source(one.source),
                config=one.config,
                config_key=f"lora.adapters[{index}].config",
                config_name=ADAPTER_CONFIG_NAME,
                kind="adapter",
            )
            for index, one in enumerate(self.lora.adapters if self.lora else ())
        )
        drafting = self.speculative
        if drafting is None or drafting.model is None:
            return adapters
        draft = FurtherSource(
            label=DRAFT,
            key="speculative.model",
            source=Source(drafting.model),
            config=drafting.config,
            config_key="speculative.config",
            kind="eagle3" if drafting.method == "eagle3" else "model",
        )
        return (draft, *adapters)

    @property
    def forced_tensor_parallel(self) -> int | None:
        """The tensor parallel size that the request insists on. One size given alone makes the other 1, as in vLLM."""
        own = self.tensor_parallel or self._twin("tensor_parallel_size")
        other = self.pipeline_parallel or self._twin("pipeline_parallel_size")
        return own or (1 if other else None)

    @property
    def forced_pipeline_parallel(self) -> int | None:
        """The pipeline parallel size that the request insists on, by the same rule."""
        own = self.pipeline_parallel or self._twin("pipeline_parallel_size")
        other = self.tensor_parallel or self._twin("tensor_parallel_size")
        return own or (1 if other else None)

    def _twin(self, argument: str) -> int | None:
        value = self.engine_args.get(argument)
        return value if isinstance(value, int) else None


class _Models(Document):
    models: Annotated[tuple[ModelRequest, ...], BeforeValidator(list_as_tuple)]


def parse_requests(text: str, *, where: str) -> tuple[ModelRequest, ...]:
    """Read models.yml.

    Args:
        text: the file's content.
        where: the file's name as errors show it.

    Returns:
        The models in the order of the file.

    Raises:
        FleetError: one line for each fault (five at most), with file and path.
    """
    value = load_yaml(text, where=where)
    if value is None:
        raise faults_error([(where, "is empty; write `models: []` for a fleet without models")])
    models = check_document(_Models, value, where=where).models
    faults = [
        *_name_faults(models),
        *(fault for index, model in enumerate(models) for fault in _model_faults(path_of("models", index), model)),
    ]
    if faults:
        raise faults_error([(f"{where}: {path}", problem) for path, problem in faults])
    return models


def host_name_faults(
    requests: tuple[ModelRequest, ...], known_hosts: frozenset[str], *, where: str
) -> list[tuple[str, str]]:
    """Find hosts that placement names and the inventory lacks."""
    faults = []
    for index, request in enumerate(requests):
        path = f"{where}: {path_of('models', index)}.placement"
        named = [(f"{path}.hosts[{i}]", host) for i, host in enumerate(request.placement.hosts or ())]
        named += [(f"{path}.pins[{i}].host", pin.host) for i, pin in enumerate(request.placement.pins)]
        faults += [(p, f"no host {h!r}, {nearest(h, known_hosts)}") for p, h in named if h not in known_hosts]
    return faults


def _name_faults(models: tuple[ModelRequest, ...]) -> list[tuple[str, str]]:
    faults = []
    taken: dict[str, str] = {}
    for index, model in enumerate(models):
        path = path_of("models", index, "name")
        if model.name in taken:
            faults.append((path, f"{model.name!r} is the name of {taken[model.name]} already"))
        taken.setdefault(model.name, path_of("models", index))
    for index, model in enumerate(models):
        names = [(path_of("models", index, "aliases", i), alias) for i, alias in enumerate(model.aliases)]
        if model.triton.chat_ensemble:
            names += [
                (path_of("models", index, "triton", "chat_ensemble"), name) for name in ensemble_names(model.name)
            ]
        if model.lora:
            names += [
                (path_of("models", index, "lora", "adapters", i, "name"), adapter.name)
                for i, adapter in enumerate(model.lora.adapters)
            ]
        for path, name in names:
            if name in taken:
                faults.append((path, f"{name!r} is a name of {taken[name]} already"))
            taken.setdefault(name, path_of("models", index))
    return faults


def _model_faults(path: str, model: ModelRequest) -> list[tuple[str, str]]:
    faults = [(f"{path}.{name}", problem) for name, problem in _consistency_faults(model)]
    own = {name: getattr(model, name) for name in TWINS.values() if name in model.model_fields_set}
    faults += [(f"{path}.engine_args.{name}", problem) for name, problem in argument_faults(model.engine_args, own)]
    if model.engine != "triton" and model.triton.chat_ensemble:
        faults.append((f"{path}.triton.chat_ensemble", "is for engine: triton"))
    if model.engine == "triton":
        faults += [(f"{path}.{name}", problem) for name, problem in _triton_faults(model)]
    try:
        options_from_engine_args(model.engine_args, where=f"{path}.engine_args")
    except FleetError as error:
        faults.append((error.where, error.problem))
    faults += [(f"{path}.env.{name}", problem) for name, problem in RESERVED_ENVIRONMENT.items() if name in model.env]
    return faults


def _triton_faults(model: ModelRequest) -> list[tuple[str, str]]:
    """What Triton's vLLM backend does not take."""
    faults = [
        (f"engine_args.{name}", "is no argument of the vLLM in Triton's container")
        for name in model.engine_args
        if name.replace("-", "_") not in ASYNC_ENGINE_ARGUMENTS
    ]
    if model.task != "generate":
        faults.append(("task", f"engine: triton serves generate only, got {model.task}; use engine: vllm"))
    if model.lora is not None:
        faults.append(("lora", "engine: triton serves no adapters; use engine: vllm"))
    return faults


def _consistency_faults(model: ModelRequest) -> list[tuple[str, str]]:
    faults = []
    most = model.replicas.max
    if most is not None and most < model.replicas.min:
        faults.append(("replicas.max", f"must be at least replicas.min ({model.replicas.min}), got {most}"))
    if most is not None and len(model.placement.pins) > most:
        faults.append(("placement.pins", f"{len(model.placement.pins)} pins are more than replicas.max ({most})"))
    if most == 1 and model.availability.hosts_lost:
        faults.append(("availability.hosts_lost", "needs two replicas, but replicas.max is 1"))
    if model.lora is not None and model.lora.max_rank not in LORA_RANKS:
        ranks = ", ".join(map(str, LORA_RANKS))
        faults.append(("lora.max_rank", f"must be one of {ranks}, as in vLLM, got {model.lora.max_rank}"))
    sources = {"source": Source(model.source), **{one.key: one.source for one in model.further_sources}}
    faults += [(key, problem) for key, source in sources.items() if (problem := source.fault())]
    if model.speculative is not None:
        faults += [(f"speculative.{key}", problem) for key, problem in model.speculative.faults()]
    hosts = model.placement.hosts
    sizes = (model.forced_tensor_parallel, model.forced_pipeline_parallel)
    for index, pin in enumerate(model.placement.pins):
        path = f"placement.pins[{index}]"
        if hosts is not None and pin.host not in hosts:
            faults.append((f"{path}.host", f"{pin.host!r} is not among placement.hosts"))
        if pin.gpus is None:
            continue
        if len(set(pin.gpus)) != len(pin.gpus):
            faults.append((f"{path}.gpus", "names a GPU twice"))
        if sizes[0] and sizes[1] and len(pin.gpus) != sizes[0] * sizes[1]:
            needed = sizes[0] * sizes[1]
            faults.append((f"{path}.gpus", f"names {len(pin.gpus)} GPUs, but the parallel sizes need {needed}"))
    return faults


def relative_to(models_file: str, path: str) -> str:
    """A path of models.yml, which is relative to that file, as one that the reading process can open."""
    expanded = PurePosixPath(path)
    return path if expanded.is_absolute() else str(PurePosixPath(models_file).parent / path)
