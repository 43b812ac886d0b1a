"""Triton servers of one host: what each should hold against what it has loaded, and how to get from one to the other.

A server is a unit of its own and a model repository. A model is changed by unloading it, replacing its files, and
loading it, while the server's other models serve; the server restarts only when its unit, which names its GPUs, is
another one. Every config.pbtxt carries a digest of its model's files, and Triton shows the configuration of what it has
loaded: so a run that was killed half-way is finished by the next one.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import FleetError
from .systemd import UnitState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONFIG = "config.pbtxt"
_DIGEST = re.compile(r'key: "l40s_fleet_digest"\s+value \{ string_value: "([0-9a-f]{64})" \}')
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")


@dataclass(frozen=True)
class Model:
    """A model of a server.

    Attributes:
        name: under which clients ask for it, and of its directory.
        files: contents by path in that directory; config.pbtxt carries the digest.
        record: the instance of the plan; empty where it is not known.
    """

    name: str
    files: Mapping[str, str]
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of its files, as its config.pbtxt says it; empty where it says none."""
        return digest_of(self.files.get(CONFIG, ""))

    @property
    def gpus(self) -> frozenset[str]:
        """UUIDs of the GPUs that its record names."""
        return frozenset(str(gpu) for shard in self.record.get("shards") or () for gpu in shard.get("gpus") or ())


@dataclass(frozen=True)
class Server:
    """A server as it should be.

    Attributes:
        port: of its HTTP; gRPC and metrics have the next two.
        unit: text of its unit file.
        models: what it is to have loaded, by name; an ensemble comes after its models.
    """

    port: int
    unit: str
    models: Mapping[str, Model]


@dataclass(frozen=True)
class Found:
    """A server as it is. All fields are empty for one that is not there.

    Attributes:
        unit: text of its unit file.
        started: the text that the running server was started from.
        state: what systemd says of it.
        models: what lies in its repository, by name.
        loaded: digests of the models that are ready, by name; None where the server does not answer.
    """

    unit: str = ""
    started: str = ""
    state: UnitState = field(default_factory=UnitState)
    models: Mapping[str, Model] = field(default_factory=dict)
    loaded: Mapping[str, str] | None = None


@dataclass(frozen=True)
class ModelStep:
    """What has to happen to one model.

    Attributes:
        name: of the model.
        action: ``none``, ``load``, ``reload``, ``unload``, ``write`` before the server starts, or ``record`` where only
            what the plan says of the instance has changed.
        reason: why.
    """

    name: str
    action: str
    reason: str = ""


