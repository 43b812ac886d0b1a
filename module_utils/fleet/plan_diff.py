"""What changes between two plans, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .plan_document import id_order

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .plan_document import CheckpointReference, Instance, Plan, Refusal

Kind = Literal["added", "removed", "moved", "changed"]
KINDS: tuple[Kind, ...] = ("added", "removed", "moved", "changed")


@dataclass(frozen=True, slots=True)
class Detail:
    """One thing that differs. A thing that is not set is None."""

    what: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Change:
    """One instance that differs.

    Args:
        kind: an instance that stands elsewhere is ``moved``, whatever else differs.
        details: what differs; of one that was added or removed, its place.
    """

    id: str
    model: str
    kind: Kind
    why: str
    details: tuple[Detail, ...] = ()


@dataclass(frozen=True, slots=True)
class Carried:
    """What is carried of one model. None where a plan does not know the model.

    Args:
        before: share of its demand or instances, 0 to 1.
        requests_before: requests a second that its instances were to get; None without a demand.
    """

    model: str
    before: float | None
    after: float | None
    requests_before: float | None
    requests_after: float | None


@dataclass(frozen=True, slots=True)
class PlanDiff:
    """All differences. ``carried`` holds the models for which it differs."""

    changes: tuple[Change, ...]
    refused: tuple[Refusal, ...]
    no_longer_refused: tuple[Refusal, ...]
    carried: tuple[Carried, ...]
    gpus_before: int
    gpus_after: int

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs."""
        return not (self.changes or self.refused or self.no_longer_refused or self.carried)

    def to_document(self) -> dict[str, Any]:
        """The differences as JSON has them."""
        document: dict[str, Any] = {kind: [] for kind in KINDS}
        for change in self.changes:
            document[change.kind].append(
                {
                    "id": change.id,
                    "model": change.model,
                    "why": change.why,
                    "details": [
                        {"what": one.what, "before": _plain(one.before), "after": _plain(one.after)}
                        for one in change.details
                    ],
                }
            )
        for name, refusals in (("refused", self.refused), ("no_longer_refused", self.no_longer_refused)):
            document[name] = [
                {
                    "model": one.model,
                    "constraint": one.constraint,
                    "explanation": one.explanation,
                    "nearest_change": one.nearest_change,
                }
                for one in refusals
            ]
        document["carried"] = [
            {
                "model": one.model,
                "before": one.before,
                "after": one.after,
                "requests_per_s_before": one.requests_before,
                "requests_per_s_after": one.requests_after,
            }
            for one in self.carried
        ]
        document["gpus_used"] = {"before": self.gpus_before, "after": self.gpus_after}
        return document


def diff_plans(old: Plan, new: Plan) -> PlanDiff:
    """Compare two plans by instance ids."""
    before = {one.id: one for one in old.instances}
    after = {one.id: one for one in new.instances}
    causes = {move.id: move.cause for move in new.moves}
    changes = []
    for identity in sorted(before.keys() | after.keys(), key=id_order):
        if identity not in before:
            one = after[identity]
            changes.append(Change(identity, one.model, "added", _first_reason(one), (_place(None, one),)))
        elif identity not in after:
            changes.append(_removed(before[identity], new, causes))
        else:
            changes += _compared(before[identity], after[identity], causes)
    return PlanDiff(
        changes=tuple(changes),
        refused=_only_in(new.refused, old.refused),
        no_longer_refused=_only_in(old.refused, new.refused),
        carried=_carried(old, new),
        gpus_before=old.summary.gpus_used,
        gpus_after=new.summary.gpus_used,
    )


def _removed(one: Instance, new: Plan, causes: Mapping[str, str]) -> Change:
    if one.id in causes:
        why = f"lost its place ({causes[one.id]}) and found no other"
    elif any(refusal.model == one.model for refusal in new.refused):
        why = next(refusal.explanation for refusal in new.refused if refusal.model == one.model)
    elif any(other.model == one.model for other in new.instances):
        why = f"fewer replicas of {one.model} are wanted"
    else:
        why = f"{one.model} is no longer wanted"
    return Change(one.id, one.model, "removed", why, (_place(one, None),))


def _compared(old: Instance, new: Instance, causes: Mapping[str, str]) -> list[Change]:
    details = [_place(old, new)] if old.shards != new.shards else []
    for what in ("engine", "task", "port"):
        left, right = getattr(old, what), getattr(new, what)
        if left != right:
            details.append(Detail(what, left, right))
    if old.checkpoint != new.checkpoint:
        details.append(Detail("checkpoint", _checkpoint(old.checkpoint), _checkpoint(new.checkpoint)))
    before, after = ({one.name: one for one in this.further_checkpoints} for this in (old, new))
    details += [
        Detail(f"checkpoint {name}", _checkpoint(before.get(name)), _checkpoint(after.get(name)))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    for prefix, left, right in (("", old.engine_args, new.engine_args), ("env ", old.env, new.env)):
        # A moved instance sees other GPUs, which its place says already.
        names = sorted((left.keys() | right.keys()) - {"CUDA_VISIBLE_DEVICES"})
        details += [
            Detail(f"{prefix}{name}", left.get(name), right.get(name))
            for name in names
            if left.get(name) != right.get(name)
        ]
    if not details:
        return []
    if old.shards != new.shards:
        why = f"{causes[new.id]}: {_first_reason(new)}" if new.id in causes else _first_reason(new)
        return [Change(new.id, new.model, "moved", why, tuple(details))]
    checkpoint = old.checkpoint != new.checkpoint and new.checkpoint is not None
    why = "another checkpoint" if checkpoint else "its request or the hosts changed"
    return [Change(new.id, new.model, "changed", why, tuple(details))]


def _place(old: Instance | None, new: Instance | None) -> Detail:
    return Detail("place", old.shards if old else None, new.shards if new else None)


def _only_in(these: Iterable[Refusal], others: Iterable[Refusal]) -> tuple[Refusal, ...]:
    known = {(one.model, one.constraint, one.explanation) for one in others}
    missing = [one for one in these if (one.model, one.constraint, one.explanation) not in known]
    return tuple(sorted(missing, key=lambda one: (one.model, one.constraint, one.explanation)))


def _carried(old: Plan, new: Plan) -> tuple[Carried, ...]:
    left, right = old.summary.carried, new.summary.carried
    requests_before, requests_after = requests_per_s(old), requests_per_s(new)
    found = [
        Carried(model, left.get(model), right.get(model), requests_before.get(model), requests_after.get(model))
        for model in sorted(left.keys() | right.keys())
    ]
    return tuple(one for one in found if (one.before, one.requests_before) != (one.after, one.requests_after))


def requests_per_s(plan: Plan) -> dict[str, float]:
    """Requests a second that the instances of a model are to get, of the models with a demand."""
    found: dict[str, float] = {}
    for one in plan.instances:
        share = one.speed.get("requests_per_s")
        if isinstance(share, int | float):
            found[one.model] = found.get(one.model, 0.0) + share
    return {model: round(total, 3) for model, total in found.items()}


def _checkpoint(one: CheckpointReference | None) -> str | None:
    return None if one is None else f"{one.name} {one.digest[:12]}"


def _first_reason(one: Instance) -> str:
    return one.reasons[0] if one.reasons else "no reason is given"


def _plain(value: Any) -> Any:
    """A place as one text for each host; everything else is JSON already."""
    return [f"{shard.host}: {', '.join(shard.gpus)}" for shard in value] if isinstance(value, tuple) else value
