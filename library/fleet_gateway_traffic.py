#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Takes instances out of the traffic of a gateway and puts them back."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_gateway_traffic
short_description: Takes instances out of the traffic of a gateway and puts them back
description:
  - Speaks to the admin socket of the HAProxy that runs on this host. A host on which none runs is left alone.
  - A reload or a restart of HAProxy forgets what was taken out.
version_added: "0.1.0"
options:
  state:
    description:
      - With V(drained), no further request is sent to the instances, and the module waits until those that they have
        are answered. An instance that is the only one of its model that is up stays in traffic.
      - With V(ready), instances that this module took out get requests again as soon as their health checks pass, and
        the module waits until they do.
    type: str
    choices: [drained, ready]
    required: true
  instances:
    description: The instances and the ports on which they listen. Without it, O(state=ready) is for all.
    type: list
    elements: dict
    suboptions:
      id: {description: Name of the instance., type: str, required: true}
      port: {description: Where it listens now. V(0) is where the gateway knows it., type: int, default: 0}
  timeout_s:
    description: How long to wait, in seconds.
    type: float
    default: 15
  admin_socket:
    description: The admin socket of HAProxy.
    type: path
    default: /run/haproxy/admin.sock
attributes:
  check_mode:
    description: Says what would be taken out or put back.
    support: full
  diff_mode:
    description: There are no files to show.
    support: none
author: l40s-fleet (@l40s-fleet)
"""

EXAMPLES = r"""
- name: Send no more requests to an instance
  fleet_gateway_traffic:
    state: drained
    instances: [{id: chat-1, port: 8100}]
    timeout_s: 30

- name: Put back whatever an interrupted run has left out
  fleet_gateway_traffic:
    state: ready
"""

RETURN = r"""
servers:
  description: The instances that were taken out or put back, or would be.
  returned: success
  type: list
  elements: str
last:
  description: The instances that stayed in traffic, since no other one serves their model.
  returned: success
  type: list
  elements: str
waiting:
  description: Drained instances that still have requests, or instances whose health checks do not pass yet.
  returned: success
  type: list
  elements: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet.errors import FleetError
from ansible.module_utils.fleet.gateway_traffic import Traffic


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["drained", "ready"], "required": True},
            "instances": {
                "type": "list",
                "elements": "dict",
                "options": {"id": {"type": "str", "required": True}, "port": {"type": "int", "default": 0}},
            },
            "timeout_s": {"type": "float", "default": 15},
            "admin_socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
        },
        required_if=[("state", "drained", ["instances"])],
        supports_check_mode=True,
    )
    given, dry = module.params, module.check_mode
    traffic = Traffic(Path(given["admin_socket"]))
    ports = None if given["instances"] is None else {one["id"]: one["port"] for one in given["instances"]}
    try:
        if given["state"] == "drained":
            outcome = traffic.drain(list(ports), given["timeout_s"], dry=dry)
        else:
            outcome = traffic.restore(ports, given["timeout_s"], dry=dry)
    except FleetError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{given['admin_socket']}: {error.strerror or error}")
    module.exit_json(
        changed=bool(outcome.changed),
        servers=list(outcome.changed),
        last=list(outcome.last),
        waiting=list(outcome.waiting),
    )


if __name__ == "__main__":
    main()
