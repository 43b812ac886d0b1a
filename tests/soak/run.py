"""The long evidence: `make soak`, or one part of it with `make soak PART=kills`.

Each part writes build/soak/PART.json: its figures, the commit, the machine. Parts share a lab of their own, named
`soak` unless L40S_SOAK_LAB gives it another name; those in OWN_LABS have one each.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A name of its own for each checkout that runs this on one machine.
LAB = os.environ["L40S_LAB"] = os.environ.get("L40S_SOAK_LAB", "soak")
sys.path.insert(0, str(ROOT / "molecule" / "site"))

from downloads import downloads  # noqa: E402 (the lab's name has to be known before)
from drivers import drivers  # noqa: E402
from fleet_lab import Fleet, settled, working_copy  # noqa: E402
from quantizers import quantizers  # noqa: E402
from scenarios import benchmark, ranks, rolling  # noqa: E402


def kills(seed: int, count: int) -> dict:
    """Runs killed at random moments while a model comes or goes; each is run again and has to converge.

    What has to hold: exactly the instances of the plan, no GPU twice, a check run that sees no difference, and a
    completion of every model.
    """
    chance = random.Random(seed)  # noqa: S311 (moments, not secrets)
    figures = []
    with tempfile.TemporaryDirectory() as scratch:
        inventory = pathlib.Path(scratch) / "inventory"
        fleet = Fleet(working_copy(inventory))
        fleet.run()
        models = fleet.models()
        for number in range(count):
            shown = models if number % 2 else models[:-1]
            fleet.write_models(shown)
            after_s = chance.uniform(3, 35)  # a run takes 36 s or more
            process = fleet.start()
            time.sleep(after_s)
            finished = process.poll() is not None
            if not finished:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            again = fleet.run()
            instances = settled(fleet)
            used = [gpu for instance in instances.values() for gpu in instance["gpus"]]
            assert len(used) == len(set(used)), used
            planned = {instance["id"] for instance in fleet.plan()["instances"]}
            assert set(instances) == planned, (sorted(instances), sorted(planned))
            assert {instance["record"]["model"] for instance in instances.values()} == {one["name"] for one in shown}
            check = fleet.run("--check")
            assert set(check.changed().values()) == {0}, check.output[-4000:]
            for model in shown:
                fleet.complete(model["name"])
            figures.append(
                {"killed_after_s": round(after_s, 1), "had_finished": finished, "second_run_s": round(again.seconds, 1)}
            )
            print(f"[soak] kills {number + 1}/{count}: {figures[-1]}", flush=True)
    return {"seed": seed, "kills": figures}


PARTS = {
    "kills": kills,
    "downloads": downloads,
    "drivers": drivers,
    "quantizers": quantizers,
    "ranks": ranks,
    "rolling": rolling,
    "benchmark": benchmark,
}

OWN_LABS = {"benchmark", "drivers", "ranks", "rolling"}


def main() -> int:
    """Run the parts that were asked for; the first that fails ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="all of them when none is named")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--count", type=int, default=10)
    arguments = parser.parse_args()
    results = ROOT / "build" / "soak"
    results.mkdir(parents=True, exist_ok=True)
    parts = arguments.parts or list(PARTS)
    if not OWN_LABS.issuperset(parts):
        subprocess.run([ROOT / "scripts" / "lab", "up", "--name", LAB], check=True)
    try:
        for part in parts:
            begun = time.monotonic()
            figures = PARTS[part](arguments.seed, arguments.count)
            document = {
                "part": part,
                "commit": subprocess.run(
                    ["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True
                ).stdout.strip(),
                "machine": {"system": platform.platform(), "cores": os.cpu_count()},
                "seconds": round(time.monotonic() - begun, 1),
                **figures,
            }
            path = results / f"{part}.json"
            path.write_text(json.dumps(document, indent=2) + "\n")
            print(f"[soak] {part}: passed in {document['seconds']} s, {path.relative_to(ROOT)}", flush=True)
    finally:
        subprocess.run([ROOT / "scripts" / "lab", "down", "--name", LAB], check=False)
        shutil.rmtree(ROOT / "build" / "lab" / LAB, ignore_errors=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
