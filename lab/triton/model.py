"""The lab's stand-in for Triton's vLLM backend: the official backend's contract, on the vLLM of this host's engine.

Triton's python backend runs it for every model whose config.pbtxt says `backend: "vllm"`. Kept of the contract:
model.json holds AsyncEngineArgs; max_batch_size 0 and the decoupled policy are completed; text_input, stream,
sampling_parameters (or the request's own parameters) and exclude_input_in_output come in, text_output goes out;
KIND_GPU is refused for models over several GPUs; with ENABLE_VLLM_HEALTH_CHECK a model whose engine has died unloads
itself; with REPORT_CUSTOM_METRICS tokens are counted. Left out: images, log probabilities, adapters, embeddings.
"""

from __future__ import annotations

import asyncio
import json
import locale
import multiprocessing
import os
import site
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

# Triton's Python is isolated: it reads no PYTHON variables, and takes text for ASCII. Its own packages come before
# those of the engine, because numpy 2 corrupts its BYTES inputs; the .pth files of both are read, as in the engine.
locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
for place in os.environ["FLEET_SITE_PACKAGES"].split(":"):
    site.addsitedir(place)
# What starts processes of its own asks for the interpreter here, and there.
sys.executable = os.environ["FLEET_ENGINE_PYTHON"]
multiprocessing.set_executable(sys.executable)

import numpy as np  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402
from vllm import SamplingParams  # noqa: E402
from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: E402
from vllm.sampling_params import RequestOutputKind  # noqa: E402
from vllm.v1.engine.async_llm import AsyncLLM  # noqa: E402

INPUTS = (
    ("text_input", "TYPE_STRING", False),
    ("stream", "TYPE_BOOL", True),
    ("sampling_parameters", "TYPE_STRING", True),
    ("exclude_input_in_output", "TYPE_BOOL", True),
)


class TritonPythonModel:
    """One instance of a model; the name is Triton's."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Adds what the configuration leaves open, and refuses what the engine cannot do."""
        config = auto_complete_model_config
        given = {entry["name"] for part in ("input", "output") for entry in config.as_dict()[part]}
        for name, data_type, optional in INPUTS:
            if name not in given:
                config.add_input({"name": name, "data_type": data_type, "dims": [1], "optional": optional})
        if "text_output" not in given:
            config.add_output({"name": "text_output", "data_type": "TYPE_STRING", "dims": [-1]})
        config.set_model_transaction_policy({"decoupled": True})
        config.set_max_batch_size(0)
        return config

    def initialize(self, args: dict[str, str]) -> None:
        """Starts the engine; an exception is why the model cannot be loaded."""
        self.config = json.loads(args["model_config"])
        engine_args = json.loads((Path(pb_utils.get_model_dir()) / "model.json").read_text(encoding="utf-8"))
        ranks = engine_args.get("tensor_parallel_size", 1) * engine_args.get("pipeline_parallel_size", 1)
        if args["model_instance_kind"] == "GPU" and ranks > 1:
            raise ValueError("KIND_GPU is for models on one GPU; a model over several needs KIND_MODEL")
        arguments = AsyncEngineArgs(**engine_args)
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.engine = self._in_loop(self._start(arguments))
        self.served = None
        if self._asked_for("REPORT_CUSTOM_METRICS") and not arguments.disable_log_stats:
            # A metric ends with its family.
            self.family = pb_utils.MetricFamily(
                name="vllm:generation_tokens_total",
                description="Number of generation tokens processed.",
                kind=pb_utils.MetricFamily.COUNTER,
            )
            self.served = self.family.Metric(labels={"model": args["model_name"], "version": args["model_version"]})
        self.running = 0

    def execute(self, requests: list[Any]) -> None:
        """Takes requests; answers go through each request's own sender."""
        dead = self._asked_for("ENABLE_VLLM_HEALTH_CHECK") and self.engine.errored
        if dead:
            pb_utils.unload_model(self.config["name"])
        for request in requests:
            if not dead:
                asyncio.run_coroutine_threadsafe(self._answer(request), self.loop)
                continue
            error = pb_utils.TritonError("Model is unavailable due to unhealthy vLLM engine")
            answer = pb_utils.InferenceResponse(error=error)
            request.get_response_sender().send(answer, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def finalize(self) -> None:
        """Lets requests end, then stops the engine."""
        self._in_loop(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)

    def _in_loop(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def _asked_for(self, parameter: str) -> bool:
        value = self.config.get("parameters", {}).get(parameter, {}).get("string_value", "")
        return bool(value.lower() == "true")

    @staticmethod
    async def _start(arguments: AsyncEngineArgs) -> AsyncLLM:
        return AsyncLLM.from_engine_args(arguments)

    async def _stop(self) -> None:
        while self.running:
            await asyncio.sleep(0.05)
        self.engine.shutdown()

    async def _answer(self, request: Any) -> None:
        sender = request.get_response_sender()
        self.running += 1
        try:
            await self._generate(request, sender)
        except Exception as error:
            failure = pb_utils.InferenceResponse(error=pb_utils.TritonError(f"Error generating stream: {error}"))
            sender.send(failure, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        finally:
            self.running -= 1

    async def _generate(self, request: Any, sender: Any) -> None:
        prompt = _value(request, "text_input")
        stream = bool(_value(request, "stream") or False)
        options = json.loads(_value(request, "sampling_parameters") or request.parameters() or "{}")
        excluded = _value(request, "exclude_input_in_output")
        if stream and excluded is not None and not excluded:
            raise ValueError("When streaming, `exclude_input_in_output` = False is not allowed.")
        with_input = not stream and not excluded
        kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
        sampling = SamplingParams(**options, output_kind=kind)
        async for output in self.engine.generate(prompt, sampling, str(uuid.uuid4())):
            texts = [(prompt if with_input else "") + one.text for one in output.outputs]
            if self.served is not None:
                self.served.increment(sum(len(one.token_ids) for one in output.outputs))
            tensor = pb_utils.Tensor("text_output", np.asarray(texts, dtype=object))
            sender.send(pb_utils.InferenceResponse(output_tensors=[tensor]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _value(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    value = tensor.as_numpy()[0]
    return value.decode("utf-8") if isinstance(value, bytes) else value
