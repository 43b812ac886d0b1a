"""The plan stage as a pure function: hosts, requests and what runs now in, the plan out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .configurations import LESS_FAITHFUL, Configuration, less_faithful
from .fleet_configurations import FleetConfigurations
from .fleet_view import FleetView
from .host_means import host_memory_bytes
from .link_classes import with_link_classes
from .model_document import model_section
from .placement import decide
from .placement_bound import Need, fewest_gpus_in_all
from .placement_problem import TOLERANCE
from .plan_document import Candidate, Move, Place, Plan, Summary, id_order
from .plan_gpus import links_document
from .plan_instances import plan_instances
from .refusals import short_of_room
from .running import split_current, standing_of, why_stranded
from .wishes import capacity_of, last_resorts, prepare

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .carrying import Carrying
    from .configurations import ResolvedModel
    from .hardware import GpuModel
    from .host_document import HostDocument
    from .placement_problem import Decision, HostRoom, Placed, Shape, Standing, Wish
    from .plan_document import Instance, Refusal
    from .wishes import Prepared

DEFAULT_PORT_BASE = 8100
# A packing on fewer GPUs is looked for when more than this share of them might be saved.
_WORTH_MOVING = 0.01
_SMALL_FLEET_GPUS = 64


def make_plan(
    hosts: Sequence[HostDocument],
    models: Sequence[ResolvedModel],
    current: Sequence[Instance],
    *,
    frozen: Iterable[str] = (),
    engine_version: str,
    port_base: int = DEFAULT_PORT_BASE,
    optimize: bool = False,
    carrying: Carrying | None = None,
    multi_node: bool = True,
) -> Plan:
    """Make the plan. The order of the arguments' elements does not matter.

    Args:
        hosts: every host that may be used, and frozen ones as far as their documents are known. Hosts that are gone
            are left out: what ran there is lost.
        models: the requests with what their checkpoints say.
        current: what runs now, on frozen hosts according to the applied plan.
        frozen: hosts that were not reached: what runs there stays as it is, nothing new is put there.
        engine_version: vLLM's version, for its memory constants.
        port_base: the first port that an engine may listen on.
        optimize: move what runs if that places more, or the same on fewer GPUs.
        carrying: keeps capacities between plans, for a caller that makes several; they never change an answer.
        multi_node: whether instances over several hosts may be planned, where placement allows them.

    Raises:
        FleetError: a host variable excludes a GPU that does not exist, or an engine argument has a wrong value.
    """
    view = FleetView(with_link_classes(hosts), frozenset(frozen))
    configurations = FleetConfigurations(engine_version, carrying)
    by_name = {model.request.name: model for model in sorted(models, key=lambda model: model.request.name)}
    untouchable, touchable = split_current(current, view.frozen, by_name.keys())
    question = _Question(view, configurations, by_name, untouchable, touchable, engine_version, multi_node)
    answer = question.answer({}, optimize=optimize)
    if answer.decision.shortages and question.may_be_less_precise:
        answer = _less_precise(question, optimize=optimize)
    instances = plan_instances(
        answer.decision,
        answer.prepared,
        view,
        configurations,
        capacity=answer.capacity,
        current=touchable,
        untouchable=untouchable,
        why_leaving=answer.why_leaving,
        port_base=port_base,
    )
    return Plan(
        instances=tuple(sorted(instances, key=lambda one: id_order(one.id))),
        refused=_refused(answer, view),
        moves=_moves(answer.decision, answer.prepared, touchable, view),
        candidates=tuple(_candidate(name, one) for name in answer.prepared for one in answer.candidates[name]),
        summary=_summary(instances, answer, untouchable, view.notes()),
        models={name: model_section(model) for name, model in by_name.items()},
        **_gpus_of(instances, view),
    )


def _less_precise(question: _Question, *, optimize: bool) -> _Answer:
    """Precision is given up only where demand would be left otherwise, and only by as few models as will do.

    All new replicas of a model that does are alike, in the least faithful precision that any of them needs; the others
    do not even consider it.
    """
    everyone = dict.fromkeys(question.models, LESS_FAITHFUL)
    all_may = question.answer(everyone, optimize=optimize)
    giving_up: dict[str, str] = {}
    for one in all_may.decision.placed:
        wish = all_may.prepared[one.model].wish
        if wish is not None and one.shape in wish.sacrifices:
            names = (one.shape.precision, giving_up.get(one.model, LESS_FAITHFUL[0]))
            giving_up[one.model] = max(names, key=LESS_FAITHFUL.index)
    if not giving_up:
        return all_may
    few_do = question.answer({name: (used,) for name, used in giving_up.items()}, optimize=optimize, settled=True)
    return few_do if few_do.lacking <= all_may.lacking else all_may


def _gpus_of(instances: Sequence[Instance], view: FleetView) -> dict[str, Any]:
    """The instances on each kind of GPU as far as it is known, and the links of those kinds."""
    kinds: dict[str, list[str]] = {}
    models: dict[str, GpuModel] = {}
    for one in sorted(instances, key=lambda one: id_order(one.id)):
        host, uuid = one.gpus[0]
        gpu = view.gpu(host, uuid)
        if gpu is not None and gpu.model is not None:
            models[gpu.model.kind] = gpu.model
            kinds.setdefault(gpu.model.kind, []).append(one.id)
    return {
        "instance_gpus": {kind: tuple(ids) for kind, ids in sorted(kinds.items())},
        "gpu_links": links_document(models.values()),
    }


@dataclass(frozen=True, slots=True)
class _Answer:
    """A decision with what it was made of.

    Args:
        candidates: by model, the configurations that it chose among and those that run.
        why_leaving: in words, why an instance could not stay, by id.
        improvement: what moving more would bring, if anything.
        lacking: what is not carried, the highest priority first.
    """

    decision: Decision
    prepared: Mapping[str, Prepared]
    candidates: Mapping[str, tuple[Configuration, ...]]
    why_leaving: Mapping[str, str]
    improvement: dict[str, Any] | None
    lacking: tuple[object, ...]

    @property
    def capacity(self) -> dict[str, dict[Shape, float]]:
        """Requests/s that an instance carries, by model and shape."""
        return {
            name: {one.shape: one.capacity_requests_per_s or 0.0 for one in candidates}
            for name, candidates in self.candidates.items()
        }


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked, whatever the precisions that may be used."""

    view: FleetView
    configurations: FleetConfigurations
    models: Mapping[str, ResolvedModel]
    untouchable: Sequence[Instance]
    touchable: Mapping[str, Instance]
    engine_version: str
    multi_node: bool

    @property
    def may_be_less_precise(self) -> bool:
        """Whether any model may use a less faithful precision."""
        return any(map(_chooses_precision, self.models.values()))

    def answer(
        self,
        precisions: Mapping[str, Sequence[str]],
        *,
        optimize: bool,
        settled: bool = False,
    ) -> _Answer:
        """Decide.

        Args:
            precisions: less faithful ones that a model may use, by model.
            optimize: move what runs if that places more, or the same on fewer GPUs.
            settled: it is decided who uses those precisions: these models use no other.
        """
        prepared = {
            name: prepare(
                model,
                self.view,
                self.configurations,
                [one for one in (*self.untouchable, *self.touchable.values()) if one.model == name],
                self.engine_version,
                precisions=precisions.get(name, ()) if _chooses_precision(model) else (),
                settled=settled and name in precisions,
                multi_node=self.multi_node,
            )
            for name, model in self.models.items()
        }
        standing: list[Standing] = []
        why_leaving: dict[str, str] = {}
        candidates = {name: {one.shape: one for one in ready.configurations} for name, ready in prepared.items()}
        for one in sorted(self.touchable.values(), key=lambda one: id_order(one.id)):
            ready = prepared.get(one.model)
            if ready is None or ready.wish is None:
                continue
            now, why = standing_of(one, ready.model, self.view, self.configurations)
            standing.append(now)
            if why:
                why_leaving[one.id] = why
            elif now.shape not in candidates[one.model]:
                found = self._running(now, ready.model)
                if found is not None:
                    candidates[one.model][now.shape] = found
        wishes = {
            name: _with_candidates(
                replace(ready.wish, sacrifices=frozenset() if settled else ready.wish.sacrifices),
                ready.model,
                candidates[name],
            )
            for name, ready in prepared.items()
            if ready.wish is not None
        }

        def resorts() -> list[Wish]:
            for name, wish in wishes.items():
                model = self.models[name]
                parts, wide = last_resorts(model, self.view, self.configurations, multi_node=self.multi_node)
                candidates[name] |= {one.shape: one for one in (*parts, *wide) if one.shape not in candidates[name]}
                shared, over_hosts = (tuple(one.shape for one in found) for found in (parts, wide))
                offered = replace(wish, shared_shapes=shared, wide_shapes=over_hosts)
                wishes[name] = _with_candidates(offered, model, candidates[name])
            return list(wishes.values())

        rooms = list(self.view.rooms.values())
        draft = not precisions and self.may_be_less_precise
        decision = decide(list(wishes.values()), rooms, standing, draft=draft, last_resorts=resorts)
        improvement = None
        if standing and not (draft and decision.shortages) and _may_improve(decision, wishes, candidates, rooms):
            best = decide(list(wishes.values()), rooms, standing, optimize=True)
            if _score(best, wishes) < _score(decision, wishes):
                improvement = {
                    "replicas_more": decision.missing - best.missing,
                    "gpus_fewer": decision.gpus_used - best.gpus_used,
                    "moves": sum(1 for one in best.placed if one.standing is not None and one.cause is not None),
                }
                if optimize:
                    decision, improvement = best, None
        return _Answer(
            decision,
            prepared,
            {name: tuple(sorted(found.values(), key=_candidate_order)) for name, found in candidates.items()},
            why_leaving,
            improvement,
            _lacking(decision, wishes),
        )

    def _running(self, now: Standing, model: ResolvedModel) -> Configuration | None:
        gpu = self.view.gpu(now.host, now.gpus[0])
        if gpu is None or gpu.model is None:
            return None
        found = self.configurations.of_shape(model, gpu.model, now.shape)
        if not isinstance(found, Configuration):
            return None
        return self.configurations.with_capacity(model, gpu.model, found)


