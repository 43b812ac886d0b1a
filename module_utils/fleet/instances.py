"""Instances of one host: what should run against what runs, and how to get from one to the other.

An instance is a directory of three files and a unit made of the template ``vllm@.service``. The unit writes down, at
every start, a digest of what it was started from; an instance whose digest differs from its files runs an old
configuration, whoever started it and whenever, so that a run that was killed half-way is finished by the next one.

Before the files of an instance change, those that are there are kept beside them, until the new ones are seen to serve.
As long as they are kept, it is not known whether what is configured serves, in this run or in a later one.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import FleetError
from .ranks import ports_of
from .systemd import UnitState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONFIG, ENVIRONMENT, RECORD = "config.yaml", "environment", "instance.json"
# A drop-in of the unit: engines on one GPU start one after the other, since each looks at what is free.
ORDER = "starts-after.conf"
FILES = (CONFIG, ENVIRONMENT, RECORD, ORDER)
# A change of these takes a start to show whether it serves.
_STARTED_FROM = frozenset({CONFIG, ENVIRONMENT})
_ID = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
# An engine that listens everywhere is asked on the loopback device.
_REACHABLE_AS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
_LISTEN = re.compile(r"^(host|port|headless): *['\"]?([^'\"\n]*?)['\"]? *$", re.MULTILINE)
_ENDS = {
    "none": "active, enabled\n",
    "start": "active, enabled\n",
    "restart": "active, enabled, restarted\n",
    "remove": "not there\n",
}
# A queued start shows itself at once, unless the unit cannot be started at all.
_QUEUE_GRACE_S = 15.0


def unit_of(instance_id: str) -> str:
    """Name of the unit that runs an instance."""
    return f"vllm@{instance_id}.service"


@dataclass(frozen=True)
class Desired:
    """An instance as it should be.

    Attributes:
        id: name of the instance and of its directory.
        files: contents by file name.
        resources: GPU UUIDs and the port; no two instances of a host hold the same port, and none the same GPU unless
            they share it.
        starts_after: instances on its GPU that start before it.
        held: it runs on a host as well that was not reached, so that what is there of it stays as it is.
    """

    id: str
    files: Mapping[str, str]
    resources: frozenset[str]
    starts_after: tuple[str, ...] = ()
    held: bool = False


@dataclass(frozen=True)
class Observed:
    """An instance as it is. All fields are empty for one that is not there.

    Attributes:
        files: contents by file name.
        resources: GPU UUIDs and ports.
        unit: what systemd knows of it.
        started: what it wrote down when it started.
        previous: the files from before a change that was not seen to serve yet; empty where nothing served before.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    resources: frozenset[str] = frozenset()
    unit: UnitState = field(default_factory=UnitState)
    started: str = ""
    previous: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Step:
    """What has to happen to one instance.

    Attributes:
        id: the instance.
        action: ``none``, ``start``, ``restart`` or ``remove``.
        reasons: why, in words.
        writes: files to write, contents by name; those without contents are removed.
        enable: whether the unit has to be made to start at boot.
        stop_first: it gives up a GPU or port that another may be waiting for, so it stops before anything starts.
        previous: files to go back to when it does not serve, empty where nothing served before; None where what is
            configured is known to serve.
        settles: those files are there already, from a run that did not come to its end.
    """

    id: str
    action: str
    reasons: tuple[str, ...] = ()
    writes: Mapping[str, str] = field(default_factory=dict)
    enable: bool = False
    stop_first: bool = False
    previous: Mapping[str, str] | None = None
    settles: bool = False

    @property
    def changes(self) -> bool:
        """Whether this step changes anything on the host."""
        return self.action != "none" or bool(self.writes) or self.enable or self.settles

    @property
    def reconfigures(self) -> bool:
        """Whether it starts from another configuration than the one that is on the host."""
        return self.action in ("start", "restart") and not _STARTED_FROM.isdisjoint(self.writes)


def resources_of(record: Mapping[str, Any]) -> frozenset[str]:
    """GPU UUIDs and ports of an instance record of the plan."""
    gpus = {str(gpu) for shard in record.get("shards") or () for gpu in shard.get("gpus") or ()}
    ports = [port for port in (record.get("port"), *ports_of(record.get("engine_args") or {})) if port]
    return frozenset(gpus | {f"port {port}" for port in ports})


def parse_desired(instances: Sequence[Mapping[str, Any]]) -> tuple[Desired, ...]:
    """The module's argument, checked.

    Raises:
        FleetError: a name that systemd or the file system would not take, or one that is given twice, or two instances
            that were given the same port.
    """
    desired: dict[str, Desired] = {}
    ports: dict[str, str] = {}
    for number, item in enumerate(instances):
        instance_id, record = str(item["id"]), item["record"]
        if not _ID.fullmatch(instance_id):
            raise FleetError(f"instances[{number}].id", f"must match {_ID.pattern}, got {instance_id!r}")
        if instance_id in desired:
            raise FleetError(f"instances[{number}].id", f"{instance_id} is listed twice")
        files = {
            CONFIG: str(item["config_yaml"]),
            ENVIRONMENT: str(item["environment"]),
            RECORD: json.dumps(record, indent=2, sort_keys=True) + "\n",
        }
        starts_after = tuple(str(name) for name in (record.get("sharing") or {}).get("starts_after") or ())
        if starts_after:
            units = " ".join(map(unit_of, starts_after))
            files[ORDER] = f"# One start at a time on the GPU that these share.\n[Unit]\nAfter={units}\n"
        resources = resources_of(record)
        for port in (name for name in resources if name.startswith("port ")):
            if port in ports:
                where = f"instances[{number}].record.port"
                raise FleetError(where, f"{instance_id} and {ports[port]} both have {port}")
            ports[port] = instance_id
        desired[instance_id] = Desired(instance_id, files, resources, starts_after, bool(item.get("held")))
    return tuple(desired.values())


