"""Load against capacity, model by model, and what is left of it when a host is lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import FleetError
from .plan_document import id_order
from .report_words import configuration_namer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .plan_document import Instance, Plan

_TOLERANCE = 1e-6
_LIMITS = {"tpot": "time per output token", "ttft": "time to first token", "throughput": "throughput"}


@dataclass(frozen=True, slots=True)
class InstanceLoad:
    """Instances of one model that are started alike and get the same load. Figures are of one of them.

    None stands for what the plan does not say: everything but the KV cache where there is no demand. ``chunk`` is
    max_num_batched_tokens.
    """

    ids: tuple[str, ...]
    hosts: tuple[str, ...]
    configuration: str
    requests_per_s: float | None
    capacity_requests_per_s: float | None
    running_sequences: float | None
    peak_batch: float | None
    ttft_ms: float | None
    tpot_ms: float | None
    percentile: float | None
    limit: str
    kv_cache_tokens: float | None
    max_model_len: float | None
    chunk: float | None
    places: tuple[tuple[str, str], ...]
    reasons: tuple[str, ...]

    @property
    def utilization(self) -> float | None:
        """Load over capacity."""
        if not self.capacity_requests_per_s or self.requests_per_s is None:
            return None
        return self.requests_per_s / self.capacity_requests_per_s


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """One model. ``demand`` and ``capacity`` are in requests a second; None without a demand."""

    model: str
    task: str
    carried: float | None
    demand: float | None
    capacity: float | None
    instances: int
    gpus: int
    refused: bool
    loads: tuple[InstanceLoad, ...]


@dataclass(frozen=True, slots=True)
class Loss:
    """What is left when one of these hosts is lost, before anything is placed anew.

    Args:
        left: by model, the share of its demand, or of its instances, that the others carry.
        spared: models with ``availability.hosts_lost: 1``, which the plan keeps carried.
    """

    hosts: tuple[str, ...]
    gpus: int
    instances: int
    left: tuple[tuple[str, float], ...]
    spared: tuple[str, ...]

    @property
    def worst(self) -> float:
        """The least share that is left."""
        return min((share for _, share in self.left), default=1.0)


def model_loads(plan: Plan, demands: Mapping[str, float | None], *, where: str) -> tuple[ModelLoad, ...]:
    """Every model that the plan knows, by name.

    Args:
        plan: the plan.
        demands: requests a second by model, None without a demand; those of other models are taken from what their
            instances are to get.
        where: the plan, for errors.

    Raises:
        FleetError: a figure of the plan is no number.
    """
    by_model: dict[str, list[Instance]] = {}
    for one in sorted(plan.instances, key=lambda one: id_order(one.id)):
        by_model.setdefault(one.model, []).append(one)
    refused = {one.model for one in plan.refused}
    words = configuration_namer(plan)
    loads = []
    for model in sorted({*by_model, *plan.summary.carried, *refused, *demands}):
        mine = by_model.get(model, [])
        carried = plan.summary.carried.get(model)
        loads.append(
            ModelLoad(
                model=model,
                task=mine[0].task if mine else "generate",
                carried=carried,
                demand=demands[model] if model in demands else _demand(mine, carried, where),
                capacity=_total(mine, "capacity_requests_per_s", where),
                instances=len(mine),
                gpus=sum(len(one.gpus) for one in mine),
                refused=model in refused,
                loads=_alike(mine, words, where),
            )
        )
    return tuple(loads)


def losses(plan: Plan, loads: Sequence[ModelLoad], *, where: str) -> tuple[Loss, ...]:
    """What the loss of each host leaves, the worst first; hosts whose loss leaves the same are one."""
    by_name = {load.model: load for load in loads}
    by_host: dict[str, list[Instance]] = {}
    for one in plan.instances:
        for host in sorted(set(one.hosts)):
            by_host.setdefault(host, []).append(one)
    found: dict[tuple[Any, ...], list[str]] = {}
    for host, lost in by_host.items():
        left = tuple(
            (model, _left(by_name[model], [one for one in lost if one.model == model], where))
            for model in sorted({one.model for one in lost})
        )
        spared = tuple(sorted(plan.summary.carried_without_host.get(host, ())))
        gpus = sum(1 for one in lost for at, _ in one.gpus if at == host)
        found.setdefault((gpus, len(lost), left, spared), []).append(host)
    rows = [Loss(tuple(sorted(hosts)), *key) for key, hosts in found.items()]
    return tuple(sorted(rows, key=lambda row: (row.worst, row.hosts)))


def _left(load: ModelLoad, lost: Sequence[Instance], where: str) -> float:
    gone = _total(lost, "capacity_requests_per_s", where)
    if load.demand and load.capacity is not None:
        left = (load.capacity - (gone or 0.0)) / load.demand
    else:
        left = (load.carried or 1.0) * (load.instances - len(lost)) / load.instances
    return 1.0 if left >= 1.0 - _TOLERANCE else round(max(left, 0.0), 4)


def _demand(mine: Sequence[Instance], carried: float | None, where: str) -> float | None:
    """Requests a second that were asked for, from what the instances are to get and the share that it is."""
    got = _total(mine, "requests_per_s", where)
    return None if not got or not carried else got / carried


def _total(mine: Sequence[Instance], name: str, where: str) -> float | None:
    known = [value for value in (speed_figure(one, name, where) for one in mine) if value is not None]
    return sum(known) if known else None


def _alike(mine: Sequence[Instance], words: Callable[[Instance], str], where: str) -> tuple[InstanceLoad, ...]:
    groups: dict[tuple[Any, ...], list[Instance]] = {}
    for one in mine:
        key = (
            words(one),
            str(one.engine_args.get("max_num_batched_tokens")),
            str(sorted(one.speed.items())),
            _tokens(one),
            *one.reasons[1:],
        )
        groups.setdefault(key, []).append(one)
    return tuple(_load(ones, words(ones[0]), where) for ones in groups.values())


def _load(ones: Sequence[Instance], configuration: str, where: str) -> InstanceLoad:
    one = ones[0]

    def figure(name: str) -> float | None:
        return speed_figure(one, name, where)

    longest, chunk = (one.engine_args.get(name) for name in ("max_model_len", "max_num_batched_tokens"))
    return InstanceLoad(
        ids=tuple(each.id for each in ones),
        hosts=tuple(sorted({host for each in ones for host in each.hosts})),
        configuration=configuration,
        requests_per_s=figure("requests_per_s"),
        capacity_requests_per_s=figure("capacity_requests_per_s"),
        running_sequences=figure("running_sequences"),
        peak_batch=figure("peak_batch"),
        ttft_ms=figure("ttft_ms"),
        tpot_ms=figure("tpot_ms"),
        percentile=figure("percentile"),
        limit=limit_words(one),
        kv_cache_tokens=_tokens(one),
        max_model_len=longest if isinstance(longest, int) else None,
        chunk=chunk if isinstance(chunk, int) else None,
        places=tuple((each.id, each.reasons[0] if each.reasons else "") for each in ones),
        reasons=one.reasons[1:],
    )


def limit_words(one: Instance) -> str:
    """What keeps the capacity of an instance from being larger; empty where the plan does not say."""
    limit = str(one.speed.get("limit", ""))
    return _LIMITS.get(limit, limit)


def _tokens(one: Instance) -> float | None:
    tokens = one.memory.get("kv_cache_tokens_planned")
    return tokens if isinstance(tokens, int) else None


def speed_figure(one: Instance, name: str, where: str) -> float | None:
    """A number of an instance's ``speed``, None where it is not there.

    Raises:
        FleetError: it is no number.
    """
    value = one.speed.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FleetError(f"{where}: instances {one.id}.speed.{name}", f"must be a number, got {value!r}")
    return float(value)
