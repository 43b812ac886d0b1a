"""The ``fleet_*`` variables of the inventory: which exist, and what they say about one host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .document_checks import faults_error, labels_as_tuple, nearest, shown
from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Kind = Literal["text", "flag", "count", "gpus", "labels", "state", "elsewhere"]
State = Literal["present", "gone"]

# Every fleet_* variable. "elsewhere" marks those whose values the argument specification of a role checks.
VARIABLES: Mapping[str, Kind] = {
    "fleet_address": "text",
    "fleet_allow_partial": "flag",
    "fleet_cache_dir": "text",
    "fleet_client_keys": "elsewhere",
    "fleet_engine_api_key": "elsewhere",
    "fleet_engine_port_base": "count",
    "fleet_exclude_gpus": "gpus",
    "fleet_kernel_log": "text",
    "fleet_hub_endpoint": "text",
    "fleet_hub_proxy": "elsewhere",
    "fleet_hub_token": "elsewhere",
    "fleet_labels": "labels",
    "fleet_link_test": "flag",
    "fleet_models_file": "text",
    "fleet_nvml_library": "elsewhere",
    "fleet_optimize": "flag",
    "fleet_quantize": "flag",
    "fleet_plan_file": "text",
    "fleet_report_file": "text",
    "fleet_state": "state",
    "fleet_state_dir": "text",
    "fleet_sysfs_root": "text",
    "fleet_update_sources": "flag",
    "fleet_verify_checkpoints": "elsewhere",
}


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """What the operator decided about one host.

    Args:
        exclude_gpus: indices or UUIDs of GPUs that stay unused.
        labels: what ``placement.labels`` of a model can ask for.
        state: ``gone`` releases what the plan holds for the host.
        address: where the gateways reach the host's engines; None is left to Ansible.
    """

    exclude_gpus: tuple[int | str, ...] = ()
    labels: tuple[str, ...] = ()
    state: State = "present"
    address: str | None = None


def parse_policies(variables: Mapping[str, Mapping[str, object]]) -> dict[str, HostPolicy]:
    """Check the ``fleet_*`` variables of every host.

    Args:
        variables: host name -> variable name -> value. Variables with other prefixes are left alone.

    Raises:
        FleetError: one line for each fault, as ``host_vars l40s-01: fleet_exclude_gpus[0]: ...``.
    """
    faults: list[tuple[str, str]] = []
    policies = {}
    for host, values in sorted(variables.items()):
        found = [
            (f"host_vars {host}: {path}", problem)
            for name, value in sorted(values.items())
            if name.startswith("fleet_")
            for path, problem in _faults(name, value)
        ]
        faults += found
        if not found:
            policies[host] = HostPolicy(
                exclude_gpus=_tuple(values.get("fleet_exclude_gpus")),
                labels=tuple(sorted(_tuple(labels_as_tuple(values.get("fleet_labels"))))),
                state="gone" if values.get("fleet_state") == "gone" else "present",
                address=_text(values.get("fleet_address")),
            )
    if faults:
        raise faults_error(_shared(faults, len(variables)))
    return policies


def missing_gpu_error(host: str, position: int, gpu: int | str, known: Sequence[tuple[int, str]]) -> FleetError:
    """The error for an excluded GPU that the host does not have.

    Args:
        host: inventory name.
        position: index inside ``fleet_exclude_gpus``.
        gpu: what the variable says.
        known: (index, UUID) of each GPU of the host.
    """
    indices = ", ".join(str(index) for index, _ in known) or "none"
    where = f"host_vars {host}: fleet_exclude_gpus[{position}]"
    return FleetError(where, f"no GPU {gpu!r} on this host, its indices are {indices}")


def _tuple(value: object) -> tuple[str, ...]:
    return tuple(value) if isinstance(value, list | tuple) else ()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _faults(name: str, value: object) -> list[tuple[str, str]]:
    kind = VARIABLES.get(name)
    if kind is None:
        return [(name, f"unknown variable, {nearest(name, VARIABLES)}")]
    if kind == "gpus":
        return _list_faults(name, value, "the index or the UUID of a GPU", (int, str))
    if kind == "labels":
        return _list_faults(name, labels_as_tuple(value), "a string", (str,))
    problem = _scalar_problem(kind, value)
    return [(name, f"{problem}, got {shown(value)}")] if problem else []


def _scalar_problem(kind: Kind, value: object) -> str | None:
    if kind == "state" and value not in ("present", "gone"):
        return "must be present or gone"
    if kind == "text" and (not isinstance(value, str) or not value):
        return "must be a string that is not empty"
    # Extra variables given as `-e name=value` are strings.
    if kind == "flag" and not isinstance(value, bool) and str(value).lower() not in ("true", "false", "yes", "no"):
        return "must be true or false"
    if kind == "count":
        number = int(value) if isinstance(value, str) and value.isdigit() else value
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 65535:
            return "must be a port number"
    return None


def _list_faults(name: str, value: object, wanted: str, types: tuple[type, ...]) -> list[tuple[str, str]]:
    if not isinstance(value, list | tuple):
        return [(name, f"must be a list, got {shown(value)}")]
    return [
        (f"{name}[{index}]", f"must be {wanted}, got {shown(item)}")
        for index, item in enumerate(value)
        if not isinstance(item, types) or isinstance(item, bool) or item == ""
    ]


def _shared(faults: list[tuple[str, str]], hosts: int) -> list[tuple[str, str]]:
    """Say a fault of a group variable once, not once a host."""
    places: dict[tuple[str, str], list[str]] = {}
    for where, problem in faults:
        host, _, path = where.removeprefix("host_vars ").partition(": ")
        places.setdefault((path, problem), []).append(host)
    result = []
    for (path, problem), named in places.items():
        group = f"host_vars {named[0]}" if len(named) == 1 else f"group_vars of {named[0]} and {len(named) - 1} more"
        if len(named) == hosts > 1:
            group = "group_vars of all GPU hosts"
        result.append((f"{group}: {path}", problem))
    return result
