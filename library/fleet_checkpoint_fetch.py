#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Files of checkpoints, fetched by a service of the host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_checkpoint_fetch
short_description: Fetches files of checkpoints into the store of a host
description:
  - A service of the host fetches them, so that a lost connection to the controller ends nothing and the next run finds
    it further on. Files that are there in part are continued.
  - An action plugin of the same name, in the role C(model_store), starts it, brings files that lie on the controller,
    and shows how far it is while it runs. What is fetched counts when M(fleet_checkpoint) has verified it.
version_added: "0.1.0"
options:
  state:
    description:
      - V(started) starts the service, V(polled) tells how far it is, V(stopped) ends it. V(receiving) prepares the
        store for files from the controller. The action plugin goes through them.
    type: str
    choices: [started, polled, stopped, receiving]
    default: started
  path:
    description: The store.
    type: path
    default: /var/lib/l40s-fleet/models
  files:
    description: The files.
    type: list
    elements: dict
    default: []
    suboptions:
      sha256: {description: SHA-256 of the file., type: str, required: true}
      bytes: {description: Its size., type: int, required: true}
      have_bytes: {description: What of it is there., type: int, default: 0}
      label: {description: Checkpoint and file name., type: str, required: true}
      source_path: {description: The file on the controller. Only the action plugin reads it., type: str, default: ""}
      locations:
        description: Where it can be had, the best first, each a list of URL and the name of the token for it.
        type: list
        elements: list
        default: []
  tokens:
    description: Tokens by name.
    type: dict
    default: {}
  proxy:
    description: Proxy for everything but hosts of the fleet.
    type: str
    default: ""
  certificate:
    description: PEM of the certificate that hosts of the fleet show in this run.
    type: str
    default: ""
  parallel:
    description: Files at a time.
    type: int
    default: 4
  stall_s:
    description: Seconds of silence after which a connection is opened anew.
    type: int
    default: 60
  fetch_on:
    description: With V(controller), the controller fetches and copies, for hosts that have no way out.
    type: str
    choices: [host, controller]
    default: host
  cache_dir:
    description: Where the controller keeps what it fetches for hosts.
    type: path
    default: ~/.cache/l40s-fleet
attributes:
  check_mode:
    description: Tells how much would be fetched.
    support: full
author: l40s-fleet (@l40s-fleet)
"""

EXAMPLES = r"""
- name: Fetch
  fleet_checkpoint_fetch:
    files:
      - sha256: 0d1f...
        bytes: 4976698672
        label: llama-3-8b/model-00001-of-00004.safetensors
        locations: [["https://huggingface.co/org/name/resolve/COMMIT/model-00001-of-00004.safetensors", hub]]
    tokens: {hub: "{{ fleet_hub_token }}"}
"""

RETURN = r"""
fetch:
  description: How far it is, C(state), C(bytes), C(total_bytes), C(bytes_per_s) and C(error).
  returned: with O(state=polled)
  type: dict
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet.checkpoint_store import CheckpointStore
from ansible.module_utils.fleet.errors import FleetError
from ansible.module_utils.fleet.fetch_host import poll_fetch, start_fetch, stop_fetch
from ansible.module_utils.fleet.fetch_http import Patience
from ansible.module_utils.fleet.fetch_job import Job, job_files


def job_of(params, store):
    return Job(
        directory=str(store.root / ".incoming"),
        files=job_files(params["files"]),
        tokens=params["tokens"],
        proxy=params["proxy"],
        certificate=params["certificate"],
        parallel=params["parallel"],
        patience=Patience(stall_s=params["stall_s"]),
    )


def run(module):
    params = module.params
    store = CheckpointStore(Path(params["path"]))
    if params["state"] == "polled":
        return {"changed": False, "fetch": poll_fetch()}
    if module.check_mode:
        return {"changed": bool(params["files"])}
    if params["state"] == "stopped":
        stop_fetch()
        return {"changed": True}
    if params["state"] == "receiving":
        store.prepare_incoming()
        return {"changed": True}
    return {"changed": start_fetch(store, job_of(params, store))}


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["started", "polled", "stopped", "receiving"], "default": "started"},
            "path": {"type": "path", "default": "/var/lib/l40s-fleet/models"},
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "sha256": {"type": "str", "required": True},
                    "bytes": {"type": "int", "required": True},
                    "have_bytes": {"type": "int", "default": 0},
                    "label": {"type": "str", "required": True},
                    "source_path": {"type": "str", "default": ""},
                    "locations": {"type": "list", "elements": "list", "default": []},
                },
            },
            "tokens": {"type": "dict", "default": {}, "no_log": True},
            "proxy": {"type": "str", "default": "", "no_log": True},
            "certificate": {"type": "str", "default": ""},
            "parallel": {"type": "int", "default": 4},
            "stall_s": {"type": "int", "default": 60},
            "fetch_on": {"type": "str", "choices": ["host", "controller"], "default": "host"},
            "cache_dir": {"type": "path", "default": "~/.cache/l40s-fleet"},
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
