"""Plans to look at: the example, the lab, quantized checkpoints, one with refusals only, and a large fleet."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from fleet.benchmark import choose, predict, result_document
from fleet.benchmark_page import render_page
from fleet.engine_options import DEFAULT_ENGINE_VERSION
from fleet.host_document import HostDocument, parse_hosts
from fleet.model_sources import resolve_models
from fleet.plan_document import CheckpointReference
from fleet.planning import make_plan
from fleet.quantize_evidence import records_of
from fleet.quantize_recipes import recipe
from fleet.report import ReportInput, render_report
from fleet.requests import parse_requests

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT / part) for part in ("scripts", "lab", "tests/bench")]

import bench_placement  # noqa: E402
import lab_topology  # noqa: E402
import tiny_models  # noqa: E402

if TYPE_CHECKING:
    from fleet.plan_document import Plan

EXAMPLE = CHECKOUT / "inventory" / "example"
KEYS = {"serves": "a" * 64, "kept": "b" * 64, "refused": "c" * 64}


@dataclass(frozen=True)
class Case:
    """A plan, its hosts, and its report."""

    plan: Plan
    hosts: tuple[HostDocument, ...]
    page: str


def case(plan: Plan, hosts: tuple[HostDocument, ...], **more: Any) -> Case:
    """A plan with its report."""
    return Case(plan, hosts, render_report(ReportInput(plan=plan, hosts=hosts, **more)))


def planned(facts: dict[str, Any], models: dict[str, Any], directory: Path, current: Any = ()) -> tuple[Plan, Any]:
    """A plan and its hosts from documents as files hold them; relative paths are relative to ``directory``."""
    where = str(directory / "models.yml")
    hosts = parse_hosts(facts, where="facts.json")
    resolved, _ = resolve_models(parse_requests(json.dumps(models), where=where), where, with_checkpoints=False)
    return make_plan(hosts, resolved, current, engine_version=DEFAULT_ENGINE_VERSION), hosts


def example() -> Case:
    """The seed's box and two hosts beside it, as inventory/example has them."""
    return case(*planned(*example_documents(), EXAMPLE))


def example_documents() -> tuple[dict[str, Any], dict[str, Any]]:
    """FACTS.json and models.yml of inventory/example."""
    facts = json.loads((EXAMPLE / "facts.json").read_text())
    return facts, yaml.safe_load((EXAMPLE / "models.yml").read_text())


def benchmark() -> str:
    """The page of a benchmark of an instance of the example, with figures that were made up."""
    plan = example().plan
    target = choose(plan, instance=next(one.id for one in plan.instances if one.task == "generate"), force=True)
    steps = [
        {
            **{
                "concurrency": clients,
                "requests": 4 * clients,
                "completed": 4 * clients,
                "failed": 0,
                "timed_out": False,
            },
            **{
                "requests_per_s": rate / 128,
                "output_tokens_per_s": rate,
                "total_tokens_per_s": 5 * rate,
                "duration_s": 9.0,
            },
            **{
                name: {"p50": 2.0 * clients, "p95": 3.0 * clients}
                for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")
            },
        }
        for clients, rate in ((1, 41.0), (4, 150.5), (16, 540.0), (32, 910.0), (64, 1240.0), (128, 1190.0))
    ]
    prediction = predict(plan, target, [int(step["concurrency"]) for step in steps], None)
    engine = {"version": DEFAULT_ENGINE_VERSION, "accelerator": "cuda"}
    return render_page(result_document(target, steps, prediction, engine=engine, at="2026-11-24T15:00:00Z"))


def changed() -> Case:
    """The example with more traffic, a GPU excluded and one blocked, compared with the example."""
    facts, models = example_documents()
    before, _ = planned(facts, models, EXAMPLE)
    facts, models = copy.deepcopy((facts, models))
    facts["hosts"]["l40s-box"]["policy"]["exclude_gpus"] = [0]
    check = {"name": "xid", "status": "blocked", "evidence": "Xid 79 <b>fell off the bus</b>"}
    facts["hosts"]["l40s-b"]["gpus"][0]["health"] = {"status": "blocked", "checks": [check]}
    for entry in models["models"]:
        if entry["name"] == "llama-2-13b":
            entry["demand"]["requests_per_second"] = 30
    plan, hosts = planned(facts, models, EXAMPLE, before.instances)
    return case(plan, hosts, current=before)


