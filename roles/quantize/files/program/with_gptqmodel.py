"""GPTQ with activation ordering by GPTQModel, written as its own format."""

from __future__ import annotations

import importlib.metadata
import json
import os
from typing import TYPE_CHECKING, Any

# Read on import. Its loader wants two workers, which its own default does not give on a machine with two processors.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, min(12, (os.cpu_count() or 1) // 2))))


import torch
from gptqmodel import BACKEND, CheckpointConfig, GPTQModel, QuantizeConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIBRARIES = ("gptqmodel", "transformers", "torch")


def quantize(
    source: str,
    output: Path,
    recipe: dict[str, Any],
    samples: list[list[int]],
    *,
    told: Callable[[int, int], None],
    layers_directory: Path,
) -> None:
    """Quantize a checkpoint; a run that was cut off goes on after the last layer that it finished.

    Args:
        source: the checkpoint in full precision.
        output: a directory for the quantized one.
        recipe: method and parameters.
        samples: token ids for calibration.
        told: is told how many layers of how many are done.
        layers_directory: where finished layers are kept until all are.
    """
    by_index = recipe["method"] == "gptq_g_idx"
    config = QuantizeConfig(
        bits=recipe["bits"],
        group_size=recipe["group_size"],
        # With g_idx the order holds across groups, and every engine has to look it up; without, inside the groups only.
        desc_act=by_index,
        act_group_aware=not by_index,
        sym=True,
        damp_percent=recipe["dampening"],
        offload_to_disk_path=str(layers_directory / "offload"),
    )
    model = GPTQModel.load(source, config, device=_device())
    layers = model.model.config.get_text_config().num_hidden_layers
    model.layer_callback = _Layers(layers, told)
    calibration = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in samples]
    # Batches of one: samples of one length need no padding, and one GPU holds the activations of a layer.
    model.quantize(calibration, batch_size=1, checkpoint=CheckpointConfig(path=layers_directory / "done"))
    model.save(str(output))
    _forget_the_run(output)


def _forget_the_run(output: Path) -> None:
    """Take out what differs from run to run and no engine reads: the path of a scratch directory, a log of times."""
    for name in ("config.json", "quantize_config.json"):
        document = json.loads((output / name).read_text(encoding="utf-8"), object_hook=_without_scratch)
        (output / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (output / "quant_log.csv").unlink(missing_ok=True)


def _without_scratch(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != "offload_to_disk_path"}


class _Layers:
    """Hears of every layer that is finished."""

    def __init__(self, layers: int, told: Callable[[int, int], None]) -> None:
        self._layers = layers
        self._told = told

    def layer_complete(self, *, layer_idx: int, submodule_finalized: bool) -> None:
        if submodule_finalized:
            self._told(layer_idx + 1, self._layers)


def load(path: str, *, gpu_bytes: int, host_bytes: int, offload: Path) -> Any:
    """The quantized model, computing as its checkpoint says."""
    del gpu_bytes, host_bytes, offload
    return GPTQModel.load(path, device=_device(), backend=BACKEND.GPTQ_TORCH).model.eval()


def _device() -> str:
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def versions() -> dict[str, str]:
    """Versions of the libraries that decide the result."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}
