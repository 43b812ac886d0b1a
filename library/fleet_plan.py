#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The plan stage: where every model runs."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_plan
short_description: Places all models on all GPU hosts, and says why
description:
  - Makes the plan of the whole inventory from what the probe found, the models file and what was applied before.
  - Runs on the controller, with the Python of the repository's virtual environment.
  - What runs and still satisfies its constraints stays where it is. Hosts of the inventory that are not in O(hosts) are
    frozen, what runs there is taken from the applied plan.
version_added: "0.1.0"
options:
  models_file:
    description: The models file. Relative paths in it are relative to it.
    type: path
    required: true
  inventory_hosts:
    description: Every GPU host of the inventory, reached or not.
    type: list
    elements: str
    required: true
  policies:
    description: The C(fleet_*) variables of each host, by host name. Unknown ones are errors.
    type: dict
    default: {}
  hosts:
    description: Host documents of the hosts that were probed in this run, by host name.
    type: dict
    default: {}
  attempted_hosts:
    description: Hosts that this run tried to reach, so that frozen hosts are told apart. Left out when not known.
    type: list
    elements: str
  applied:
    description: The applied documents that the hosts keep. Empty ones do not matter; the highest revision counts.
    type: list
    elements: raw
    default: []
  accelerator:
    description: What the engines run on. The plan is the same for both, so that the lab plans what production would.
    type: str
    choices: [cuda, cpu]
    default: cuda
  engine_version:
    description: The version of vLLM, for the memory model.
    type: str
    required: true
  triton_release:
    description:
      - Release of Triton's container, which says the version of vLLM that serves models with C(engine=triton).
      - With O(accelerator=cpu) it is O(engine_version), which the lab's Triton runs.
    type: str
    default: "26.07"
  engine_port_base:
    description: The first port that an engine may listen on.
    type: int
    default: 8100
  allow_partial:
    description: Accept a plan that refuses some of the models. Otherwise refusals are a failure.
    type: bool
    default: false
  optimize:
    description: Move what runs if that places more models, or the same on fewer GPUs.
    type: bool
    default: false
  quantize:
    description: Count on quantized checkpoints that can be made. Those that are there are used anyway.
    type: bool
    default: true
  output:
    description: Where the plan is written. Its directory is made. Left out, nothing is written.
    type: path
  hub_endpoint:
    description: The Hugging Face hub that C(hf:) sources are on.
    type: str
    default: https://huggingface.co
  hub_token:
    description: Its token. Empty for none.
    type: str
    default: ""
  proxy:
    description: Proxy for hub and HTTP sources. Empty takes the environment's.
    type: str
    default: ""
  cache_dir:
    description: Where sums of checkpoints and descriptions of sources are kept.
    type: path
    default: ~/.cache/l40s-fleet
  allow_unavailable:
    description:
      - Plan by a model's C(config) when its source cannot be reached. Otherwise that fails, since what is planned
        could not be served.
    type: bool
    default: false
  update_sources:
    description: Look again what branches and HTTP trees are now, instead of taking what was recorded.
    type: bool
    default: false
  report:
    description:
      - Where a page about the plan (HTML, self-contained) is written, together with O(output), when it is missing, or
        when other quantized checkpoints were made or refused than it tells of.
      - It compares the plan with what runs. Needs O(output).
    type: path
  validate_only:
    description: Check models, checkpoints and host variables only, before any host was probed.
    type: bool
    default: false
attributes:
  check_mode:
    description: Makes the plan and does not write it.
    support: full
  diff_mode:
    description: Shows the instances of the plan before and after.
    support: full
