"""What runs against what was planned, for the instances of one host. Observing is done in ``observation.py``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .engine_reports import CPU_BACKENDS
from .model_work import Purpose

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .engine_reports import Drafting

OK, WRONG, FAILED, ABSENT, UNPLANNED = "ok", "wrong", "failed", "absent", "unplanned"

REPORTED_ARGUMENTS = ("model", "block_size", "kv_cache_memory_bytes", "gpu_memory_utilization", "enable_prefix_caching")
"""vLLM's arguments that an engine shows: the model's path in /v1/models, the others in vllm:cache_config_info."""


@dataclass(frozen=True)
class Planned:
    """One instance as the plan has it, seen from one of its hosts.

    Attributes:
        id: name of the instance.
        model: name of the model.
        purpose: what the model is for.
        names: what the engine is to answer to, the model's name first, its adapters last.
        leads: whether this host's part answers requests; the other parts of a multi-node instance do not.
        gpus: UUIDs on this host.
        max_model_len: tokens; ``None`` where the engine chooses.
        kv_cache_tokens: what the engine is expected to report; ``None`` where the plan does not say.
        kv_cache_tokens_least: what placement relies on.
        kv_cache_exact: the memory was given in bytes, so that the engine has nothing to measure.
        arguments: those of vLLM's arguments that the engine reports back, as text.
        port: where the engine listens.
        shares_with: instances that the plan puts on a GPU of this one as well.
        adapters: those among the names that are adapters.
        speculation: the method by which it drafts tokens; empty where it does not.
        attention_backends: those of which the engine is to take one; empty where the plan does not say.
    """

    id: str
    model: str
    purpose: Purpose
    names: tuple[str, ...]
    leads: bool
    gpus: tuple[str, ...]
    max_model_len: int | None
    kv_cache_tokens: int | None
    kv_cache_tokens_least: int | None
    kv_cache_exact: bool
    arguments: Mapping[str, str]
    port: int
    shares_with: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    speculation: str = ""
    attention_backends: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seen:
    """One instance as it was found. Fields that were not reached hold ``None``.

    Attributes:
        present: whether anything of it is on the host: files or a unit.
        active: the unit runs and has become ready.
        enabled: the unit starts at boot.
        state: the unit's state in systemd's words.
        files_differ: names of files that are not as planned.
        started_from_files: whether the process was started from the files that are there now.
        user_id: of the engine's process.
        health: empty when /health answered 200, otherwise what was wrong.
        names: what /v1/models lists, sorted.
        max_model_len: what /v1/models says of the first name.
        kv_cache_tokens: from vllm:cache_config_info.
        arguments: what the engine reports of its arguments, as text.
        work: empty when a real request was answered, otherwise what was wrong.
        work_seconds: how long that took.
        gpus: UUIDs of the GPUs on which the driver sees its processes; ``None`` where the driver does not answer.
        shares: instances whose processes are on one of these GPUs as well.
        drafting: what the engine counted of drafted tokens; ``None`` where it counts none.
        attention_backends: what the engine's log names; empty where it names none any more.
    """

    present: bool = False
    active: bool = False
    enabled: bool = False
    state: str = ""
    files_differ: tuple[str, ...] = ()
    started_from_files: bool | None = None
    user_id: int | None = None
    health: str | None = None
    names: tuple[str, ...] | None = None
    max_model_len: int | None = None
    kv_cache_tokens: int | None = None
    arguments: Mapping[str, str] = field(default_factory=dict)
    work: str | None = None
    work_seconds: float | None = None
    gpus: tuple[str, ...] | None = None
    shares: tuple[str, ...] = ()
    drafting: Drafting | None = None
    attention_backends: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """One thing that is not as planned. ``fails`` when the instance does not serve because of it."""

    what: str
    planned: str
    observed: str
    fails: bool = False


@dataclass(frozen=True)
class Row:
    """The verdict on one instance on one host."""

    id: str
    model: str
    status: str
    seen: Seen = field(default_factory=Seen)
    differences: tuple[Difference, ...] = ()


def planned_instance(
    record: Mapping[str, Any],
    host: str,
    beside: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    accelerator: str = "cuda",
) -> Planned:
    """Read what verification needs out of an instance of the plan.

    Args:
        record: the instance as plan.json has it.
        host: inventory name of the host that looks at it.
        beside: all instances planned for that host, by id.
        accelerator: what the engine runs on; the plan names the attention backend of a GPU.
    """
    arguments, memory = record["engine_args"], record.get("memory") or {}
    names = arguments.get("served_model_name") or [record["model"]]
    adapters = adapter_names(arguments)
    shards = sorted(record["shards"], key=lambda shard: int(shard.get("rank", 0)))
    length = arguments.get("max_model_len")
    # An encoder keeps no KV cache.
    expected = memory.get("kv_cache_tokens") or None
    backend = memory.get("attention_backend")
    backends = CPU_BACKENDS if accelerator == "cpu" else (str(backend),) if backend else ()
    return Planned(
        id=record["id"],
        model=record["model"],
        purpose=Purpose(record.get("task", "generate"), tuple(record.get("takes") or ()), record.get("embedding_size")),
        names=(*((names,) if isinstance(names, str) else names), *adapters),
        adapters=adapters,
        leads=shards[0]["host"] == host,
        gpus=tuple(gpu for shard in shards if shard["host"] == host for gpu in shard["gpus"]),
        max_model_len=length if isinstance(length, int) else None,
        kv_cache_tokens=expected,
        kv_cache_tokens_least=memory.get("kv_cache_tokens_planned", expected),
        kv_cache_exact="kv_cache_memory_bytes" in arguments,
        arguments={
            name: str(arguments[name])
            for name in REPORTED_ARGUMENTS
            if isinstance(arguments.get(name), str | int | float)
        },
        port=record["port"],
        shares_with=_sharers(record, beside or {}),
        # Triton's metrics do not have the counters.
        speculation=str((arguments.get("speculative_config") or {}).get("method", ""))
        if record.get("engine", "vllm") == "vllm"
        else "",
        attention_backends=backends,
    )


def adapter_names(engine_args: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the adapters that an engine serves from its start."""
    return tuple(
        str(one["name"]) if isinstance(one, dict) else str(one).partition("=")[0]
        for one in engine_args.get("lora_modules") or ()
    )


