"""What runs on this host: files, units and processes of its instances, and what their engines say. Changes nothing."""

from __future__ import annotations

import re
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .engine_reports import BACKEND_LINES, attention_backends, cache_config, drafting, kv_cache_tokens, repeat
from .instances import CONFIG, ENVIRONMENT, RECORD, listen_address
from .model_work import work
from .openai_client import Answer, Server, model_names
from .verification import Planned, Row, Seen, gpus_by_instance, judge, planned_instance, sharing, unplanned

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .instance_host import InstanceHost
    from .instances import Desired, Observed

_USER_ID = re.compile(r"^Uid:\s+(\d+)", re.MULTILINE)
_HEALTH_TIMEOUT_S = 10.0


def observe_host(
    host: InstanceHost,
    desired: Sequence[Desired],
    records: Mapping[str, Mapping[str, Any]],
    document: Mapping[str, Any],
    *,
    inventory_name: str,
    engine_key: str,
    timeout_s: float,
    accelerator: str = "cuda",
) -> list[Row]:
    """Judge every instance that is planned for this host or found on it.

    Args:
        host: the instances' files and units.
        desired: the planned instances, as they are to lie on disk.
        records: the planned instances, as plan.json has them, by id.
        document: a fresh host document of the probe.
        inventory_name: of this host.
        engine_key: what the engines ask for.
        timeout_s: how long a request to an engine may take.
        accelerator: what the engines run on, ``cuda`` or ``cpu``.
    """
    observed = host.observe()
    used = gpus_by_instance(document["gpus"])
    known_gpus = not document.get("provisional", False)
    processes = {one["id"]: one.get("main_pid") for one in document["instances"]}
    rows = []
    for one in desired:
        planned = planned_instance(records[one.id], inventory_name, records, accelerator=accelerator)
        found = observed.pop(one.id, None)
        if found is None:
            rows.append(judge(planned, Seen()))
            continue
        seen: dict[str, Any] = _on_disk(host, one, found, processes.get(one.id))
        if planned.leads and found.unit.running:
            address = listen_address(found.files.get(CONFIG, "")) or ("127.0.0.1", planned.port)
            seen |= _asked(planned, address, engine_key, timeout_s)
            seen["attention_backends"] = attention_backends(host.journal(one.id, found.unit.invocation, BACKEND_LINES))
        seen["gpus"] = used.get(one.id, ()) if known_gpus else None
        seen["shares"] = sharing(one.id, used)
        rows.append(judge(planned, Seen(**seen)))
    models = {str(one["id"]): str(one.get("model", "")) for one in document["instances"]}
    for name, found in observed.items():
        seen_unit = Seen(True, _active(found), found.unit.enabled, found.unit.active_state, gpus=used.get(name, ()))
        rows.append(unplanned(name, models.get(name, ""), seen_unit))
    return rows


def _active(found: Observed) -> bool:
    return found.unit.active_state == "active"


def _on_disk(host: InstanceHost, wanted: Desired, found: Observed, process: int | None) -> dict[str, Any]:
    differ = tuple(name for name, text in sorted(wanted.files.items()) if found.files.get(name) != text)
    complete = {CONFIG, ENVIRONMENT, RECORD} <= set(found.files)
    return {
        "present": True,
        "active": _active(found),
        "enabled": found.unit.enabled,
        "state": f"{found.unit.active_state} ({found.unit.sub_state})",
        "files_differ": differ,
        "started_from_files": found.started == host.digest(found.files) if complete and found.unit.running else None,
        "user_id": user_id(process),
    }


def user_id(process: int | None) -> int | None:
    """The user that a process runs as; None where there is no such process."""
    if not process:
        return None
    try:
        match = _USER_ID.search(Path(f"/proc/{process}/status").read_text(encoding="utf-8"))
    except OSError:
        return None
    return int(match.group(1)) if match else None


def _asked(planned: Planned, address: tuple[str, int], key: str, timeout_s: float) -> dict[str, Any]:
    name, port = address
    url = f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
    health = Server(url, None, _HEALTH_TIMEOUT_S)("GET", "/health")
    if health.status != HTTPStatus.OK:
        return {"health": health.problem}
    engine = Server(url, key, timeout_s)
    models = engine("GET", "/v1/models")
    first = _entry(models, planned.names[0])
    reported = cache_config(engine("GET", "/metrics").text)
    if first.get("root"):
        reported["model"] = str(first["root"])
    worked = work(engine, planned.names[0], planned.purpose)
    problem = worked.problem or _of_adapters(engine, planned)
    counted = drafting(engine("GET", "/metrics").text) if planned.speculation else None
    if (
        planned.speculation == "ngram"
        and counted is not None
        and not counted.drafts
        and repeat(engine, planned.names[0])
    ):
        # An answer that repeats nothing leaves nothing to look up.
        counted = drafting(engine("GET", "/metrics").text)
    return {
        "health": "",
        "names": model_names(models),
        "max_model_len": first.get("max_model_len"),
        "kv_cache_tokens": kv_cache_tokens(reported),
        "arguments": reported,
        "work": problem,
        "work_seconds": round(worked.seconds, 3),
        "drafting": counted,
    }


def _of_adapters(engine: Server, planned: Planned) -> str:
    """What is wrong with the first adapter that does not answer."""
    for name in planned.adapters:
        problem = work(engine, name, planned.purpose).problem
        if problem:
            return f"{name}: {problem}"
    return ""


def _entry(models: Answer, name: str) -> dict[str, Any]:
    document = models.document
    entries = document.get("data") if isinstance(document, dict) else None
    return next((entry for entry in entries or () if isinstance(entry, dict) and entry.get("id") == name), {})
