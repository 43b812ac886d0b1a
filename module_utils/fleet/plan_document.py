"""The plan: what runs where, what was refused, and why. Its JSON has no times, so that equal plans are equal bytes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from .document_checks import MachineDocument, check_document, faults_error, list_as_tuple, load_json, shown
from .errors import FleetError
from .host_document import MODELS_DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA = 1
_DIGEST_CHARACTERS = 12


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of an instance on one host. ``gpus`` are UUIDs by rank, ``rank`` is that of the node."""

    host: str
    gpus: tuple[str, ...]
    rank: int = 0


@dataclass(frozen=True, slots=True)
class CheckpointReference:
    """The checkpoint that an instance serves. ``digest`` is the SHA-256 of its manifest, in hexadecimal."""

    name: str
    digest: str
    total_bytes: int

    @property
    def path(self) -> str:
        """Its directory on a host."""
        return f"{MODELS_DIRECTORY}/{self.name}-{self.digest[:_DIGEST_CHARACTERS]}"


@dataclass(frozen=True, slots=True)
class Sharing:
    """How an instance shares its GPU.

    Args:
        ways: into how many equal parts the GPU's memory is divided.
        seat: which of them this one has, from 0.
        starts_after: ids of the instances on the GPU that start before it; one starts at a time, since the engine looks
            at what is free.
    """

    ways: int
    seat: int
    starts_after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Instance:
    """One engine.

    Args:
        id: stable while the instance stays.
        engine_args: vLLM's EngineArgs, without host and port.
        memory: planned bytes and tokens of the tightest rank.
        speed: at its share of the demand; empty without one.
        reasons: the first says why it stands where it stands and is kept as long as it stays; the others are made anew.
        provisional: planned from a PCI scan, before a driver confirmed the GPUs.
        sharing: None when its GPUs are its own.
        takes: what it understands beside text, as in ``image``.
        embedding_size: numbers of an embedding; None where that is not known, or it makes none.
        further_checkpoints: those that it serves beside ``checkpoint``: a draft model, adapters.
        ensemble: name of the ensemble on Triton that wraps it; empty without one.
    """

    id: str
    model: str
    engine: str
    task: str
    aliases: tuple[str, ...]
    shards: tuple[Shard, ...]
    engine_args: Mapping[str, Any]
    env: Mapping[str, str]
    port: int
    memory: Mapping[str, Any]
    speed: Mapping[str, Any]
    reasons: tuple[str, ...]
    checkpoint: CheckpointReference | None = None
    provisional: bool = False
    sharing: Sharing | None = None
    further_checkpoints: tuple[CheckpointReference, ...] = ()
    ensemble: str = ""
    takes: tuple[str, ...] = ()
    embedding_size: int | None = None

    @property
    def hosts(self) -> tuple[str, ...]:
        """Hosts of the instance, in the order of the node ranks."""
        return tuple(shard.host for shard in self.shards)

    @property
    def gpus(self) -> tuple[tuple[str, str], ...]:
        """(host, UUID) of every GPU, in the order of the ranks."""
        return tuple((shard.host, uuid) for shard in self.shards for uuid in shard.gpus)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What could not be placed. ``nearest_change`` is the smallest change found that would lift the constraint."""

    model: str
    constraint: str
    explanation: str
    nearest_change: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where an instance stands or stood."""

    host: str
    gpus: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """An instance that leaves its place. ``to`` is empty when no other place was found."""

    id: str
    model: str
    origin: tuple[Place, ...]
    to: tuple[Place, ...]
    cause: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration that fits. ``capacity_requests_per_s`` is what one instance carries; None without a demand."""

    model: str
    config: Mapping[str, Any]
    gpus: int
    capacity_requests_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """The plan in figures.

    Args:
        gpus_lower_bound: no plan that carries the same with the plan's candidates uses fewer GPUs, unless more of them
            run a less faithful precision or are shared.
        gap_fraction: how much of ``gpus_used`` is above that bound.
        carried: share of each model's demand that is carried within its objectives; of its instances that is placed
            where there is no demand.
        improvement_available: what ``fleet_optimize=true`` would change, or None.
        carried_without_host: by host, what is left of the models with ``availability.hosts_lost: 1`` when it is lost.
    """

    gpus_used: int
    gpus_lower_bound: int
    gap_fraction: float
    carried: Mapping[str, float]
    improvement_available: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    carried_without_host: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision about the whole fleet.

    Args:
        models: by name, what the plan was asked for: ``facts`` (``model_document``), ``demand`` and ``objectives``.
        instance_gpus: the instances on each kind of GPU, by the kind's name.
        gpu_links: how GPUs of a kind reach one another, where it is not the default (``plan_gpus``).
    """

    instances: tuple[Instance, ...] = ()
    refused: tuple[Refusal, ...] = ()
    moves: tuple[Move, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    summary: Summary = field(default_factory=lambda: Summary(0, 0, 0.0, {}))
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    instance_gpus: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    gpu_links: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def same_decision(self, other: Plan) -> bool:
        """Whether both plans run and refuse the same; how they were reached does not count."""
        return self.instances == other.instances and self.refused == other.refused


def instance_document(instance: Instance) -> dict[str, Any]:
    """The instance as JSON has it."""
    document = asdict(instance)
    document["env"] = dict(instance.env)
    if instance.checkpoint is None:
        del document["checkpoint"]
    if not instance.provisional:
        del document["provisional"]
    if instance.sharing is None:
        del document["sharing"]
    if not instance.further_checkpoints:
        del document["further_checkpoints"]
    if not instance.ensemble:
        del document["ensemble"]
    if not instance.takes:
        del document["takes"]
    if instance.embedding_size is None:
        del document["embedding_size"]
    return _lists(document)  # type: ignore[no-any-return]


def plan_to_document(plan: Plan) -> dict[str, Any]:
    """The plan as JSON has it, with every list in a fixed order."""
    moves = [
        {
            "id": move.id,
            "model": move.model,
            "from": _lists([asdict(place) for place in move.origin]),
            "to": _lists([asdict(place) for place in move.to]),
            "cause": move.cause,
        }
        for move in sorted(plan.moves, key=lambda move: move.id)
    ]
    return {
        "schema": SCHEMA,
        "instances": [instance_document(one) for one in sorted(plan.instances, key=lambda one: id_order(one.id))],
        "refused": [asdict(one) for one in sorted(plan.refused, key=lambda one: (one.model, one.constraint))],
        "moves": moves,
        "candidates": [_lists(asdict(one)) for one in plan.candidates],
        "summary": _lists(asdict(plan.summary)),
        "models": _lists(dict(plan.models)),
        "instance_gpus": _lists(dict(plan.instance_gpus)),
        **({"gpu_links": _lists(dict(plan.gpu_links))} if plan.gpu_links else {}),
    }


def canonical_json(document: object) -> str:
    """JSON whose bytes depend on the content only: sorted keys, two spaces, a newline at the end."""
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def id_order(identity: str) -> tuple[str, int]:
    """Sort key of instance ids that counts: llama-2 stands before llama-10."""
    model, _, number = identity.rpartition("-")
    return (model, int(number)) if number.isdigit() else (identity, 0)


class _Shard(MachineDocument):
    host: str = Field(min_length=1)
    gpus: Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(list_as_tuple)]
    rank: int = Field(default=0, ge=0)


