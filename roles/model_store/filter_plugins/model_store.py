"""Filters that decide who fetches what from where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DOCUMENTATION = r"""
name: model_store
short_description: Decide who fetches which files of checkpoints from where
description: >-
  Pure functions. C(inspected) is what the module fleet_checkpoint found on each host, C(fetched) what it put in place
  after the first round.
"""


def model_store_sources(inspected: Mapping[str, Mapping[str, Any]], *, peers: bool = True) -> dict[str, str | None]:
    """The host that fetches each checkpoint from where it comes from.

    Args:
        inspected: by host.
        peers: hosts copy from each other. Otherwise each host fetches everything itself, and the answer is empty.

    Returns:
        By directory: the host, or None when one has the checkpoint already. The one that has the most of it fetches the
        rest.
    """
    if not peers:
        return {}
    holders = {one["directory"] for found in inspected.values() for one in found["checkpoints"] if one["whole"]}
    chosen: dict[str, tuple[int, str]] = {}
    for host, found in sorted(inspected.items()):
        have = {one["sha256"]: one["have_bytes"] - one["bytes"] for one in found["needed"]}
        for one in found["checkpoints"]:
            rank = (-sum(have.values()), host)
            chosen[one["directory"]] = min(chosen.get(one["directory"], rank), rank)
    return {name: None if name in holders else host for name, (_, host) in chosen.items()}


def model_store_lost(inspected: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Directories of checkpoints that no host has whole and that come from nowhere: the fleet made them.

    Args:
        inspected: by host.
    """
    found = [one for each in inspected.values() for one in each["checkpoints"]]
    whole = {one["directory"] for one in found if one["whole"]}
    return sorted({one["directory"] for one in found if not one["origin"]} - whole)


def model_store_kept(checkpoints: Sequence[Mapping[str, Any]], lost: Sequence[str]) -> list[Mapping[str, Any]]:
    """The checkpoints of a host without those that are lost."""
    return [one for one in checkpoints if _directory(one) not in lost]


def model_store_round(
    checkpoints: Sequence[Mapping[str, Any]],
    host: str,
    inspected: Mapping[str, Mapping[str, Any]],
    peers: bool,
) -> list[dict[str, Any]]:
    """The files that a host fetches in the first round: those of checkpoints that no host has and this one fetches.

    Args:
        checkpoints: of this host.
        host: this host.
        inspected: by host.
        peers: hosts copy from each other.
    """
    sources = model_store_sources(inspected, peers=peers)
    mine = [
        one
        for one in checkpoints
        if (sources.get(_directory(one)) == host if peers else one.get("source_path") or one.get("base_url"))
    ]
    return [item for need in inspected[host]["needed"] if (item := _item(need, mine, [])) is not None]


def model_store_rest(
    checkpoints: Sequence[Mapping[str, Any]],
    host: str,
    inspected: Mapping[str, Mapping[str, Any]],
    first: Sequence[Mapping[str, Any]],
    servers: Mapping[str, Sequence[str]],
) -> list[dict[str, Any]]:
    """The files that a host fetches in the second round, from hosts that have them; without any, as in the first.

    Args:
        checkpoints: of this host.
        host: this host.
        inspected: by host.
        first: what it fetched in the first round.
        servers: base addresses by directory.
    """
    had = {one["sha256"] for one in first}
    rest = [need for need in inspected[host]["needed"] if need["sha256"] not in had]
    places = {
        directory: [[f"{base}/{{sha256}}", "peer"] for base in bases] for directory, bases in servers.items() if bases
    }
    items = []
    for need in rest:
        holding = [one for one in checkpoints if need["sha256"] in _by_sum(one)]
        peers = [place for one in holding for place in places.get(_directory(one), [])]
        item = _item(need, holding, [[url.format(sha256=need["sha256"]), name] for url, name in peers])
        if item is not None:
            items.append(item | ({"source_path": ""} if peers else {}))
    return items


