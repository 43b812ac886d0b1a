"""Say what changes between two plans, and why."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from .model_sources import read_text
from .plan_diff import diff_plans
from .plan_document import canonical_json, plan_from_json

if TYPE_CHECKING:
    import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("old", metavar="OLD.json")
    parser.add_argument("new", metavar="NEW.json")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the differences. 0 also when there are some: both plans are valid."""
    old = plan_from_json(read_text(args.old), where=args.old)
    new = plan_from_json(read_text(args.new), where=args.new)
    found = diff_plans(old, new)
    sys.stdout.write(canonical_json(found.to_document()) if args.json else "\n".join(found.to_lines()) + "\n")
    return 0