class _Checkpoint(MachineDocument):
    name: str
    digest: str = Field(pattern=r"^[0-9a-f]{12,}$")
    total_bytes: int = Field(ge=0)


class _Sharing(MachineDocument):
    ways: int = Field(ge=2)
    seat: int = Field(ge=0)
    starts_after: Annotated[tuple[str, ...], BeforeValidator(list_as_tuple)] = ()


class _Instance(MachineDocument):
    id: str = Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")
    model: str
    engine: str = "vllm"
    task: str = "generate"
    aliases: Annotated[tuple[str, ...], BeforeValidator(list_as_tuple)] = ()
    shards: Annotated[tuple[_Shard, ...], Field(min_length=1), BeforeValidator(list_as_tuple)]
    engine_args: dict[str, Any] = Field(default_factory=dict)
    env: dict[str, str] = Field(default_factory=dict)
    port: int = Field(ge=1, le=65535)
    memory: dict[str, Any] = Field(default_factory=dict)
    speed: dict[str, Any] = Field(default_factory=dict)
    reasons: Annotated[tuple[str, ...], BeforeValidator(list_as_tuple)] = ()
    checkpoint: _Checkpoint | None = None
    provisional: bool = False
    sharing: _Sharing | None = None
    ensemble: str = ""
    further_checkpoints: Annotated[tuple[_Checkpoint, ...], BeforeValidator(list_as_tuple)] = ()
    takes: Annotated[tuple[str, ...], BeforeValidator(list_as_tuple)] = ()
    embedding_size: int | None = None


class _Refusal(MachineDocument):
    model: str
    constraint: str
    explanation: str
    nearest_change: str


class _Place(MachineDocument):
    host: str
    gpus: Annotated[tuple[str, ...], BeforeValidator(list_as_tuple)]


class _Move(MachineDocument):
    id: str
    model: str
    origin: Annotated[tuple[_Place, ...], BeforeValidator(list_as_tuple)] = Field(alias="from")
    to: Annotated[tuple[_Place, ...], BeforeValidator(list_as_tuple)]
    cause: str


class _Candidate(MachineDocument):
    model: str
    config: dict[str, Any]
    gpus: int
    capacity_requests_per_s: float | None = None


class _Summary(MachineDocument):
    gpus_used: int
    gpus_lower_bound: int
    gap_fraction: float
    carried: dict[str, float]
    improvement_available: dict[str, Any] | None = None
    notes: Annotated[tuple[str, ...], BeforeValidator(list_as_tuple)] = ()
    carried_without_host: dict[str, dict[str, float]] = Field(default_factory=dict)


