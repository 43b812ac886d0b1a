"""Step of an ensemble on Triton: chat messages become the prompt that the checkpoint's own chat template makes of them.

Input `messages` is a JSON list as OpenAI's chat API takes it. `exclude_input_in_output` is handed on as true: a client
that sent messages does not want the prompt back.
"""

from __future__ import annotations

import json
import locale
import os
import site
from typing import Any

# Triton's Python reads no PYTHON variables and takes text for ASCII. Outside of the container numpy is Triton's, and
# transformers that of the engine.
locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
for place in filter(None, os.environ.get("FLEET_SITE_PACKAGES", "").split(":")):
    site.addsitedir(place)

import numpy as np  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402


class TritonPythonModel:
    """One instance of the step; the name is Triton's."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the tokenizer, and with it the chat template."""
        path = json.loads(args["model_config"])["parameters"]["MODEL"]["string_value"]
        self.tokenizer = AutoTokenizer.from_pretrained(path)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One answer a request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        text = pb_utils.get_input_tensor_by_name(request, "messages").as_numpy()[0].decode("utf-8")
        try:
            prompt = self.tokenizer.apply_chat_template(json.loads(text), tokenize=False, add_generation_prompt=True)
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"messages: {error}"))
        outputs = [
            pb_utils.Tensor("text_input", np.array([prompt.encode()], dtype=object)),
            pb_utils.Tensor("exclude_input_in_output", np.array([True])),
        ]
        return pb_utils.InferenceResponse(output_tensors=outputs)
