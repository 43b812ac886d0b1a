"""From a request to what the placement is asked for: shapes that fit, hosts that may be used, pins, replicas."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .fleet_view import why_ineligible
from .placement_problem import PinnedPlace, Wish
from .refusals import impossible, unsupported

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .configurations import Configuration, Configurations, Misfit, ResolvedModel
    from .fleet_view import FleetView
    from .plan_document import Refusal
    from .requests import ModelRequest


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request, made ready for the decision.

    Args:
        target: replicas that are wanted, those on frozen hosts included.
        configurations: those that fit with the fewest GPUs, the preferred first, for each kind of GPU.
        misfits: what was tried before them.
        wish: None when the model cannot be placed.
        pins: position in models.yml of each pin of the wish.
        refusal: why it cannot be placed; None also when replicas on frozen hosts are all that is wanted.
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
    configurations: Configurations,
    frozen_hosts: Sequence[str],
    engine_version: str,
) -> Prepared:
    """Make a request ready for the decision.

    Args:
        model: the request with what its checkpoint says.
        view: the hosts.
        configurations: answers what fits.
        frozen_hosts: hosts of the model's replicas that cannot be touched, one entry a replica.
        engine_version: vLLM's version.
    """
    request = model.request
    target = max(request.replicas.min, len(request.placement.pins), 1 + request.availability.hosts_lost)
    refusal = unsupported(model)
    if refusal is not None:
        return Prepared(model, target, refusal=refusal)
    eligible = [host for host in view.hosts.values() if why_ineligible(request, host) is None]
    kinds, most = view.usable_gpus(eligible)
    fitting: list[Configuration] = []
    misfits: list[Misfit] = []
    for kind in sorted(kinds):
        found, missed = configurations.smallest(model, kinds[kind], most[kind])
        fitting += found
        misfits += missed
    if not fitting:
        # What runs on hosts that were not reached goes on, whatever the model has become since.
        if len(frozen_hosts) < target:
            refusal = impossible(
                model,
                eligible=eligible,
                hosts=view.hosts,
                kinds=kinds,
                most=most,
                misfits=misfits,
                engine_version=engine_version,
            )
        return Prepared(model, target, misfits=tuple(misfits), refusal=refusal)
    pins, positions = _pins(request, view, frozen_hosts)
    wish = Wish(
        model=request.name,
        priority=request.priority,
        count=max(0, target - len(frozen_hosts)),
        shapes=tuple(one.shape for one in sorted(fitting, key=lambda one: one.shape.gpus)),
        hosts=frozenset(host.name for host in eligible if view.may_get_more(host)),
        pins=pins,
        spread=request.placement.spread_over_hosts,
        min_hosts=1 + request.availability.hosts_lost,
        elsewhere=tuple(frozen_hosts),
    )
    return Prepared(model, target, tuple(fitting), tuple(misfits), wish, positions)


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