requirements: [Jinja2, pydantic, PyYAML]
author: l40s-fleet (@l40s-fleet)
"""

EXAMPLES = r"""
- name: Compute the placement
  fleet_plan:
    models_file: "{{ fleet_models_file }}"
    inventory_hosts: "{{ groups['gpu_hosts'] }}"
    policies: "{{ groups['gpu_hosts'] | fleet_policies(hostvars) }}"
    hosts: "{{ ansible_play_hosts | fleet_extract(hostvars, 'probe_result', 'host') }}"
    engine_version: "{{ vllm_version }}"
    output: "{{ fleet_plan_file }}"
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
plan:
  description: The plan (PLAN.json).
  returned: when O(validate_only=false)
  type: dict
moves:
  description: What this run moves, one line each.
  returned: when O(validate_only=false)
  type: list
  elements: str
applied_document:
  description: What every host keeps once the plan is applied. A plan that is applied already keeps its revision.
  returned: when O(validate_only=false)
  type: dict
frozen:
  description: Hosts that were not reached, each with C(host) and C(reason).
  returned: when O(validate_only=false)
  type: list
  elements: dict
checkpoints:
  description: The checkpoints that each host needs, by host name.
  returned: when O(validate_only=false)
  type: dict
per_host:
  description: The instance records of each host, by host name.
  returned: when O(validate_only=false)
  type: dict
quantize_jobs:
  description: The quantized checkpoints that each host is to make, by host name.
  returned: when O(validate_only=false)
  type: dict
known_models:
  description: Names of all models that are wanted or still run somewhere.
  returned: when O(validate_only=false)
  type: list
  elements: str
notices:
  description: Lines for the operator, such as hosts that were left out.
  returned: when O(validate_only=false)
  type: list
  elements: str
report:
  description: The page about the plan.
  returned: when O(report) is given
  type: str
table:
  description: The plan for the terminal.
  returned: when O(validate_only=false)
  type: str
"""

import re
import traceback
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

IMPORT_ERROR = None
try:
    from ansible.module_utils.fleet.errors import FleetError
    from ansible.module_utils.fleet.fetch_description import SourceOptions
    from ansible.module_utils.fleet.fetch_sources import lock_path_of
    from ansible.module_utils.fleet.plan_document import Plan, canonical_json, plan_from_json, plan_to_document
    from ansible.module_utils.fleet.plan_stage import StageInput, run_stage, validate
    from ansible.module_utils.fleet.plan_table import plan_lines
    from ansible.module_utils.fleet.quantize_evidence import mark_of
except ImportError:
    IMPORT_ERROR = traceback.format_exc()


def before_plan(path):
    """The plan that was written before; an empty one when there is none that can be read."""
    try:
        return plan_from_json(path.read_text(encoding="utf-8"), where=str(path))
    except (OSError, UnicodeDecodeError, FleetError):
        return Plan()


def refusal_message(plan, models_file):
    """Every refusal in a line, with the nearest change."""
    lines = [
        f"{models_file}: {one.model}: {one.constraint}: {one.explanation} Nearest change: {one.nearest_change}."
        for one in plan.refused
    ]
    return "\n".join(lines)


def write(module, output, text):
    """Write a document if it is another one. Returns whether it is."""
    path = Path(output)
    changed = not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text
    if changed and not module.check_mode:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    return changed


def page_is_about(path, records):
    """Whether the page is there and tells of these quantized checkpoints and no others."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    marks = re.findall(r'<section [^>]*data-records="([0-9a-f]+)"', text)
    return marks == ([mark_of(records)] if records else [])


def write_report(module, result, plan_changed):
    """Write the page about the plan together with the plan. Returns whether it is another one."""
    path = Path(module.params["report"])
    # What hosts that did not answer have made is not known, and no reason to take it off the page.
    current = path.is_file() if result.frozen else page_is_about(path, result.quantized)
    if current and not plan_changed:
        return False
    # Most runs change nothing and need not load it.
    from ansible.module_utils.fleet.report import ReportInput, render_report  # noqa: PLC0415

    given = ReportInput(plan=result.plan, current=result.applied_plan, hosts=result.hosts, quantized=result.quantized)
    return write(module, module.params["report"], render_report(given))


