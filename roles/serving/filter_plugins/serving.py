"""Filters of the serving role."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ansible.errors import AnsibleFilterError
from fleet.engine_files import engine_files
from fleet.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Mapping

DOCUMENTATION = r"""
name: serving
short_description: Items of fleet_instances
description: Turn an instance of the plan into an item of M(fleet_instances), whole or by its name alone.
"""


def serving_engine_files(instance: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """See ``fleet.engine_files.engine_files``. Ansible's values carry tags, which the YAML writer does not know."""
    try:
        return engine_files(json.loads(json.dumps(instance)), **json.loads(json.dumps(options)))
    except FleetError as error:
        raise AnsibleFilterError(str(error)) from error


def serving_instance_id(instance: Mapping[str, Any]) -> dict[str, Any]:
    """An instance by its name alone."""
    return {"id": instance["id"]}


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Filters by name."""
        return {"serving_engine_files": serving_engine_files, "serving_instance_id": serving_instance_id}