@dataclass(frozen=True)
class ServerStep:
    """What has to happen to one server: ``none``, ``start``, ``restart`` or ``remove``; and to its models."""

    port: int
    action: str
    reason: str = ""
    models: tuple[ModelStep, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether this changes anything on the host."""
        return self.action != "none" or any(step.action != "none" for step in self.models)


def digest_of(config: str) -> str:
    """The digest in the text of a config.pbtxt; empty where there is none."""
    match = _DIGEST.search(config)
    return match.group(1) if match else ""


def unit_of(port: int) -> str:
    """Name of the unit that runs a server."""
    return f"triton-{port}.service"


def parse_servers(items: Sequence[Mapping[str, Any]]) -> dict[int, Server]:
    """The module's argument, checked.

    Raises:
        FleetError: a name that is none, files without a digest, or a server or model that is listed twice.
    """
    servers: dict[int, Server] = {}
    for number, item in enumerate(items):
        where, port = f"servers[{number}]", int(item["port"])
        if port in servers:
            raise FleetError(f"{where}.port", f"{port} is listed twice")
        models: dict[str, Model] = {}
        for index, one in enumerate(item["models"]):
            name = str(one["name"])
            if not _NAME.fullmatch(name) or name in models:
                raise FleetError(f"{where}.models[{index}].name", f"is no name, or listed twice: {name!r}")
            models[name] = Model(name, dict(one["files"]), dict(one["record"] or {}))
            if not models[name].digest:
                raise FleetError(f"{where}.models[{index}].files", f"{CONFIG} carries no digest")
        servers[port] = Server(port, str(item["unit"]), models)
    return servers


def decide(
    desired: Mapping[int, Server],
    found: Mapping[int, Found],
    *,
    needed_gpus: frozenset[str] = frozenset(),
    prune: bool = False,
) -> tuple[ServerStep, ...]:
    """Steps that make the desired servers hold their models. Others stay as long as they are in nobody's way.

    Args:
        desired: every server that should run on this host, by port.
        found: every server that is there, by port.
        needed_gpus: GPUs that engines outside of Triton are about to get.
        prune: remove what is not desired, whether in the way or not.
    """
    wanted = {gpu for server in desired.values() for model in server.models.values() for gpu in model.gpus}
    steps = []
    for port in sorted(set(found) - set(desired)):
        held = frozenset().union(*(model.gpus for model in found[port].models.values()))
        if prune:
            steps.append(ServerStep(port, "remove", "is not in the plan"))
        elif held & (wanted | needed_gpus):
            steps.append(ServerStep(port, "remove", "holds GPUs that others need"))
    for port, server in sorted(desired.items()):
        now = found.get(port, Found())
        action, reason = _server_action(server, now)
        leaving = [
            ModelStep(name, "unload", "is not in the plan" if prune else "is not in the plan, and in the way")
            for name, model in sorted(now.models.items())
            if name not in server.models
            and (prune or action != "none" or not model.gpus or model.gpus & (wanted | needed_gpus))
        ]
        coming = [_model_step(model, now, action) for model in server.models.values()]
        steps.append(ServerStep(port, action, reason, (*leaving, *coming)))
    return tuple(steps)


def _server_action(server: Server, now: Found) -> tuple[str, str]:
    if not now.unit:
        return "start", "is new"
    if not now.state.running:
        return "start", f"unit is {now.state.active_state}"
    if now.unit != server.unit:
        return "restart", "its unit changed"
    return ("restart", "runs what was configured before") if now.started != server.unit else ("none", "")


def _model_step(model: Model, now: Found, server_action: str) -> ModelStep:
    lying = now.models.get(model.name)
    changed = lying is None or lying.files != model.files
    why = "is new" if lying is None else "its files changed" if changed else ""
    if server_action != "none":
        same = lying is not None and lying.files == model.files and lying.record == model.record
        return ModelStep(model.name, "none" if same else "write", why)
    if now.loaded is None:
        return ModelStep(model.name, "load", "the server does not answer")
    if model.name not in now.loaded:
        return ModelStep(model.name, "load", why or "is not loaded")
    if changed or now.loaded[model.name] != model.digest:
        return ModelStep(model.name, "reload", why or "serves what was configured before")
    recorded = lying is not None and lying.record == model.record
    return ModelStep(
        model.name, "none" if recorded else "record", "" if recorded else "the plan says other things of it"
    )


def diff_of(
    steps: Sequence[ServerStep], desired: Mapping[int, Server], found: Mapping[int, Found], root: str
) -> list[dict[str, str]]:
    """Ansible's diff documents for the steps."""
    documents: list[dict[str, str]] = []
    for step in steps:
        now, server = found.get(step.port, Found()), desired.get(step.port)
        leaving = {one.name for one in step.models if one.action == "unload"}
        for name in sorted({*now.models, *(server.models if server else ())}):
            before = now.models[name].files if name in now.models else {}
            after = server.models[name].files if server and name in server.models else {}
            if server is not None and name not in server.models and name not in leaving:
                continue
            for path in sorted({*before, *after}):
                _add(
                    documents, f"{root}/{step.port}/repository/{name}/{path}", before.get(path, ""), after.get(path, "")
                )
        _add(documents, unit_of(step.port), now.unit, server.unit if server else "")
        lines = [f"{one.name}: {one.action} ({one.reason})\n" for one in step.models if one.action != "none"]
        if step.action != "none":
            lines.insert(0, f"{step.action} ({step.reason})\n")
        _add(documents, f"Triton at port {step.port}", "", "".join(lines))
    return documents


def _add(documents: list[dict[str, str]], header: str, before: str, after: str) -> None:
    if before != after:
        documents.append({"before_header": header, "after_header": header, "before": before, "after": after})


def record_text(record: Mapping[str, Any]) -> str:
    """An instance record as it lies on the host."""
    return json.dumps(dict(record), indent=2, sort_keys=True) + "\n"


def only_removals(steps: Sequence[ServerStep]) -> tuple[ServerStep, ...]:
    """Of the steps what removes servers or models."""
    kept = []
    for step in steps:
        leaving = tuple(one for one in step.models if one.action == "unload")
        if step.action == "remove":
            kept.append(step)
        elif leaving:
            kept.append(ServerStep(step.port, "none", "", leaving))
    return tuple(kept)
