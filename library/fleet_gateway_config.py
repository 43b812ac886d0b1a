#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Puts the gateway's configuration in place, checked as a whole."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_gateway_config
short_description: Put the gateway's configuration in place, checked as a whole
description:
  - Writes a set of files that refer to each other. The whole set is checked in a directory of its own first; a set that
    the check refuses changes nothing.
  - The text C(@REVISION@) in a file is replaced by a digest of the set. With O(revision_url) the module asks the
    running service for the digest it has loaded, and is changed as well when that is another one, so that a reload
    which an interrupted run did not come to is made up for.
author:
  - l40s-fleet
options:
  directory:
    description: Where the files belong.
    type: path
    required: true
  files:
    description: Text by file name.
    type: dict
    default: {}
  secret_files:
    description: Text by file name, of files whose text is not to be shown in a diff.
    type: dict
    default: {}
  mode:
    description: Permission bits of the files.
    type: str
    default: "0640"
  group:
    description: The group that owns the files.
    type: str
  check_command:
    description: The program that judges the set, with arguments. C({directory}) in them becomes the directory to judge.
    type: list
    elements: str
    required: true
  revision_url:
    description: Where the running service shows the revision that it has loaded.
    type: str
attributes:
  check_mode:
    support: full
    description: The set is checked as well, where the program is installed already.
  diff_mode:
    support: full
    description: Files of O(secret_files) are named, and not shown.
"""

EXAMPLES = r"""
- name: Put the gateway's configuration in place
  fleet_gateway_config:
    directory: /etc/haproxy
    group: haproxy
    files:
      haproxy.cfg: "{{ lookup('ansible.builtin.template', 'haproxy.cfg.j2') }}"
    secret_files:
      engine_key.map: "{{ lookup('ansible.builtin.template', 'engine_key.map.j2') }}"
    check_command: [haproxy, -c, -f, "{directory}/haproxy.cfg"]
    revision_url: http://127.0.0.1:8404/revision
  notify: Reload the gateway
"""

RETURN = r"""
revision:
  description: Digest of the wanted set.
  type: str
  returned: success
loaded_revision:
  description: Digest of the set that the running service has loaded.
  type: str
  returned: when the service runs
changed_files:
  description: Names of the files that were not as wanted.
  type: list
  elements: str
  returned: success
"""

import grp
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet import gateway_config
from ansible.module_utils.fleet.errors import FleetError

HIDDEN = "(not shown)\n"


def group_id(module):
    """The group's number; in check mode, before the package that makes the group, there may be none."""
    name = module.params["group"]
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        if module.check_mode:
            return None
        raise FleetError("group", f"{name} does not exist on this host") from error


def difference(config, name, secret):
    """One entry of the diff."""
    path = str(config.directory / name)
    before = gateway_config.current_text(config, name)
    entry = {"before_header": path, "after_header": path, "before": before or "", "after": config.files[name]}
    if secret:
        entry.update(before=HIDDEN if before is not None else "", after="(changed, not shown)\n")
    return entry


def run(module):
    """Compare, check, write."""
    params = module.params
    texts = {**params["files"], **params["secret_files"]}
    config = gateway_config.config_set(Path(params["directory"]), texts, int(params["mode"], 8), group_id(module))
    changed_files = gateway_config.differing_files(config)
    loaded = gateway_config.loaded_revision(params["revision_url"]) if params["revision_url"] else config.revision
    diff = [difference(config, name, name in params["secret_files"]) for name in changed_files]
    if changed_files and (not module.check_mode or shutil.which(params["check_command"][0])):
        gateway_config.check(config, params["check_command"])
    if not module.check_mode:
        gateway_config.install(config, changed_files)
    module.exit_json(
        changed=bool(changed_files) or loaded != config.revision,
        changed_files=changed_files,
        revision=config.revision,
        loaded_revision=loaded,
        diff=diff,
    )


def main():
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "files": {"type": "dict", "default": {}},
            "secret_files": {"type": "dict", "default": {}, "no_log": True},
            "mode": {"type": "str", "default": "0640"},
            "group": {"type": "str"},
            "check_command": {"type": "list", "elements": "str", "required": True},
            "revision_url": {"type": "str"},
        },
        supports_check_mode=True,
    )
    try:
        run(module)
    except FleetError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