def _chooses_precision(model: ResolvedModel) -> bool:
    return model.request.demand is not None and bool(less_faithful(model))


def _with_candidates(wish: Wish, model: ResolvedModel, candidates: Mapping[Shape, Configuration]) -> Wish:
    """The wish with what each candidate carries and takes."""
    arguments = model.request.engine_args
    return replace(
        wish,
        capacity={shape: one.capacity_requests_per_s or 0.0 for shape, one in candidates.items()},
        host_memory={shape: host_memory_bytes(shape, arguments) for shape in candidates},
    )


def _may_improve(
    decision: Decision,
    wishes: Mapping[str, Wish],
    candidates: Mapping[str, Mapping[Shape, Configuration]],
    rooms: Sequence[HostRoom],
) -> bool:
    """Whether more moves could carry more, or the same on fewer GPUs."""
    if decision.shortages:
        free = sum(len(gpus) for gpus in decision.free.values())
        # A large fleet that is all but full is not made to carry much more.
        gpus = sum(len(room.gpus) for room in rooms)
        return gpus <= _SMALL_FLEET_GPUS or free > gpus * _WORTH_MOVING
    restricted = {name: restricted_shapes(wish, candidates[name]) for name, wish in wishes.items()}
    needs = [Need(wish, tuple(candidates[name]), restricted[name]) for name, wish in wishes.items()]
    parts = sum(one.shape.parts for one in decision.placed if one.shape in restricted[one.model])
    bound = fewest_gpus_in_all(needs, restricted_parts=parts)
    return decision.gpus_used > bound * (1.0 + _WORTH_MOVING)


