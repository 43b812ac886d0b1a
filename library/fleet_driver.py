#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The packages of a host's NVIDIA driver, changed as one step."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_driver
short_description: Installs, pins, holds, downgrades or removes the NVIDIA driver as one step, on hosts with apt
description:
  - Everything that can fail before a change is tried beside the host's own configuration first, with a copy of apt's
    sources, preferences and lists. Sources are fetched and their signatures checked, the change is simulated, packages
    are downloaded, and the package files of what is installed now are secured.
  - Then the packages are changed, checked and held, and the files put in place. When any of that fails, packages,
    holds, marks and files are brought back to what they were. A change that was killed is rolled back by the next run.
  - What is installed and is of the wanted version stays as it is, also where a newer one is offered.
version_added: "0.1.0"
options:
  packages:
    description: Packages to install by name. Empty removes the driver and what was installed for its sake.
    type: list
    elements: str
    required: true
  version:
    description: The driver version or its beginning, as in C(580) or C(580.95.05). Empty takes any.
    type: str
    default: ""
  versioned:
    description: Patterns of the packages that have to be of O(version).
    type: list
    elements: str
    default: []
  files:
    description: Contents of files by path, sources and preferences of apt among them. Null for one that is to go.
    type: dict
    default: {}
  key:
    description: The public key of the package source. It is fetched once.
    type: dict
    suboptions:
      path:
        description: Where it is kept.
        type: path
        required: true
      content:
        description: The key itself.
        type: str
      url:
        description: Where the host fetches it.
        type: str
      sha256:
        description: Digest that the key must have. Empty takes any.
        type: str
        default: ""
  components:
    description:
      - Components of the distribution that the packages come from, such as C(non-free). Those that no source of the
        host has are added with the mirror that the host uses.
    type: list
    elements: str
    default: []
  components_path:
    description: The file for those components.
    type: path
    default: /etc/apt/sources.list.d/l40s-fleet-nvidia-distro.sources
  release:
    description: Codename of the host's release, for O(components).
    type: str
    default: ""
  headers:
    description: Also install the headers of the running kernel, of the next one, and of those to come.
    type: bool
    default: true
  modules:
    description:
      - Fail, and roll back, when a kernel that runs or boots next has no nvidia module afterwards. Where no kernel is
        on disk, as in a container, there is nothing to check.
    type: bool
    default: true
  upgrade:
    description: Take the newest of O(version).
    type: bool
    default: false
  beside:
    description: What was asked for before stays, and O(packages) come beside it.
    type: bool
    default: false
attributes:
  check_mode:
    description: Sources are fetched into a temporary directory and the change is simulated.
    support: full
  diff_mode:
    description: Shows packages and files before and after.
    support: full
author: l40s-fleet (@l40s-fleet)
"""

EXAMPLES = r"""
- name: Install the driver of branch 580 from the configured source
  fleet_driver:
    packages: [nvidia-driver-cuda, nvidia-kernel-open-dkms]
    version: "580"
    versioned: [nvidia-driver-cuda, nvidia-kernel-open-dkms, libcuda1]
    key:
      path: /etc/apt/keyrings/l40s-fleet-nvidia.asc
      url: https://mirror.example/nvidia/key.asc
    files:
      /etc/apt/sources.list.d/l40s-fleet-nvidia.sources: "{{ lookup('ansible.builtin.template', 'nvidia.sources.j2') }}"

- name: Remove the driver
  fleet_driver:
    packages: []
"""

RETURN = r"""
packages_before:
  description: Name and version of what was replaced or removed.
  type: list
  elements: str
  returned: success
packages_after:
  description: Name and version of what was installed.
  type: list
  elements: str
  returned: success
  sample: [nvidia-driver-cuda 580.95.05-1]
held:
  description: Packages that stayed and got a hold.
  type: list
  elements: str
  returned: success
"""

import hashlib
import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet.driver_plan import Change, Wanted
from ansible.module_utils.fleet.driver_sources import missing_components_source, read_sources
from ansible.module_utils.fleet.driver_transaction import DriverHost
from ansible.module_utils.fleet.errors import FleetError
from ansible.module_utils.urls import fetch_url

KEY_OPTIONS = {
    "path": {"type": "path", "required": True},
    "content": {"type": "str", "no_log": False},
    "url": {"type": "str"},
    "sha256": {"type": "str", "default": ""},
}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "packages": {"type": "list", "elements": "str", "required": True},
            "version": {"type": "str", "default": ""},
            "versioned": {"type": "list", "elements": "str", "default": []},
            "files": {"type": "dict", "default": {}},
            "key": {"type": "dict", "no_log": False, "options": KEY_OPTIONS},
            "components": {"type": "list", "elements": "str", "default": []},
            "components_path": {
                "type": "path",
                "default": "/etc/apt/sources.list.d/l40s-fleet-nvidia-distro.sources",
            },
            "release": {"type": "str", "default": ""},
            "headers": {"type": "bool", "default": True},
            "modules": {"type": "bool", "default": True},
            "upgrade": {"type": "bool", "default": False},
            "beside": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        files = {**given["files"], **key_file(module, given["key"]), **components_file(given)}
        wanted = Wanted(
            packages=tuple(given["packages"]),
            files=files,
            versioned=tuple(given["versioned"]),
            **{name: given[name] for name in ("version", "headers", "modules", "upgrade", "beside")},
        )
        change = DriverHost(os.uname().release).apply(wanted, check=module.check_mode)
    except FleetError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=change.changed,
        packages_before=list(change.before),
        packages_after=list(change.after),
        held=list(change.holds),
        diff=diff(change),
    )


def key_file(module: AnsibleModule, key: dict | None) -> dict[str, str]:
    """The key as a file: what is there stays, unless other contents or another digest are asked for."""
    if key is None:
        return {}
    content, path = key["content"], key["path"]
    if content is None and os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            content = file.read()
        if key["sha256"] and not has_digest(content, key["sha256"]):
            content = None
    if content is None:
        answer, info = fetch_url(module, key["url"], timeout=30)
        if info["status"] != 200:
            raise FleetError(key["url"], f"the key of the package source cannot be fetched: {info['msg']}")
        content = answer.read().decode()
    if key["sha256"] and not has_digest(content, key["sha256"]):
        raise FleetError(key["url"] or path, f"the key's SHA-256 is not {key['sha256']}")
    return {path: content}


def has_digest(content: str, digest: str) -> bool:
    return hashlib.sha256(content.encode()).hexdigest() == digest


def components_file(given: dict) -> dict[str, str | None]:
    """A source for components that the host lacks."""
    path = given["components_path"]
    if not given["components"]:
        return {path: None}
    sources = read_sources(Path("/"), leave_out=path)
    return {path: missing_components_source(sources, given["release"], given["components"])}


def diff(change: Change) -> list[dict[str, str]]:
    shown = [{"before": lines(change.before), "after": lines(change.after), "before_header": "packages"}]
    for path, (before, after) in change.files.items():
        if before != after:
            texts = {"before": (before or b"").decode(), "after": (after or b"").decode()}
            shown.append({**texts, "before_header": path, "after_header": path})
    return shown


def lines(items: tuple[str, ...]) -> str:
    return "".join(f"{item}\n" for item in sorted(items))


if __name__ == "__main__":
    main()
