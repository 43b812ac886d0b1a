"""What becomes of instances that do not serve after a change: back to what ran before, or stopped."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .instances import RECORD, Desired, Observed, resources_of, unit_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .instances import Step


@dataclass(frozen=True)
class Retreat:
    """What to do with the instances that failed. An instance in none of the fields keeps trying.

    Attributes:
        put_back: instances as they were before.
        given_up: instances that are stopped, and why.
    """

    put_back: tuple[Desired, ...]
    given_up: Mapping[str, str]


def retreat(
    failures: Mapping[str, str], steps: Sequence[Step], observed: Mapping[str, Observed], desired: Sequence[Desired]
) -> Retreat:
    """Decide on every instance that failed.

    Args:
        failures: why, by id.
        steps: what was done.
        observed: the instances before that.
        desired: every instance that should run on this host.
    """
    back: list[Desired] = []
    given_up: dict[str, str] = {}
    for step in steps:
        if step.id not in failures or step.previous is None:
            continue
        if not step.previous:
            given_up[step.id] = "it has never served and is stopped"
            continue
        before = Desired(step.id, step.previous, _resources(step.previous))
        taken = _taken(before, observed, [one for one in desired if one.id not in failures])
        if taken:
            given_up[step.id] = f"what ran before cannot come back, since {taken}; it is stopped"
        else:
            back.append(before)
    return Retreat(tuple(back), given_up)


def _resources(files: Mapping[str, str]) -> frozenset[str]:
    try:
        return resources_of(json.loads(files.get(RECORD, "{}")))
    except (ValueError, AttributeError, TypeError):
        return frozenset()


def _taken(before: Desired, observed: Mapping[str, Observed], others: Sequence[Desired]) -> str:
    """Which GPU or port another holds now that did not share it then."""
    for other in others:
        shared_then = before.resources & observed.get(other.id, Observed()).resources
        lost = sorted((before.resources & other.resources) - shared_then)
        if lost:
            return f"{other.id} holds {', '.join(lost)} now"
    return ""


def failure_lines(failures: Mapping[str, str], choice: Retreat, still_failing: Mapping[str, str]) -> list[str]:
    """One line on each instance that failed: what happened, without the engine's words, and what became of it.

    Args:
        failures: why, by id: what happened, and the engine's own words after a colon.
        choice: what was done about it.
        still_failing: why, by id, what ran before does not serve either.
    """
    endings = dict(choice.given_up)
    for one in choice.put_back:
        then = still_failing.get(one.id)
        endings[one.id] = f"what ran before does not serve either: {then}" if then else "what ran before serves again"
    lines = []
    for name, why in sorted(failures.items()):
        line = f"{unit_of(name)} {why.partition(': ')[0]}"
        lines.append(f"{line}; {endings[name]}" if name in endings else line)
    return lines