def _score(decision: Decision, wishes: Mapping[str, Wish]) -> tuple[object, ...]:
    return (*_lacking(decision, wishes), decision.gpus_used)


def _lacking(decision: Decision, wishes: Mapping[str, Wish]) -> tuple[object, ...]:
    lacking: dict[int, list[float]] = {wish.priority: [0.0, 0.0, 0.0] for wish in wishes.values()}
    priorities = {name: wish.priority for name, wish in wishes.items()}
    for one in decision.shortages:
        row = lacking[priorities[one.model]]
        row[0] += one.missing
        row[1] += 1.0 - one.carried
        row[2] += 1.0
    return tuple(tuple(round(value, 6) for value in lacking[priority]) for priority in sorted(lacking, reverse=True))


def _refused(answer: _Answer, view: FleetView) -> tuple[Refusal, ...]:
    refused = [one.refusal for one in answer.prepared.values() if one.refusal is not None]
    for shortage in answer.decision.shortages:
        one = answer.prepared[shortage.model]
        if one.wish is not None:
            refused.append(
                short_of_room(
                    one.model,
                    one.wish,
                    shortage,
                    target=one.target,
                    decision=answer.decision,
                    hosts=view.hosts,
                    optimizing_helps=answer.improvement is not None,
                )
            )
    return tuple(sorted(refused, key=lambda refusal: (refusal.model, refusal.constraint)))


def _moves(
    decision: Decision, prepared: Mapping[str, Prepared], current: Mapping[str, Instance], view: FleetView
) -> tuple[Move, ...]:
    moves = [
        Move(one.standing.id, one.model, _places(current[one.standing.id]), _new_places(one), one.cause)
        for one in decision.placed
        if one.standing is not None and one.cause is not None
    ]
    moves += [
        Move(one.id, one.model, _places(current[one.id]), (), cause)
        for shortage in decision.shortages
        for one, cause in shortage.left
    ]
    # What runs of a model that is wanted but can no longer be placed at all.
    moves += [
        Move(one.id, one.model, _places(one), (), why_stranded(one, view))
        for one in current.values()
        if one.model in prepared and prepared[one.model].wish is None
    ]
    return tuple(sorted(moves, key=lambda move: id_order(move.id)))


