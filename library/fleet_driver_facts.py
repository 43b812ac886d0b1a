#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The state of a host's NVIDIA driver."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_driver_facts
short_description: Reads the state of a host's NVIDIA driver, and says whether a reboot is needed
description:
  - Reads the loaded module, the driver's packages and their holds, the kernels on disk with their headers and DKMS
    builds, the blacklist of nouveau, and Secure Boot. Starts no program and changes nothing.
version_added: "0.1.0"
options:
  sysfs_root:
    description: Where sysfs is.
    type: path
    default: /sys
  procfs_root:
    description: Where procfs is.
    type: path
    default: /proc
  root:
    description: Where the rest of the host is.
    type: path
    default: /
attributes:
  check_mode:
    description: The module changes nothing, so check mode makes no difference.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
author: l40s-fleet (@l40s-fleet)
"""

EXAMPLES = r"""
- name: Read the state of the driver
  fleet_driver_facts:
  register: nvidia_driver_state
"""

RETURN = r"""
loaded_version:
  description: Version of the loaded nvidia module; null when none is loaded.
  type: str
  returned: success
  sample: 580.95.05
open_module:
  description: Whether it is NVIDIA's open one; null when unknown.
  type: bool
  returned: success
installed_version:
  description: Version of the driver's packages; null without any.
  type: str
  returned: success
packages:
  description: How many packages the driver has.
  type: int
  returned: success
held_packages:
  description: How many of them are held.
  type: int
  returned: success
container:
  description: The host is a container, whose modules are the machine's below.
  type: bool
  returned: success
running_kernel:
  description: Release of the running kernel.
  type: str
  returned: success
next_kernel:
  description: Release of the kernel that boots next; null where none is on disk.
  type: str
  returned: success
kernels:
  description: Each kernel with its headers, its nvidia module and what DKMS says.
  type: list
  elements: dict
  returned: success
kernel_faults:
  description: Kernels that have no nvidia module though they run or boot next, with the reason.
  type: list
  elements: str
  returned: success
nouveau_loaded:
  description: Whether nouveau is in the running kernel.
  type: bool
  returned: success
nouveau_blacklist:
  description: What keeps nouveau out; null without it.
  type: str
  returned: success
initramfs_stale:
  description: The initramfs is older than that file; null when there is nothing to compare.
  type: bool
  returned: success
secure_boot:
  description: Whether Secure Boot is on; null when the firmware does not tell.
  type: bool
  returned: success
secure_boot_key:
  description: The key that modules are signed with; null without one.
  type: str
  returned: success
secure_boot_key_enrolled:
  description: Whether the firmware accepts that key; null when that could not be seen.
  type: bool
  returned: success
secure_boot_steps:
  description: What a person has to do at the console; empty when nothing has to be done.
  type: list
  elements: str
  returned: success
persistence_command:
  description: With which the package's unit starts the persistence daemon; null where it is not installed.
  type: str
  returned: success
  sample: /usr/bin/nvidia-persistenced --user nvpd
reboot_reasons:
  description: What only a boot mends; empty when none is needed.
  type: list
  elements: str
  returned: success
  sample: [nouveau is loaded]
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet.driver_state import read_state
from ansible.module_utils.fleet.probe_host import Paths


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "sysfs_root": {"type": "path", "default": "/sys"},
            "procfs_root": {"type": "path", "default": "/proc"},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    given = module.params
    paths = Paths(sysfs=Path(given["sysfs_root"]), procfs=Path(given["procfs_root"]), root=Path(given["root"]))
    module.exit_json(changed=False, **read_state(paths).document())


if __name__ == "__main__":
    main()
