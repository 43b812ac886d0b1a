"""Simulate a plan: percentiles of TTFT and TPOT and goodput by model, and the load at which objectives break."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING, Any

from .errors import FleetError
from .model_sources import read_text
from .plan_document import plan_from_json
from .simulation import SimulationOptions
from .simulation_plan import simulation_of
from .simulation_workload import Lengths

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from .simulation import LargestFactor, ModelResult, SimulatedModel, Simulation

EXIT_NO = 2
_MOST_SECONDS = 1_000_000


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("plan", metavar="PLAN.json")
    parser.add_argument("--seconds", type=float, default=300.0, help="of arrivals that are measured (%(default)g)")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal answers (%(default)s)")
    parser.add_argument("--load", type=float, default=1.0, metavar="FACTOR", help="scales every demand (%(default)g)")
    parser.add_argument(
        "--lengths",
        choices=("lognormal", "fixed"),
        default="lognormal",
        help="how prompts and answers vary around the demand's means (%(default)s)",
    )
    parser.add_argument(
        "--variation", type=float, default=0.5, help="standard deviation over mean of those lengths (%(default)g)"
    )
    parser.add_argument(
        "--representatives",
        type=int,
        metavar="N",
        help="simulate N of a model's instances, in the proportions of all, with their share of the requests",
    )
    parser.add_argument("--find-limit", action="store_true", help="find the load at which objectives break")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print what was seen; 2 when an objective does not hold at this load."""
    options = _options(args)
    simulation, left_out = simulation_of(plan_from_json(read_text(args.plan), where=args.plan), where=args.plan)
    results = simulation.run(options)
    limit = simulation.largest_factor(options) if args.find_limit and results else None
    if args.json:
        sys.stdout.write(json.dumps(_document(args, simulation, results, limit, left_out), indent=2) + "\n")
    else:
        _print(simulation, results, limit, left_out)
    return 0 if all(one.holds for one in results.values()) else EXIT_NO


def _options(args: argparse.Namespace) -> SimulationOptions:
    for name, value, least, most in (
        ("--seconds", args.seconds, 1.0, _MOST_SECONDS),
        ("--load", args.load, 1e-6, 1e6),
        ("--variation", args.variation, 0.0, 10.0),
        ("--seed", args.seed, 0, 2**63),
        ("--representatives", args.representatives or 1, 1, 10**6),
    ):
        if not least <= value <= most:
            raise FleetError(name, f"must be {least:g} to {most:g}, got {value}")
    return SimulationOptions(
        seconds=args.seconds,
        seed=args.seed,
        lengths=Lengths(args.lengths, args.variation),
        factor=args.load,
        representatives=args.representatives,
    )


def _document(
    args: argparse.Namespace,
    simulation: Simulation,
    results: Mapping[str, ModelResult],
    limit: LargestFactor | None,
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    models = {model.name: model for model in simulation.models}
    lengths = {"kind": args.lengths} | ({"variation": args.variation} if args.lengths != "fixed" else {})
    document: dict[str, Any] = {
        "seconds": args.seconds,
        "seed": args.seed,
        "load": args.load,
        "lengths": lengths,
        "holds": all(one.holds for one in results.values()),
        "models": {name: _model_document(models[name], one) for name, one in results.items()},
        "not_simulated": dict(left_out),
    }
    if limit is not None:
        document["limit"] = {
            "load": round(limit.factor, 4),
            "by_model": {name: round(factor, 4) for name, factor in limit.by_model.items()},
            "violated_above": {name: list(why) for name, why in limit.first_violated.items()},
        }
    return document


def _model_document(model: SimulatedModel, one: ModelResult) -> dict[str, Any]:
    return {
        "requests_per_s": round(one.requests_per_second, 6),
        "instances": one.instances,
        "requests": one.measured,
        "unfinished": one.unfinished,
        "ttft_ms": _milliseconds(one.ttft_s),
        "tpot_ms": _milliseconds(one.tpot_s),
        "objectives": asdict(model.objectives),
        "goodput_requests_per_s": round(one.goodput_requests_per_s, 6),
        "output_tokens_per_s": round(one.output_tokens_per_s, 3),
        "preemptions": one.preemptions,
        "kv_cache_used_fraction": round(one.kv_cache_used, 4),
        "holds": one.holds,
        "violated": list(one.violated),
    }


def _milliseconds(values_s: Mapping[float, float]) -> dict[str, float | None]:
    """By percentile, as ``p95``; null where so many requests did not get that far."""
    return {f"p{name:g}": round(value * 1e3, 3) if isfinite(value) else None for name, value in values_s.items()}


def _print(
    simulation: Simulation,
    results: Mapping[str, ModelResult],
    limit: LargestFactor | None,
    left_out: Mapping[str, str],
) -> None:
    objectives = {model.name: model.objectives for model in simulation.models}
    width = max([5, *map(len, results)])
    sys.stdout.write(
        f"{'model':<{width}}  {'req/s':>7}  {'inst':>4}  {'TTFT p50/p95/p99 ms':>20}  {'TPOT p50/p95/p99 ms':>20}"
        f"  {'goodput':>7}  objectives\n"
    )
    for name, one in results.items():
        verdict = "hold" if one.holds else f"missed: {', '.join(one.violated)}"
        asked = objectives[name]
        limits = [
            f"{what} {value:g}"
            for what, value in (("TTFT", asked.ttft_ms), ("TPOT", asked.tpot_ms))
            if value is not None
        ]
        if limits:
            verdict += f" ({', '.join(limits)} at p{asked.percentile:g})"
        sys.stdout.write(
            f"{name:<{width}}  {one.requests_per_second:>7.2f}  {one.instances:>4}  {_three(one.ttft_s, 0):>20}"
            f"  {_three(one.tpot_s, 1):>20}  {one.goodput_requests_per_s:>7.2f}  {verdict}\n"
        )
    for name, why in sorted(left_out.items()):
        sys.stdout.write(f"{name}: not simulated, {why}\n")
    if limit is not None:
        for name, factor in limit.by_model.items():
            why = ", ".join(limit.first_violated[name])
            sys.stdout.write(
                f"{name} holds up to {factor:.2f} times its demand{f', then {why} breaks' if why else ' and more'}\n"
            )
        sys.stdout.write(f"The fleet holds up to {limit.factor:.2f} times the demand.\n")


def _three(values_s: Mapping[float, float], digits: int) -> str:
    shown = [values_s.get(one) for one in (50.0, 95.0, 99.0)]
    return "/".join(
        "-" if value is None else f"{value * 1e3:.{digits}f}" if isfinite(value) else "never" for value in shown
    )
