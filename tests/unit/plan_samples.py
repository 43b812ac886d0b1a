"""Small documents that plan tests start from."""

import json
from pathlib import Path

from fleet.host_document import parse_hosts
from fleet.model_sources import resolve_models
from fleet.planning import make_plan
from fleet.requests import parse_requests

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "tests" / "data" / "model_configs"
ENGINE = "0.33.0"
GIB = 1024**3


def gpu(host, index, /, **changes):
    return {
        "index": index,
        "uuid": f"GPU-{host}-{index}",
        "name": "NVIDIA L40S",
        "memory_total_bytes": 46068 * 1024**2,
        "pci_bus_id": f"00000000:{index + 1:02X}:00.0",
        "numa_node": index // 2,
        **changes,
    }


def host(name, gpus=4, **changes):
    return {"gpus": [gpu(name, index) for index in range(gpus)], **changes}


def facts(*names, gpus=4, **documents):
    """FACTS.json of hosts with four GPUs; keyword arguments replace whole host documents."""
    hosts = {name: host(name, gpus) for name in names}
    return {"schema": 1, "hosts": hosts | {name.replace("_", "-"): one for name, one in documents.items()}}


def models_text(*entries):
    return json.dumps({"models": list(entries)})


def model(name, config="llama-3-8b", **changes):
    return {
        "name": name,
        "source": f"org/{name}",
        "config": str(CONFIGS / f"{config}.json"),
        "max_model_len": 4096,
        **changes,
    }


def resolved(*entries):
    requests = parse_requests(models_text(*entries), where="models.yml")
    return resolve_models(requests, "models.yml", with_checkpoints=False)[0]


def plan(fact_document, entries, current=(), **options):
    return make_plan(
        parse_hosts(fact_document, where="facts.json"), resolved(*entries), current, engine_version=ENGINE, **options
    )


def places(made):
    """Instance id -> (host, GPU indices); sample UUIDs end in the index."""
    return {
        one.id: (one.shards[0].host, [int(uuid.rpartition("-")[2]) for uuid in one.shards[0].gpus])
        for one in made.instances
    }


def moves(made):
    return {move.id: move.cause for move in made.moves}


def refused(made):
    return {one.model: one.constraint for one in made.refused}
