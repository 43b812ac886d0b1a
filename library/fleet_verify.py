#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Compares what runs on a GPU host with the plan."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_verify
short_description: Compare what runs on a GPU host with the plan
description:
  - Looks at the unit, the files and the process of each planned instance, at the GPUs on which the driver sees it, and
    at what its engine says of its names, arguments, KV cache and attention backend. Has each engine answer one real
    request, and reads how many drafted tokens were accepted where it drafts.
  - Names instances that are on the host and not in the plan.
  - Changes nothing. Differences are returned, they are not a failure of the module.
version_added: "0.1.0"
author: l40s-fleet (@l40s-fleet)
options:
  host:
    description: Inventory name of this host, as the plan has it.
    type: str
    required: true
  instances:
    description: The planned instances of this host, as M(fleet_instances) takes them.
    type: list
    elements: dict
    required: true
    suboptions:
      id:
        description: Name of the instance.
        type: str
        required: true
      config_yaml:
        description: Contents of C(config.yaml).
        type: str
        required: true
      environment:
        description: Contents of the C(environment) file.
        type: str
        required: true
      record:
        description: The instance as the plan has it.
        type: dict
        required: true
      held:
        description: As M(fleet_instances) has it; makes no difference to what is compared.
        type: bool
        default: false
  triton_servers:
    description: The Triton servers that the plan has here, as M(fleet_triton_models) takes them.
    type: list
    elements: dict
    default: []
    suboptions:
      port:
        description: Port of its HTTP.
        type: int
        required: true
      unit:
        description: Contents of its unit file.
        type: str
        default: ""
      models:
        description: Its models, with C(name), C(files) and C(record).
        type: list
        elements: dict
        default: []
  triton_units:
    description: C(units_directory) and C(units_suffix) of M(fleet_triton_models).
    type: dict
    default: {}
  document:
    description: A fresh host document of M(fleet_probe).
    type: dict
    required: true
  engine_api_key:
    description: What the engines ask for.
    type: str
    required: true
  timeout_s:
    description: How long an engine may take for one request, in seconds.
    type: float
    default: 120
  accelerator:
    description: What the engines run on. The plan names the attention backend of a GPU; the CPU build has its own.
    type: str
    choices: [cuda, cpu]
    default: cuda
attributes:
  check_mode:
    description: The module changes nothing, so check mode makes no difference.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
"""

EXAMPLES = r"""
- name: Compare what runs with the plan
  fleet_verify:
    host: "{{ inventory_hostname }}"
    instances: "{{ serving_instances | map('serving_engine_files', **serving_file_options) }}"
    document: "{{ probe_result.host }}"
    engine_api_key: "{{ fleet_engine_api_key }}"
  become: true
  register: verify_host
"""

RETURN = r"""
rows:
  description: The verdict on each instance.
  returned: success
  type: list
  elements: dict
  contains:
    id: {description: Name of the instance., type: str, returned: always}
    model: {description: Name of the model., type: str, returned: always}
    status:
      description: V(ok), V(wrong) (serves, not as planned), V(failed) (does not serve), V(absent) or V(unplanned).
      type: str
      returned: always
    differences:
      description: What is not as planned, with C(what), C(planned), C(observed) and C(fails).
      type: list
      elements: dict
      returned: always
    seen: {description: What was found., type: dict, returned: always}
gpu_indices:
  description: Index of each GPU of the host, by UUID.
  returned: success
  type: dict
"""

from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet.errors import FleetError
from ansible.module_utils.fleet.instance_host import InstanceHost
from ansible.module_utils.fleet.instances import parse_desired
from ansible.module_utils.fleet.observation import observe_host
from ansible.module_utils.fleet.triton_host import TritonHost, TritonPlaces
from ansible.module_utils.fleet.triton_models import parse_servers
from ansible.module_utils.fleet.triton_observation import observe_triton


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "instances": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "id": {"type": "str", "required": True},
                    "config_yaml": {"type": "str", "required": True},
                    "environment": {"type": "str", "required": True},
                    "record": {"type": "dict", "required": True},
                    "held": {"type": "bool", "default": False},
                },
            },
            "triton_servers": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "port": {"type": "int", "required": True},
                    "unit": {"type": "str", "default": ""},
                    "models": {"type": "list", "elements": "dict", "default": []},
                },
            },
            "triton_units": {"type": "dict", "default": {}},
            "document": {"type": "dict", "required": True},
            "engine_api_key": {"type": "str", "required": True, "no_log": True},
            "timeout_s": {"type": "float", "default": 120},
            "accelerator": {"type": "str", "choices": ["cuda", "cpu"], "default": "cuda"},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        rows = observe_host(
            InstanceHost(),
            parse_desired(given["instances"]),
            {one["id"]: one["record"] for one in given["instances"]},
            given["document"],
            inventory_name=given["host"],
            engine_key=given["engine_api_key"],
            timeout_s=given["timeout_s"],
            accelerator=given["accelerator"],
        )
        units = given["triton_units"]
        places = (
            TritonPlaces(units=Path(units["units_directory"]), suffix=units["units_suffix"])
            if units
            else TritonPlaces()
        )
        rows += observe_triton(
            parse_servers(given["triton_servers"]),
            TritonHost(places).observe(),
            given["document"],
            inventory_name=given["host"],
            timeout_s=given["timeout_s"],
        )
    except FleetError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    indices = {gpu["uuid"]: gpu["index"] for gpu in given["document"]["gpus"]}
    module.exit_json(changed=False, rows=[asdict(row) for row in rows], gpu_indices=indices)


if __name__ == "__main__":
    main()
