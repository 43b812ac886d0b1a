#!/usr/bin/python
"""Judges all hosts before the first change to any of them."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_preflight
short_description: Stop before any change where a host would make a later stage fail
description:
  - Runs once, on the controller, over what C(playbooks/files/preflight.sh) printed on each host.
  - Fails with one line for each thing that stops a later stage. Hosts that could not be reached are listed as left out
    and are no failure.
version_added: "0.1.0"
author:
  - l40s-fleet maintainers (@l40s-fleet)
options:
  hosts:
    description: What the script printed, by host. Null, or missing though in O(expected_hosts), for an unreachable one.
    type: dict
    required: true
  expected_hosts:
    description: All hosts that were asked. The default is those in O(hosts).
    type: list
    elements: str
    default: []
  become_password_hosts:
    description: Hosts for which Ansible was given a password for sudo. The script cannot try it.
    type: list
    elements: str
    default: []
  engine_hosts:
    description: Hosts that get an engine. The default is all.
    type: list
    elements: str
  systems:
    description: Supported systems, a list of versions by the ID of /etc/os-release. The default is the documented list.
    type: dict
  min_free_bytes:
    description: Free bytes that every host needs, by path. What is not named keeps its default.
    type: dict
    default: {}
  engine_min_free_bytes:
    description: Free bytes that a host with an engine needs, by path. What is not named keeps its default.
    type: dict
    default: {}
  engine_version:
    description: The version of vLLM that hosts get; where it is installed already, it needs no further space.
    type: str
    default: ""
  min_memory_bytes:
    description: Memory that a host needs.
    type: int
    default: 2147483648
  drivers:
    description:
      - What the role C(nvidia_driver) is to do, and for which engine, by host. Hosts that are not named need no driver.
    type: dict
    default: {}
  documents:
    description:
      - Host documents of M(fleet_probe), by host. What they find degraded becomes rows of the table; GPUs that must not
        be used are left out of the plan and stop nothing.
    type: dict
    default: {}
  engine_port_base:
    description: The first port that an engine may listen on.
    type: int
    default: 8100
  engine_ports:
    description: How many ports from there on belong to engines.
    type: int
    default: 100
attributes:
  check_mode:
    description: The module changes nothing, so check mode makes no difference.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
"""

EXAMPLES = r"""
- name: Look at each host without needing anything on it
  ansible.builtin.raw: "{{ lookup('ansible.builtin.file', 'preflight.sh') }}"
  become: false
  check_mode: false
  changed_when: false
  register: preflight_facts

- name: Stop before any change where a later stage would fail
  fleet_preflight:
    hosts: "{{ groups['fleet'] | fleet_extract(hostvars, 'preflight_facts', 'stdout') }}"
    expected_hosts: "{{ groups['fleet'] }}"
    engine_hosts: "{{ groups['gpu_hosts'] }}"
  delegate_to: localhost
  become: false
  run_once: true
"""

RETURN = r"""
rows:
  description: What every check said on every host.
  returned: success
  type: list
  elements: dict
  sample:
    - host: l40s-02
      name: sudo
      status: blocked
      evidence: user ops cannot run sudo without a password
      remedy: add a NOPASSWD rule or give ansible_become_password
table:
  description: The rows as text, one line for a host where all is well.
  returned: always
  type: str
msg:
  description: One line for each thing that stops a later stage.
  returned: failure
  type: str
left_out:
  description: Hosts that could not be reached.
  returned: always
  type: list
  elements: str
"""

import time
from dataclasses import asdict, replace

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet.errors import FleetError
from ansible.module_utils.fleet.preflight import Requirements, judge, table
from ansible.module_utils.fleet.preflight_driver import judge_drivers
from ansible.module_utils.fleet.preflight_probe import judge_documents


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "hosts": {"type": "dict", "required": True},
            "expected_hosts": {"type": "list", "elements": "str", "default": []},
            "become_password_hosts": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "engine_hosts": {"type": "list", "elements": "str"},
            "systems": {"type": "dict"},
            "min_free_bytes": {"type": "dict", "default": {}},
            "engine_min_free_bytes": {"type": "dict", "default": {}},
            "engine_version": {"type": "str", "default": ""},
            "min_memory_bytes": {"type": "int", "default": 2147483648},
            "drivers": {"type": "dict", "default": {}},
            "documents": {"type": "dict", "default": {}},
            "engine_port_base": {"type": "int", "default": 8100},
            "engine_ports": {"type": "int", "default": 100},
        },
        supports_check_mode=True,
    )
    given = module.params
    default = Requirements()
    required = Requirements(
        systems=default.systems if given["systems"] is None else given["systems"],
        memory_bytes=given["min_memory_bytes"],
        free_bytes={**default.free_bytes, **_counts(module, "min_free_bytes")},
        engine_free_bytes={**default.engine_free_bytes, **_counts(module, "engine_min_free_bytes")},
        engine_version=given["engine_version"],
    )
    first_port = given["engine_port_base"]
    required = replace(
        required, engine_ports=range(first_port, first_port + given["engine_ports"]), clock_s=time.time()
    )
    texts = {host: given["hosts"].get(host) for host in [*given["expected_hosts"], *given["hosts"]]}
    rows = judge(
        texts, required, become_password_hosts=given["become_password_hosts"], engine_hosts=given["engine_hosts"]
    )
    try:
        rows += judge_drivers(texts, given["drivers"])
        rows += judge_documents(given["documents"])
    except FleetError as error:
        module.fail_json(msg=str(error))
    stopped = [row.line() for row in rows if row.status == "blocked"]
    shown = {"table": table(rows), "left_out": [row.host for row in rows if row.status == "unreachable"]}
    if stopped:
        # Ansible prints all of a failed result, so the rows stay out: the message has those that matter.
        module.fail_json(msg="\n".join(stopped), **shown)
    module.exit_json(changed=False, rows=[asdict(row) for row in rows], **shown)


def _counts(module: AnsibleModule, option: str) -> dict[str, int]:
    try:
        return {path: int(count) for path, count in module.params[option].items()}
    except (TypeError, ValueError):
        module.fail_json(msg=f"{option}: must hold a number of bytes for each path")


if __name__ == "__main__":
    main()
