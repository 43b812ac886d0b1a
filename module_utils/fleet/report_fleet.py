"""What the report tells of instances, moves and candidates beyond what the plan says in so many words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .document_checks import shown
from .engine_options import options_from_engine_args
from .errors import FleetError
from .hardware import GPUS
from .memory import estimate_memory
from .plan_document import id_order
from .plan_gpus import gpus_of_instances
from .plan_table import short_uuids
from .report_curves import consistent_facts
from .report_words import gpus_words, precision_words, shape_key, sizes_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .hardware import GpuModel
    from .host_document import HostDocument
    from .memory import RankMemory
    from .plan_diff import PlanDiff
    from .plan_document import Instance, Place, Plan, Shard
    from .report_curves import CurveModel

SIGNS = {"added": "+", "removed": "-", "moved": ">", "changed": "~"}
# Share of the weights that may be missing from the facts in a plan: rotary caches, an encoder.
_LEFT_OUT = 0.05


@dataclass(frozen=True, slots=True)
class MoveRow:
    """A move in words."""

    id: str
    origin: str
    to: str
    cause: str
    why: str


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """An instance that differs: ``details`` are what, before and after."""

    id: str
    kind: str
    sign: str
    why: str
    details: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class CandidateRow:
    """A candidate with what it carries a GPU, in requests a second, and how many instances it became.

    ``chunk`` is max_num_batched_tokens.
    """

    model: str
    configuration: str
    context: int | None
    chunk: int | None
    capacity: float | None
    per_gpu: float | None
    chosen: int


def gpu_kinds(plan: Plan, hosts: Sequence[HostDocument] | None, *, where: str) -> dict[str, GpuModel]:
    """The kind of GPU of each instance: as the plan or its host says, else the card with the memory planned for."""
    named = gpus_of_instances(plan, where=where)
    by_uuid = {(host.name, gpu.uuid): gpu.model for host in hosts or () for gpu in host.gpus}
    kinds = {}
    for one in plan.instances:
        found = named.get(one.id) or by_uuid.get(one.gpus[0]) or _by_memory(one)
        if found is not None:
            kinds[one.id] = found
    return kinds


def _by_memory(one: Instance) -> GpuModel | None:
    fitting = [gpu for gpu in GPUS if gpu.torch_visible_bytes == one.memory.get("total_bytes")]
    return fitting[0] if len(fitting) == 1 else None


def rank_memory(
    plan: Plan, models: Mapping[str, CurveModel], kinds: Mapping[str, GpuModel], *, where: str
) -> dict[str, tuple[RankMemory, ...]]:
    """Memory of every rank of each instance, as far as an estimate made anew bears the plan's figures out.

    Raises:
        FleetError: facts of a model contradict one another; the path is named.
    """
    known: dict[tuple[str, str, str], tuple[RankMemory, ...] | None] = {}
    found = {}
    for one in plan.instances:
        model, gpu = models.get(one.model), kinds.get(one.id)
        if model is None or gpu is None:
            continue
        key = (one.model, gpu.name, str((sorted(one.engine_args.items()), sorted(one.memory.items(), key=str))))
        if key not in known:
            with consistent_facts(one.model, where):
                known[key] = _ranks(one, model, gpu)
        ranks = known[key]
        if ranks is not None:
            found[one.id] = ranks
    return found


def _ranks(one: Instance, model: CurveModel, gpu: GpuModel) -> tuple[RankMemory, ...] | None:
    """The plan's figures of the tightest rank, and how an estimate made anew says that the others differ from it.

    The plan's facts of a model leave out what only memory depends on, so that weights may differ a little.
    """
    memory = one.memory
    version = memory.get("engine_version")
    try:
        options = options_from_engine_args(one.engine_args, where=one.id)
        options = replace(options, engine_version=version) if isinstance(version, str) else options
        estimate = estimate_memory(model.facts, gpu, options)
    except FleetError:
        return None
    same = ("activation_bytes", "non_torch_bytes", "cudagraph_bytes", "total_bytes", "budget_bytes")
    weights, margin, blocks = (memory.get(f) for f in ("weights_bytes", "margin_bytes", "num_gpu_blocks_planned"))
    if not (isinstance(weights, int) and isinstance(margin, int) and isinstance(blocks, int)):
        return None
    more, wider = weights - estimate.weights_bytes, margin - estimate.margin_bytes
    if any(memory.get(name) != getattr(estimate, name) for name in same) or abs(more) > _LEFT_OUT * weights:
        return None
    if len(estimate.ranks) != len(one.gpus):
        return None
    return tuple(
        replace(
            rank,
            weights_bytes=rank.weights_bytes + more,
            margin_bytes=rank.margin_bytes + wider,
            # All ranks have as many blocks as the tightest.
            planned_kv_cache_bytes=min(rank.planned_kv_cache_bytes - more - wider, blocks * rank.bytes_per_block),
        )
        for rank in estimate.ranks
    )


def move_rows(plan: Plan, names: GpuNames) -> list[MoveRow]:
    """The moves, with the reason that the instance gives."""
    instances = {one.id: one for one in plan.instances}
    rows = []
    for move in sorted(plan.moves, key=lambda move: id_order(move.id)):
        one = instances.get(move.id)
        why = one.reasons[0] if one is not None and one.reasons else ""
        rows.append(MoveRow(move.id, names.places(move.origin), names.places(move.to), move.cause, why))
    return rows


def change_rows(changes: PlanDiff, names: GpuNames) -> list[ChangeRow]:
    """The differences of instances."""

    def words(value: Any) -> str:
        if value is None:
            return "nothing"
        return names.places(value) if isinstance(value, tuple) else value if isinstance(value, str) else shown(value)

    return [
        ChangeRow(
            id=change.id,
            kind=change.kind,
            sign=SIGNS[change.kind],
            why=change.why,
            details=tuple((detail.what, words(detail.before), words(detail.after)) for detail in change.details),
        )
        for change in changes.changes
    ]


class GpuNames:
    """Names of GPUs: by index where the hosts are known, else by the start of the UUID."""

    def __init__(self, hosts: Sequence[HostDocument] | None, plans: Iterable[Plan]) -> None:
        uuids = [uuid for plan in plans for one in plan.instances for _, uuid in one.gpus]
        self._names = short_uuids(uuids) | {gpu.uuid: f"GPU {gpu.index}" for host in hosts or () for gpu in host.gpus}

    def places(self, places: Iterable[Place | Shard]) -> str:
        """Places in words; empty for none."""
        return "; ".join(
            f"{place.host} {', '.join(self._names.get(uuid, uuid) for uuid in place.gpus)}" for place in places
        )


def candidate_rows(plan: Plan) -> list[CandidateRow]:
    """The candidates in the plan's order."""
    kinds = {identity: kind for kind, identities in plan.instance_gpus.items() for identity in identities}
    several = len({candidate.config.get("gpu") for candidate in plan.candidates}) > 1
    running = Counter(
        (
            one.model,
            *_key(one.engine_args, one.sharing.ways if one.sharing else 1, len(one.shards)),
            one.engine_args.get("max_num_batched_tokens"),
            kinds.get(one.id),
        )
        for one in plan.instances
    )
    rows = []
    for candidate in plan.candidates:
        config = candidate.config
        capacity = candidate.capacity_requests_per_s
        ways, nodes = (_count(config.get(name), 1) for name in ("gpu_ways", "nodes"))
        context, chunk = _count(config.get("max_model_len")), _count(config.get("max_num_batched_tokens"))
        gpus = gpus_words(candidate.gpus, ways or 1, nodes or 1, f"{config.get('gpu')} GPU" if several else "GPU")
        key = (candidate.model, *_key(config, ways or 1, nodes or 1))
        rows.append(
            CandidateRow(
                model=candidate.model,
                configuration=f"{gpus}{sizes_words(config)}, {precision_words(config)}",
                context=context,
                chunk=chunk,
                capacity=capacity,
                per_gpu=capacity * (ways or 1) / candidate.gpus
                if capacity is not None and candidate.gpus > 0
                else None,
                chosen=sum(
                    count
                    for (*known, its_chunk, its_kind), count in running.items()
                    if tuple(known) == key
                    and (chunk is None or its_chunk == chunk)
                    and (its_kind is None or its_kind == config.get("gpu"))
                ),
            )
        )
    return rows


def _key(arguments: Mapping[str, object], ways: int, nodes: int) -> tuple[object, ...]:
    # Whether the engine quantizes while it loads; a checkpoint's own precision is no argument.
    return (*shape_key(arguments), arguments.get("quantization") == "fp8", ways, nodes)


def _count(value: object, otherwise: int | None = None) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else otherwise
