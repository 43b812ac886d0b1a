"""Say how many hosts to buy: the fewest that carry the models, with and without one host lost."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

from .engine_options import DEFAULT_ENGINE_VERSION
from .errors import FleetError
from .fleet_size import MOST_HOSTS, Size, fewest_hosts
from .hardware import gpu_by_name
from .model_sources import read_models_file, resolve_models

if TYPE_CHECKING:
    import argparse

EXIT_NO = 2
_MOST_GPUS = 16
_HOST = re.compile(r"([1-9]\d*)x(\w+)", re.ASCII)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--models", required=True, metavar="MODELS.yml")
    parser.add_argument("--host", required=True, metavar="8xL40S", help="GPUs of one host, and their kind")
    parser.add_argument("--engine-version", default=DEFAULT_ENGINE_VERSION, help="vLLM's (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the numbers of hosts; 2 when no number carries the models."""
    matched = _HOST.fullmatch(args.host)
    if matched is None or int(matched[1]) > _MOST_GPUS:
        raise FleetError("--host", f"must be 1 to {_MOST_GPUS} GPUs and their kind, as in 8xL40S, got {args.host!r}")
    gpu = gpu_by_name(matched[2], where="--host")
    models, _ = resolve_models(read_models_file(args.models), args.models, with_checkpoints=False)
    answer: dict[str, Any] = {"host": args.host}
    for name, one_lost in (("hosts", False), ("hosts_with_one_lost", True)):
        size = fewest_hosts(models, gpu, int(matched[1]), engine_version=args.engine_version, one_lost=one_lost)
        answer[name] = _document(size)
    if args.json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    else:
        sys.stdout.write(f"{_words(answer['hosts'], args.host)}\n")
        sys.stdout.write(f"With any one host lost: {_words(answer['hosts_with_one_lost'], args.host)}\n")
    return EXIT_NO if answer["hosts"]["count"] is None else 0


def _document(size: Size) -> dict[str, Any]:
    summary = size.plan.summary
    return {
        "count": size.hosts,
        "gpus_used": summary.gpus_used,
        "gpus_lower_bound": summary.gpus_lower_bound,
        "refused": [{"model": one.model, "explanation": one.explanation} for one in size.plan.refused],
    }


def _words(found: dict[str, Any], host: str) -> str:
    if found["count"] is None:
        refused = "; ".join(f"{one['model']}: {one['explanation']}" for one in found["refused"][:3])
        return f"no number of hosts up to {MOST_HOSTS} does. {refused}"
    return f"{found['count']} x {host}, {found['gpus_used']} GPUs used."