def lab(directory: Path) -> Case:
    """The embedded lab, with tiny models that are made in ``directory``."""
    models = yaml.safe_load((CHECKOUT / "inventory" / "lab" / "models.yml").read_text())
    tiny = {one.name: one for one in (tiny_models.LLAMA, tiny_models.QWEN)}
    for entry in models["models"]:
        checkpoint = directory / entry["name"]
        tiny_models.write(tiny[entry["name"]], checkpoint)
        entry["source"] = f"file:{checkpoint}"
    hosts = {
        node: {
            "gpus": [
                {
                    "index": gpu.index,
                    "uuid": gpu.uuid,
                    "name": "NVIDIA L40S",
                    "memory_total_bytes": 46068 * 1024**2,
                    "pci_bus_id": gpu.nvml_bus_id,
                    "numa_node": gpu.numa_node,
                }
                for gpu in lab_topology.gpus_of(node)
            ]
        }
        for node in lab_topology.GPU_HOSTS
    }
    return case(*planned({"schema": 1, "hosts": hosts}, models, directory))


def quantized() -> Case:
    """The example with checkpoints that the fleet made: one serves, one on two hosts does not, one was refused."""
    plan, hosts = planned(*example_documents(), EXAMPLE)
    model = plan.instances[0].model
    reference = CheckpointReference(model, KEYS["serves"], 5 << 30)
    served = [replace(one, checkpoint=reference) if one.model == model else one for one in plan.instances]
    return case(replace(plan, instances=tuple(served)), hosts, quantized=records_of(quantized_documents(model)))


def quantized_documents(model: str) -> dict[str, dict[str, Any]]:
    """Host documents, as far as quantized checkpoints go."""
    good = {"source_perplexity": 8.214, "perplexity": 8.391, "agreement": 0.9634, "tokens": 8188}
    bad = good | {"perplexity": 14.02, "agreement": 0.41}
    served = quantized_record(model, "serves", "awq", good)
    kept = quantized_record("another-model", "kept", "int8", good)
    refused = quantized_record("a-name-that-is-as-long-as-the-name-of-a-model-ok", "refused", "gptqmodel", bad)
    return {
        "l40s-a": {"quantized": [served, kept], "quantize_rejected": [refused]},
        "l40s-b": {"quantized": [kept, {"key": "damaged"}]},
    }


def quantized_record(model: str, key: str, method: str, figures: dict[str, float]) -> dict[str, Any]:
    """A record as the probe returns it."""
    return {
        "model": model,
        "key": KEYS[key],
        "source_digest": "5" * 64,
        "recipe": recipe(method).to_document(),
        "tool": "llmcompressor-0.14.0.1",
        "versions": {"llmcompressor": "0.14.0.1", "compressed-tensors": "0.19.0", "torch": "2.13.0"},
        "figures": figures,
        "limits": {"max_perplexity_ratio": 1.1, "min_agreement": 0.85},
        "seconds": {"quantize": 1204.3, "score result": 31.0},
    }


def refused() -> Case:
    """Nothing runs: a model that is too large for the only host, with a name as long as names may be."""
    facts, models = example_documents()
    facts["hosts"] = {"l40s-a": facts["hosts"]["l40s-a"]}
    facts["hosts"]["l40s-a"]["gpus"] = facts["hosts"]["l40s-a"]["gpus"][:1]
    facts["hosts"]["l40s-a"]["links"] = []
    large = next(entry for entry in models["models"] if entry["name"] == "llama-3-70b")
    large |= {"name": "a-name-that-is-as-long-as-the-name-of-a-model-ok", "quantization": "none"}
    return case(*planned(facts, {"models": [large]}, EXAMPLE))


def large() -> Case:
    """1,000 hosts of 8 GPUs and 50 models."""
    names = [f"h{index:04d}" for index in range(1000)]
    hosts = bench_placement.hosts({name: bench_placement.large_host(name) for name in names})
    models = bench_placement.many_models(50, 8000)
    return case(make_plan(hosts, models, (), engine_version=DEFAULT_ENGINE_VERSION), hosts)
