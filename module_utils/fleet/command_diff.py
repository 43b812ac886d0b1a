"""Say what changes between two plans, and why."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from .document_checks import load_json
from .host_document import parse_hosts
from .model_sources import read_text
from .plan_diff import diff_plans
from .plan_diff_table import diff_table
from .plan_document import canonical_json, plan_from_json

if TYPE_CHECKING:
    import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("old", metavar="OLD.json")
    parser.add_argument("new", metavar="NEW.json")
    parser.add_argument("--facts", metavar="FACTS.json", help="host documents, to name GPUs by their indices")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the differences. 0 also when there are some: both plans are valid."""
    old = plan_from_json(read_text(args.old), where=args.old)
    new = plan_from_json(read_text(args.new), where=args.new)
    indices: dict[str, int] = {}
    if args.facts:
        hosts = parse_hosts(load_json(read_text(args.facts), where=args.facts), where=args.facts)
        indices = {gpu.uuid: gpu.index for host in hosts for gpu in host.gpus}
    found = diff_plans(old, new)
    if args.json:
        sys.stdout.write(canonical_json(found.to_document()))
    else:
        # https://no-color.org: set and not empty means no.
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        sys.stdout.write(diff_table(found, indices, colour=colour) + "\n")
    return 0
