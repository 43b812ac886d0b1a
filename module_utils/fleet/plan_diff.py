"""What changes between two plans, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .plan_document import id_order

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .plan_document import Instance, Plan


@dataclass(frozen=True, slots=True)
class Change:
    """One instance that differs. ``details`` holds (what, before, after) of each difference."""

    id: str
    model: str
    kind: Literal["added", "removed", "moved", "changed"]
    why: str
    details: tuple[tuple[str, Any, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class PlanDiff:
    """All differences. ``refused`` and ``no_longer_refused`` hold (model, constraint, explanation)."""

    changes: tuple[Change, ...]
    refused: tuple[tuple[str, str, str], ...]
    no_longer_refused: tuple[tuple[str, str, str], ...]

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs."""
        return not (self.changes or self.refused or self.no_longer_refused)

    def to_document(self) -> dict[str, Any]:
        """The differences as JSON has them."""
        document: dict[str, Any] = {"added": [], "removed": [], "moved": [], "changed": []}
        for change in self.changes:
            document[change.kind].append(
                {
                    "id": change.id,
                    "model": change.model,
                    "why": change.why,
                    "details": [
                        {"what": what, "before": before, "after": after} for what, before, after in change.details
                    ],
                }
            )
        for name, refusals in (("refused", self.refused), ("no_longer_refused", self.no_longer_refused)):
            document[name] = [
                {"model": model, "constraint": constraint, "explanation": explanation}
                for model, constraint, explanation in refusals
            ]
        return document

    def to_lines(self) -> list[str]:
        """The differences for a terminal."""
        signs = {"added": "+", "removed": "-", "moved": ">", "changed": "~"}
        lines = []
        for change in self.changes:
            lines.append(f"{signs[change.kind]} {change.id} {change.kind}: {change.why}")
            lines += [f"    {what}: {_shown(before)} -> {_shown(after)}" for what, before, after in change.details]
        lines += [f"! {model} refused ({constraint}): {why}" for model, constraint, why in self.refused]
        lines += [f"  {model} no longer refused ({constraint})" for model, constraint, _ in self.no_longer_refused]
        return lines or ["No difference."]


def diff_plans(old: Plan, new: Plan) -> PlanDiff:
    """Compare two plans by instance ids."""
    before = {one.id: one for one in old.instances}
    after = {one.id: one for one in new.instances}
    causes = {move.id: move.cause for move in new.moves}
    changes = []
    for identity in sorted(before.keys() | after.keys(), key=id_order):
        if identity not in before:
            one = after[identity]
            changes.append(Change(identity, one.model, "added", _first_reason(one)))
        elif identity not in after:
            changes.append(_removed(before[identity], new, causes))
        else:
            changes += _compared(before[identity], after[identity], causes)
    refused_before = {(one.model, one.constraint, one.explanation) for one in old.refused}
    refused_after = {(one.model, one.constraint, one.explanation) for one in new.refused}
    return PlanDiff(
        changes=tuple(changes),
        refused=tuple(sorted(refused_after - refused_before)),
        no_longer_refused=tuple(sorted(refused_before - refused_after)),
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
    return Change(one.id, one.model, "removed", why)


def _compared(old: Instance, new: Instance, causes: Mapping[str, str]) -> list[Change]:
    details: list[tuple[str, Any, Any]] = []
    if old.shards != new.shards:
        details.append(("place", _places(old), _places(new)))
    if old.port != new.port:
        details.append(("port", old.port, new.port))
    if old.engine != new.engine:
        details.append(("engine", old.engine, new.engine))
    for prefix, left, right in (("", old.engine_args, new.engine_args), ("env ", old.env, new.env)):
        # A moved instance sees other GPUs, which its place says already.
        names = sorted((left.keys() | right.keys()) - {"CUDA_VISIBLE_DEVICES"})
        details += [
            (f"{prefix}{name}", left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)
        ]
    if not details:
        return []
    if old.shards != new.shards:
        why = f"{causes[new.id]}: {_first_reason(new)}" if new.id in causes else _first_reason(new)
        return [Change(new.id, new.model, "moved", why, tuple(details))]
    checkpoint = old.checkpoint != new.checkpoint and new.checkpoint is not None
    why = "another checkpoint" if checkpoint else "its request or the hosts changed"
    return [Change(new.id, new.model, "changed", why, tuple(details))]


def _places(one: Instance) -> list[str]:
    return [f"{shard.host}: {', '.join(shard.gpus)}" for shard in one.shards]


def _first_reason(one: Instance) -> str:
    return one.reasons[0] if one.reasons else "no reason is given"


def _shown(value: object) -> str:
    if isinstance(value, list):
        return "; ".join(str(item) for item in value)
    return "not set" if value is None else str(value)