def model_store_complete(
    checkpoints: Sequence[Mapping[str, Any]], inspected: Mapping[str, Any], first: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The checkpoints of a host that are all there after the first round.

    Args:
        checkpoints: of this host.
        inspected: of this host.
        first: what it fetched.
    """
    fetched = {one["sha256"] for one in first}
    open_sums = {one["sha256"] for one in inspected["needed"]} - fetched
    return [one for one in checkpoints if not open_sums & _by_sum(one).keys()]


def model_store_served(
    inspected: Mapping[str, Mapping[str, Any]],
    fetched: Mapping[str, Sequence[Mapping[str, Any]]],
    peers: bool = True,
) -> dict[str, list[str]]:
    """The checkpoints that each host can serve and another one still needs.

    Args:
        inspected: by host, of those that are still in the play.
        fetched: by host, the checkpoints that were put in place in the first round.
        peers: hosts copy from each other. Otherwise only what the fleet made is copied, which can be had nowhere else.
    """
    copied = {
        one["directory"] for found in inspected.values() for one in found["checkpoints"] if peers or not one["origin"]
    }
    has = {
        host: {one["directory"] for one in found["checkpoints"] if one["whole"]}
        | {one["directory"] for one in fetched.get(host, ())}
        for host, found in inspected.items()
    }
    lacking = copied & {
        one["directory"]
        for host, found in inspected.items()
        for one in found["checkpoints"]
        if one["directory"] not in has[host]
    }
    served = {host: sorted(directories & lacking) for host, directories in has.items()}
    return {host: directories for host, directories in served.items() if directories}


def model_store_servers(
    served: Mapping[str, Sequence[str]], host: str, addresses: Mapping[str, str], port: int
) -> dict[str, list[str]]:
    """Base addresses from which a host can copy, by directory; each host begins with another one.

    Args:
        served: directories by serving host.
        host: the one that copies.
        addresses: of the hosts.
        port: where they serve.
    """
    found: dict[str, list[str]] = {}
    for other, directories in sorted(served.items()):
        address = addresses[other]
        base = f"https://{f'[{address}]' if ':' in address else address}:{port}"
        for directory in directories:
            found.setdefault(directory, []).append(base)
    turn = sum(host.encode())
    return {name: bases[turn % len(bases) :] + bases[: turn % len(bases)] for name, bases in found.items()}


def model_store_referenced(plan: Mapping[str, Any], running: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the checkpoints that a plan refers to, on any host, and that the engines of this host serve.

    Args:
        plan: PLAN.json.
        running: records of the instances of this host.
    """
    instances = [*plan["instances"], *running]
    paths = [one.get("engine_args", {}).get("model", "") for one in instances]
    further = {_directory(checkpoint) for one in instances for checkpoint in one.get("further_checkpoints", ())}
    return sorted({path.rstrip("/").rpartition("/")[2] for path in paths if path} | further)


def _item(
    need: Mapping[str, Any], checkpoints: Sequence[Mapping[str, Any]], peers: Sequence[Sequence[str]]
) -> dict[str, Any] | None:
    """A file for the module to fetch; None when none of the checkpoints has it."""
    for one in checkpoints:
        name = _by_sum(one).get(need["sha256"])
        if name is None:
            continue
        local = [[f"file://{quote(path)}", ""] for path in need["local"]]
        base, here = one.get("base_url"), one.get("source_path")
        origin = [[base + quote(name), one.get("credential") or ""]] if base else []
        return {
            "sha256": need["sha256"],
            "bytes": need["bytes"],
            "have_bytes": need["have_bytes"],
            "label": f"{one['name']}/{name}",
            "source_path": f"{here}/{name}" if here and not local else "",
            "locations": [*local, *peers, *origin],
        }
    return None


def _by_sum(checkpoint: Mapping[str, Any]) -> dict[str, str]:
    return {file["sha256"]: name for name, file in checkpoint["files"].items()}


def _directory(checkpoint: Mapping[str, Any]) -> str:
    return f"{checkpoint['name']}-{checkpoint['digest'][:12]}"


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Filters by name."""
        return {
            "model_store_kept": model_store_kept,
            "model_store_lost": model_store_lost,
            "model_store_referenced": model_store_referenced,
            "model_store_round": model_store_round,
            "model_store_rest": model_store_rest,
            "model_store_complete": model_store_complete,
            "model_store_served": model_store_served,
            "model_store_servers": model_store_servers,
        }
