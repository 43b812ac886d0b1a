#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""One quantized checkpoint of one host: whether it is there, its job, and the judgement of the result."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_quantize
short_description: Makes a quantized checkpoint and judges it
description:
  - A job is a service without rights, C(fleet-quantize@MODEL-KEY.service). Its result goes into the host's store of
    checkpoints if it is near enough to its source, else a record of why is kept, which the plan reads.
  - In a playbook the action plugin of the role C(quantize) goes through the steps and shows how far the job is.
version_added: "0.1.0"
options:
  step:
    description:
      - With V(look), only says what is known of the checkpoint.
      - With V(start), checks memory, disk, source and environment, and starts the job unless the checkpoint is there or
        was rejected before.
      - With V(watch), waits until the job says something new or ends.
      - With V(finish), judges the result.
    type: str
    choices: [look, start, watch, finish]
    default: look
  job:
    description: The job, as the plan stage describes it.
    type: dict
    required: true
    suboptions:
      model: {description: Name of the model., type: str, required: true}
      key: {description: SHA-256 of source; recipe and tool., type: str, required: true}
      source_digest: {description: SHA-256 of the source's manifest., type: str, required: true}
      recipe: {description: Method and parameters., type: dict, required: true}
      limits: {description: Of the quality gate., type: dict, required: true}
      tool: {description: "The environment, as in V(llmcompressor-0.14.0.1).", type: str, required: true}
      gpu: {description: UUID of the GPU; empty for the CPU., type: str, default: ""}
      cost: {description: What it takes., type: dict, default: {}}
      judged: {description: How much held-out text is judged by., type: dict, required: true}
      text: {description: A text on the host; empty for the repository's., type: str, default: ""}
      text_source: {description: That text on the controller., type: str, default: ""}
      words: {description: The recipe in words., type: str, default: ""}
  seen:
    description: The C(updated_at) of the status that was seen last.
    type: float
    default: 0
  wait_s:
    description: How long V(watch) waits at most, in seconds.
    type: float
    default: 10
attributes:
  check_mode:
    description: Says whether a checkpoint would be made, and starts nothing.
    support: full
  diff_mode:
    description: Shows which checkpoint would be made and how.
    support: full
author: l40s-fleet (@l40s-fleet)
"""

EXAMPLES = r"""
- name: Make the quantized checkpoints
  fleet_quantize:
    job: "{{ item }}"
  loop: "{{ quantize_jobs }}"
"""

RETURN = r"""
outcome:
  description: V(accepted), V(rejected), V(absent), or V(running) after V(start).
  returned: when O(step) is not V(watch)
  type: str
words:
  description: The figures, or why there is no checkpoint.
  returned: when O(step) is not V(watch)
  type: str
figures:
  description: Perplexity of both, agreement, tokens.
  returned: when they were measured
  type: dict
files:
  description: Size C(bytes) and C(sha256) of the checkpoint's files, by relative path.
  returned: when it is there
  type: dict
running:
  description: Whether the job runs.
  returned: when O(step=watch)
  type: bool
status:
  description: What the job says of itself.
  returned: when O(step=watch)
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet.errors import FleetError
from ansible.module_utils.fleet.quantize_host import QuantizeHost
from ansible.module_utils.fleet.quantize_job import parse_job


def answer(verdict, *, changed):
    """A verdict as the module returns it."""
    document = {"changed": changed, "outcome": verdict.outcome, "words": verdict.words}
    if verdict.figures is not None:
        document["figures"] = verdict.figures.to_document()
    if verdict.files:
        document["files"] = verdict.files
    return document


def run(module):
    """One step of one job."""
    job, step = parse_job(module.params["job"]), module.params["step"]
    host = QuantizeHost()
    if step == "watch":
        return {"changed": False, **host.watch(job, module.params["seen"], module.params["wait_s"])}
    known = host.verdict(job)
    if step == "start" and known.outcome == "accepted" and not module.check_mode:
        host.note(job)
    if step == "look" or known.outcome != "absent":
        return answer(known, changed=False)
    if step == "finish":
        return answer(host.finish(job), changed=True)
    result = {
        "changed": True,
        "outcome": "absent" if module.check_mode else "running",
        "words": known.words,
        "diff": {"before": "", "after": f"{job.id}: {module.params['job']['words']}\n"},
    }
    if not module.check_mode:
        host.check(job)
        host.start(job)
    return result


def main():
    """Entry point."""
    job = {
        "model": {"type": "str", "required": True},
        "key": {"type": "str", "required": True, "no_log": False},
        "source_digest": {"type": "str", "required": True},
        "recipe": {"type": "dict", "required": True},
        "limits": {"type": "dict", "required": True},
        "tool": {"type": "str", "required": True},
        "gpu": {"type": "str", "default": ""},
        "cost": {"type": "dict", "default": {}},
        "judged": {"type": "dict", "required": True},
        "text": {"type": "str", "default": ""},
        "text_source": {"type": "str", "default": ""},
        "words": {"type": "str", "default": ""},
    }
    module = AnsibleModule(
        argument_spec={
            "step": {"type": "str", "choices": ["look", "start", "watch", "finish"], "default": "look"},
            "job": {"type": "dict", "required": True, "options": job},
            "seen": {"type": "float", "default": 0},
            "wait_s": {"type": "float", "default": 10},
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
