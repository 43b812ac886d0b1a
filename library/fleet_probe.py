#!/usr/bin/python
"""Reads the host document of a GPU host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_probe
short_description: Read what a GPU host has, how well it is and what runs on it
description:
  - Returns the host document that the plan stage takes. GPUs, links, driver, engines, disk and running instances, and a
    verdict with evidence and remedy for every fault that the module knows.
  - Reads NVML through nvidia-ml-py, which Ansible ships with the module, and sysfs, procfs, the kernel log and systemd.
    It needs nothing on the host but Python 3.10, and changes nothing.
  - Without a driver the GPUs come from the PCI bus and the document is marked C(provisional).
  - What needs root and could not be read is named in C(unseen).
version_added: "0.1.0"
author:
  - l40s-fleet maintainers (@l40s-fleet)
options:
  sysfs_root:
    description: Where sysfs is mounted. The lab, whose GPUs are simulated, has a tree of its own.
    type: path
    default: /sys
  procfs_root:
    description: Where procfs is mounted.
    type: path
    default: /proc
  kernel_log:
    description: The kernel log in which Xid errors are looked for, the device or a text file.
    type: path
    default: /dev/kmsg
  nvml_library:
    description: The NVML library to load. The default is the one that the dynamic loader finds.
    type: path
  nvml_timeout:
    description: Seconds after which NVML is given up and reported as not answering.
    type: float
    default: 30
  required_cuda_driver_version:
    description: The CUDA version that the engine needs of the driver, as NVML counts (13000 is 13.0). 0 accepts any.
    type: int
    default: 0
  expect_gpus:
    description: Whether the host should have GPUs. On others, such as gateways, a missing driver is no fault.
    type: bool
    default: true
  instances_dir:
    description: Holds one directory for each instance, with its C(instance.json).
    type: path
    default: /etc/l40s-fleet/instances
  engines_dir:
    description: Holds one directory for each version of vLLM; C(.complete) in it says that it was installed whole.
    type: path
    default: /opt/vllm
  applied_path:
    description: The plan that was applied last.
    type: path
    default: /var/lib/l40s-fleet/applied.json
  link_test_path:
    description: The kept result of the link test.
    type: path
    default: /var/lib/l40s-fleet/link_test.json
  models_dir:
    description: Holds the checkpoints.
    type: path
    default: /var/lib/l40s-fleet/models
  quarantine_path:
    description: The GPUs that were set aside on this host.
    type: path
    default: /var/lib/l40s-fleet/quarantine.json
attributes:
  check_mode:
    description: The module changes nothing, so check mode makes no difference.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
"""

EXAMPLES = r"""
- name: Read the host document
  fleet_probe:
  become: true
  register: probe_result

- name: Read it on a node of the lab, whose GPUs are simulated
  fleet_probe:
    sysfs_root: /opt/l40s-lab/sys
    nvml_library: /opt/l40s-lab/libnvidia-ml.so.1
  become: true
  register: probe_result

- name: Name the GPUs that must not be used
  ansible.builtin.debug:
    msg: "{{ probe_result.host.gpus | selectattr('health.status', 'equalto', 'blocked') | map(attribute='uuid') }}"
"""