def _new_places(one: Placed) -> tuple[Place, ...]:
    return (Place(one.host, one.gpus), *(Place(host, gpus) for host, gpus in one.further))


def _places(one: Instance) -> tuple[Place, ...]:
    return tuple(Place(shard.host, shard.gpus) for shard in one.shards)


def _candidate(model: str, one: Configuration) -> Candidate:
    return Candidate(
        model=model,
        config={
            "gpu": one.shape.kind,
            "tensor_parallel_size": one.shape.tensor_parallel,
            "pipeline_parallel_size": one.shape.pipeline_parallel,
            "quantization": one.quantization,
            "kv_cache_dtype": one.options.kv_cache_dtype,
            "max_num_batched_tokens": one.options.max_num_batched_tokens,
            "max_model_len": one.estimate.max_model_len,
            **({"gpu_ways": one.shape.ways} if one.shape.ways > 1 else {}),
            **({"nodes": one.shape.nodes} if one.shape.nodes > 1 else {}),
        },
        gpus=one.shape.gpus,
        capacity_requests_per_s=one.capacity_requests_per_s,
    )


def _candidate_order(one: Configuration) -> tuple[object, ...]:
    shape = one.shape
    own = (shape.nodes, shape.ways, shape.gpus, shape.precision, -shape.tensor_parallel, shape.max_num_batched_tokens)
    return (shape.kind, *own)


def _summary(
    instances: Sequence[Instance], answer: _Answer, untouchable: Sequence[Instance], notes: tuple[str, ...]
) -> Summary:
    used = len({cell for one in instances for cell in one.gpus})
    carried: dict[str, float] = {}
    needs = []
    for name, ready in answer.prepared.items():
        mine = [one for one in instances if one.model == name]
        carried[name] = round(_carried(ready, mine), 6)
        needs += _need(ready, mine, untouchable, answer.capacity[name])
    restricted = {need.wish.model: need.restricted for need in needs}
    parts = sum(one.shape.parts for one in answer.decision.placed if one.shape in restricted[one.model])
    frozen = len({cell for one in untouchable for cell in one.gpus})
    bound = frozen + fewest_gpus_in_all(needs, restricted_parts=parts)
    return Summary(
        gpus_used=used,
        gpus_lower_bound=min(bound, used),
        gap_fraction=round(max(0, used - bound) / used, 6) if used else 0.0,
        carried=carried,
        improvement_available=answer.improvement,
        notes=notes,
        carried_without_host=_carried_without_host(instances, answer.prepared),
    )


def _carried(ready: Prepared, mine: Sequence[Instance]) -> float:
    wish = ready.wish
    if wish is None or wish.demand is None:
        if ready.refusal is not None and ready.refusal.constraint == "objectives":
            return 0.0
        return min(1.0, len(mine) / ready.target)
    share = sum(capacity_of(one) for one in mine) / wish.demand
    return 1.0 if share >= 1.0 - TOLERANCE else share


def _need(
    ready: Prepared, mine: Sequence[Instance], untouchable: Sequence[Instance], capacity: Mapping[Shape, float]
) -> list[Need]:
    """What the plan carries of a model beside its frozen instances, and the candidates that may carry it."""
    wish = ready.wish
    if wish is None:
        return []
    frozen = {one.id for one in untouchable}
    free = [one for one in mine if one.id not in frozen]
    demand = None if wish.demand is None else _carried(ready, mine) * wish.demand
    carried = replace(wish, count=min(wish.count, len(free)), demand=demand, capacity=capacity)
    return [Need(carried, tuple(capacity), restricted_shapes(wish, capacity))]


def restricted_shapes(wish: Wish, shapes: Iterable[Shape]) -> frozenset[Shape]:
    """Shapes that are used only where demand would be left otherwise."""
    return frozenset(shape for shape in shapes if shape in wish.sacrifices or shape.ways > 1)


def _carried_without_host(
    instances: Sequence[Instance], prepared: Mapping[str, Prepared]
) -> dict[str, dict[str, float]]:
    """For each host, what is carried of the models that may lose one, when it is lost."""
    shares: dict[str, dict[str, float]] = {}
    for name, ready in prepared.items():
        wish = ready.wish
        if wish is None or wish.demand is None or wish.min_hosts < 2:
            continue
        mine = [one for one in instances if one.model == name]
        for host in sorted({host for one in mine for host in one.hosts}):
            left = sum(capacity_of(one) for one in mine if host not in one.hosts) / wish.demand
            shares.setdefault(host, {})[name] = 1.0 if left >= 1.0 - TOLERANCE else round(left, 6)
    return shares
