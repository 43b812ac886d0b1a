"""Engines over several hosts: what the rank on each host is given beside the arguments that all ranks share.

vLLM starts one ``vllm serve`` a host (``--nnodes``, ``--node-rank``, ``--master-addr``, ``--master-port``; and
``--headless`` on all but the first). Rank 0 listens on ``master_port`` for torch's store. The programs that watch over
the ranks (``rank_watch``) meet on the port after it, again on the host of rank 0. Everything else (gloo, NCCL, vLLM's
message queues in distributed/device_communicators/shm_broadcast.py of 0.32 and 0.33) listens on ports that the kernel
gives out.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

MASTER_PORT_BASE = 29500
"""The first port of ranks: torch's own default, below the ports that the kernel gives out."""
PORTS = 2
"""Ports in a row that an instance takes on its first host: the store's and the one where its ranks meet."""


def spans_hosts(instance: Mapping[str, Any]) -> bool:
    """Whether an instance of the plan runs on several hosts."""
    return len(instance.get("shards") or ()) > 1


def shared_arguments(nodes: int, master_port: int) -> dict[str, Any]:
    """The arguments of vLLM that all ranks of an instance have in common."""
    return {"nnodes": nodes, "master_port": master_port, "distributed_executor_backend": "mp"}


def free_master_port(taken: Collection[int]) -> int:
    """The first port of a pair of which neither is taken."""
    return next(
        port for port in range(MASTER_PORT_BASE, 65535, PORTS) if not any(port + n in taken for n in range(PORTS))
    )


def ports_of(engine_args: Mapping[str, Any]) -> tuple[int, ...]:
    """The ports that ranks take beside the engine's own; none for an instance of one host."""
    port = engine_args.get("master_port")
    return tuple(port + number for number in range(PORTS)) if isinstance(port, int) else ()


def rank_arguments(instance: Mapping[str, Any], host: str, addresses: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of vLLM that only the rank on this host has; none for an instance of one host.

    Args:
        instance: an instance of plan.json.
        host: inventory name of the host.
        addresses: by inventory name; a host that is not in it goes by its name.
    """
    if not spans_hosts(instance):
        return {}
    rank = _rank(instance, host)
    return {"node_rank": rank, "master_addr": _leader(instance, addresses), **({"headless": True} if rank else {})}


def rank_environment(
    instance: Mapping[str, Any], host: str, addresses: Mapping[str, str], engine_directory: str
) -> dict[str, Any]:
    """What ``rank_watch`` reads from the environment of the rank on this host; nothing for an instance of one host.

    Args:
        instance: an instance of plan.json.
        host: inventory name of the host.
        addresses: by inventory name.
        engine_directory: environment of the engine; ranks of different versions do not start together.
    """
    if not spans_hosts(instance):
        return {}
    port = int(instance["engine_args"]["master_port"]) + 1
    common = {name: instance.get(name) for name in ("engine_args", "env", "port", "shards")}
    text = json.dumps([common, engine_directory], sort_keys=True)
    return {
        "FLEET_RANK": _rank(instance, host),
        "FLEET_RANKS": len(instance["shards"]),
        "FLEET_RANK_LINK": f"{_leader(instance, addresses)} {port}",
        "FLEET_RANK_REVISION": hashlib.sha256(text.encode()).hexdigest()[:12],
    }


def peers_of(instances: Collection[Mapping[str, Any]], host: str) -> list[str]:
    """The other hosts that run an instance together with this one, sorted."""
    found = {
        shard["host"]
        for one in instances
        if any(shard["host"] == host for shard in one["shards"])
        for shard in one["shards"]
    }
    return sorted(found - {host})


def _rank(instance: Mapping[str, Any], host: str) -> int:
    return next(int(shard["rank"]) for shard in instance["shards"] if shard["host"] == host)


def _leader(instance: Mapping[str, Any], addresses: Mapping[str, str]) -> str:
    host = str(min(instance["shards"], key=lambda shard: int(shard["rank"]))["host"])
    return addresses.get(host, host)
