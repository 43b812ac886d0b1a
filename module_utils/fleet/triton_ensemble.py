"""The ensemble around a model on Triton that takes chat messages: its chat template, then the model.

The backend's ``text_input`` is a prompt as it stands; who has messages would have to know each model's template.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEADER = "# Managed by l40s-fleet: the next run overwrites changes.\n"
_INPUTS = (("messages", "TYPE_STRING"), ("stream", "TYPE_BOOL"), ("sampling_parameters", "TYPE_STRING"))


def ensemble_names(model: str) -> tuple[str, str]:
    """Names of the ensemble of a model, and of the step that it has beside the model."""
    return f"{model}-chat", f"{model}-chat-template"


def ensemble_files(instance: Mapping[str, Any], program: str, digest: str) -> dict[str, dict[str, str]]:
    """The files of step and ensemble, by name, the step first.

    Args:
        instance: the instance of plan.json that is wrapped.
        program: the step's model.py, which is the role's.
        digest: of the wrapped model's files: an ensemble is loaded anew with its model.
    """
    model = str(instance["model"])
    ensemble, step = ensemble_names(model)
    tensors = "".join(_tensor("input", name, kind) for name, kind in _INPUTS)
    ensemble_config = (
        f"{_HEADER}name: {json.dumps(ensemble)}\n"
        'platform: "ensemble"\n'
        f"{tensors}{_tensor('output', 'text_output', 'TYPE_STRING', -1)}"
        "ensemble_scheduling {\n"
        + _step(step, {"messages": "messages"}, {"text_input": "prompt", "exclude_input_in_output": "exclude"})
        + _step(
            model,
            {
                "text_input": "prompt",
                "exclude_input_in_output": "exclude",
                "stream": "stream",
                "sampling_parameters": "sampling_parameters",
            },
            {"text_output": "text_output"},
        )
        + "}\n"
        + _parameter("l40s_fleet_wraps", digest)
    )
    step_config = (
        f"{_HEADER}name: {json.dumps(step)}\n"
        'backend: "python"\n'
        f"{_tensor('input', 'messages', 'TYPE_STRING')}"
        f"{_tensor('output', 'text_input', 'TYPE_STRING')}"
        f"{_tensor('output', 'exclude_input_in_output', 'TYPE_BOOL')}"
        "instance_group [\n  {\n    count: 1\n    kind: KIND_CPU\n  }\n]\n"
        + _parameter("MODEL", instance["engine_args"]["model"])
    )
    # Triton wants a version in the directory of an ensemble, which has no file.
    return {
        step: {"config.pbtxt": step_config, "1/model.py": program},
        ensemble: {"config.pbtxt": ensemble_config, "1/README": "An ensemble has no file of its own.\n"},
    }


def _tensor(part: str, name: str, kind: str, size: int = 1) -> str:
    return f"{part} {{\n  name: {json.dumps(name)}\n  data_type: {kind}\n  dims: [ {size} ]\n}}\n"


def _step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> str:
    maps = [("input_map", inputs), ("output_map", outputs)]
    lines = "".join(
        f"    {part} {{ key: {json.dumps(key)} value: {json.dumps(value)} }}\n"
        for part, entries in maps
        for key, value in entries.items()
    )
    return f"  step {{\n    model_name: {json.dumps(model)}\n    model_version: -1\n{lines}  }}\n"


def _parameter(name: str, value: str) -> str:
    return f"parameters {{\n  key: {json.dumps(name)}\n  value {{ string_value: {json.dumps(value)} }}\n}}\n"
