#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Instances of one host: files, units, start, health."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_instances
short_description: Makes the planned vLLM instances of a host run
description:
  - Writes the files of each instance, enables and starts its C(vllm@ID.service), restarts it where what runs is not
    what is configured, and waits until all of them answer their health checks.
  - Each unit writes down what it was started from, so that a run that was interrupted is finished by the next one.
version_added: "0.1.0"
options:
  state:
    description:
      - With V(present), the listed instances run and are healthy. An instance that is not listed is removed only if it
        holds a GPU or a port that a listed one needs.
      - With V(pruned), every instance that is not listed is removed.
      - With V(absent), every instance that is listed is removed.
      - An instance that is removed leaves nothing behind, neither files nor caches nor a failed unit.
    type: str
    choices: [present, pruned, absent]
    default: present
  instances:
    description: The instances. With O(state=pruned) and O(state=absent) only their O(instances[].id) matter.
    type: list
    elements: dict
    required: true
    suboptions:
      id:
        description: Name of the instance.
        type: str
        required: true
      config_yaml:
        description: Contents of C(config.yaml), which C(vllm serve --config) reads.
        type: str
        default: ""
      environment:
        description:
          - Contents of the C(environment) file of the unit. C(FLEET_ENGINE_DIRECTORY) in it chooses the engine.
        type: str
        default: ""
      record:
        description: The instance as the plan has it. Its C(shards) and C(port) say what the instance holds.
        type: dict
        default: {}
  definitions_changed:
    description: In check mode, that the unit or the engines' key would have changed, so that every instance restarts.
    type: bool
    default: false
  start_timeout_s:
    description: How long an engine may take to become healthy, in seconds.
    type: float
    default: 900
attributes:
  check_mode:
    description: Everything is decided and nothing is changed, also on a host on which nothing is installed yet.
    support: full
  diff_mode:
    description: Shows files, and what becomes of each unit.
    support: full
author: l40s-fleet (@l40s-fleet)
"""

EXAMPLES = r"""
- name: Run one instance
  fleet_instances:
    instances:
      - id: chat-1
        config_yaml: |
          model: /var/lib/l40s-fleet/models/chat-0123456789ab
          port: 8100
        environment: |
          FLEET_ENGINE_DIRECTORY=/opt/vllm/0.33.0
          CUDA_VISIBLE_DEVICES=GPU-6b1c
        record: {id: chat-1, port: 8100, shards: [{host: l40s-01, gpus: [GPU-6b1c], rank: 0}]}

- name: Remove every other instance
  fleet_instances:
    state: pruned
    instances:
      - id: chat-1
"""

RETURN = r"""
instances:
  description: What was done to each instance, or would be.
  returned: always
  type: list
  elements: dict
  contains:
    id: {description: Name of the instance., type: str, returned: always}
    action: {description: "V(none), V(start), V(restart) or V(remove).", type: str, returned: always}
    reasons: {description: Why., type: list, elements: str, returned: always}
failures:
  description: Why an instance is not healthy, by its name; in the engine's own words where it said any.
  returned: when an instance is not healthy
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet.errors import FleetError
from ansible.module_utils.fleet.instance_host import InstanceHost, Places
from ansible.module_utils.fleet.instances import decide, diff_of, parse_desired, removals


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "pruned", "absent"], "default": "present"},
            "instances": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "id": {"type": "str", "required": True},
                    "config_yaml": {"type": "str", "default": ""},
                    "environment": {"type": "str", "default": ""},
                    "record": {"type": "dict", "default": {}},
                },
            },
            "definitions_changed": {"type": "bool", "default": False},
            "start_timeout_s": {"type": "float", "default": 900},
        },
        supports_check_mode=True,
    )
    places = Places()
    host = InstanceHost(places)
    state = module.params["state"]
    try:
        desired = parse_desired(module.params["instances"])
        observed = host.observe()
        listed = {instance.id for instance in desired}
        if state == "present":
            digests = {instance.id: host.digest(instance.files) for instance in desired}
            steps = decide(desired, observed, digests, definitions_changed=module.params["definitions_changed"])
        elif state == "pruned":
            steps = removals(sorted(set(observed) - listed), "is not in the plan")
        else:
            steps = removals(sorted(set(observed) & listed), "is to be absent")
        result = {
            "changed": any(step.changes for step in steps),
            "instances": [{"id": step.id, "action": step.action, "reasons": list(step.reasons)} for step in steps],
            "diff": diff_of(steps, observed, str(places.instances)),
        }
        if not module.check_mode:
            host.apply(steps, observed)
            if state == "present":
                failures = host.wait(desired, steps, observed, module.params["start_timeout_s"])
                if failures:
                    lines = [f"vllm@{name}.service {failures[name]}" for name in sorted(failures)]
                    module.fail_json(msg="; ".join(lines), failures=failures, **result)
    except FleetError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
