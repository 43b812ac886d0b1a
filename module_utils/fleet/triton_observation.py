"""What Triton runs on this host against what was planned. Changes nothing.

Triton does not say how many tokens of KV cache an engine has: of its instances that is not compared.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .model_work import work_on_triton
from .observation import user_id
from .openai_client import Server as Client
from .triton_models import Found, unit_of
from .verification import Row, Seen, gpus_by_instance, judge, planned_instance, sharing, unplanned

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .triton_models import Model, Server


def observe_triton(
    desired: Mapping[int, Server],
    found: Mapping[int, Found],
    document: Mapping[str, Any],
    *,
    inventory_name: str,
    timeout_s: float,
) -> list[Row]:
    """Judge every instance that is planned to run on Triton on this host, or found there.

    Args:
        desired: the servers, as they are to lie on disk, by port.
        found: the servers that are there, by port.
        document: a fresh host document of the probe.
        inventory_name: of this host.
        timeout_s: how long a request to a model may take.
    """
    used = gpus_by_instance(document["gpus"])
    known_gpus = not document.get("provisional", False)
    processes = {one["id"]: one.get("main_pid") for one in document["instances"]}
    records = {m.record["id"]: m.record for one in desired.values() for m in one.models.values() if m.record}
    rows = []
    for port, server in desired.items():
        now = found.get(port, Found())
        for model in (one for one in server.models.values() if one.record):
            name = str(model.record["id"])
            # What Triton does not tell is not asked of it.
            planned = replace(planned_instance(model.record, inventory_name, records), kv_cache_tokens=None)
            seen = _seen(port, server, model, now, timeout_s)
            if now.unit:
                gpus = used.get(name, ()) if known_gpus else None
                seen = replace(seen, user_id=user_id(processes.get(name)), gpus=gpus, shares=sharing(name, used))
            rows.append(judge(planned, seen))
    for port, now in found.items():
        for model in now.models.values():
            name = str(model.record.get("id", f"{unit_of(port)}:{model.name}"))
            part = port in desired and model.name in desired[port].models
            if name not in records and not part:
                seen = Seen(True, now.state.active_state == "active", now.state.enabled, now.state.active_state)
                rows.append(unplanned(name, model.name, seen))
    return rows


def _seen(port: int, server: Server, model: Model, now: Found, timeout_s: float) -> Seen:
    if not now.unit:
        return Seen()
    lying = now.models.get(model.name)
    files = lying.files if lying is not None else {}
    differ = [path for path, text in sorted(model.files.items()) if files.get(path) != text]
    differ += ["unit"] if now.unit != server.unit else []
    loaded = now.loaded or {}
    healthy = model.name in loaded
    seen = Seen(
        present=True,
        active=now.state.active_state == "active",
        enabled=True,
        state=f"{now.state.active_state} ({now.state.sub_state})",
        files_differ=tuple(differ),
        started_from_files=now.started == now.unit and loaded.get(model.name) == model.digest if healthy else None,
        health="" if healthy else "not loaded" if now.loaded is not None else "Triton does not answer",
    )
    if not healthy:
        return seen
    worked = work_on_triton(Client(f"http://127.0.0.1:{port}", None, timeout_s), model.name)
    return replace(seen, work=worked.problem, work_seconds=round(worked.seconds, 3))
