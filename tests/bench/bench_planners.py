"""Side by side on three fleets: how much load the placement of each planner carries, in the same simulator.

    python tests/bench/bench_planners.py [--fleet seed|mixed|large] [--seconds 120] [--json]

Carried is the largest common factor on all demands at which every objective holds at its percentile: 1 is the demand as
it is written. Planners that know demands are asked for the largest factor that they say they can place.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench_placement import SEED_MODELS, host, hosts, large_host, many_models, models, seed_box
from fleet.carrying import Carrying
from fleet.engine_options import DEFAULT_ENGINE_VERSION
from fleet.planning import make_plan
from fleet.simulation import Simulation, SimulationOptions
from fleet.simulation_plan import simulation_of
from fleet.simulation_workload import Lengths
from planners import Fleet, TensorParallelSearch, one_model_a_gpu, rule_of_thumb

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fleet.plan_document import Plan
    from fleet.simulation import SimulatedInstance

_HIGHEST_FACTOR = 16.0


def fleets() -> dict[str, Fleet]:
    """The seed's box, 40 mixed hosts, 1,000 hosts."""
    seed = models([(name, name, rate, more) for name, rate, more in SEED_MODELS])
    large = {name: large_host(name) for name in (f"h{index:04d}" for index in range(1000))}
    return {
        "seed": Fleet("seed's box", hosts({"box": seed_box()}), tuple(seed)),
        "mixed": Fleet("40 mixed hosts", hosts(_mixed_hosts()), tuple(_mixed_models())),
        "large": Fleet("1,000 hosts", hosts(large), tuple(many_models(50, 8000))),
    }


def _mixed_hosts() -> dict[str, dict[str, Any]]:
    """Four, eight and ten GPUs a host."""
    kinds = (
        ([[0, 1], [2, 3]], [[0, 1, 2, 3]]),
        ([[0, 1], [2, 3], [4, 5], [6, 7]], [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]),
    )
    return {f"m{i:02d}": host(f"m{i:02d}", *kinds[i % 3]) for i in range(40)}


def _mixed_models() -> list[Any]:
    rates = (
        ("chat-8b", "llama-3-8b", 200.0),
        ("chat-13b", "llama-2-13b", 30.0),
        ("code-34b", "codellama-34b", 20.0),
        ("large-70b", "llama-3-70b", 14.0),
        ("moe-30b", "qwen3-30b-a3b", 60.0),
        ("rag-7b", "qwen2.5-7b", 120.0),
        ("draft-0.5b", "qwen2.5-0.5b", 300.0),
        ("chat-8b-b", "llama-3-8b", 90.0),
        ("large-70b-b", "llama-3-70b", 6.0),
        ("rag-7b-b", "qwen2.5-7b", 40.0),
    )
    return models([(name, family, rate, {}) for name, family, rate in rates])


def ours(fleet: Fleet) -> Simulation:
    """Our plan for the largest factor on all demands that it says it carries."""
    carrying = Carrying()

    def plan_for(factor: float) -> Plan:
        scaled = []
        for model in fleet.models:
            demand = model.request.demand
            if demand is None:
                continue
            more = demand.model_copy(update={"requests_per_second": demand.requests_per_second * factor})
            scaled.append(replace(model, request=model.request.model_copy(update={"demand": more})))
        return make_plan(fleet.hosts, scaled, (), engine_version=DEFAULT_ENGINE_VERSION, carrying=carrying)

    low, high, best = 0.0, _HIGHEST_FACTOR, None
    while high - low > 0.01 * high:
        middle = 0.5 * (low + high) if high < _HIGHEST_FACTOR or low else 1.0
        plan = plan_for(middle)
        if min(plan.summary.carried.values()) >= 1.0:
            low, best = middle, plan
            high = high if high < _HIGHEST_FACTOR else max(high, middle)
            if high == _HIGHEST_FACTOR:
                high = min(high, 2.0 * middle) if min(plan_for(2.0 * middle).summary.carried.values()) < 1.0 else high
        else:
            high = middle
    if best is None:
        return Simulation([], fleet.simulated_models())
    simulation, _ = simulation_of(best, where="plan")
    return Simulation(simulation.instances, fleet.simulated_models())


def other(place: Callable[[Fleet], Sequence[SimulatedInstance]]) -> Callable[[Fleet], Simulation]:
    """A planner that returns instances."""
    return lambda fleet: Simulation(place(fleet), fleet.simulated_models())


PLANNERS: dict[str, Callable[[Fleet], Simulation]] = {
    "ours": ours,
    "weights x 1.2 + 2 GiB, first fit, TP": other(rule_of_thumb),
    "search without PP: 16 bits": other(TensorParallelSearch((None,))),
    "search without PP: 16 bits, FP8": other(TensorParallelSearch((None, "fp8"))),
    "search without PP: 16 bits, FP8, FP8 KV": other(TensorParallelSearch((None, "fp8"), ("auto", "fp8"))),
    "vLLM's defaults, one model a GPU": other(one_model_a_gpu),
}


def compare(fleet: Fleet, options: SimulationOptions) -> list[dict[str, Any]]:
    """A row for each planner."""
    rows = []
    for name, planner in PLANNERS.items():
        started = time.process_time()
        simulation = planner(fleet)
        planned = time.process_time()
        found = simulation.largest_factor(options, by_model=False)
        least = min(found.by_model, key=lambda model: found.by_model[model], default="")
        rows.append(
            {
                "fleet": fleet.name,
                "planner": name,
                "factor": round(found.factor, 3),
                "limit": f"{least}: {'+'.join(found.first_violated.get(least, ()))}" if least else "",
                "gpus": sum(one.options.world_size for one in simulation.instances),
                "of_gpus": fleet.gpus,
                "plan_cpu_s": round(planned - started, 1),
                "simulate_cpu_s": round(time.process_time() - planned, 1),
            }
        )
        sys.stderr.write(f"{fleet.name}: {name}: {rows[-1]['factor']}\n")
    return rows


def main() -> int:
    """Print the table. Exit code 1 when another planner carries more than ours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fleet", choices=("seed", "mixed", "large"), action="append")
    parser.add_argument("--seconds", type=float, default=120.0, help="simulated arrivals of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    options = SimulationOptions(seconds=args.seconds, seed=args.seed, lengths=Lengths("fixed"), representatives=4)
    behind = False
    for name, fleet in fleets().items():
        if args.fleet and name not in args.fleet:
            continue
        rows = compare(fleet, options)
        best = max((row["factor"] for row in rows[1:]), default=0.0)
        behind = behind or rows[0]["factor"] < best
        if args.json:
            sys.stdout.write("".join(json.dumps(row) + "\n" for row in rows))
            continue
        sys.stdout.write(f"\n{fleet.name}, {fleet.gpus} GPUs, {len(fleet.models)} models\n")
        for row in rows:
            ratio = f"{rows[0]['factor'] / row['factor']:.2f}" if row["factor"] else "-"
            sys.stdout.write(
                f"  {row['planner']:42} {row['factor']:7.3f}   ours over it {ratio:>6}   {row['gpus']:5} GPUs"
                f"   {row['limit']}\n"
            )
    return 1 if behind else 0


if __name__ == "__main__":
    sys.exit(main())
