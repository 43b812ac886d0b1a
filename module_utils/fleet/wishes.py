"""From a request to what the placement is asked for: shapes that fit, hosts that may be used, pins, replicas."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .configurations import gives_up_precision
from .fleet_view import why_ineligible
from .host_means import checkpoint_bytes
from .placement_problem import PinnedPlace, Wish
from .refusals import impossible, objectives_missed, unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .configurations import Configuration, Misfit, ResolvedModel
    from .fleet_configurations import FleetConfigurations
    from .fleet_view import FleetView
    from .host_document import HostDocument
    from .plan_document import Instance, Refusal
    from .requests import ModelRequest


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request, made ready for the decision.

    Args:
        target: replicas that are wanted at least, those on frozen hosts included; without a demand so many exactly.
        configurations: the preferred first, for each kind of GPU; without a demand those with the fewest GPUs, with one
            those that carry more than smaller ones on as many GPUs.
        misfits: what was tried before them.
        wish: None when the model cannot be placed.
        pins: position in models.yml of each pin of the wish.
        refusal: why it cannot be placed, or, beside a wish, why it is placed although its objectives do not hold; None
            also when replicas on frozen hosts are all that is wanted.
    """

    model: ResolvedModel
    target: int
    configurations: tuple[Configuration, ...] = ()
    misfits: tuple[Misfit, ...] = ()
    wish: Wish | None = None
    pins: tuple[int, ...] = ()
    refusal: Refusal | None = None


def prepare(
    model: ResolvedModel,
    view: FleetView,
    configurations: FleetConfigurations,
    running: Sequence[Instance],
    *,
    precisions: Sequence[str] = (),
    settled: bool = False,
) -> Prepared:
    """Make a request ready for the decision.

    Args:
        model: the request with what its checkpoint says.
        view: the hosts.
        configurations: answers what fits.
        running: the model's replicas that run now.
        precisions: less faithful ones that a model with a demand may use, as ``Shape.precision`` has them.
        settled: it uses no other.
    """
    request = model.request
    target = max(request.replicas.min, len(request.placement.pins), 1 + request.availability.hosts_lost)
    refusal = unsupported(model)
    if refusal is not None:
        return Prepared(model, target, refusal=refusal)
    frozen = [one for one in running if not view.frozen.isdisjoint(one.hosts)]
    frozen_hosts = [one.shards[0].host for one in frozen]
    eligible = [host for host in view.hosts.values() if why_ineligible(request, host) is None]
    kinds, most = view.usable_gpus(eligible)
    asked = request.placement.pins
    demand = request.demand.requests_per_second if request.demand is not None else None
    fitting: tuple[Configuration, ...] = ()
    misfits: tuple[Misfit, ...] = ()
    if demand is not None:
        # A pin may name more GPUs than any configuration that is worth them.
        pinned = precisions if not any(pin.gpus for pin in asked) else ()
        fitting, misfits = _all_kinds(
            kinds,
            lambda kind: configurations.useful(
                model, kinds[kind], most[kind], precisions=pinned, settled=settled and bool(pinned)
            ),
        )
        if not fitting and misfits and any(one.constraint == "objectives" for one in misfits):
            refusal = objectives_missed(model, misfits)
            configurations.ignore_objectives(model)
            demand = None
    if not fitting:
        fitting, misfits = _all_kinds(kinds, lambda kind: configurations.smallest(model, kinds[kind], most[kind]))
    wide: tuple[Configuration, ...] = ()
    if not fitting:
        wide = _over_hosts(model, view, configurations, eligible)
    if not fitting and not wide:
        # What runs on hosts that were not reached goes on, whatever the model has become since.
        if len(frozen_hosts) < target:
            refusal = impossible(
                model,
                eligible=eligible,
                hosts=view.hosts,
                kinds=kinds,
                most=most,
                misfits=misfits,
                engine_version=configurations.engine_version(model),
            )
        return Prepared(model, target, misfits=misfits, refusal=refusal)
    if demand is not None and not any(one.capacity_requests_per_s for one in (*fitting, *wide)):
        demand = None
    pins, positions = _pins(request, view, frozen_hosts)
    maximum = request.replicas.max
    wish = Wish(
        model=request.name,
        priority=request.priority,
        count=max(0, target - len(frozen_hosts)),
        shapes=tuple(one.shape for one in fitting if one not in wide),
        hosts=frozenset(host.name for host in eligible if view.may_get_more(host)),
        pins=pins,
        spread=request.placement.spread_over_hosts,
        min_hosts=1 + request.availability.hosts_lost,
        elsewhere=tuple(frozen_hosts),
        demand=demand,
        capacity={one.shape: one.capacity_requests_per_s or 0.0 for one in (*fitting, *wide)},
        most=None if maximum is None else max(0, maximum - len(frozen_hosts)),
        sacrifices=frozenset(one.shape for one in fitting if gives_up_precision(one, fitting)),
        carried_elsewhere=tuple(capacity_of(one) for one in frozen),
        wide_shapes=tuple(one.shape for one in wide),
        checkpoint_bytes=checkpoint_bytes(model),
        stored_on=_stored_on(model, running),
    )
    return Prepared(model, target, fitting or wide, misfits, wish, positions, refusal)


