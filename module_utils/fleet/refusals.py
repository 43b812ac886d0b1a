"""Why something is not in the plan, and the smallest change that would put it there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .adapters import refused_adapters
from .host_document import MODELS_DIRECTORY
from .placement_bound import fewest_gpus
from .plan_document import Refusal
from .remedies import remedies
from .speculation_checks import refused_speculation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .configurations import Misfit, ResolvedModel
    from .hardware import GpuModel
    from .host_document import HostDocument
    from .placement_problem import Decision, Shortage, Wish
    from .requests import ModelRequest

_GIB = 1024**3


def unsupported(model: ResolvedModel) -> Refusal | None:
    """Refuse what the roles cannot serve yet, so that nothing is planned that would not start."""
    return refused_adapters(model) or refused_speculation(model)


def impossible(
    model: ResolvedModel,
    *,
    eligible: Sequence[HostDocument],
    hosts: Mapping[str, HostDocument],
    kinds: Mapping[str, GpuModel],
    most: Mapping[str, int],
    misfits: Sequence[Misfit],
    engine_version: str,
) -> Refusal:
    """Refuse a model of which no configuration fits on any host that it may use.

    Args:
        model: the model.
        eligible: hosts that its placement allows.
        hosts: all hosts.
        kinds: the GPUs on the eligible hosts, by name.
        most: the most usable GPUs of a kind on one eligible host.
        misfits: every configuration that was tried.
        engine_version: vLLM's version.
    """
    request = model.request
    if not eligible:
        return _no_host(model, hosts)
    if not kinds:
        names = ", ".join(host.name for host in eligible[:5])
        return Refusal(
            request.name,
            "gpus",
            f"No usable GPU on {names}: all are excluded, blocked or unknown to the hardware table.",
            "lift fleet_exclude_gpus or repair a GPU of these hosts",
        )
    if not misfits:
        forced = (request.forced_tensor_parallel or 1) * (request.forced_pipeline_parallel or 1)
        largest = max(most.values())
        explanation = f"The forced parallel sizes need {forced} GPUs on one host, the largest has {largest} usable."
        explanation += _on_several_hosts(request)
        kind, gpu = next(iter(sorted(kinds.items())))
        changes = remedies(model, gpu, most[kind], misfits, engine_version)
        return Refusal(request.name, "parallel_size", explanation, _any_of(changes) or f"a host with {forced} GPUs")
    # The misfit that came closest.
    closest = min(misfits, key=lambda one: (one.constraint != "memory", one.missing_bytes, one.shape.gpus))
    if any(one.constraint == "quantization" for one in misfits):
        closest = next(one for one in misfits if one.constraint == "quantization")
    gpu = kinds[closest.shape.kind]
    gpus = "one GPU" if closest.shape.gpus == 1 else f"{closest.shape.gpus} GPUs"
    explanation = f"{closest.explanation[0].upper()}{closest.explanation[1:]} ({gpus}, {closest.shape.kind})."
    explanation += _on_several_hosts(request)
    changes = remedies(model, gpu, most[closest.shape.kind], misfits, engine_version)
    if closest.constraint.endswith("draft_tensor_parallel_size"):
        changes = ["leave speculative.draft_tensor_parallel_size out", *changes]
    return Refusal(request.name, closest.constraint, explanation, _any_of(changes) or "a smaller model")


def _on_several_hosts(request: ModelRequest) -> str:
    if not request.placement.allow_multi_node:
        return ""
    return " Neither does it fit on several hosts."


def objectives_missed(model: ResolvedModel, misfits: Sequence[Misfit]) -> Refusal:
    """Say that no configuration meets the objectives; the model runs all the same, as well as it can."""
    missed = [one for one in misfits if one.constraint == "objectives"]
    reasons = "; ".join(f"{one.shape.gpus} x {one.shape.kind}: {one.explanation}" for one in missed[:3])
    return Refusal(
        model.request.name,
        "objectives",
        f"No configuration meets the objectives even at the lightest load. {reasons}.",
        "objectives that leave more time, a smaller model, or a precision with fewer bits",
    )


def short_of_room(
    model: ResolvedModel,
    wish: Wish,
    shortage: Shortage,
    *,
    target: int,
    decision: Decision,
    hosts: Mapping[str, HostDocument],
    optimizing_helps: bool,
) -> Refusal:
    """Refuse replicas of a model that fits but found no free GPUs.

    Args:
        model: the model.
        wish: what the decision was asked for.
        shortage: what the decision found missing.
        target: replicas that were wanted, those on frozen hosts included.
        decision: where everything else stands.
        hosts: all hosts.
        optimizing_helps: whether moving what runs places more.
    """
    request = model.request
    placed = target - shortage.missing
    missing = f"{shortage.missing} of {target} replica{'s' if target > 1 else ''} found no place"
    lacks_demand = wish.demand is not None and shortage.carried < 1.0
    if lacks_demand:
        missing = f"{shortage.carried:.1%} of {wish.demand:g} requests/s are carried"
    fewer = f"replicas.min: {placed}" if placed and placed >= len(request.placement.pins) else None
    if shortage.pin is not None:
        pin = wish.pins[shortage.pin]
        gpus = f" GPUs {', '.join(pin.gpus)}" if pin.gpus else ""
        if pin.host not in hosts:
            why = f"{pin.host} was not reached or is gone"
        elif pin.host not in wish.hosts:
            why = hosts[pin.host].closed or f"{pin.host} was not reached, or placement does not allow it"
        else:
            sizes = ", ".join(str(size) for size in sorted({shape.gpus for shape in wish.shapes}))
            why = f"they are not free, not usable, or not as many as the model needs ({sizes})"
        return Refusal(
            request.name,
            "placement.pins",
            f"{missing}: a pin asks for {pin.host}{gpus}, but {why}.",
            "pin to other GPUs, or remove the pin",
        )
    if shortage.min_hosts:
        why = "all replicas would stand on one host, and no other host has room"
        if not shortage.missing:
            why = "the other hosts have no room for what is missing when the host that carries most is lost"
        return Refusal(
            request.name,
            "availability.hosts_lost",
            f"{missing}: {why}.",
            "availability.hosts_lost: 0, or free GPUs on another host",
        )
    if shortage.at_most:
        return Refusal(
            request.name,
            "replicas.max",
            f"{missing}: replicas.max allows no more than {request.replicas.max}.",
            "a larger replicas.max",
        )
    if shortage.lacking:
        return _short_of_means(request.name, missing, shortage)
    needed = min((shape.gpus for shape in (*wish.shapes, *wish.wide_shapes)), default=1)
    free = {name: len(decision.free.get(name, ())) for name in sorted(wish.hosts)}
    best = max(free, key=lambda name: (free[name], name), default=None)
    room = f"the most that are free is {free[best]}, on {best}" if best else _why_no_host(hosts)
    kinds = ", ".join(sorted({shape.kind for shape in (*wish.shapes, *wish.wide_shapes)}))
    explanation = f"{missing}: each needs {needed} free {kinds} on one host, {room}."
    if shortage.left:
        lost = ", ".join(f"{one.id} ({cause})" for one, cause in shortage.left)
        explanation += f" No longer placed: {lost}."
    if wish.demand is None or not lacks_demand:
        more = f"{shortage.missing} x {needed} more {kinds}, each {needed} on one host"
    else:
        explanation = explanation.replace("each needs", "a further replica needs")
        count = fewest_gpus(wish.shapes, wish, placed=wish.count, amount=shortage.carried * wish.demand)
        more = f"{max(count, needed)} more {kinds}"
    changes = ["fleet_optimize=true"] if optimizing_helps else []
    changes += [fewer] if fewer else []
    return Refusal(request.name, "gpus", explanation, _any_of([*changes, more]))


def _short_of_means(model: str, missing: str, shortage: Shortage) -> Refusal:
    """There are free GPUs, but host memory or disk is short."""
    host, what, lacking_bytes = min(shortage.lacking, key=lambda one: (one[2], one[0]))
    size = f"{lacking_bytes / _GIB:.1f} GiB"
    others = len(shortage.lacking) - 1
    also = (
        f", and {others} more host{'s' if others > 1 else ''} lack{'s' if others == 1 else ''} more" if others else ""
    )
    if what == "memory":
        why = f"{host} has free GPUs but lacks {size} of host memory for another engine{also}"
        return Refusal(model, "host_memory", f"{missing}: {why}.", f"{size} more memory in {host}")
    why = f"{host} has free GPUs but lacks {size} of disk for the checkpoint{also}"
    return Refusal(model, "disk", f"{missing}: {why}.", f"{size} more free in {MODELS_DIRECTORY} on {host}")


def _why_no_host(hosts: Mapping[str, HostDocument]) -> str:
    closed = [f"{host.name} ({host.closed})" for host in hosts.values() if host.closed is not None]
    if closed:
        return f"hosts that get nothing new: {', '.join(closed)}"
    return "no host that it may use was reached"


def _no_host(model: ResolvedModel, hosts: Mapping[str, HostDocument]) -> Refusal:
    placement = model.request.placement
    if not hosts:
        return Refusal(model.request.name, "hosts", "There is no host to place it on.", "add a host to gpu_hosts")
    parts = []
    if placement.hosts is not None:
        parts.append(f"placement.hosts allows {', '.join(placement.hosts)}")
    if placement.labels:
        parts.append(f"placement.labels asks for {', '.join(placement.labels)}")
    labels = sorted({label for host in hosts.values() for label in host.policy.labels})
    known = f"labels in use: {', '.join(labels)}" if labels else "no host carries a label"
    return Refusal(
        model.request.name,
        "placement",
        f"No host is allowed: {' and '.join(parts)}; {known}.",
        "change placement, or fleet_labels of a host",
    )


def _any_of(changes: Sequence[str]) -> str:
    return " or ".join(changes)
