"""Filters that say which driver a host gets and what an engine needs of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ansible.errors import AnsibleFilterError

DOCUMENTATION = r"""
name: fleet_driver
short_description: Driver packages of a system, and driver needs of an engine
description: Filters over the tables of C(module_utils/fleet/driver_catalog.py) and C(driver_requirements.py).
"""


def fleet_driver_need(engine_version: str, accelerator: str = "cuda") -> dict[str, Any]:
    """What an engine needs: ``cuda_driver_version`` as NVML counts, ``cuda`` as people write it, ``branch``."""
    from fleet.driver_requirements import cuda_words, driver_need  # noqa: PLC0415
    from fleet.errors import FleetError  # noqa: PLC0415

    try:
        need = driver_need(engine_version, accelerator)
    except FleetError as error:
        raise AnsibleFilterError(str(error)) from error
    return {
        "cuda_driver_version": need.cuda_driver_version,
        "cuda": cuda_words(need.cuda_driver_version),
        "branch": need.branch,
    }


def fleet_driver_set(source: str, facts: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The packages that a source has for a host with these Ansible facts; see ``fleet.driver_catalog.driver_set``."""
    from fleet.driver_catalog import driver_set  # noqa: PLC0415
    from fleet.errors import FleetError  # noqa: PLC0415

    try:
        found = driver_set(
            str(facts["distribution"]).lower(),
            str(facts["distribution_version" if facts["distribution"] == "Ubuntu" else "distribution_major_version"]),
            str(source),
            **options,
        )
    except FleetError as error:
        raise AnsibleFilterError(str(error)) from error
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(found).items()}


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Filters by name."""
        return {"fleet_driver_need": fleet_driver_need, "fleet_driver_set": fleet_driver_set}
