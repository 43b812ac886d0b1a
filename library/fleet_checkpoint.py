#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of one host: what is missing, and verified checkpoints under their final names."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_checkpoint
short_description: Keeps whole and verified checkpoints in the store of a host
description:
  - A checkpoint is a directory named after the model and the digest of its manifest. It has that name only when every
    file in it has had the right SHA-256.
  - The files themselves are brought by other tasks, into the staging directories that O(state=staged) makes.
version_added: "0.1.0"
options:
  state:
    description:
      - With V(staged), tells which files have to be copied, checks that they fit on the disk, and makes the directories
        that they are to be copied into.
      - With V(present), verifies what was copied and puts it under its final name.
      - With V(pruned), removes the checkpoints of all models that are not in O(known_models).
    type: str
    choices: [staged, present, pruned]
    default: present
  path:
    description: The store.
    type: path
    default: /var/lib/l40s-fleet/models
  checkpoints:
    description: The checkpoints that this host needs.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Name of the model., type: str, required: true}
      digest: {description: SHA-256 of the manifest., type: str, required: true}
      source_path: {description: Directory on the controller., type: path}
      total_bytes: {description: Sum of the files., type: int}
      files:
        description: Size C(bytes) and C(sha256) of each file, by its path in the checkpoint.
        type: dict
        required: true
  known_models:
    description: Names of all models of the inventory, for O(state=pruned).
    type: list
    elements: str
    default: []
  verify:
    description:
      - With V(quick), a file is read only if its size or time of change is not what it was when it was last verified.
      - With V(full), every file is read.
    type: str
    choices: [quick, full]
    default: quick
attributes:
  check_mode:
    description: Says what is missing, wrong or to be removed, and changes nothing.
    support: full
  diff_mode:
    description: Shows the directories that come and go.
    support: full
author: l40s-fleet (@l40s-fleet)
"""

EXAMPLES = r"""
- name: Ask what has to be copied
  fleet_checkpoint:
    state: staged
    checkpoints: "{{ model_store_checkpoints }}"
  register: staged

- name: Copy it
  ansible.builtin.copy:
    src: "{{ item.src }}"
    dest: "{{ item.dest }}"
    mode: "0644"
  loop: "{{ staged.to_copy }}"

- name: Verify and put in place
  fleet_checkpoint:
    checkpoints: "{{ model_store_checkpoints }}"
"""

RETURN = r"""
checkpoints:
  description: The state of each checkpoint before this task.
  returned: with O(state=staged) and O(state=present)
  type: list
  elements: dict
  contains:
    path: {description: Its final name., type: str, returned: always}
    whole: {description: Every file was there and right., type: bool, returned: always}
    missing: {description: Files that were not there., type: list, elements: str, returned: always}
    damaged: {description: Files that were not what they should be., type: list, elements: str, returned: always}
    unexpected: {description: Files that do not belong to it., type: list, elements: str, returned: always}
to_copy:
  description: What has to be copied, each with C(src) on the controller, C(dest) on this host, and C(bytes).
  returned: with O(state=staged)
  type: list
  elements: dict
bytes_to_copy:
  description: The sum of it.
  returned: with O(state=staged)
  type: int
removed:
  description: What was removed, or would be.
  returned: with O(state=present) and O(state=pruned)
  type: list
  elements: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet.checkpoint_store import CheckpointStore, parse_wanted
from ansible.module_utils.fleet.errors import FleetError


def stage(module, store, inspected):
    to_copy = []
    for wanted, state in inspected:
        names = store.to_copy(wanted, state)
        for name in names:
            source, target = f"{wanted.source_path}/{name}", str(store.staging(wanted) / name)
            to_copy.append({"src": source, "dest": target, "bytes": wanted.files[name].bytes})
    total = sum(item["bytes"] for item in to_copy)
    store.check_space(total)
    if not module.check_mode:
        for wanted, state in inspected:
            store.prepare_staging(wanted, store.to_copy(wanted, state))
    return {"changed": bool(to_copy), "to_copy": to_copy, "bytes_to_copy": total}


def complete(module, store, inspected):
    incomplete = [(wanted, state) for wanted, state in inspected if not (state.whole and state.noted)]
    if not module.check_mode:
        for wanted, state in incomplete:
            store.promote(wanted, state)
    leftovers = store.abandoned([wanted for wanted, _ in inspected])
    if not module.check_mode:
        store.remove(leftovers)
    comes = "".join(f"{store.path(wanted)} whole and verified\n" for wanted, _ in incomplete)
    return {
        "changed": bool(incomplete or leftovers),
        "removed": [str(path) for path in leftovers],
        "diff": {"before": "".join(f"{path}\n" for path in leftovers), "after": comes},
    }


def prune(module, store):
    forgotten = store.forgotten(module.params["known_models"])
    if not module.check_mode:
        store.remove(forgotten)
    removed = [str(path) for path in forgotten]
    return {"changed": bool(removed), "removed": removed, "diff": {"before": "\n".join([*removed, ""]), "after": ""}}


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["staged", "present", "pruned"], "default": "present"},
            "path": {"type": "path", "default": "/var/lib/l40s-fleet/models"},
            "checkpoints": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "digest": {"type": "str", "required": True},
                    "source_path": {"type": "path"},
                    "total_bytes": {"type": "int"},
                    "files": {"type": "dict", "required": True},
                },
            },
            "known_models": {"type": "list", "elements": "str", "default": []},
            "verify": {"type": "str", "choices": ["quick", "full"], "default": "quick"},
        },
        supports_check_mode=True,
    )
    store = CheckpointStore(Path(module.params["path"]))
    try:
        if module.params["state"] == "pruned":
            module.exit_json(**prune(module, store))
        full = module.params["verify"] == "full"
        inspected = [
            (wanted, store.inspect(wanted, full=full)) for wanted in parse_wanted(module.params["checkpoints"])
        ]
        result = (stage if module.params["state"] == "staged" else complete)(module, store, inspected)
    except FleetError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    result["checkpoints"] = [
        {
            "path": str(store.path(wanted)),
            "whole": state.whole,
            "missing": list(state.missing),
            "damaged": list(state.damaged),
            "unexpected": list(state.unexpected),
        }
        for wanted, state in inspected
    ]
    module.exit_json(**result)


if __name__ == "__main__":
    main()
