"""What the Triton servers of one host read: model repositories, and which GPUs each server sees.

The layout is that of Triton's vLLM backend: ``<model>/config.pbtxt``, which names the backend and the device, and
``<model>/1/model.json``, the AsyncEngineArgs. Batching and the decoupled policy are left to the backend to complete.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from .errors import FleetError
from .triton_ensemble import ensemble_files
from .triton_models import digest_of
from .triton_ports import is_alone
from .triton_releases import ASYNC_ENGINE_ARGUMENTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONFIG, ARGUMENTS = "config.pbtxt", "1/model.json"
DIGEST = "l40s_fleet_digest"
"""Parameter of a config.pbtxt: what Triton has loaded says by it which files it was loaded from."""

_HEADER = "# Managed by l40s-fleet: the next run overwrites changes.\n"


def parameter(name: str, value: str) -> str:
    """One entry of ``parameters`` in a config.pbtxt. JSON's strings are the text format's as well."""
    return f"parameters {{\n  key: {json.dumps(name)}\n  value {{ string_value: {json.dumps(value)} }}\n}}\n"


def with_digest(files: Mapping[str, str]) -> dict[str, str]:
    """The files of a model, its config.pbtxt with the digest of all of them."""
    text = json.dumps(dict(files), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {**files, CONFIG: files[CONFIG] + parameter(DIGEST, digest)}


def model_files(instance: Mapping[str, Any], gpu: int | None) -> dict[str, str]:
    """The files of one model in a repository, by path in its directory.

    Args:
        instance: an instance of plan.json.
        gpu: the card that Triton is to assign, as its server counts them; None where vLLM takes all that it sees.

    Raises:
        FleetError: an argument that the vLLM in Triton's container does not have.
    """
    arguments = {"disable_log_stats": False, **instance["engine_args"]}
    unknown = sorted(arguments.keys() - ASYNC_ENGINE_ARGUMENTS)
    if unknown:
        raise FleetError(f"{instance['id']}: engine_args.{unknown[0]}", "no argument of the vLLM in Triton's container")
    kind = "kind: KIND_MODEL" if gpu is None else f"kind: KIND_GPU\n    gpus: [ {gpu} ]"
    config = (
        f"{_HEADER}name: {json.dumps(instance['model'])}\n"
        'backend: "vllm"\n'
        f"instance_group [\n  {{\n    count: 1\n    {kind}\n  }}\n]\n"
        + parameter("REPORT_CUSTOM_METRICS", "true")
        + parameter("ENABLE_VLLM_HEALTH_CHECK", "true")
    )
    return with_digest({CONFIG: config, ARGUMENTS: json.dumps(arguments, indent=2, sort_keys=True) + "\n"})


def triton_servers(
    instances: Sequence[Mapping[str, Any]],
    *,
    this_host: str,
    gpu_order: Sequence[str],
    accelerator: str,
    chat_program: str = "",
) -> list[dict[str, Any]]:
    """The servers of a host, by port, each with its models.

    Args:
        instances: those of plan.json that have a shard on the host; only Triton's are looked at.
        this_host: its inventory name.
        gpu_order: UUIDs of its GPUs in the order of their PCI bus ids, which is CUDA's within a server.
        accelerator: ``cuda``, or ``cpu`` where Triton has no device to assign.
        chat_program: model.py of the step that ensembles have beside their model.

    Returns:
        Of each server ``port``, ``gpus`` (UUIDs in the server's order), ``env``, and ``models``, each with ``name``,
        ``files`` and ``record``, the instance; it is empty for the parts of an ensemble, which come after their model.
    """
    by_port: dict[int, list[Mapping[str, Any]]] = {}
    for one in instances:
        if one["engine"] == "triton":
            by_port.setdefault(int(one["port"]), []).append(one)
    servers = []
    for port, found in sorted(by_port.items()):
        held = {gpu for one in found for gpu in _gpus(one, this_host)}
        gpus = [gpu for gpu in gpu_order if gpu in held] + sorted(held - set(gpu_order))
        models: list[dict[str, Any]] = []
        env: dict[str, str] = {}
        for one in sorted(found, key=lambda one: str(one["model"])):
            own = _gpus(one, this_host)
            if is_alone(len(own), one.get("env", {})):
                env = {name: str(value) for name, value in one["env"].items() if name != "CUDA_VISIBLE_DEVICES"}
            single = accelerator == "cuda" and len(own) == 1
            files = model_files(one, gpus.index(own[0]) if single else None)
            models.append({"name": one["model"], "files": files, "record": dict(one)})
            if one.get("ensemble"):
                parts = ensemble_files(one, chat_program, digest_of(files[CONFIG]))
                models += [{"name": name, "files": with_digest(text), "record": {}} for name, text in parts.items()]
        servers.append({"port": port, "gpus": gpus, "env": env, "models": models})
    return servers


def _gpus(instance: Mapping[str, Any], host: str) -> list[str]:
    return [gpu for shard in instance["shards"] if shard["host"] == host for gpu in shard["gpus"]]
