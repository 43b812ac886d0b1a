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
    file in it has had the right SHA-256. Files are shared between checkpoints that have them in common.
  - The files themselves are fetched by M(fleet_checkpoint_fetch).
version_added: "0.1.0"
options:
  state:
    description:
      - With V(inspected), tells which files have to be fetched, and refuses what does not fit on the disk.
      - With V(present), verifies what was fetched and puts it under its final name.
      - With V(forgotten), removes the checkpoints of all models that are not in O(known_models).
      - With V(pruned), removes all checkpoints but those in O(keep).
    type: str
    choices: [inspected, present, forgotten, pruned]
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
      files:
        description: Size C(bytes) and C(sha256) of each file, by its path in the checkpoint.
        type: dict
        required: true
      source_path: {description: Directory on the controller. Not read here., type: path}
      base_url: {description: Where its files are. Not read here., type: str}
      credential: {description: Whose token is needed there. Not read here., type: str}
      total_bytes: {description: Sum of the files., type: int}
  local_directories:
    description: Directories of this host in which files may lie already, with O(state=inspected).
    type: list
    elements: path
    default: []
  clean:
    description: With O(state=present), remove what earlier runs left half-way and none of O(checkpoints) needs.
    type: bool
    default: true
  known_models:
    description: Names of all models of the inventory, for O(state=forgotten).
    type: list
    elements: str
    default: []
  keep:
    description: Names of the directories that stay, for O(state=pruned).
    type: list
    elements: str
    default: []
  verify:
    description:
      - With V(quick), a file is read only if its size, time of change or inode is not what it was when it was last
        verified.
      - With V(sampled), O(sample_bytes) of the checkpoints are read besides, those that are next in turn.
      - With V(full), every file is read.
    type: str
    choices: [quick, sampled, full]
    default: sampled
  sample_bytes:
    description: What O(verify=sampled) reads of all checkpoints together.
    type: int
    default: 268435456
  also_bytes:
    description: What is going to be written to the same disk besides, with O(state=inspected).
    type: int
    default: 0
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
- name: Ask what has to be fetched
  fleet_checkpoint:
    state: inspected
    checkpoints: "{{ model_store_checkpoints }}"
  register: inspected

- name: Verify what was fetched and put it in place
  fleet_checkpoint:
    checkpoints: "{{ model_store_checkpoints }}"

- name: Remove what nothing refers to
  fleet_checkpoint:
    state: pruned
    keep: [llama-3-8b-0123456789ab]
"""

RETURN = r"""
checkpoints:
  description: The state of each checkpoint before this task.
  returned: with O(state=inspected) and O(state=present)
  type: list
  elements: dict
  contains:
    path: {description: Its final name., type: str, returned: always}
    directory: {description: The last part of it., type: str, returned: always}
    whole: {description: Every file was there and right., type: bool, returned: always}
    noted: {description: And the note about it is up to date., type: bool, returned: always}
    origin: {description: It can be had elsewhere than on hosts of the fleet., type: bool, returned: always}
    missing: {description: Files that were not there., type: list, elements: str, returned: always}
    damaged: {description: Files that were not what they should be., type: list, elements: str, returned: always}
    unexpected: {description: Files that do not belong to it., type: list, elements: str, returned: always}
needed:
  description: >-
    The files that have to be fetched: C(sha256), C(bytes), C(have_bytes) of an earlier run, C(model), C(name), and
    C(local), paths on this host that may hold it.
  returned: with O(state=inspected)
  type: list
  elements: dict
settled:
  description: Every checkpoint is whole and noted, and nothing is left of earlier runs.
  returned: with O(state=inspected)
  type: bool
needed_bytes:
  description: The sum of what is still to come.
  returned: with O(state=inspected)
  type: int
removed:
  description: What was removed, or would be.
  returned: with O(state=present), O(state=forgotten) and O(state=pruned)
  type: list
  elements: str
freed_bytes:
  description: What that gives back.
  returned: with O(state=forgotten) and O(state=pruned)
  type: int
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet import checkpoint_prune, checkpoint_samples
from ansible.module_utils.fleet.checkpoint_local import find_local
from ansible.module_utils.fleet.checkpoint_promote import promote
from ansible.module_utils.fleet.checkpoint_store import CheckpointStore, parse_wanted
from ansible.module_utils.fleet.errors import FleetError