class _GpuLinks(MachineDocument):
    all_reduce: dict[
        Annotated[str, Field(pattern="^[1-9][0-9]*$")],
        Annotated[
            list[
                Annotated[
                    tuple[Annotated[int, Field(gt=0)], Annotated[float, Field(gt=0)]], BeforeValidator(list_as_tuple)
                ]
            ],
            Field(min_length=2),
        ],
    ] = Field(min_length=1)
    send_bytes_per_s: float = Field(gt=0)
    send_s: float = Field(ge=0)
    source: str


class _Plan(MachineDocument):
    instances: Annotated[tuple[_Instance, ...], BeforeValidator(list_as_tuple)]
    refused: Annotated[tuple[_Refusal, ...], BeforeValidator(list_as_tuple)] = ()
    moves: Annotated[tuple[_Move, ...], BeforeValidator(list_as_tuple)] = ()
    candidates: Annotated[tuple[_Candidate, ...], BeforeValidator(list_as_tuple)] = ()
    summary: _Summary | None = None
    models: dict[str, dict[str, Any]] = Field(default_factory=dict)
    instance_gpus: dict[str, Annotated[tuple[str, ...], BeforeValidator(list_as_tuple)]] = Field(default_factory=dict)
    gpu_links: dict[str, _GpuLinks] = Field(default_factory=dict)


def parse_instance(document: object, *, where: str, path: str = "") -> Instance:
    """Read one instance record.

    Raises:
        FleetError: one line for each fault, with file and path.
    """
    return _instance(check_document(_Instance, document, where=where, path=path))


def parse_plan(document: object, *, where: str, path: str = "") -> Plan:
    """Read a plan that was parsed from JSON.

    Raises:
        FleetError: one line for each fault, with file and path.
    """
    prefix = f"{path}." if path else ""
    if not isinstance(document, dict):
        raise FleetError(where, f"{prefix or 'it '}must be a mapping, got {shown(document)}")
    if document.get("schema") != SCHEMA or isinstance(document["schema"], bool):
        raise FleetError(f"{where}: {prefix}schema", f"must be {SCHEMA}, got {shown(document.get('schema'))}")
    parsed = check_document(_Plan, document, where=where, path=path)
    faults = []
    seen: dict[str, int] = {}
    for position, one in enumerate(parsed.instances):
        if one.id in seen:
            faults.append(
                (f"{where}: {prefix}instances[{position}].id", f"{one.id!r} is that of instances[{seen[one.id]}] too")
            )
        seen.setdefault(one.id, position)
    if faults:
        raise faults_error(faults)
    summary = parsed.summary
    return Plan(
        instances=tuple(_instance(one) for one in parsed.instances),
        refused=tuple(Refusal(**one.model_dump()) for one in parsed.refused),
        moves=tuple(
            Move(id=one.id, model=one.model, origin=_places(one.origin), to=_places(one.to), cause=one.cause)
            for one in parsed.moves
        ),
        candidates=tuple(Candidate(**one.model_dump()) for one in parsed.candidates),
        summary=Summary(**summary.model_dump()) if summary else Summary(0, 0, 0.0, {}),
        models=parsed.models,
        instance_gpus=parsed.instance_gpus,
        gpu_links={kind: links.model_dump() for kind, links in parsed.gpu_links.items()},
    )


def plan_from_json(text: str, *, where: str) -> Plan:
    """Read PLAN.json.

    Raises:
        FleetError: the text is no plan; the line or the path is named.
    """
    return parse_plan(load_json(text, where=where), where=where)


def _instance(parsed: _Instance) -> Instance:
    checkpoint = parsed.checkpoint
    return Instance(
        id=parsed.id,
        model=parsed.model,
        engine=parsed.engine,
        task=parsed.task,
        aliases=parsed.aliases,
        shards=tuple(Shard(shard.host, shard.gpus, shard.rank) for shard in parsed.shards),
        engine_args=parsed.engine_args,
        env=parsed.env,
        port=parsed.port,
        memory=parsed.memory,
        speed=parsed.speed,
        reasons=parsed.reasons,
        checkpoint=CheckpointReference(**checkpoint.model_dump()) if checkpoint else None,
        provisional=parsed.provisional,
        sharing=Sharing(**parsed.sharing.model_dump()) if parsed.sharing else None,
        ensemble=parsed.ensemble,
        further_checkpoints=tuple(CheckpointReference(**one.model_dump()) for one in parsed.further_checkpoints),
        takes=parsed.takes,
        embedding_size=parsed.embedding_size,
    )


def _places(places: tuple[_Place, ...]) -> tuple[Place, ...]:
    return tuple(Place(place.host, place.gpus) for place in places)


def _lists(value: Any) -> Any:
    """Turn tuples into lists, as JSON would."""
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_lists(item) for item in value]
    return value