def _sharers(record: Mapping[str, Any], beside: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Instances that are planned to share a GPU with this one: both say so."""
    own = {gpu for shard in record["shards"] for gpu in shard["gpus"]} if record.get("sharing") else set()
    return tuple(
        sorted(
            other
            for other, one in beside.items()
            if other != record["id"]
            and one.get("sharing")
            and own & {g for shard in one["shards"] for g in shard["gpus"]}
        )
    )


def compare(planned: Planned, seen: Seen) -> tuple[Difference, ...]:
    """Return everything that is not as planned, what keeps the instance from serving first."""
    if not seen.present:
        return (Difference("unit", "active", "not there", fails=True),)
    found = [*_service(seen), *_arguments(planned, seen), *_inside(planned, seen), *_gpus(planned, seen)]
    return tuple(sorted(found, key=lambda difference: not difference.fails))


def _service(seen: Seen) -> list[Difference]:
    found = []
    if not seen.active:
        found.append(Difference("unit", "active", seen.state or "inactive", fails=True))
    if not seen.enabled:
        found.append(Difference("start at boot", "enabled", "disabled"))
    found += [Difference(name, "as rendered from the plan", "another text") for name in seen.files_differ]
    if seen.started_from_files is False:
        found.append(Difference("process", "started from its files", "runs what was configured before"))
    if seen.user_id == 0:
        found.append(Difference("user", "unprivileged", "root"))
    if seen.health:
        found.append(Difference("/health", "200", seen.health, fails=True))
    if seen.work:
        found.append(Difference("request", "answered", seen.work, fails=True))
    return found


def _arguments(planned: Planned, seen: Seen) -> list[Difference]:
    found = []
    if seen.names is not None and seen.names != tuple(sorted(planned.names)):
        found.append(Difference("served_model_name", _list(sorted(planned.names)), _list(seen.names)))
    if None not in {planned.max_model_len, seen.max_model_len} and planned.max_model_len != seen.max_model_len:
        found.append(Difference("max_model_len", str(planned.max_model_len), str(seen.max_model_len)))
    for name, value in planned.arguments.items():
        if name in seen.arguments and seen.arguments[name] != value:
            found.append(Difference(name, value, seen.arguments[name]))
    wanted, observed = planned.kv_cache_tokens, seen.kv_cache_tokens
    if wanted is None or seen.health != "" or not planned.leads:
        return found
    least = wanted if planned.kv_cache_exact else planned.kv_cache_tokens_least or wanted
    if observed is None:
        found.append(Difference("KV tokens", f"{wanted:,}", "not reported"))
    elif observed < least or (planned.kv_cache_exact and observed != wanted):
        limit = "" if planned.kv_cache_exact else "at least "
        found.append(Difference("KV tokens", f"{limit}{least:,}", f"{observed:,}"))
    return found


def _inside(planned: Planned, seen: Seen) -> list[Difference]:
    """What the engine does beyond its arguments: which attention backend it took, and whether it drafts tokens."""
    found = []
    wanted, taken = planned.attention_backends, seen.attention_backends
    # A draft model may take another one besides.
    if wanted and taken and not set(wanted) & set(taken):
        found.append(Difference("attention backend", " or ".join(wanted), _list(taken)))
    if planned.speculation and planned.leads and seen.health == "" and not seen.work:
        if seen.drafting is None:
            found.append(Difference("speculation", planned.speculation, "none: the engine counts no drafts"))
        elif not seen.drafting.drafts:
            found.append(Difference("speculation", planned.speculation, "no token was drafted for its request"))
    return found


def _gpus(planned: Planned, seen: Seen) -> list[Difference]:
    found = []
    if seen.gpus is None:
        found.append(Difference("GPUs", _list(planned.gpus), "not known: NVML does not answer"))
    elif set(seen.gpus) != set(planned.gpus) and seen.active:
        found.append(Difference("GPUs", _list(sorted(planned.gpus)), _list(sorted(seen.gpus)) or "none"))
    unplanned_sharers = [other for other in seen.shares if other not in planned.shares_with]
    if unplanned_sharers:
        wanted = f"shared with {_list(planned.shares_with)} only" if planned.shares_with else "of its own"
        found.append(Difference("GPUs", wanted, f"shared with {_list(unplanned_sharers)}"))
    return found


def judge(planned: Planned, seen: Seen) -> Row:
    """Return the verdict on one planned instance."""
    differences = compare(planned, seen)
    if not seen.present:
        status = ABSENT
    elif any(difference.fails for difference in differences):
        status = FAILED
    else:
        status = WRONG if differences else OK
    return Row(planned.id, planned.model, status, seen, differences)


def unplanned(instance_id: str, model: str, seen: Seen) -> Row:
    """Return the row of an instance that is on the host and not in the plan."""
    observed = seen.state if seen.active or seen.state not in {"", "inactive"} else "left behind"
    return Row(instance_id, model, UNPLANNED, seen, (Difference("unit", "not in the plan", observed),))


def gpus_by_instance(gpus: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """UUIDs of the GPUs on which each instance has processes, from the ``gpus`` of a host document."""
    found: dict[str, set[str]] = {}
    for gpu in gpus:
        for process in gpu.get("processes") or ():
            if process.get("instance"):
                found.setdefault(process["instance"], set()).add(gpu["uuid"])
    return {instance: tuple(sorted(uuids)) for instance, uuids in found.items()}


def sharing(instance_id: str, used: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return the instances that have processes on a GPU of this one."""
    own = set(used.get(instance_id, ()))
    return tuple(sorted(other for other, uuids in used.items() if other != instance_id and own & set(uuids)))


def _list(values: Sequence[str]) -> str:
    return ", ".join(values)
