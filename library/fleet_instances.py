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
  - A configuration that is new to an instance is judged by the instance's own engine first, without its GPU. One that
    is refused changes nothing on the host.
  - An instance that does not become healthy gets the files back that it served with before, and is started from them.
    One that never served is stopped.
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
      held:
        description:
          - That it runs on a host as well that was not reached. What is there of it stays, and nobody waits for it.
        type: bool
        default: false
  only:
    description:
      - With O(state=present), what is to be done to other instances than these is left for another call. Their
        configuration is taken to be judged already.
    type: list
    elements: str
  defer:
    description:
      - With O(state=present), what takes a serving instance out of service is left for calls with O(only), and so is
        what has to wait for that. Configurations are judged for all of them.
    type: bool
    default: false
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
    deferred: {description: "Whether it is left for another call.", type: bool, returned: "with O(state=present)"}
    model: {description: "The model that it serves.", type: str, returned: "with O(state=present)"}
    port: {description: "Where it will listen.", type: int, returned: "with O(state=present)"}
    serves: {description: "Whether it answered before.", type: bool, returned: "with O(state=present)"}
    holds: {description: "GPUs and ports before.", type: list, elements: str, returned: "with O(state=present)"}
    needs: {description: "GPUs and ports after.", type: list, elements: str, returned: "with O(state=present)"}
    grows: {description: "Whether its part of a shared GPU grows.", type: bool, returned: "with O(state=present)"}
    spans: {description: "Whether it runs on several hosts.", type: bool, returned: "with O(state=present)"}
failures:
  description: Why an instance is not healthy, or was refused, by its name; in the engine's own words if it said any.
  returned: when there is one
  type: dict
"""

from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet.argument_check import check_arguments
from ansible.module_utils.fleet.errors import FleetError
from ansible.module_utils.fleet.instance_host import InstanceHost, Places
from ansible.module_utils.fleet.instances import Step, decide, diff_of, parse_desired, removals
from ansible.module_utils.fleet.put_back import failure_lines, retreat
from ansible.module_utils.fleet.rolling import describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ansible.module_utils.fleet.instances import Desired


def remove(module: AnsibleModule, host: InstanceHost, ids: list[str], reason: str) -> dict[str, Any]:
    """Removes instances."""
    observed = host.observe()
    steps = removals(ids, reason)
    if not module.check_mode:
        host.apply(steps, observed)
    done = [{"id": step.id, "action": step.action, "reasons": list(step.reasons)} for step in steps]
    return {"changed": bool(steps), "instances": done, "diff": diff_of(steps, observed, str(Places().instances))}


def refuse_unsound(module: AnsibleModule, desired: Sequence[Desired], steps: Sequence[Step]) -> None:
    """Ends the module where the engine does not accept what an instance is about to be started from."""
    judged = {step.id for step in steps if step.reconfigures}
    judgement = check_arguments([one for one in desired if one.id in judged])
    for name, why in judgement.unjudged.items():
        module.warn(f"{name}: its configuration could not be checked before the start: {why}")
    if judgement.refusals:
        names = ", ".join(judgement.refusals)
        msg = f"the engine refuses the configuration of {names}; nothing was changed"
        module.fail_json(msg=msg, failures=judgement.refusals, changed=False)


def make_run(module: AnsibleModule, host: InstanceHost) -> dict[str, Any]:
    """Makes the instances run, or those that this call is about."""
    params = module.params
    desired = parse_desired(params["instances"])
    observed = host.observe()
    digests = {instance.id: host.digest(instance.files) for instance in desired}
    steps = decide(desired, observed, digests, definitions_changed=params["definitions_changed"])
    described = describe(steps, observed, desired)
    if params["only"] is None:
        refuse_unsound(module, desired, steps)
    left = {one["id"] for one in described if params["defer"] and one["deferred"]}
    if params["only"] is not None:
        left = {step.id for step in steps} - set(params["only"])
    now = [step for step in steps if step.id not in left]
    # Check mode tells of all of it.
    told = steps if module.check_mode else now
    result = {
        "changed": any(step.changes for step in told),
        "instances": list(described),
        "diff": diff_of(told, observed, str(Places().instances)),
    }
    if module.check_mode:
        return result
    host.apply(now, observed)
    waited = [one for one in desired if one.id not in left]
    failures = host.wait(waited, now, observed, params["start_timeout_s"])
    host.settle([one.id for one in waited if one.id not in failures and not one.held])
    if failures:
        choice = retreat(failures, now, observed, desired)
        host.give_up(sorted(choice.given_up))
        found = host.put_back(choice.put_back)
        started = [Step(one.id, "restart") for one in choice.put_back]
        still_failing = host.wait(choice.put_back, started, found, params["start_timeout_s"])
        host.settle([one.id for one in choice.put_back if one.id not in still_failing])
        # Ansible prints the message twice, so the engine's own words stand beside it.
        msg = "; ".join(failure_lines(failures, choice, still_failing))
        module.fail_json(msg=msg, failures=failures, changed=result["changed"], diff=result["diff"])
    return result


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
                    "held": {"type": "bool", "default": False},
                },
            },
            "only": {"type": "list", "elements": "str"},
            "defer": {"type": "bool", "default": False},
            "definitions_changed": {"type": "bool", "default": False},
            "start_timeout_s": {"type": "float", "default": 900},
        },
        mutually_exclusive=[("only", "defer")],
        supports_check_mode=True,
    )
    host = InstanceHost()
    try:
        if module.params["state"] == "present":
            result = make_run(module, host)
        else:
            listed = {one.id for one in parse_desired(module.params["instances"])}
            there = set(host.observe())
            pruned = module.params["state"] == "pruned"
            ids = sorted(there - listed if pruned else there & listed)
            result = remove(module, host, ids, "is not in the plan" if pruned else "is to be absent")
    except FleetError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
