"""In which order instances that serve are changed: one of a model at a time, over the whole fleet.

A host does at once what takes nothing away from anyone: instances that are new or do not run. What takes an instance
out of service, and what waits for that, is deferred; the controller puts it into waves over all hosts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .instances import RECORD, Observed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .instances import Desired, Step


@dataclass(frozen=True)
class Change:
    """One deferred instance over all of its hosts.

    Attributes:
        id: the instance.
        model: the model that it serves.
        port: where its engine listens afterwards; 0 for one that is removed.
        hosts: where it runs.
        takes_away: it serves now, and stops.
        grows: its part of a shared GPU grows.
        holds: host and GPU or port, before.
        needs: the same, after.
    """

    id: str
    model: str
    port: int
    hosts: frozenset[str]
    takes_away: bool
    grows: bool
    holds: frozenset[tuple[str, str]]
    needs: frozenset[tuple[str, str]]

    def waits_for(self, other: Change) -> bool:
        """Whether the other one has to be changed first: it gives up something, or its part of a GPU that both keep."""
        if not (self.needs - self.holds).isdisjoint(other.holds):
            return True
        return self.grows and not other.grows and not self.needs.isdisjoint(other.holds)


@dataclass(frozen=True)
class Wave:
    """Instances that are changed together.

    Attributes:
        instances: by id.
        hosts: where they run, sorted.
        alone: those that leave their model without an instance that serves.
    """

    instances: tuple[Change, ...]
    hosts: tuple[str, ...]
    alone: tuple[str, ...]

    @property
    def words(self) -> str:
        """What happens, for the operator."""
        line = f"{', '.join(one.id for one in self.instances)} on {', '.join(self.hosts)}"
        if not self.alone:
            return line
        return (
            f"{line}; nothing else serves the model of {', '.join(self.alone)}, which does not answer until it is back"
        )


def describe(
    steps: Sequence[Step], observed: Mapping[str, Observed], desired: Sequence[Desired]
) -> tuple[dict[str, Any], ...]:
    """The steps of one host as the controller needs them to order those that are deferred.

    Returns:
        In the order of the steps: ``id``, ``action``, ``reasons``; ``model``; ``port``, where it will listen;
        ``serves``, whether it answers now;
        ``holds`` and ``needs``, GPU UUIDs and ports before and after; ``grows``, whether its part of a shared GPU does;
        ``spans``, whether it runs on several hosts; ``deferred``.
    """
    wanted = {one.id: one for one in desired}
    found = []
    for step in steps:
        actual = observed.get(step.id, Observed())
        files = wanted[step.id].files if step.id in wanted else actual.files
        after, before = _record(files), _record(actual.files)
        found.append(
            {
                "id": step.id,
                "action": step.action,
                "reasons": list(step.reasons),
                "model": str(after.get("model", "")),
                "port": int(after.get("port") or 0) if step.id in wanted else 0,
                "serves": actual.unit.active_state == "active",
                "holds": sorted(actual.resources),
                "needs": sorted(wanted[step.id].resources) if step.id in wanted else [],
                "grows": _ways(after) < _ways(before),
                "spans": len(after.get("shards") or ()) > 1,
            }
        )
    late = _deferred(found)
    return tuple({**one, "deferred": one["id"] in late} for one in found)


def _deferred(described: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    changing = [one for one in described if one["action"] != "none"]
    late = {one["id"]: one for one in changing if one["serves"] or (one["spans"] and one["action"] != "remove")}
    while True:
        held = {name: frozenset(one["holds"]) for name, one in late.items()}
        more = {
            one["id"]: one
            for one in changing
            if one["id"] not in late and any(not holds.isdisjoint(one["needs"]) for holds in held.values())
        }
        if not more:
            return frozenset(late)
        late |= more


def _record(files: Mapping[str, str]) -> Mapping[str, Any]:
    try:
        record = json.loads(files.get(RECORD, "{}"))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _ways(record: Mapping[str, Any]) -> int:
    sharing = record.get("sharing")
    return int(sharing.get("ways") or 1) if isinstance(sharing, dict) else 1


def waves(hosts: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[Wave, ...]:
    """Waves in which the deferred instances of all hosts are changed.

    In each wave at most one instance of a model goes out of service, unless two exchange their GPUs. An instance waits
    for those that have to make room for it.

    Args:
        hosts: by host, what ``describe`` returned there.
    """
    changes = _changes(hosts)
    serving: dict[str, set[str]] = {}
    for steps in hosts.values():
        for step in steps:
            if step["serves"] and step["action"] != "remove":
                serving.setdefault(step["model"], set()).add(step["id"])
    behind = {one.id: {other.id for other in changes if other is not one and one.waits_for(other)} for one in changes}
    groups = _groups(behind)
    left, done, result = sorted(changes, key=lambda one: one.id), set[str](), []
    while left:
        taken: set[str] = set()
        models: set[str] = set()
        for one in left:
            group = groups[one.id]
            members = [other for other in left if other.id in group]
            leaving = {other.model for other in members if other.takes_away}
            ready = all(behind[name] <= done | group for name in group)
            if one.id not in taken and ready and models.isdisjoint(leaving):
                taken |= group
                models |= leaving
        now = [one for one in left if one.id in taken]
        alone = [one.id for one in now if one.takes_away and not serving.get(one.model, set()) - taken]
        result.append(Wave(tuple(now), tuple(sorted(_union(one.hosts for one in now))), tuple(alone)))
        done |= taken
        left = [one for one in left if one.id not in taken]
    return tuple(result)


def _changes(hosts: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Change]:
    parts: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for host in sorted(hosts):
        for step in hosts[host]:
            if step["deferred"]:
                parts.setdefault(step["id"], []).append((host, step))
    return [
        Change(
            id=name,
            model=next((str(step["model"]) for _, step in found if step["action"] != "remove"), found[0][1]["model"]),
            port=max(int(step["port"]) for _, step in found),
            hosts=frozenset(host for host, _ in found),
            takes_away=any(step["serves"] for _, step in found),
            grows=any(step["grows"] for _, step in found),
            holds=frozenset((host, what) for host, step in found for what in step["holds"]),
            needs=frozenset((host, what) for host, step in found for what in step["needs"]),
        )
        for name, found in parts.items()
    ]


def _groups(behind: Mapping[str, set[str]]) -> dict[str, frozenset[str]]:
    """Instances that wait for one another, by each of them."""
    reached = {name: set(others) for name, others in behind.items()}
    growing = True
    while growing:
        growing = False
        for others in reached.values():
            further = _union(reached[other] for other in others) - others
            others.update(further)
            growing = growing or bool(further)
    return {
        name: frozenset({name} | {other for other in others if name in reached[other]})
        for name, others in reached.items()
    }


def _union(sets: Iterable[Iterable[str]]) -> set[str]:
    return {item for one in sets for item in one}
