#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Compares what a gateway answers with the plan."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_verify_gateway
short_description: Compare what a gateway answers with the plan
description:
  - Has every model answer one real request under each of its names, and compares the list of models with the plan.
  - A wrong key must be answered with 401 and an unknown model with 404.
  - Changes nothing. Differences are returned, they are not a failure of the module.
version_added: "0.1.0"
author: l40s-fleet (@l40s-fleet)
options:
  url:
    description: The gateway, as this host reaches it.
    type: str
    required: true
  routes:
    description: The models and where they are served, as the gateway role takes them.
    type: list
    elements: dict
    required: true
  client_key:
    description: A client's key. Without one, no model can be asked for.
    type: str
  timeout_s:
    description: How long one request may take, in seconds.
    type: float
    default: 120
  settle_s:
    description: How long the answer 503 is waited out, in seconds, until the gateway has seen that an engine is back.
    type: float
    default: 10
attributes:
  check_mode:
    description: The module changes nothing, so check mode makes no difference.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
"""

EXAMPLES = r"""
- name: Ask for every model
  fleet_verify_gateway:
    url: http://127.0.0.1:8080
    routes: "{{ gateway_routes }}"
    client_key: "{{ fleet_client_keys[0].key }}"
  delegate_to: gw-01
"""

RETURN = r"""
findings:
  description: Each question with C(what) it was, the C(model), the C(problem) (empty if none) and C(seconds).
  returned: success
  type: list
  elements: dict
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet.gateway_check import check_gateway
from ansible.module_utils.fleet.openai_client import Server

UNKNOWN_KEY = "a-key-that-no-client-has"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "routes": {"type": "list", "elements": "dict", "required": True},
            "client_key": {"type": "str", "no_log": True},
            "timeout_s": {"type": "float", "default": 120},
            "settle_s": {"type": "float", "default": 10},
        },
        supports_check_mode=True,
    )
    given = module.params
    url, timeout_s = given["url"], given["timeout_s"]
    client = Server(url, given["client_key"], timeout_s) if given["client_key"] else None
    findings = check_gateway(given["routes"], client, Server(url, UNKNOWN_KEY, timeout_s), settle_s=given["settle_s"])
    module.exit_json(changed=False, findings=[asdict(finding) for finding in findings])


if __name__ == "__main__":
    main()
