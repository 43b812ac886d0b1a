#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Measures an engine of this host with so many concurrent requests."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_benchmark
short_description: Measure an engine of this host with so many concurrent requests
description:
  - Runs C(vllm bench serve) of the engine that is installed, as a transient service with a user of its own. The
    engine's key reaches it in the environment, from C(/etc/l40s-fleet/engine.env).
  - Leaves nothing on the host.
version_added: "0.1.0"
author: l40s-fleet (@l40s-fleet)
options:
  engine_directory:
    description: Environment of the engine.
    type: path
    required: true
  url:
    description: The engine, as this host reaches it.
    type: str
    required: true
  model:
    description: The name under which it serves.
    type: str
    required: true
  tokenizer:
    description: The directory of its checkpoint.
    type: path
    required: true
  prompt_tokens:
    description: Tokens of each prompt. Prompts are random words.
    type: int
    required: true
  output_tokens:
    description: Tokens of each answer; the model is kept from ending earlier.
    type: int
    required: true
  concurrency:
    description: Requests in flight.
    type: int
    required: true
  requests:
    description: Requests in all.
    type: int
    required: true
  warmups:
    description: Requests before those that count.
    type: int
    default: 0
  limit_s:
    description: Seconds after which it is stopped; C(timed_out) then says so.
    type: int
    default: 600
  seed:
    description: Of the random prompts.
    type: int
    default: 0
  trust_remote_code:
    description: Whether the tokenizer may run code of the checkpoint, as the engine may.
    type: bool
    default: false
attributes:
  check_mode:
    description: Nothing is measured, and C(step) is empty.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
"""

EXAMPLES = r"""
- name: Measure with 16 concurrent requests
  fleet_benchmark:
    engine_directory: /opt/vllm/0.33.0
    url: http://127.0.0.1:8100
    model: llama-3-8b
    tokenizer: /var/lib/l40s-fleet/models/llama-3-8b-0123456789ab
    prompt_tokens: 1024
    output_tokens: 128
    concurrency: 16
    requests: 64
  become: true
"""

RETURN = r"""
step:
  description:
    - C(concurrency), C(requests), C(completed), C(failed), C(duration_s), C(requests_per_s), C(output_tokens_per_s),
      C(total_tokens_per_s) and C(timed_out); C(ttft_ms), C(tpot_ms), C(itl_ms) and C(e2e_ms), each with C(mean),
      C(p50), C(p95) and C(p99).
  returned: success
  type: dict
words:
  description: The same as a line to read.
  returned: success
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet.benchmark_step import Step, run_step, step_words
from ansible.module_utils.fleet.errors import FleetError


def main() -> None:
    required: dict[str, object] = {"required": True}
    module = AnsibleModule(
        argument_spec={
            "engine_directory": {"type": "path", **required},
            "url": {"type": "str", **required},
            "model": {"type": "str", **required},
            "tokenizer": {"type": "path", **required},
            "prompt_tokens": {"type": "int", **required},
            "output_tokens": {"type": "int", **required},
            "concurrency": {"type": "int", **required},
            "requests": {"type": "int", **required},
            "warmups": {"type": "int", "default": 0},
            "limit_s": {"type": "int", "default": 600},
            "seed": {"type": "int", "default": 0},
            "trust_remote_code": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    step = Step(**module.params)
    if module.check_mode:
        words = f"{step.concurrency} concurrent: {step.requests} requests would be sent"
        module.exit_json(changed=False, step={}, words=words)
    try:
        found = run_step(step, module.run_command)
    except FleetError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, step=found, words=step_words(found))


if __name__ == "__main__":
    main()