def _stored_on(model: ResolvedModel, running: Sequence[Instance]) -> frozenset[str]:
    """Hosts that have the model's checkpoint and all that it is served with."""
    needed = (model.checkpoint, {one.checkpoint for one in model.further})
    return frozenset(
        host for one in running if (one.checkpoint, set(one.further_checkpoints)) == needed for host in one.hosts
    )


def last_resorts(
    model: ResolvedModel, view: FleetView, configurations: FleetConfigurations
) -> tuple[tuple[Configuration, ...], tuple[Configuration, ...]]:
    """Parts of a GPU, and configurations over several hosts, as far as placement allows them."""
    placement = model.request.placement
    eligible = [host for host in view.hosts.values() if why_ineligible(model.request, host) is None]
    parts: list[Configuration] = []
    # Triton's models are loaded one by one, not one after the other on each GPU, and none of them spans hosts.
    on_vllm = model.request.engine == "vllm"
    if on_vllm and placement.share_gpus != "never" and not any(pin.gpus for pin in placement.pins):
        for _, gpu in sorted(view.usable_gpus(eligible)[0].items()):
            parts += configurations.parts(model, gpu)
    return tuple(parts), _over_hosts(model, view, configurations, eligible)


def _over_hosts(
    model: ResolvedModel, view: FleetView, configurations: FleetConfigurations, eligible: Sequence[HostDocument]
) -> tuple[Configuration, ...]:
    wide: list[Configuration] = []
    if model.request.placement.allow_multi_node and model.request.engine == "vllm":
        open_hosts = [host for host in eligible if view.may_get_more(host)]
        for name, gpu in sorted(view.usable_gpus(open_hosts)[0].items()):
            counts = [sum(one.kind == name for one in view.rooms[host.name].gpus) for host in open_hosts]
            wide += configurations.over_hosts(model, gpu, counts)
    return tuple(wide)


def capacity_of(one: Instance) -> float:
    """Requests/s that an instance carries, as its record says; 0 when it does not."""
    capacity = one.speed.get("capacity_requests_per_s")
    return float(capacity) if isinstance(capacity, int | float) else 0.0


def _all_kinds(
    kinds: Iterable[str], find: Callable[[str], tuple[tuple[Configuration, ...], tuple[Misfit, ...]]]
) -> tuple[tuple[Configuration, ...], tuple[Misfit, ...]]:
    found = [find(kind) for kind in sorted(kinds)]
    fitting = [one for configurations, _ in found for one in configurations]
    return (
        tuple(sorted(fitting, key=lambda one: one.shape.gpus)),
        tuple(misfit for _, misfits in found for misfit in misfits),
    )


def _pins(
    request: ModelRequest, view: FleetView, frozen_hosts: Sequence[str]
) -> tuple[tuple[PinnedPlace, ...], tuple[int, ...]]:
    """The pins as places, without those that replicas on frozen hosts fulfil, and their positions in models.yml."""
    untouched = Counter(frozen_hosts)
    pins: list[PinnedPlace] = []
    positions: list[int] = []
    for position, pin in enumerate(request.placement.pins):
        if untouched[pin.host] > 0:
            untouched[pin.host] -= 1
            continue
        host = view.hosts.get(pin.host)
        names = {gpu.index: gpu.uuid for gpu in host.gpus} if host else {}
        pins.append(PinnedPlace(pin.host, tuple(names.get(gpu, str(gpu)) for gpu in pin.gpus or ())))
        positions.append(position)
    return tuple(pins), tuple(positions)
