"""Judges, before the first change, whether each host's driver is or will be new enough for the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .driver_catalog import driver_set
from .driver_requirements import (
    LAST_CUDA_12_ENGINE,
    branch_of,
    cuda_of_driver,
    cuda_words,
    driver_need,
    engine_words,
    runs_with_compat,
)
from .errors import FleetError
from .preflight import Row, parse_report
from .probe_verdict import Verdict, blocked, degraded, ok

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .driver_requirements import DriverNeed

_OLDER_ENGINE = f"or the last engine for CUDA 12 (vllm_version {LAST_CUDA_12_ENGINE})"


@dataclass(frozen=True)
class Host:
    """What the judgement of one host is made of.

    Args:
        system: ID and VERSION_ID of /etc/os-release.
        loaded: version of the loaded nvidia module; empty without one.
        installed: version of the driver's packages; empty without any.
        nouveau: nouveau is loaded.
        secure_boot: Secure Boot is on.
        intent: what the role nvidia_driver is to do: state, source, branch, version, open_modules,
            reboot, and the engine_version and accelerator that it is for.
        need: what the engine needs.
    """

    system: tuple[str, str]
    loaded: str
    installed: str
    nouveau: bool
    secure_boot: bool
    intent: Mapping[str, Any]
    need: DriverNeed


def judge_drivers(texts: Mapping[str, str | None], intents: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Return one row for each host that is to have a driver.

    Args:
        texts: what ``playbooks/files/preflight.sh`` printed, by host; hosts without a whole answer are left out.
        intents: what the role nvidia_driver is to do, by host.

    Raises:
        FleetError: an engine version is not one.
    """
    rows = []
    for name, intent in intents.items():
        values, complete = parse_report(texts.get(name) or "")
        if not complete:
            continue
        first = {key: found[0] for key, found in values.items()}
        host = Host(
            system=(first.get("os_id", ""), first.get("os_version_id", "")),
            loaded=first.get("nvidia_module", ""),
            installed=first.get("nvidia_package", ""),
            nouveau="nouveau" in first,
            secure_boot=first.get("secure_boot") == "1",
            intent=intent,
            need=driver_need(str(intent["engine_version"]), str(intent["accelerator"])),
        )
        verdict = judge_driver(host)
        rows.append(Row(name, "driver", verdict.status, verdict.evidence, verdict.remedy))
    return rows


def judge_driver(host: Host) -> Verdict:
    """Return the verdict on one host's driver, as it is or as it will be."""
    intent, need = host.intent, host.need
    if intent["state"] == "absent":
        if need.branch:
            return blocked(f"nvidia_driver_state is absent, and {engine_words(need)}", "take the host out of gpu_hosts")
        return ok("no driver, as is wanted")
    if intent["source"] in ("none", "cuda_compat"):
        return _as_it_is(host, with_compat=intent["source"] == "cuda_compat")
    try:
        wanted = driver_set(
            *host.system,
            intent["source"],
            branch=int(intent["branch"]),
            open_modules=bool(intent["open_modules"]),
            needed_branch=need.branch,
        )
    except FleetError as error:
        return blocked(f"{error.where}: {error.problem}", "nvidia_repo has every branch that is supported")
    branch = (branch_of(str(intent["version"])) if intent["version"] else None) or wanted.branch
    if branch < need.branch:
        offer = "nvidia_repo or cuda_compat" if intent["source"] == "distro" else f"nvidia_driver_branch {need.branch}"
        return blocked(
            _too_old(f"driver {branch} of {intent['source']}", str(branch), need), f"choose {offer}, {_OLDER_ENGINE}"
        )
    return _to_come(host, branch)


def _as_it_is(host: Host, *, with_compat: bool) -> Verdict:
    need = host.need
    if not need.branch:
        return ok("engines run on the CPU" if not host.loaded else f"driver {host.loaded}")
    if not host.loaded:
        return blocked(
            "no nvidia module is loaded, and nvidia_driver_source leaves the driver as it is",
            f"load or install driver {need.branch} or newer, or set nvidia_driver_source: nvidia_repo",
        )
    if (branch_of(host.loaded) or 0) >= need.branch:
        return ok(f"driver {host.loaded}")
    if not with_compat:
        return blocked(
            _too_old(f"driver {host.loaded}", host.loaded, need), f"choose nvidia_repo or cuda_compat, {_OLDER_ENGINE}"
        )
    if not runs_with_compat(host.loaded):
        return blocked(f"driver {host.loaded} is too old for NVIDIA's cuda-compat", "choose nvidia_repo")
    return ok(f"driver {host.loaded} with cuda-compat")


def _to_come(host: Host, branch: int) -> Verdict:
    there = host.loaded or host.installed
    if branch_of(host.loaded) == branch == branch_of(host.installed):
        return ok(f"driver {host.loaded}")
    words = f"driver {branch} will be installed from {host.intent['source']}, now " + (there or "there is none")
    if host.loaded and not host.installed:
        return blocked(
            f"driver {host.loaded} is loaded and does not come from packages",
            "set nvidia_driver_source: none, or remove that driver (nvidia-uninstall) first",
        )
    if host.secure_boot and not host.loaded:
        return degraded(
            f"{words}; Secure Boot is on",
            "a person will have to enrol the signing key at the console: the run says how",
        )
    if (host.nouveau or host.loaded) and host.intent["reboot"] != "when_needed":
        return degraded(
            f"{words}; a reboot will be needed, and nvidia_driver_reboot is {host.intent['reboot']}",
            "set it to when_needed, or reboot the host when the run stops",
        )
    return ok(words)


def _too_old(subject: str, version: str, need: DriverNeed) -> str:
    cuda = cuda_of_driver(version)
    supports = f"supports CUDA {cuda_words(cuda)}" if cuda is not None else "is unknown"
    return f"{subject} {supports}; {engine_words(need)}"