RETURN = r"""
host:
  description: The host document.
  returned: success
  type: dict
  contains:
    hostname:
      description: The host's own name.
      type: str
      returned: success
    simulated:
      description: NVML is the lab's, not a driver's.
      type: bool
      returned: success
    provisional:
      description: NVML does not answer, so the GPUs come from the PCI bus alone.
      type: bool
      returned: success
    provisional_because:
      description: Why NVML does not answer; null when it does.
      type: str
      returned: success
    driver_version:
      description: Version of the driver's user space.
      type: str
      returned: success
      sample: 580.95.05
    cuda_driver_version:
      description: The highest CUDA version that the driver speaks, as NVML counts.
      type: int
      returned: success
      sample: 13000
    gpus:
      description:
        - The GPUs in NVML's order, then those that are on the PCI bus and that NVML does not count.
        - A GPU without a UUID has C(PCI-) and its bus id in its place, and what was not read is null.
        - C(link.generation) is the generation under load. An idle link is taken for what card and slot allow;
          C(link.current_generation) is what was read.
        - C(memory_foreign_bytes) is held by processes outside the fleet, or by none that the driver lists.
        - C(processes[].instance) is null for a process that belongs to no instance.
      type: list
      elements: dict
      returned: success
      sample:
        - index: 0
          uuid: GPU-7a2ee76e-6c5e-4f7a-8f3d-3c1f0c3d2d10
          name: NVIDIA L40S
          memory_total_bytes: 48305799168
          memory_used_bytes: 0
          memory_foreign_bytes: 0
          pci_bus_id: "0000:3b:00.0"
          pci_device_id: "10de:26b9"
          numa_node: 0
          cpu_list: 0-31
          power_limit_watts: 350
          ecc: true
          link: {generation: 4, width: 16, current_generation: 1, max_generation: 4, max_width: 16}
          health:
            status: ok
            checks:
              - {name: pcie_width, status: ok, evidence: x16, remedy: ""}
          processes:
            - {pid: 4711, used_bytes: 44023414784, unit: vllm@chat-0.service, instance: chat-0}
    links:
      description:
        - One entry for each pair of GPUs. C(path) is null where it is unknown.
        - C(p2p) is C(untested) unless a link test of this driver and topology was kept.
        - C(p2p_reported) is what the driver claims, C(p2p_failure) why the test failed.
      type: list
      elements: dict
      returned: success
      sample:
        - {a: GPU-a, b: GPU-b, path: PIX, p2p: untested, bytes_per_s: null, p2p_failure: null, p2p_reported: true}
    topology_key:
      description: Changes with the driver, a GPU or the way between two of them. A link test is kept under it.
      type: str
      returned: success
    link_test:
      description: How the kept link test of this driver and topology was made; null without one.
      type: dict
      returned: success
      sample: {backend: nccl, engine: "0.33.0", driver_version: 580.95.05}
    checkpoints_partial:
      description: Checkpoints that are there in part, and why.
      type: list
      elements: dict
      returned: success
    all_reduce:
      description: The all-reduce curve of the kept link test; empty without one.
      type: list
      elements: dict
      returned: success
    numa_nodes:
      description: How many NUMA nodes the host has.
      type: int
      returned: success
    memory_total_bytes:
      description: Memory of the host.
      type: int
      returned: success
    memory_available_bytes:
      description: Memory that can be had without swapping.
      type: int
      returned: success
    shm_bytes:
      description: Size of /dev/shm; null without one.
      type: int
      returned: success
    disk:
      description: The file systems that hold the fleet's paths.
      type: list
      elements: dict
      returned: success
      sample:
        - {path: /opt, mount: /, free_bytes: 412316860416, total_bytes: 982900588544, read_only: false}
    engines:
      description: The engine versions that are installed, by engine.
      type: dict
      returned: success
      sample: {vllm: ["0.33.0"]}
    instances:
      description:
        - The record of each instance, with C(unit_state) and C(main_pid) from systemd.
        - A record that cannot be read has C(corrupt) true, C(path) and C(error) instead.
      type: list
      elements: dict
      returned: success
    orphan_units:
      description: Units of engines that systemd runs or remembers as failed though there is no record of them.
      type: list
      elements: dict
      returned: success
    applied:
      description: The plan that was applied last; null without one.
      type: dict
      returned: success
    health:
      description: The checks of the host itself, in the same form as those of a GPU.
      type: dict
      returned: success
      sample:
        status: ok
        checks:
          - {name: nvml, status: ok, evidence: "driver 580.95.05, 4 GPUs", remedy: ""}
    system:
      description: Distribution and architecture.
      type: dict
      returned: success
    kernel:
      description: Release of the kernel, and version and kind of the loaded nvidia module.
      type: dict
      returned: success
    unseen:
      description: What could not be read, and why.
      type: list
      elements: str
      returned: success
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet.probe import ProbeOptions, probe_host
from ansible.module_utils.fleet.probe_host import Paths


def load_nvml() -> Any:
    """Import pynvml, in the process that needs it."""
    try:
        from ansible.module_utils import pynvml  # noqa: PLC0415 (it takes as long as all the rest of the imports)
    except ImportError:
        # scripts/setup did not run: the core reports it as NVML not answering, and the PCI bus is read all the same.
        return None
    return pynvml


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "sysfs_root": {"type": "path", "default": "/sys"},
            "procfs_root": {"type": "path", "default": "/proc"},
            "kernel_log": {"type": "path", "default": "/dev/kmsg"},
            "nvml_library": {"type": "path"},
            "nvml_timeout": {"type": "float", "default": 30},
            "required_cuda_driver_version": {"type": "int", "default": 0},
            "expect_gpus": {"type": "bool", "default": True},
            "instances_dir": {"type": "path", "default": "/etc/l40s-fleet/instances"},
            "engines_dir": {"type": "path", "default": "/opt/vllm"},
            "applied_path": {"type": "path", "default": "/var/lib/l40s-fleet/applied.json"},
            "link_test_path": {"type": "path", "default": "/var/lib/l40s-fleet/link_test.json"},
            "models_dir": {"type": "path", "default": "/var/lib/l40s-fleet/models"},
            "quarantine_path": {"type": "path", "default": "/var/lib/l40s-fleet/quarantine.json"},
        },
        supports_check_mode=True,
    )
    given = module.params
    options = ProbeOptions(
        paths=Paths(
            sysfs=Path(given["sysfs_root"]),
            procfs=Path(given["procfs_root"]),
            kernel_log=Path(given["kernel_log"]),
            instances=Path(given["instances_dir"]),
            engines=Path(given["engines_dir"]),
            applied=Path(given["applied_path"]),
            link_test=Path(given["link_test_path"]),
            models=Path(given["models_dir"]),
            quarantine=Path(given["quarantine_path"]),
        ),
        nvml_library=given["nvml_library"],
        nvml_timeout_s=given["nvml_timeout"],
        required_cuda_driver_version=given["required_cuda_driver_version"],
        gpus_expected=given["expect_gpus"],
    )
    try:
        host = probe_host(load_nvml, options)
    except OSError as error:
        module.fail_json(msg=f"{error.filename or 'probe'}: {error.strerror or error}")
    module.exit_json(changed=False, host=host)


if __name__ == "__main__":
    main()
