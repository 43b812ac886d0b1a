#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of one host, served to the others for as long as they copy."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_checkpoint_serve
short_description: Serves checkpoints to other hosts of the fleet
description:
  - Files are served over HTTPS on one address to who presents O(token). Token and certificate are made for one run.
  - The service ends by itself when nobody has asked for anything for O(idle_s), so that a run that was killed leaves no
    server behind.
version_added: "0.1.0"
options:
  state:
    description: V(started) serves, V(stopped) ends it.
    type: str
    choices: [started, stopped]
    default: started
  path:
    description: The store.
    type: path
    default: /var/lib/l40s-fleet/models
  directories:
    description: Names of the checkpoints that are served.
    type: list
    elements: str
    default: []
  address:
    description: Where it listens.
    type: str
    default: ""
  port:
    description: The port.
    type: int
    default: 8099
  token:
    description: What a request has to present.
    type: str
    default: ""
  certificate:
    description: PEM of certificate and key.
    type: str
    default: ""
  idle_s:
    description: Seconds without a request after which it ends.
    type: int
    default: 600
attributes:
  check_mode:
    description: Nothing is served.
    support: full
author: l40s-fleet (@l40s-fleet)
"""

EXAMPLES = r"""
- name: Serve one checkpoint
  fleet_checkpoint_serve:
    directories: [llama-3-8b-0123456789ab]
    address: "{{ fleet_address }}"
    token: "{{ peer.token }}"
    certificate: "{{ peer.certificate ~ peer.key }}"
"""

RETURN = r""" # """

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet.checkpoint_store import CheckpointStore
from ansible.module_utils.fleet.errors import FleetError
from ansible.module_utils.fleet.fetch_host import start_serving, stop_serving


def run(module):
    params = module.params
    if module.check_mode:
        return {"changed": False}
    if params["state"] == "stopped":
        return {"changed": stop_serving()}
    settings = {name: params[name] for name in ("address", "port", "token", "idle_s")}
    start_serving(CheckpointStore(Path(params["path"])), params["directories"], settings, params["certificate"])
    return {"changed": True}


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["started", "stopped"], "default": "started"},
            "path": {"type": "path", "default": "/var/lib/l40s-fleet/models"},
            "directories": {"type": "list", "elements": "str", "default": []},
            "address": {"type": "str", "default": ""},
            "port": {"type": "int", "default": 8099},
            "token": {"type": "str", "default": "", "no_log": True},
            "certificate": {"type": "str", "default": "", "no_log": True},
            "idle_s": {"type": "int", "default": 600},
        },
        required_if=[("state", "started", ("address", "token", "certificate"))],
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except FleetError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
