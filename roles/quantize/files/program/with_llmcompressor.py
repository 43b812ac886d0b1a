"""AWQ, GPTQ, INT8 and FP8 by llm-compressor, written as compressed-tensors."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any

import accelerate
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.core import LifecycleCallbacks
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIBRARIES = ("llmcompressor", "compressed-tensors", "transformers", "torch")
# The engine keeps these in full precision too: the head, and the routers of mixtures of experts.
IGNORE = ["lm_head", "re:.*mlp\\.gate$", "re:.*shared_expert_gate$", "re:.*block_sparse_moe\\.gate$"]


def modifiers(recipe: dict[str, Any]) -> list[Any]:
    """The modifiers of a recipe."""
    method = recipe["method"]
    if method == "awq":
        groups = _int_weights(recipe, symmetric=False)
        return [AWQModifier(n_grid=recipe["grid"]), QuantizationModifier(config_groups=groups, ignore=IGNORE)]
    if method == "gptq":
        groups = _int_weights(recipe, symmetric=True)
        # Ordered statically: columns are quantized by their activation and stored in place, so that no g_idx is needed.
        return [
            GPTQModifier(config_groups=groups, ignore=IGNORE, actorder="static", dampening_frac=recipe["dampening"])
        ]
    if method == "int8":
        smooth = SmoothQuantModifier(smoothing_strength=recipe["smoothing"])
        return [
            smooth,
            GPTQModifier(targets="Linear", scheme="W8A8", ignore=IGNORE, dampening_frac=recipe["dampening"]),
        ]
    if method == "fp8_dynamic":
        return [QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=IGNORE)]
    if method == "fp8_static":
        cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
        return [QuantizationModifier(targets="Linear", scheme="FP8", ignore=IGNORE, kv_cache_scheme=cache)]
    msg = f"{method}: llm-compressor does not make it here"
    raise ValueError(msg)


def _int_weights(recipe: dict[str, Any], *, symmetric: bool) -> dict[str, QuantizationScheme]:
    weights = QuantizationArgs(
        num_bits=recipe["bits"], type="int", strategy="group", group_size=recipe["group_size"], symmetric=symmetric
    )
    return {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}


def quantize(
    source: str,
    output: Path,
    recipe: dict[str, Any],
    samples: list[list[int]],
    *,
    told: Callable[[int, int], None],
    layers_directory: Path,
) -> None:
    """Quantize a checkpoint.

    Args:
        source: the checkpoint in full precision.
        output: a directory for the quantized one.
        recipe: method and parameters.
        samples: token ids for calibration; not read by FP8 with dynamic scales.
        told: is told how many layers of how many are done.
        layers_directory: not used: the library cannot go on with what it has begun.
    """
    del layers_directory
    _without_pinned_memory()
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, device_map={"": "cpu"})
    layers = model.config.get_text_config().num_hidden_layers
    _watch_layers(layers, told)
    data = {}
    if recipe["samples"]:
        batches = [
            {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
            for ids in samples
        ]
        data = {
            "dataset": torch.utils.data.DataLoader(batches, batch_size=None),
            "num_calibration_samples": len(samples),
        }
    oneshot(
        model=model,
        processor=AutoTokenizer.from_pretrained(source),
        recipe=modifiers(recipe),
        pipeline="sequential" if data else "datafree",
        **data,
    )
    model.save_pretrained(output, save_compressed=True)


def _watch_layers(layers: int, told: Callable[[int, int], None]) -> None:
    """Has the library's end of each layer counted."""
    original = LifecycleCallbacks.sequential_epoch_end
    done = [0]

    def counted(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        done[0] += 1
        told(min(done[0], layers), layers)
        return result

    LifecycleCallbacks.sequential_epoch_end = counted  # type: ignore[method-assign]


def _without_pinned_memory() -> None:
    """Makes pinning a no-op where there is no accelerator: AWQ pins what it keeps, which torch refuses there."""
    if not torch.accelerator.is_available():
        torch.Tensor.pin_memory = lambda self, *_, **__: self  # type: ignore[method-assign, assignment]


def load(path: str, *, gpu_bytes: int, host_bytes: int, offload: Path) -> Any:
    """The quantized model, computing as its checkpoint says: weights unpacked, activations rounded where they are.

    Where the unpacked weights do not fit on the GPU they stay in host memory, and a layer is brought there when it is
    needed.
    """
    del host_bytes, offload
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, device_map={"": "cpu"}).eval()
    if not gpu_bytes:
        return model
    if sum(tensor.nbytes for tensor in model.state_dict().values()) <= gpu_bytes * 0.8:
        return model.to("cuda:0")
    return accelerate.cpu_offload(model, execution_device=torch.device("cuda:0"))


def versions() -> dict[str, str]:
    """Versions of the libraries that decide the result."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}
