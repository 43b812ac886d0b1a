"""Write one self-contained HTML page about a plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .document_checks import load_json
from .host_document import parse_hosts
from .model_sources import read_text
from .plan_document import plan_from_json
from .quantize_evidence import records_of
from .report import ReportInput, render_report
from .report_simulation import simulation_table

if TYPE_CHECKING:
    import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("plan", metavar="PLAN.json")
    parser.add_argument("--output", required=True, metavar="REPORT.html")
    parser.add_argument("--current", metavar="OLD_PLAN.json", help="what runs now, to compare the plan with")
    parser.add_argument("--simulation", metavar="SIM.json", help="what fleet simulate --json printed")
    parser.add_argument("--facts", metavar="FACTS.json", help="host documents: all GPUs, what was quantized")


def run(args: argparse.Namespace) -> int:
    """Write the page."""
    plan = plan_from_json(read_text(args.plan), where=args.plan)
    current = plan_from_json(read_text(args.current), where=args.current) if args.current else None
    facts = load_json(read_text(args.facts), where=args.facts) if args.facts else None
    hosts = parse_hosts(facts, where=args.facts) if facts is not None else None
    quantized = records_of(facts["hosts"]) if facts is not None else ()
    simulation = None
    if args.simulation:
        document = load_json(read_text(args.simulation), where=args.simulation)
        simulation = simulation_table(document, where=args.simulation)
    given = ReportInput(
        plan=plan, current=current, hosts=hosts, simulation=simulation, quantized=quantized, where=args.plan
    )
    Path(args.output).write_text(render_report(given), encoding="utf-8")
    return 0
