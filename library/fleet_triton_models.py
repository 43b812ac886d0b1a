#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Triton servers of one host and the models that each has loaded."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_triton_models
short_description: Makes the Triton servers of a host hold the planned models
description:
  - Writes model repositories and units, starts servers, and has Triton load, reload and unload models through its
    repository API. The other models of a server serve meanwhile.
  - A server is restarted only when its unit is another one. Triton shows the configuration of what it has loaded, so a
    run that was interrupted is finished by the next one.
  - A model whose new files cannot be loaded is put back to those before, and the module fails with Triton's reason.
version_added: "0.1.0"
options:
  servers:
    description: The servers.
    type: list
    elements: dict
    required: true
    suboptions:
      port:
        description: Port of its HTTP. gRPC and metrics have the next two.
        type: int
        required: true
      unit:
        description: Contents of its unit file.
        type: str
        default: ""
      models:
        description:
          - Its models, each with C(name), C(files) (contents by path in the model's directory) and C(record), the
            instance as the plan has it.
        type: list
        elements: dict
        default: []
  state:
    description:
      - With V(present), what is not listed is removed only if it holds a GPU that a listed model or O(needed_gpus)
        needs.
      - With V(pruned), everything that is not listed is removed, and nothing else changes.
    type: str
    choices: [present, pruned]
    default: present
  needed_gpus:
    description: UUIDs of GPUs that engines outside of Triton are about to get.
    type: list
    elements: str
    default: []
  units_directory:
    description: Where unit files lie; that of Quadlet for containers.
    type: path
    default: /etc/systemd/system
  units_suffix:
    description: What unit files end with.
    type: str
    choices: [.service, .container]
    default: .service
  load_timeout_s:
    description: How long a server may take to start, or a model to load, in seconds.
    type: float
    default: 900
attributes:
  check_mode:
    description: Everything is decided and nothing is changed, also on a host on which nothing is installed yet.
    support: full
  diff_mode:
    description: Shows files, units, and what becomes of each model.
    support: full
author: l40s-fleet (@l40s-fleet)
"""

EXAMPLES = r"""
- name: Serve what the plan puts on Triton here
  fleet_triton_models:
    servers:
      - port: 8000
        unit: "{{ lookup('ansible.builtin.template', 'triton.service.j2') }}"
        models:
          - name: chat
            files:
              config.pbtxt: "{{ chat_config }}"
              1/model.json: "{{ chat_arguments | to_json }}"
            record: {id: chat-1, model: chat, port: 8000, shards: [{host: l40s-01, gpus: [GPU-6b1c], rank: 0}]}

- name: Remove what is not listed
  fleet_triton_models:
    state: pruned
    servers: []
"""

RETURN = r"""
servers:
  description: What was done to each server and its models, or would be.
  returned: always
  type: list
  elements: dict
  contains:
    port: {description: Port of its HTTP., type: int, returned: always}
    action: {description: "V(none), V(start), V(restart) or V(remove).", type: str, returned: always}
    reason: {description: Why., type: str, returned: always}
    models:
      description: C(name), C(action) and C(reason) of each model.
      type: list
      elements: dict
      returned: always
failures:
  description: What does not serve as it should, and Triton's reason.
  returned: when something does not
  type: dict
"""

from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet.errors import FleetError
from ansible.module_utils.fleet.triton_host import TritonHost, TritonPlaces
from ansible.module_utils.fleet.triton_models import decide, diff_of, only_removals, parse_servers


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "servers": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "port": {"type": "int", "required": True},
                    "unit": {"type": "str", "default": ""},
                    "models": {"type": "list", "elements": "dict", "default": []},
                },
            },
            "state": {"type": "str", "choices": ["present", "pruned"], "default": "present"},
            "needed_gpus": {"type": "list", "elements": "str", "default": []},
            "units_directory": {"type": "path", "default": "/etc/systemd/system"},
            "units_suffix": {"type": "str", "choices": [".service", ".container"], "default": ".service"},
            "load_timeout_s": {"type": "float", "default": 900},
        },
        supports_check_mode=True,
    )
    given = module.params
    places = TritonPlaces(units=Path(given["units_directory"]), suffix=given["units_suffix"])
    host = TritonHost(places, load_timeout_s=given["load_timeout_s"])
    prune = given["state"] == "pruned"
    try:
        desired = parse_servers(given["servers"])
        found = host.observe()
        steps = decide(desired, found, needed_gpus=frozenset(given["needed_gpus"]), prune=prune)
        if prune:
            steps = only_removals(steps)
        result = {
            "changed": any(step.changes for step in steps),
            "servers": [asdict(step) for step in steps],
            "diff": diff_of(steps, desired, found, str(places.root)),
        }
        if not module.check_mode:
            failures = host.apply(steps, desired, found)
            if failures:
                lines = [f"{where}: {failures[where]}" for where in sorted(failures)]
                module.fail_json(msg="; ".join(lines), failures=failures, **result)
    except FleetError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