def run(module):
    """Make the plan, write it, and return the module's result."""
    params = module.params
    stage = StageInput(
        models_file=params["models_file"],
        policies=params["policies"],
        inventory_hosts=params["inventory_hosts"],
        hosts=params["hosts"],
        attempted=params["attempted_hosts"],
        applied=params["applied"],
        engine_version=params["engine_version"],
        triton_release=params["triton_release"],
        engine_port_base=params["engine_port_base"],
        optimize=params["optimize"],
        accelerator=params["accelerator"],
        quantize=params["quantize"],
        sources=SourceOptions(
            cache=Path(params["cache_dir"]),
            endpoint=params["hub_endpoint"],
            token=params["hub_token"],
            proxy=params["proxy"],
            update=params["update_sources"],
        ),
        allow_unavailable=params["allow_unavailable"],
    )
    if params["validate_only"]:
        validate(stage)
        return {"changed": False}
    result = run_stage(stage)
    if result.plan.refused and not params["allow_partial"]:
        raise FleetError("plan", "some models cannot be placed\n" + refusal_message(result.plan, params["models_file"]))
    answer = {
        "changed": False,
        "plan": plan_to_document(result.plan),
        "moves": list(result.moves),
        "applied_document": result.applied_document,
        "frozen": [{"host": host, "reason": reason} for host, reason in result.frozen.items()],
        "checkpoints": result.checkpoints,
        "per_host": result.per_host,
        "quantize_jobs": result.quantize_jobs,
        "known_models": list(result.known_models),
        "notices": list(result.notices),
        "table": result.table,
    }
    if params["output"]:
        answer["diff"] = {
            "before_header": params["output"],
            "after_header": params["output"],
            "before": plan_lines(before_plan(Path(params["output"]))),
            "after": plan_lines(result.plan),
        }
        answer["changed"] = write(module, params["output"], canonical_json(answer["plan"]))
        if params["report"]:
            answer["report"] = params["report"]
            answer["changed"] = write_report(module, result, answer["changed"]) or answer["changed"]
        if result.sources_lock is not None:
            answer["changed"] = (
                write(module, lock_path_of(params["models_file"]), result.sources_lock) or answer["changed"]
            )
    return answer


def main():
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "models_file": {"type": "path", "required": True},
            "inventory_hosts": {"type": "list", "elements": "str", "required": True},
            "policies": {"type": "dict", "default": {}},
            "hosts": {"type": "dict", "default": {}},
            "attempted_hosts": {"type": "list", "elements": "str"},
            "applied": {"type": "list", "elements": "raw", "default": []},
            "accelerator": {"type": "str", "choices": ["cuda", "cpu"], "default": "cuda"},
            "engine_version": {"type": "str", "required": True},
            "triton_release": {"type": "str", "default": "26.07"},
            "engine_port_base": {"type": "int", "default": 8100},
            "allow_partial": {"type": "bool", "default": False},
            "optimize": {"type": "bool", "default": False},
            "quantize": {"type": "bool", "default": True},
            "output": {"type": "path"},
            "report": {"type": "path"},
            "hub_endpoint": {"type": "str", "default": "https://huggingface.co"},
            "hub_token": {"type": "str", "default": "", "no_log": True},
            "proxy": {"type": "str", "default": "", "no_log": True},
            "cache_dir": {"type": "path", "default": "~/.cache/l40s-fleet"},
            "allow_unavailable": {"type": "bool", "default": False},
            "update_sources": {"type": "bool", "default": False},
            "validate_only": {"type": "bool", "default": False},
        },
        required_by={"report": ["output"]},
        supports_check_mode=True,
    )
    if IMPORT_ERROR is not None:
        module.fail_json(msg=missing_required_lib("pydantic and PyYAML"), exception=IMPORT_ERROR)
    try:
        module.exit_json(**run(module))
    except FleetError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
