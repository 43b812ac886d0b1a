"""From a plan that takes quantized checkpoints for granted to the jobs that make them, and who has to have which."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .quantize_costs import estimate_cost
from .quantize_gate import figures_words
from .quantize_plan import plan_with_quantized
from .quantize_recipes import words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .configurations import ResolvedModel
    from .host_document import Gpu, HostDocument
    from .plan_document import Plan
    from .quantize_evidence import Evidence
    from .quantize_plan import Outcome, Preparation, Text

# Where a user's text is put on a host.
_TEXTS = "/var/lib/l40s-fleet/quantize/texts"
_PIECE_TOKENS = 2048
_MIB, _GIB = 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Work:
    """What has to be done so that every instance finds its checkpoint.

    Args:
        jobs: by host, as the module ``fleet_quantize`` takes them.
        sources: by host, models whose source the jobs read.
        existing: by host, models whose quantized checkpoint is to be there and is, or is on another host that answered.
        unmakeable: by model, why no host can make its checkpoint now.
        notices: lines for the operator.
    """

    jobs: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    sources: Mapping[str, frozenset[str]] = field(default_factory=dict)
    existing: Mapping[str, frozenset[str]] = field(default_factory=dict)
    unmakeable: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


def plan_and_work(
    make: Callable[[Sequence[ResolvedModel]], Plan],
    models: Sequence[ResolvedModel],
    evidence: Evidence,
    documents: Mapping[str, HostDocument],
    *,
    engine_version: str,
    accelerator: str,
    enabled: bool,
    texts: Mapping[str, Text],
) -> tuple[Outcome, Work]:
    """The plan with what it takes for granted, and the work that makes it true.

    Args:
        make: makes a plan for models.
        models: as their sources are.
        evidence: what is there, and what was refused.
        documents: the hosts that answered.
        engine_version: vLLM's version.
        accelerator: ``cuda`` or ``cpu``.
        enabled: whether checkpoints may be made.
        texts: users' texts by model.

    Raises:
        FleetError: as ``plan_with_quantized``.
    """
    unmakeable: dict[str, str] = {}
    while True:
        outcome = plan_with_quantized(
            make,
            models,
            evidence,
            engine_version=engine_version,
            enabled=enabled,
            texts=texts,
            unmakeable=unmakeable,
        )
        work = work_of(outcome.plan, outcome.preparations, evidence, documents, accelerator=accelerator)
        if work.unmakeable.keys() <= unmakeable.keys():
            return outcome, work
        # Planned again without it: what no host can make is not to be counted on.
        unmakeable |= work.unmakeable


def work_of(
    plan: Plan,
    preparations: Mapping[str, Preparation],
    evidence: Evidence,
    documents: Mapping[str, HostDocument],
    *,
    accelerator: str,
) -> Work:
    """The work of one run.

    A checkpoint is made once, on the first host that will serve it and has a GPU on which nothing runs. A plan that is
    made after that has it copied to the others.

    Args:
        plan: with the models of ``preparations`` planned as prepared.
        preparations: by model.
        evidence: what is there.
        documents: the hosts that answered.
        accelerator: ``cuda``, or ``cpu`` for the lab, where jobs need no GPU.
    """
    jobs: dict[str, list[Mapping[str, Any]]] = {}
    sources: dict[str, set[str]] = {}
    existing: dict[str, set[str]] = {}
    unmakeable: dict[str, str] = {}
    notices: list[str] = []
    taken: set[tuple[str, str]] = set()
    for name, one in sorted(preparations.items()):
        hosts = sorted({host for instance in plan.instances if instance.model == name for host in instance.hosts})
        hosts = [host for host in hosts if host in documents]
        holders = evidence.made.get(one.key, {})
        if not hosts or not one.key:
            continue
        if holders:
            # One that has it and does not serve it gives it to those that lack it.
            givers = () if set(hosts) <= set(holders) else holders
            for host in {*hosts, *givers}:
                existing.setdefault(host, set()).add(name)
            figures = holders[min(holders)].figures
            notices.append(f"{name}: {words(one.recipe)}, on {', '.join(sorted(holders))}: {figures_words(figures)}.")
            continue
        place = (hosts[0], None) if accelerator == "cpu" else _place(plan, name, hosts, documents, taken)
        if place is None:
            unmakeable[name] = f"no GPU of {', '.join(hosts)} is idle to make it on"
            continue
        maker, gpu = place
        if gpu is not None:
            taken.add((maker, gpu.uuid))
        job = _job(one, gpu)
        jobs.setdefault(maker, []).append(job)
        sources.setdefault(maker, set()).add(name)
        others = [host for host in hosts if host != maker]
        copied = f", and copied to {', '.join(others)}" if others else ""
        notices.append(f"{name}: {words(one.recipe)}, is made on {maker}{copied}: {_cost_words(job['cost'])}.")
    return Work(
        jobs=jobs,
        sources={host: frozenset(names) for host, names in sources.items()},
        existing={host: frozenset(names) for host, names in existing.items()},
        unmakeable=unmakeable,
        notices=tuple(notices),
    )


def _place(
    plan: Plan,
    model: str,
    hosts: Sequence[str],
    documents: Mapping[str, HostDocument],
    taken: set[tuple[str, str]],
) -> tuple[str, Gpu] | None:
    """A host and a GPU of it on which nothing runs, those of the model's own instances first."""
    for host in hosts:
        document = documents[host]
        running = {
            gpu
            for record in document.instances
            for shard in record.get("shards") or ()
            if shard.get("host") == host
            for gpu in shard.get("gpus") or ()
        }
        own = {gpu for one in plan.instances if one.model == model for where, gpu in one.gpus if where == host}
        others = {gpu for one in plan.instances if one.model != model for where, gpu in one.gpus if where == host}
        excluded = document.excluded_uuids()
        idle = [
            gpu
            for gpu in document.gpus
            if gpu.uuid not in running | others | excluded and gpu.blocked is None and (host, gpu.uuid) not in taken
        ]
        idle.sort(key=lambda gpu: (gpu.uuid not in own, gpu.index))
        if idle:
            return host, idle[0]
    return None


def _job(one: Preparation, gpu: Gpu | None) -> dict[str, Any]:
    model = gpu.model if gpu is not None else None
    cost = estimate_cost(one.source.facts, one.recipe, model, held_out_tokens=one.judged_tokens)
    longest = one.source.facts.max_position_embeddings or _PIECE_TOKENS
    return {
        "model": one.source.request.name,
        "key": one.key,
        "source_digest": one.source.checkpoint.digest if one.source.checkpoint else "",
        "recipe": one.recipe.to_document(),
        "words": words(one.recipe),
        "limits": one.limits.to_document(),
        "tool": one.recipe.environment,
        "gpu": gpu.uuid if gpu is not None else "",
        "cost": cost.to_document(),
        "judged": {"tokens": one.judged_tokens, "sequence_length": min(_PIECE_TOKENS, longest)},
        "text": f"{_TEXTS}/{one.text.sha256}.txt" if one.text else "",
        "text_source": one.text.path if one.text else "",
    }


def _cost_words(cost: Mapping[str, Any]) -> str:
    """What a job takes, in words."""
    seconds = cost["seconds"]
    duration = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    size = cost["output_bytes"]
    written = f"{size / _GIB:.1f} GiB" if size >= _GIB else f"{size / _MIB:.1f} MiB"
    how = ", the source scored layer by layer" if cost["layer_by_layer"] else ""
    return f"about {duration} (estimated{how}), {cost['host_bytes'] / _GIB:.1f} GiB of host memory, {written} of disk"