def inspect(module, store, inspected):
    needed = store.needed(inspected)
    store.check_space(needed, module.params["also_bytes"])
    local = find_local([Path(path) for path in module.params["local_directories"]], needed)
    items = [{**one.__dict__, "local": [str(path) for path in local.get(one.sha256, [])]} for one in needed]
    whole = all(state.whole and state.noted for _, state in inspected)
    return {
        "changed": False,
        "settled": whole and not checkpoint_prune.leftovers(store),
        "needed": items,
        "needed_bytes": sum(one.bytes - one.have_bytes for one in needed),
    }


def complete(module, store, inspected):
    incomplete = [(wanted, state) for wanted, state in inspected if not (state.whole and state.noted)]
    if not module.check_mode:
        for wanted, state in incomplete:
            promote(store, wanted, state)
    pending = [one.sha256 for one in store.needed(inspected)] if module.check_mode else []
    leftovers = checkpoint_prune.leftovers(store, pending) if module.params["clean"] else []
    if not module.check_mode:
        checkpoint_prune.remove(leftovers)
        checkpoint_prune.remove_empty(store)
    comes = "".join(f"{store.path(wanted)} whole and verified\n" for wanted, _ in incomplete)
    return {
        "changed": bool(incomplete or leftovers),
        "removed": [str(path) for path in leftovers],
        "diff": {"before": "".join(f"{path}\n" for path in leftovers), "after": comes},
    }


def remove(module, store):
    if module.params["state"] == "forgotten":
        going = checkpoint_prune.forgotten(store, module.params["known_models"])
    else:
        going = checkpoint_prune.unreferenced(store, module.params["keep"])
    blobs = checkpoint_prune.loose_blobs(store, going)
    freed = checkpoint_prune.freed_bytes(going, blobs)
    if not module.check_mode:
        checkpoint_prune.remove([*going, *blobs])
        checkpoint_samples.forget(checkpoint_samples.cursor_of(store.root), going)
    removed = [str(path) for path in going]
    diff = {"before": "".join(f"{path}\n" for path in removed), "after": ""}
    return {"changed": bool(going or blobs), "removed": removed, "freed_bytes": freed, "diff": diff}


def run(module):
    store = CheckpointStore(Path(module.params["path"]))
    if module.params["state"] in ("forgotten", "pruned"):
        return remove(module, store)
    items = module.params["checkpoints"]
    inspected = store.inspect_all(
        parse_wanted(items),
        module.params["verify"],
        sample_bytes=module.params["sample_bytes"],
        remember=not module.check_mode,
    )
    result = (inspect if module.params["state"] == "inspected" else complete)(module, store, inspected)
    result["checkpoints"] = [
        {
            "path": str(store.path(wanted)),
            "directory": wanted.directory,
            "whole": state.whole,
            "noted": state.noted,
            "origin": bool(item["source_path"] or item["base_url"]),
            "missing": list(state.missing),
            "damaged": list(state.damaged),
            "unexpected": list(state.unexpected),
        }
        for item, (wanted, state) in zip(items, inspected, strict=True)
    ]
    return result


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["inspected", "present", "forgotten", "pruned"], "default": "present"},
            "path": {"type": "path", "default": "/var/lib/l40s-fleet/models"},
            "checkpoints": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "digest": {"type": "str", "required": True},
                    "files": {"type": "dict", "required": True},
                    "source_path": {"type": "path"},
                    "base_url": {"type": "str"},
                    "credential": {"type": "str"},
                    "total_bytes": {"type": "int"},
                },
            },
            "local_directories": {"type": "list", "elements": "path", "default": []},
            "clean": {"type": "bool", "default": True},
            "known_models": {"type": "list", "elements": "str", "default": []},
            "keep": {"type": "list", "elements": "str", "default": []},
            "verify": {"type": "str", "choices": ["quick", "sampled", "full"], "default": "sampled"},
            "sample_bytes": {"type": "int", "default": 256 << 20},
            "also_bytes": {"type": "int", "default": 0},
        },
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