def listen_address(config_yaml: str) -> tuple[str, int] | None:
    """Where an engine with this configuration answers on its own host; None for a follower, which does not listen."""
    values: dict[str, str] = dict(_LISTEN.findall(config_yaml))
    if values.get("headless") == "true" or not values.get("port", "").isdigit():
        return None
    host = values.get("host", "")
    return _REACHABLE_AS.get(host, host), int(values["port"])


def decide(
    desired: Sequence[Desired],
    observed: Mapping[str, Observed],
    digests: Mapping[str, str],
    *,
    definitions_changed: bool = False,
) -> tuple[Step, ...]:
    """Steps that make the desired instances run, and remove those in their way. Instances in nobody's way stay.

    Args:
        desired: every instance that should run on this host.
        observed: every instance that is there.
        digests: what each desired instance would write down if it were started now.
        definitions_changed: the unit or the key would have changed by now; in check mode their files are the old ones.
    """
    steps = []
    wanted = {instance.id for instance in desired}
    for instance_id in sorted(set(observed) - wanted):
        needed = observed[instance_id].resources & frozenset().union(*(one.resources for one in desired))
        if needed:
            steps.append(Step(instance_id, "remove", (f"holds {', '.join(sorted(needed))}, which another needs",)))
    for instance in desired:
        actual = observed.get(instance.id, Observed())
        if instance.held and actual.files:
            steps.append(Step(instance.id, "none"))
            continue
        writes = {name: text for name, text in instance.files.items() if actual.files.get(name) != text}
        reasons = [f"{name} changed" if name in actual.files else f"{name} is new" for name in writes]
        for name in sorted(set(actual.files) - set(instance.files)):
            writes[name] = ""
            reasons.append(f"{name} is not needed any more")
        action = "none"
        if not actual.unit.running:
            action = "start"
            reasons.append(f"unit is {actual.unit.active_state}")
        elif definitions_changed or actual.started != digests[instance.id]:
            action = "restart"
            reasons.append("runs what was configured before")
        if not actual.unit.enabled:
            reasons.append("does not start at boot")
        previous = actual.previous
        if previous is not None:
            reasons.append("was changed by a run that did not come to its end")
        elif not _STARTED_FROM.isdisjoint(writes):
            previous = dict(actual.files)
        steps.append(
            Step(
                instance.id,
                action,
                tuple(reasons),
                writes,
                enable=not actual.unit.enabled,
                stop_first=action == "restart" and actual.resources != instance.resources,
                previous=previous,
                settles=actual.previous is not None,
            )
        )
    return tuple(steps)


def removals(ids: Sequence[str], reason: str) -> tuple[Step, ...]:
    """Steps that remove instances."""
    return tuple(Step(instance_id, "remove", (reason,)) for instance_id in ids)


def judge(state: UnitState, previous: UnitState, elapsed_s: float, *, touched: bool) -> str:
    """Whether a unit is ``up`` or ``starting``, or else what is wrong with it.

    Args:
        state: the unit now.
        previous: the unit before this run touched it.
        elapsed_s: seconds since it was touched.
        touched: whether this run told it to start.
    """
    if touched and state.invocation == previous.invocation:
        # The job is still queued, or the old run is still draining.
        over = not state.queued and state.active_state in ("inactive", "failed") and elapsed_s > _QUEUE_GRACE_S
        return "did not start" if over else "starting"
    if state.sub_state == "auto-restart" or state.restarts > (0 if touched else previous.restarts):
        return "died while starting"
    if state.active_state in ("inactive", "failed"):
        return f"failed to start ({state.result})"
    return "up" if state.active_state == "active" else "starting"


def diff_of(steps: Sequence[Step], observed: Mapping[str, Observed], root: str) -> list[dict[str, str]]:
    """Ansible's diff documents for the steps: files below root, and what becomes of the unit."""
    documents = []
    for step in steps:
        actual = observed.get(step.id, Observed())
        after: Mapping[str, str] = dict.fromkeys(actual.files, "") if step.action == "remove" else step.writes
        for name, text in after.items():
            documents.append(_diff(f"{root}/{step.id}/{name}", actual.files.get(name, ""), text))
        if step.action != "none" or step.enable:
            begins = f"{actual.unit.active_state}, {'enabled' if actual.unit.enabled else 'disabled'}\n"
            documents.append(_diff(unit_of(step.id), begins, _ENDS[step.action]))
    return documents


def _diff(header: str, before: str, after: str) -> dict[str, str]:
    return {"before_header": header, "after_header": header, "before": before, "after": after}
