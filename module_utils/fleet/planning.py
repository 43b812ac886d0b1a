"""The plan stage as a pure function: hosts, requests and what runs now in, the plan out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .configurations import Configuration, Configurations, Misfit, ResolvedModel
from .engine_arguments import instance_engine_args
from .placement import GpuRoom, HostRoom, PinnedPlace, Placed, Shape, Standing, Wish, decide
from .plan_document import Candidate, Instance, Move, Place, Plan, Refusal, Shard, Summary, id_order
from .refusals import impossible, short_of_room, unsupported

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .hardware import GpuModel
    from .host_document import Gpu, HostDocument
    from .placement import Cause, Decision
    from .requests import ModelRequest

DEFAULT_PORT_BASE = 8100
MODELS_DIRECTORY = "/var/lib/l40s-fleet/models"
_DIGEST_CHARACTERS = 12
# GPUs that these paths join hang below one PCIe switch, or a few in a row, without a host bridge in between.
_SWITCH_PATHS = ("PIX", "PXB")


def make_plan(
    hosts: Sequence[HostDocument],
    models: Sequence[ResolvedModel],
    current: Sequence[Instance],
    *,
    frozen: Iterable[str] = (),
    engine_version: str,
    port_base: int = DEFAULT_PORT_BASE,
    optimize: bool = False,
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

    Raises:
        FleetError: a host variable excludes a GPU that does not exist, or an engine argument has a wrong value.
    """
    planner = _Planner(
        hosts, models, current, frozen=frozenset(frozen), engine_version=engine_version, port_base=port_base
    )
    return planner.plan(optimize=optimize)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A model that can be placed: what the decision is asked for, and what it is told to people."""

    model: ResolvedModel
    wish: Wish
    target: int
    pins: tuple[int, ...]


class _Planner:
    def __init__(
        self,
        hosts: Sequence[HostDocument],
        models: Sequence[ResolvedModel],
        current: Sequence[Instance],
        *,
        frozen: frozenset[str],
        engine_version: str,
        port_base: int,
    ) -> None:
        self._hosts = {host.name: host for host in sorted(hosts, key=lambda host: host.name)}
        self._models = {model.request.name: model for model in sorted(models, key=lambda model: model.request.name)}
        self._frozen = frozen
        self._engine_version = engine_version
        self._port_base = port_base
        self._configurations = Configurations(engine_version)
        self._excluded = {name: host.excluded_uuids() for name, host in self._hosts.items()}
        self._gpus = {(host.name, gpu.uuid): gpu for host in self._hosts.values() for gpu in host.gpus}
        self._rooms = {
            name: _room(host, self._excluded[name]) for name, host in self._hosts.items() if name not in frozen
        }
        self._kept_verbatim: list[Instance] = []
        self._current: dict[str, Instance] = {}
        self._sort_current(current)
        self._smallest: dict[str, tuple[Configuration, ...]] = {}
        self._misfits: dict[str, tuple[Misfit, ...]] = {}
        self._why_leaving: dict[str, str] = {}
        self._refused: list[Refusal] = []

    def plan(self, *, optimize: bool) -> Plan:
        """Run all steps."""
        prepared = {name: found for name, model in self._models.items() if (found := self._prepare(model)) is not None}
        standing = [
            self._standing(one, prepared[one.model].model)
            for one in sorted(self._current.values(), key=lambda one: id_order(one.id))
            if one.model in prepared
        ]
        wishes = [one.wish for one in prepared.values()]
        rooms = list(self._rooms.values())
        decision = decide(wishes, rooms, standing)
        improvement = None
        if decision.missing or self._is_larger_than_needed(decision):
            best = decide(wishes, rooms, standing, optimize=True)
            if (best.missing, best.gpus_used) < (decision.missing, decision.gpus_used):
                if optimize:
                    decision = best
                else:
                    improvement = _improvement(decision, best)
        instances = self._instances(decision, prepared)
        for shortage in decision.shortages:
            one = prepared[shortage.model]
            self._refused.append(
                short_of_room(
                    one.model,
                    one.wish,
                    shortage,
                    target=one.target,
                    decision=decision,
                    hosts=self._hosts,
                    optimizing_helps=improvement is not None,
                )
            )
        return self._document(instances, decision, prepared, improvement)

    # What runs now.

    def _sort_current(self, current: Sequence[Instance]) -> None:
        frozen_ids = set()
        for one in sorted(current, key=lambda one: (id_order(one.id), one.hosts)):
            if self._frozen.isdisjoint(one.hosts) or one.id in frozen_ids:
                continue
            frozen_ids.add(one.id)
            self._kept_verbatim.append(self._unreached(one))
        for one in sorted(current, key=lambda one: (id_order(one.id), one.hosts)):
            if self._frozen.isdisjoint(one.hosts) and one.id not in frozen_ids:
                self._current.setdefault(one.id, one)

    def _unreached(self, one: Instance) -> Instance:
        if one.model in self._models:
            return one
        hosts = ", ".join(host for host in one.hosts if host in self._frozen)
        reason = f"Stays listed although {one.model} is no longer in the models file: {hosts} was not reached."
        return one if reason in one.reasons else replace(one, reasons=(*one.reasons, reason))

    def _standing(self, one: Instance, model: ResolvedModel) -> Standing:
        tensor = one.engine_args.get("tensor_parallel_size", 1)
        pipeline = one.engine_args.get("pipeline_parallel_size", 1)
        kinds = {gpu.model.name for place in one.gpus if (gpu := self._gpus.get(place)) is not None and gpu.model}
        sizes = (tensor if isinstance(tensor, int) else 0, pipeline if isinstance(pipeline, int) else 0)
        shape = Shape(min(kinds, default=""), *sizes)
        cause, why = self._why_not_there(one, model, shape, len(kinds))
        if cause is not None:
            self._why_leaving[one.id] = why
        return Standing(
            id=one.id,
            model=one.model,
            host=one.shards[0].host,
            gpus=tuple(uuid for _, uuid in one.gpus),
            shape=shape,
            cause=cause,
        )

    def _why_not_there(self, one: Instance, model: ResolvedModel, shape: Shape, kinds: int) -> tuple[Cause | None, str]:
        for host, uuid in one.gpus:
            cause, why = self._why_unusable(host, uuid)
            if cause is not None:
                return cause, why
        host = one.shards[0].host
        reason = _why_ineligible(model.request, self._hosts[host])
        if reason is not None:
            return "constraint", reason
        gpu = self._gpus[one.gpus[0]].model
        if gpu is None or len(set(one.hosts)) > 1 or kinds != 1 or shape.gpus != len(one.gpus):
            return "configuration", "its GPUs do not match its parallel sizes"
        problem = _forced_otherwise(model.request, shape)
        if problem is None:
            found = self._configurations.of_shape(model, gpu, shape)
            problem = f"it no longer fits: {found.explanation}" if isinstance(found, Misfit) else None
        if problem is not None:
            return "configuration", problem
        uuids = [uuid for _, uuid in one.gpus]
        for start in range(0, len(uuids), shape.tensor_parallel):
            group = frozenset(uuids[start : start + shape.tensor_parallel])
            if any(pair <= group for pair in self._rooms[host].failed_pairs):
                return "unhealthy", "the peer-to-peer test between its GPUs failed"
        return None, ""

    def _why_unusable(self, host: str, uuid: str) -> tuple[Cause | None, str]:
        gpu = self._gpus.get((host, uuid))
        if host not in self._hosts:
            return "lost", f"{host} is gone"
        if gpu is None:
            return "lost", f"{uuid} is no longer on {host}"
        if gpu.blocked is not None:
            return "unhealthy", f"{gpu.label} of {host} is blocked ({gpu.blocked})"
        if uuid in self._excluded[host]:
            return "excluded", f"{gpu.label} of {host} is in fleet_exclude_gpus"
        if gpu.model is None:
            return "configuration", f"the hardware table does not know {gpu.name!r}"
        return None, ""

    def _why_stranded(self, one: Instance) -> Cause:
        causes = [cause for host, uuid in one.gpus if (cause := self._why_unusable(host, uuid)[0]) is not None]
        return causes[0] if causes else "configuration"

    # What is wished.

    def _prepare(self, model: ResolvedModel) -> _Prepared | None:
        request = model.request
        eligible = [host for host in self._hosts.values() if _why_ineligible(request, host) is None]
        refusal = unsupported(model)
        if refusal is not None:
            self._refused.append(refusal)
            return None
        most: Counter[str] = Counter()
        kinds: dict[str, GpuModel] = {}
        for host in eligible:
            usable = [gpu for gpu in host.gpus if _usable(gpu, self._excluded[host.name])]
            counts = Counter(gpu.model.name for gpu in usable if gpu.model is not None)
            kinds |= {gpu.model.name: gpu.model for gpu in usable if gpu.model is not None}
            most |= counts
        fitting: list[Configuration] = []
        misfits: list[Misfit] = []
        for kind in sorted(kinds):
            found, missed = self._configurations.smallest(model, kinds[kind], most[kind])
            fitting += found
            misfits += missed
        self._smallest[request.name] = tuple(fitting)
        self._misfits[request.name] = tuple(misfits)
        frozen_hosts = [one.shards[0].host for one in self._kept_verbatim if one.model == request.name]
        target = _target(request)
        if not fitting:
            # What runs on hosts that were not reached goes on, whatever the model has become since.
            if len(frozen_hosts) < target:
                self._refused.append(
                    impossible(
                        model,
                        eligible=eligible,
                        hosts=self._hosts,
                        kinds=kinds,
                        most=most,
                        misfits=misfits,
                        engine_version=self._engine_version,
                    )
                )
            return None
        pins, positions = self._pins(request, frozen_hosts)
        return _Prepared(
            model=model,
            target=target,
            pins=positions,
            wish=Wish(
                model=request.name,
                priority=request.priority,
                count=max(0, target - len(frozen_hosts)),
                shapes=tuple(one.shape for one in sorted(fitting, key=lambda one: one.shape.gpus)),
                hosts=frozenset(
                    host.name for host in eligible if host.name not in self._frozen and host.closed is None
                ),
                pins=pins,
                spread=request.placement.spread_over_hosts,
                min_hosts=1 + request.availability.hosts_lost,
                elsewhere=tuple(frozen_hosts),
            ),
        )

    def _pins(
        self, request: ModelRequest, frozen_hosts: Sequence[str]
    ) -> tuple[tuple[PinnedPlace, ...], tuple[int, ...]]:
        """The pins as places, without those that replicas on frozen hosts fulfil, and their positions in models.yml."""
        untouched = Counter(frozen_hosts)
        pins: list[PinnedPlace] = []
        positions: list[int] = []
        for position, pin in enumerate(request.placement.pins):
            if untouched[pin.host] > 0:
                untouched[pin.host] -= 1
                continue
            host = self._hosts.get(pin.host)
            names = {gpu.index: gpu.uuid for gpu in host.gpus} if host else {}
            pins.append(PinnedPlace(pin.host, tuple(names.get(gpu, str(gpu)) for gpu in pin.gpus or ())))
            positions.append(position)
        return tuple(pins), tuple(positions)

    def _is_larger_than_needed(self, decision: Decision) -> bool:
        return any(
            one.shape.gpus > min(config.shape.gpus for config in self._smallest[one.model]) for one in decision.placed
        )

    # The documents.

    def _instances(self, decision: Decision, prepared: Mapping[str, _Prepared]) -> list[Instance]:
        ids = {one.id for one in self._kept_verbatim} | {one.standing.id for one in decision.placed if one.standing}
        ports: dict[str, set[int]] = {}
        for frozen in self._kept_verbatim:
            for host in frozen.hosts:
                ports.setdefault(host, set()).add(frozen.port)
        result = list(self._kept_verbatim)
        # What stays takes its port before anything new is given one.
        for placed in sorted(decision.placed, key=lambda one: (not one.stays, one.model, one.host, one.gpus)):
            identity = placed.standing.id if placed.standing else _free_id(placed.model, ids)
            ids.add(identity)
            taken = ports.setdefault(placed.host, set())
            port = self._current[identity].port if placed.stays else 0
            if not port or port in taken:
                port = next(number for number in range(self._port_base, 65536) if number not in taken)
            taken.add(port)
            result.append(self._instance(placed, identity, port, prepared[placed.model]))
        return result

    def _instance(self, placed: Placed, identity: str, port: int, prepared: _Prepared) -> Instance:
        model, request = prepared.model, prepared.model.request
        gpu = self._gpus[placed.host, placed.gpus[0]].model
        found = self._configurations.of_shape(model, gpu, placed.shape) if gpu else None
        if not isinstance(found, Configuration):
            msg = f"{identity} was placed in a shape that does not fit"
            raise TypeError(msg)
        if model.checkpoint is not None:
            path = f"{MODELS_DIRECTORY}/{request.name}-{model.checkpoint.digest[:_DIGEST_CHARACTERS]}"
        else:
            path = request.repository or request.source_path or request.source
        memory: dict[str, Any] = found.estimate.to_document()
        del memory["ranks"]
        memory["unknown"] = list(found.estimate.unknown)
        return Instance(
            id=identity,
            model=request.name,
            engine=request.engine,
            task=request.task,
            aliases=request.aliases,
            shards=(Shard(placed.host, placed.gpus),),
            engine_args=instance_engine_args(request, found.options, path),
            env={**request.env, "CUDA_VISIBLE_DEVICES": ",".join(placed.gpus)},
            port=port,
            memory=memory,
            speed={},
            reasons=(
                self._why_there(placed, identity, prepared),
                *found.reasons,
                *self._why_so_many_gpus(placed),
                *_number_reasons(prepared),
            ),
            checkpoint=model.checkpoint,
            provisional=self._hosts[placed.host].provisional,
        )

    def _why_there(self, placed: Placed, identity: str, prepared: _Prepared) -> str:
        where = self._place_words(placed.host, placed.gpus)
        if placed.stays:
            before = self._current[identity].reasons
            return before[0] if before else f"Stays on {where}, where it runs."
        allowed = len(prepared.wish.hosts)
        choice = "the host with the largest share of free GPUs"
        if prepared.target > 1:
            choice = "the host with the fewest replicas of the model, then the largest share of free GPUs"
        if not prepared.wish.spread:
            choice = "the fullest host that has room, because spread_over_hosts is false"
        if placed.pin is not None:
            choice = f"placement.pins[{prepared.pins[placed.pin]}] asks for it"
        elif allowed == 1:
            choice = "the only host that may be used"
        elif allowed < len(self._rooms):
            choice += f" among the {allowed} that may be used"
        if placed.standing is None:
            return f"On {where}: {choice}."
        origin = self._place_words(placed.standing.host, placed.standing.gpus)
        why = self._why_leaving.get(identity) or _CAUSE_WORDS[placed.cause or "optimize"]
        return f"Moved from {origin} to {where}, because {why}; {choice}."

    def _why_so_many_gpus(self, placed: Placed) -> list[str]:
        fewer = [one for one in self._misfits[placed.model] if one.shape.gpus < placed.shape.gpus]
        if not fewer:
            return []
        # The most GPUs that did not do, in the way that came closest.
        most = max(one.shape.gpus for one in fewer)
        closest = min((one for one in fewer if one.shape.gpus == most), key=lambda one: one.missing_bytes)
        return [f"{most} GPU{'s do' if most > 1 else ' does'} not do: {closest.explanation}."]

    def _place_words(self, host: str, uuids: Sequence[str]) -> str:
        gpus = [self._gpus.get((host, uuid)) for uuid in uuids]
        names = [str(gpu.index) if gpu else uuid for gpu, uuid in zip(gpus, uuids, strict=True)]
        return f"{host} GPU{'s' if len(names) > 1 else ''} {', '.join(names)}"

    def _document(
        self,
        instances: Sequence[Instance],
        decision: Decision,
        prepared: Mapping[str, _Prepared],
        improvement: Mapping[str, Any] | None,
    ) -> Plan:
        moves = [
            Move(
                id=one.standing.id,
                model=one.model,
                origin=_places(self._current[one.standing.id]),
                to=(Place(one.host, one.gpus),),
                cause=one.cause,
            )
            for one in decision.placed
            if one.standing is not None and one.cause is not None
        ]
        moves += [
            Move(id=one.id, model=one.model, origin=_places(self._current[one.id]), to=(), cause=cause)
            for shortage in decision.shortages
            for one, cause in shortage.left
        ]
        # What runs of a model that is wanted but can no longer be placed at all.
        moves += [
            Move(id=one.id, model=one.model, origin=_places(one), to=(), cause=self._why_stranded(one))
            for one in self._current.values()
            if one.model in self._models and one.model not in prepared
        ]
        counts = Counter(one.model for one in instances)
        used = sum(len(one.gpus) for one in instances)
        bound = sum(
            min(len(one.gpus), *(config.shape.gpus for config in self._smallest.get(one.model, ())), 10**6)
            for one in instances
        )
        carried = {
            name: round(min(1.0, counts[name] / _target(model.request)), 6) for name, model in self._models.items()
        }
        return Plan(
            instances=tuple(sorted(instances, key=lambda one: id_order(one.id))),
            refused=tuple(sorted(self._refused, key=lambda one: (one.model, one.constraint))),
            moves=tuple(sorted(moves, key=lambda one: id_order(one.id))),
            candidates=tuple(
                _candidate(name, config) for name in sorted(self._smallest) for config in self._smallest[name]
            ),
            summary=Summary(
                gpus_used=used,
                gpus_lower_bound=bound,
                gap_fraction=round((used - bound) / used, 6) if used else 0.0,
                carried=carried,
                improvement_available=improvement,
                notes=tuple(_notes(self._hosts.values())),
            ),
        )


_CAUSE_WORDS: Mapping[Cause, str] = {
    "lost": "its host or GPU is gone",
    "unhealthy": "a health check blocks its GPU",
    "excluded": "its GPU is excluded",
    "constraint": "placement asks for another place",
    "configuration": "it needs other GPUs",
    "conflict": "its GPU was given to another instance",
    "priority": "a model of higher priority needed the GPUs",
    "availability": "all replicas stood on one host",
    "optimize": "fleet_optimize was set and this packs better",
}


def _room(host: HostDocument, excluded: frozenset[str]) -> HostRoom:
    switches = {gpu.uuid: position for position, gpu in enumerate(host.gpus)}
    for link in host.links:
        if link.path in _SWITCH_PATHS:
            low, high = sorted((switches[link.a], switches[link.b]))
            switches = {uuid: low if switch == high else switch for uuid, switch in switches.items()}
    return HostRoom(
        name=host.name,
        gpus=tuple(
            GpuRoom(gpu.uuid, gpu.index, gpu.model.name, switches[gpu.uuid], gpu.numa_node or 0)
            for gpu in host.gpus
            if gpu.model is not None and _usable(gpu, excluded)
        ),
        failed_pairs=frozenset(frozenset((link.a, link.b)) for link in host.links if link.p2p == "failed"),
    )


def _usable(gpu: Gpu, excluded: frozenset[str]) -> bool:
    return gpu.blocked is None and gpu.model is not None and gpu.uuid not in excluded


def _target(request: ModelRequest) -> int:
    """How many replicas are wanted."""
    return max(request.replicas.min, len(request.placement.pins), 1 + request.availability.hosts_lost)


def _why_ineligible(request: ModelRequest, host: HostDocument) -> str | None:
    placement = request.placement
    if placement.hosts is not None and host.name not in placement.hosts:
        return f"placement.hosts does not name {host.name}"
    missing = [label for label in placement.labels if label not in host.policy.labels]
    return f"{host.name} does not carry the label {missing[0]}" if missing else None


def _forced_otherwise(request: ModelRequest, shape: Shape) -> str | None:
    for forced, size, name in (
        (request.forced_tensor_parallel, shape.tensor_parallel, "tensor_parallel"),
        (request.forced_pipeline_parallel, shape.pipeline_parallel, "pipeline_parallel"),
    ):
        if forced is not None and forced != size:
            return f"{name}: {forced} is asked for, it had {size}"
    return None


def _free_id(model: str, taken: set[str]) -> str:
    number = 1
    while f"{model}-{number}" in taken:
        number += 1
    return f"{model}-{number}"


def _places(one: Instance) -> tuple[Place, ...]:
    return tuple(Place(shard.host, shard.gpus) for shard in one.shards)


def _number_reasons(prepared: _Prepared) -> list[str]:
    request = prepared.model.request
    if request.availability.hosts_lost:
        lines = [f"{prepared.target} replicas on at least two hosts, because availability.hosts_lost is 1."]
    elif prepared.target > request.replicas.min:
        lines = [f"{prepared.target} replicas, one for each pin."]
    else:
        lines = [f"{prepared.target} {'replica' if prepared.target == 1 else 'replicas'}, from replicas.min."]
    if request.demand is not None:
        rate = request.demand.requests_per_second
        lines.append(f"The demand of {rate:g} requests/s does not change the number yet: there is no speed model.")
    if request.speculative == "auto":
        lines.append("No speculative decoding: whether it pays is not known without a speed model.")
    return lines


def _candidate(model: str, config: Configuration) -> Candidate:
    return Candidate(
        model=model,
        config={
            "gpu": config.shape.kind,
            "tensor_parallel_size": config.shape.tensor_parallel,
            "pipeline_parallel_size": config.shape.pipeline_parallel,
            "quantization": config.quantization,
            "kv_cache_dtype": config.options.kv_cache_dtype,
            "max_model_len": config.estimate.max_model_len,
        },
        gpus=config.shape.gpus,
    )


def _improvement(now: Decision, best: Decision) -> dict[str, Any]:
    moves = sum(1 for one in best.placed if one.standing is not None and one.cause is not None)
    return {
        "replicas_more": now.missing - best.missing,
        "gpus_fewer": now.gpus_used - best.gpus_used,
        "moves": moves,
    }


def _notes(hosts: Iterable[HostDocument]) -> list[str]:
    notes = []
    for host in hosts:
        unknown = [gpu for gpu in host.gpus if gpu.model is None]
        notes += [
            f"{host.name} {gpu.label} is not used: the hardware table does not know {gpu.name!r}." for gpu in unknown
        ]
        if host.provisional:
            notes.append(f"{host.name} is planned from a PCI scan, before its driver confirmed the GPUs.")
    return notes
