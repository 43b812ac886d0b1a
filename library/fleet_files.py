#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Keeps several text files as they should be, in one step a host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_files
short_description: Keep several text files as they should be
description:
  - Writes what differs and leaves the rest. Every file is replaced in one step: a reader sees the old or the new.
  - Files that have a check are judged before any file is written; a check that fails changes nothing.
version_added: "0.1.0"
author:
  - l40s-fleet maintainers (@l40s-fleet)
options:
  files:
    description: Text by absolute path. Directories above a file are made.
    type: dict
    required: true
  absent:
    description: Files that must not be there.
    type: list
    elements: path
    default: []
  executable:
    description: Paths in O(files) whose mode is C(0755); that of the others is C(0644). The owner is root.
    type: list
    elements: path
    default: []
  checks:
    description:
      - A command by path in O(files), as a list of words. C({path}) in it becomes a file with the new text.
      - In check mode a command that is not installed yet is left out.
    type: dict
    default: {}
attributes:
  check_mode:
    description: Says what would change, and runs the checks.
    support: full
  diff_mode:
    description: Shows every file before and after.
    support: full
"""

EXAMPLES = r"""
- name: Install the firewall's rules and the unit that loads them
  fleet_files:
    files:
      /etc/l40s-fleet/firewall.nft: "{{ lookup('ansible.builtin.template', 'firewall.nft.j2') }}"
      /etc/systemd/system/l40s-fleet-firewall.service: "{{ lookup('ansible.builtin.file', 'firewall.service') }}"
    checks:
      /etc/l40s-fleet/firewall.nft: [nft, --check, --file, "{path}"]
"""

RETURN = r"""
changed_files:
  description: Paths that were not as wanted, in the order of their names.
  returned: success
  type: list
  elements: str
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

CHECK_TIMEOUT_S = 60


class BriefModule(AnsibleModule):
    """A module that does not write its arguments to the journal, which has no use for whole files."""

    def _log_invocation(self):
        self.log(f"Invoked with files={sorted(self.params['files'])} absent={self.params['absent']}")


def current(path):
    """The text and the mode of a file, or None without one."""
    try:
        return path.read_text(encoding="utf-8"), path.stat().st_mode & 0o7777
    except FileNotFoundError:
        return None


def refusal(command, path, text, *, check_mode):
    """Why the check refuses the text, as one line; None when it accepts it."""
    if check_mode and shutil.which(command[0]) is None:
        return None
    with tempfile.TemporaryDirectory() as directory:
        trial = Path(directory) / path.name
        trial.write_text(text, encoding="utf-8")
        words = [word.replace("{path}", str(trial)) for word in command]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=CHECK_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    if done.returncode == 0:
        return None
    lines = (done.stderr or done.stdout).strip().replace(str(trial), str(path)).splitlines()
    return lines[0] if lines else f"{command[0]} ended with status {done.returncode}"


def write(path, text, mode):
    """Replaces a file."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    Path(temporary).replace(path)


def main():
    module = BriefModule(
        argument_spec={
            "files": {"type": "dict", "required": True},
            "absent": {"type": "list", "elements": "path", "default": []},
            "executable": {"type": "list", "elements": "path", "default": []},
            "checks": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    given = module.params
    strange = [path for path in given["files"] if not path.startswith("/")]
    strange += [path for name in ("executable", "checks") for path in given[name] if path not in given["files"]]
    if strange:
        module.fail_json(msg=f"files: {strange[0]}: must be an absolute path that files holds")
    wanted = {
        Path(path): (text, 0o755 if path in given["executable"] else 0o644) for path, text in given["files"].items()
    }
    try:
        before = {path: current(path) for path in [*wanted, *map(Path, given["absent"])]}
        changed = sorted(path for path, now in before.items() if now != wanted.get(path))
        for path in changed:
            command = given["checks"].get(str(path))
            problem = command and refusal(command, path, wanted[path][0], check_mode=module.check_mode)
            if problem:
                module.fail_json(msg=f"{path}: {problem}")
        for path in changed if not module.check_mode else ():
            if path in wanted:
                write(path, *wanted[path])
            else:
                path.unlink()
    except OSError as error:
        module.fail_json(msg=f"{error.filename or 'files'}: {error.strerror or error}")
    diff = [
        {
            "before_header": str(path),
            "after_header": str(path),
            "before": (before[path] or ("",))[0],
            "after": wanted.get(path, ("",))[0],
        }
        for path in changed
    ]
    module.exit_json(changed=bool(changed), changed_files=[str(path) for path in changed], diff=diff)


if __name__ == "__main__":
    main()
