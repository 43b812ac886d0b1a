"""Place all models on all hosts, and say why."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .document_checks import faults_error, load_json
from .engine_options import DEFAULT_ENGINE_VERSION
from .host_document import parse_hosts
from .model_sources import read_models_file, read_text, resolve_models
from .plan_document import canonical_json, parse_instance, plan_from_json, plan_to_document
from .plan_table import plan_table
from .planning import DEFAULT_PORT_BASE, make_plan
from .quantize_evidence import Evidence
from .quantize_plan import plan_with_quantized
from .requests import host_name_faults

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from .configurations import ResolvedModel
    from .host_document import HostDocument
    from .plan_document import Instance, Plan

EXIT_REFUSED = 2


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--facts", required=True, metavar="FACTS.json", help="host documents by host name")
    parser.add_argument("--models", required=True, metavar="MODELS.yml")
    parser.add_argument("--current", metavar="PLAN.json", help="what runs now; replaces the instances in the facts")
    parser.add_argument(
        "--calibration", metavar="C.json", help="checked for being JSON; used once there is a speed model"
    )
    parser.add_argument("--output", metavar="PLAN.json", help="write the plan there instead of to standard output")
    parser.add_argument("--stats", metavar="STATS.json", help="write how large the question was")
    parser.add_argument("--optimize", action="store_true", help="move what runs if that packs better")
    parser.add_argument("--engine-version", default=DEFAULT_ENGINE_VERSION, help="vLLM's (default %(default)s)")
    parser.add_argument("--port-base", type=int, default=DEFAULT_PORT_BASE, help="first port (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON even on a terminal")


def run(args: argparse.Namespace) -> int:
    """Print or write the plan; 2 when something was refused.

    Without --output, the plan goes to standard output: as JSON when that is a file or a pipe, as a table on a terminal.
    """
    hosts = parse_hosts(load_json(read_text(args.facts), where=args.facts), where=args.facts)
    requests = read_models_file(args.models)
    faults = host_name_faults(requests, frozenset(host.name for host in hosts), where=args.models)
    if faults:
        raise faults_error(faults)
    models, _ = resolve_models(requests, args.models, with_checkpoints=False)
    if args.calibration:
        load_json(read_text(args.calibration), where=args.calibration)
    current = _current(args, hosts)

    def make(wanted: Sequence[ResolvedModel]) -> Plan:
        return make_plan(
            hosts,
            wanted,
            current,
            engine_version=args.engine_version,
            port_base=args.port_base,
            optimize=args.optimize,
        )

    # Where the precision is left open, a refusal with the nearest change says more than a checkpoint nobody makes.
    plan = plan_with_quantized(
        make, models, Evidence(), engine_version=args.engine_version, enabled=True, choose=False
    ).plan
    text = canonical_json(plan_to_document(plan))
    if args.output:
        Path(args.output).write_text(text, encoding="utf-8")
    if args.stats:
        Path(args.stats).write_text(canonical_json(_stats(plan, hosts, len(models))), encoding="utf-8")
    if args.json or not (args.output or sys.stdout.isatty()):
        sys.stdout.write(text)
    else:
        indices = {gpu.uuid: gpu.index for host in hosts for gpu in host.gpus}
        sys.stdout.write(plan_table(plan, indices) + "\n")
    return EXIT_REFUSED if plan.refused else 0


def _current(args: argparse.Namespace, hosts: Sequence[HostDocument]) -> list[Instance]:
    if args.current:
        return list(plan_from_json(read_text(args.current), where=args.current).instances)
    return [
        parse_instance(record, where=args.facts, path=f"hosts.{host.name}.instances[{index}]")
        for host in hosts
        for index, record in enumerate(host.instances)
        if not record.get("corrupt")
    ]


def _stats(plan: Plan, hosts: Sequence[HostDocument], models: int) -> dict[str, int]:
    return {
        "hosts": len(hosts),
        "gpus": sum(len(host.gpus) for host in hosts),
        "models": models,
        "instances": len(plan.instances),
        "moves": len(plan.moves),
        "refused": len(plan.refused),
        "candidates": len(plan.candidates),
        "bytes": len(json.dumps(plan_to_document(plan))),
    }
