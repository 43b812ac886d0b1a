"""How well a model predicts a text: perplexity, and the token that it would choose at each place."""

from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

if TYPE_CHECKING:
    from collections.abc import Callable

# What of a GPU is given to weights; the rest is for activations and logits.
_WEIGHTS_SHARE = 0.8


def score(model: Any, pieces: list[list[int]], *, batch_size: int, told: Callable[[int, int], None]) -> dict[str, Any]:
    """Score a text that was cut into pieces.

    Args:
        model: a causal language model of Transformers.
        pieces: token ids; each piece is read on its own.
        batch_size: pieces of one length that are read at a time.
        told: is told how many pieces of how many are done.

    Returns:
        ``perplexity``, ``tokens`` (those that were predicted), ``greedy`` (the likeliest token at each place).
    """
    device = _input_device(model)
    greedy: list[int] = []
    loss, count, done = 0.0, 0, 0
    with torch.inference_mode():
        while done < len(pieces):
            batch = [piece for piece in pieces[done : done + batch_size] if len(piece) == len(pieces[done])]
            ids = torch.tensor(batch, device=device)
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
            targets = ids[:, 1:].to(logits.device)
            for row in range(len(batch)):
                # One row at a time: in 32 bits the logits of a batch over a large vocabulary are gigabytes.
                wide = logits[row].float()
                loss += float(torch.nn.functional.cross_entropy(wide, targets[row], reduction="sum"))
                greedy += wide.argmax(dim=-1).tolist()
            count += targets.numel()
            done += len(batch)
            told(done, len(pieces))
    mean = loss / count
    return {"perplexity": math.exp(mean) if mean < 700 else math.inf, "tokens": count, "greedy": greedy}


def load(path: str, *, gpu_bytes: int, host_bytes: int, offload: Path) -> tuple[Any, bool]:
    """Load a model to be scored, where it fits: on the GPU, in parts over GPU, host memory and disk, or in host memory.

    What is not on the GPU is brought there layer by layer whenever it is needed.

    Args:
        path: the checkpoint.
        gpu_bytes: memory of the GPU; 0 without one.
        host_bytes: host memory that may be used.
        offload: a directory for what fits in neither.

    Returns:
        The model, and whether it is read layer by layer.
    """
    size = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    options: dict[str, Any] = {"dtype": torch.bfloat16, "trust_remote_code": False}
    if size <= gpu_bytes * _WEIGHTS_SHARE:
        return AutoModelForCausalLM.from_pretrained(path, device_map={"": 0}, **options).eval(), False
    if not gpu_bytes and size <= host_bytes:
        return AutoModelForCausalLM.from_pretrained(path, device_map={"": "cpu"}, **options).eval(), False
    limits: dict[int | str, int] = {"cpu": host_bytes}
    if gpu_bytes:
        limits[0] = int(gpu_bytes * _WEIGHTS_SHARE)
    offload.mkdir(parents=True, exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(
        path, device_map="auto", max_memory=limits, offload_folder=str(offload), **options
    )
    return model.eval(), True


def release() -> None:
    """Give back what models that are no longer referred to held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _input_device(model: Any) -> torch.device:
    """Where the embedding computes: layers that lie on the disk or in host memory compute elsewhere."""
    embedding = model.get_input_embeddings()
    hook = getattr(embedding, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is not None:
        return torch.device(device)
    return torch.device(embedding.weight.device)
