#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Tests the links between the GPUs of a host with the engine's own torch and NCCL."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_link_test
short_description: Test the links between the GPUs of a host
description:
  - Writes and verifies data on every GPU and between every pair of GPUs, and measures all-reduce over 2, 4 and 8 GPUs.
    Each step runs in processes of its own that are killed, with all that they started, when they hang.
  - The result is kept on the host with the driver and the topology that it belongs to. While those stay, and all GPUs
    have been tested, the module does nothing.
  - It never runs beside a serving instance or another process on a GPU.
version_added: "0.1.0"
author:
  - l40s-fleet maintainers (@l40s-fleet)
options:
  document:
    description: The host document, as M(fleet_probe) returned it.
    type: dict
    required: true
  engine_directory:
    description: The engine whose Python has torch and NCCL, such as C(/opt/vllm/0.33.0). Its last part is the version.
    type: path
    required: true
  backend:
    description:
      - How processes talk to each other. C(gloo) runs the same steps on CPUs. Its result is marked as simulated, and
        its rates are not used by the plan.
    type: str
    choices: [nccl, gloo]
    default: nccl
  force:
    description: Test again, whatever is kept.
    type: bool
    default: false
  required:
    description: Fail where no test can be made now. Otherwise the module says why in C(refusal) and does nothing.
    type: bool
    default: true
  timeout_s:
    description: Seconds that a GPU or a pair may take; a group may take twice as long.
    type: float
    default: 60
  largest_bytes:
    description: Largest size of the all-reduce curve.
    type: int
    default: 268435456
  result_path:
    description: Where the result is kept.
    type: path
    default: /var/lib/l40s-fleet/link_test.json
  sysfs_root:
    description: Where sysfs is mounted.
    type: path
    default: /sys
  simulated_hangs:
    description: GPUs, pairs and groups that are made to hang, by indices such as C(0-1), to see the time-out.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Says whether a test is due, and runs none.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
"""

EXAMPLES = r"""
- name: Test the links
  fleet_link_test:
    document: "{{ probe_result.host }}"
    engine_directory: /opt/vllm/0.33.0
  register: link_test

- name: Name the pairs that must not share a model
  ansible.builtin.debug:
    msg: "{{ link_test.result.pairs | selectattr('p2p', 'equalto', 'failed') }}"
"""

RETURN = r"""
ran:
  description: A test was made in this call.
  returned: success
  type: bool
result:
  description:
    - What is kept. C(gpus), C(pairs) and C(groups) each have a C(reason) or C(failure) where they failed.
    - Null in check mode, where a test is due, and where none could be made.
  returned: success
  type: dict
  sample:
    schema: 1
    key: 6f1c0f0e2a3b4c5d
    driver_version: 580.95.05
    engine: 0.33.0
    backend: nccl
    simulated: false
    gpus: [{uuid: GPU-a, status: verified, reason: null, host_bytes_per_s: 24800000000.0, link_generation: 4}]
    pairs:
      - {a: GPU-a, b: GPU-b, p2p: failed, reason: "no answer within 60 s: it hangs", bytes_per_s: null}
    groups: [{gpus: 2, uuids: [GPU-a, GPU-c], failure: null}]
    all_reduce: [{gpus: 2, bytes: 1024, seconds: 0.00002}]
refusal:
  description: Why no test could be made, where none is required.
  returned: when there is a reason
  type: str
msg:
  description: Why no test could be made.
  returned: failure
  type: str
"""

import pkgutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet import link_worker
from ansible.module_utils.fleet.link_runner import Engine
from ansible.module_utils.fleet.link_test import (
    Settings,
    gpus_to_test,
    read_kept,
    run_link_test,
    why_not_now,
    write_kept,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "document": {"type": "dict", "required": True},
            "engine_directory": {"type": "path", "required": True},
            "backend": {"type": "str", "choices": ["nccl", "gloo"], "default": "nccl"},
            "force": {"type": "bool", "default": False},
            "required": {"type": "bool", "default": True},
            "timeout_s": {"type": "float", "default": 60},
            "largest_bytes": {"type": "int", "default": 268435456},
            "result_path": {"type": "path", "default": "/var/lib/l40s-fleet/link_test.json"},
            "sysfs_root": {"type": "path", "default": "/sys"},
            "simulated_hangs": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    given = module.params
    document, path = given["document"], Path(given["result_path"])
    kept = read_kept(path, document["topology_key"], gpus_to_test(document), given["backend"])
    if kept is not None and not given["force"]:
        module.exit_json(changed=False, ran=False, result=kept)
    engine = Path(given["engine_directory"])
    refusal = why_not_now(document)
    # A check run comes before the engines do.
    if refusal is None and not module.check_mode and not (engine / "bin/python").exists():
        refusal = f"{engine}: no engine is installed there"
    if refusal is not None and given["required"]:
        module.fail_json(msg=f"link test: {refusal}")
    if refusal is not None:
        module.exit_json(changed=False, ran=False, result=None, refusal=refusal)
    if module.check_mode:
        module.exit_json(changed=True, ran=False, result=None)
    # Ansible ships the core in an archive: the worker's text is handed to the engine's Python as it is.
    program = pkgutil.get_data(link_worker.__package__, "link_worker.py").decode()
    settings = Settings(
        engine_version=engine.name,
        largest_bytes=given["largest_bytes"],
        timeout_s=given["timeout_s"],
        sysfs=Path(given["sysfs_root"]),
        hangs=tuple(given["simulated_hangs"]),
    )
    try:
        result = run_link_test(document, Engine(str(engine / "bin/python"), program, given["backend"]), settings)
        write_kept(path, result)
    except OSError as error:
        module.fail_json(msg=f"link test: {error.filename or engine}: {error.strerror or error}")
    module.exit_json(changed=True, ran=True, result=result)


if __name__ == "__main__":
    main()
