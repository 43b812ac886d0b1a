"""Driver packages with real builds: modules for a kernel on disk, a kernel upgrade, other branches, killed changes.

Nodes are those of molecule/nvidia_driver, one of Debian 12 and one of Debian 13. They get a kernel package of Debian,
so that DKMS has something to build for; it is never booted.
"""

from __future__ import annotations

import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAB = "drvsoak"
NEXT_KERNEL = "ls /boot | sed -n 's/^vmlinuz-//p' | sort -V | tail -n 1"


def drivers(seed: int, count: int) -> dict:
    """Build, upgrade the kernel, change to the older branch of Debian 13, kill changes in the middle, remove.

    Args:
        seed: of the moments of the kills.
        count: kills.
    """
    os.environ["L40S_LAB"] = LAB
    sys.path[:0] = [str(ROOT / "molecule" / "nvidia_driver" / "tests"), str(ROOT / "tests" / "testinfra")]
    lab = [ROOT / "scripts" / "lab"]
    nodes = ["--nodes", "l40s-01", "l40s-02", "--release", "l40s-02=trixie"]
    subprocess.run([*lab, "up", "--name", LAB, *nodes], check=True)
    try:
        from driver_nodes import NODES, on, on_all, play, state, versions  # noqa: PLC0415 (needs the lab's name)

        on_all("DEBIAN_FRONTEND=noninteractive; export DEBIAN_FRONTEND; apt-get -qq update")
        figures: dict = {"seed": seed, "builds": [], "kills": []}
        older = {node: older_kernel(on, node) for node in NODES}

        def built(what: str, began: float) -> None:
            for node in NODES:
                kernel = on(node, NEXT_KERNEL).strip()
                status = on(node, "dkms status").strip().splitlines()
                assert any(kernel in line and line.endswith("installed") for line in status), (what, node, status)
                module = on(node, f"modinfo -k {kernel} -F filename nvidia-current-open || true", check=False).strip()
                figures["builds"].append(
                    {"what": what, "node": node, "kernel": kernel, "dkms": status, "module": module}
                )
            figures["builds"][-1]["seconds_both_nodes"] = round(time.monotonic() - began, 1)
            print(f"[soak] drivers: {what}: {figures['builds'][-1]}", flush=True)

        began = time.monotonic()
        done = play(nvidia_driver_source="distro")
        assert done.ok, done.output
        built(f"open module, kernels {older}", began)

        began = time.monotonic()
        on_all("DEBIAN_FRONTEND=noninteractive apt-get -qq --yes dist-upgrade >/dev/null")
        built("after a kernel upgrade, which no play took part in", began)
        assert play(nvidia_driver_source="distro").changed == 0

        # Debian 13 has the older branch as well, with the proprietary module.
        older_branch = {"nvidia_driver_branch": 535, "nvidia_driver_open_modules": False}
        began = time.monotonic()
        done = play("--limit", "l40s-02", nvidia_driver_source="distro", **older_branch)
        assert done.ok, done.output
        found = versions("l40s-02")
        assert found["nvidia-tesla-535-kernel-dkms"].startswith("*535.")
        assert not {"libcuda1", "libnvidia-cfg1", "nvidia-open-kernel-dkms"} & set(found)
        built("downgrade of Debian 13 to branch 535", began)
        assert play(nvidia_driver_source="distro").ok

        with tempfile.TemporaryDirectory() as scratch:
            figures["kills"] = kills(pathlib.Path(scratch), random.Random(seed), count)  # noqa: S311 (moments)

        before = {node: set(versions(node)) for node in NODES}
        done = play(nvidia_driver_state="absent", nvidia_driver_source="distro")
        assert done.ok, done.output
        figures["removed"] = {node: len(before[node] - set(versions(node))) for node in NODES}
        assert not [line for lines in state().values() for line in lines if "nvidia" in line and "ok installed" in line]
        return figures
    finally:
        subprocess.run([*lab, "down", "--name", LAB], check=False)


def older_kernel(on, node: str) -> str:
    """Installs the older one of the kernels that the mirror has, so that there is one to upgrade to."""
    offered = on(node, "apt-cache madison linux-image-cloud-amd64 | awk '{print $3}' | sort -Vu").split()
    install = "DEBIAN_FRONTEND=noninteractive apt-get -qq --yes --no-install-recommends install"
    on(node, f"{install} linux-image-cloud-amd64={offered[0]} >/dev/null")
    return f"{offered[0]} of {offered}"


def kills(scratch: pathlib.Path, chance: random.Random, count: int) -> list[dict]:
    """Changes to NVIDIA's repository, killed at random moments; the next run finds the way back."""
    import json  # noqa: PLC0415

    from driver_nodes import CHECKOUT, NODES, on_all, play, state  # noqa: PLC0415
    from driver_repository import Repositories  # noqa: PLC0415

    network = json.loads((CHECKOUT / "build" / "lab" / LAB / "addresses.json").read_text())[NODES[0]]
    figures = []
    before = state()
    with Repositories(scratch, network.rpartition(".")[0] + ".1") as repositories:
        for number in range(count):
            after_s = chance.uniform(2, 14)
            # `slow` never ends by itself: its module's package sleeps while it is configured.
            on_all(
                f"systemd-run --quiet --on-active={after_s:.1f} --timer-property=AccuracySec=100ms sh -c "
                "'pkill -9 -f [A]nsiballZ_fleet_driver; pkill -9 apt-get; pkill -9 dpkg; pkill -9 -f [s]leep.300; true'"
            )
            done = play(
                nvidia_driver_source="nvidia_repo",
                nvidia_driver_repository=repositories.url("slow"),
                nvidia_driver_repository_key=str(repositories.key),
            )
            assert not done.ok
            again = play(nvidia_driver_source="distro")
            assert again.ok, again.output
            assert state() == before
            figures.append({"killed_after_s": round(after_s, 1)})
            print(f"[soak] drivers: kill {number + 1}/{count}: {figures[-1]}", flush=True)
    return figures
