"""How a quantized checkpoint is made: methods, their parameters, and the name that a result has before it exists."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Mapping

# What of `quantization` in models.yml a method is an answer to.
PRECISIONS: Mapping[str, str] = {
    "awq": "awq",
    "gptq": "gptq",
    "gptqmodel": "gptq",
    "gptq_g_idx": "gptq",
    "int8": "int8",
    "fp8_dynamic": "fp8",
    "fp8_static": "fp8",
}
# The environment, of the role quantize, that a method needs.
TOOLS: Mapping[str, str] = {"gptqmodel": "gptqmodel", "gptq_g_idx": "gptqmodel"}
DEFAULT_TOOL = "llmcompressor"
# The versions that the role quantize has lock files for.
TOOL_VERSIONS: Mapping[str, str] = {"llmcompressor": "0.14.0.1", "gptqmodel": "7.7.0"}
# Precisions that exist only as a checkpoint, each with the method that makes it, the most faithful first.
MADE: Mapping[str, str] = {"int8": "int8", "awq": "awq", "gptq": "gptq"}
# Of roles/quantize/files/text/python-reference.txt, which calibrates where no other text is given.
TEXT_SHA256 = "09e4c968e640b872389a5c1481a6bf5da8ccf11c30fa6d988ff2f8aabce8d61a"
_KEY_SCHEMA = 1
_CALIBRATED = ("awq", "gptq", "gptqmodel", "gptq_g_idx", "int8", "fp8_static")
# From this version on the engine refuses checkpoints with g_idx ("GPTQ group activation ordering (desc_act=True) is no
# longer supported"): read in the sources of 0.32.0 and 0.33.0, absent in 0.24.0.
_NO_G_IDX_FROM = (0, 32)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what comes out, but the source and the libraries.

    Args:
        method: one of ``PRECISIONS``.
        bits: of a weight; 4 for AWQ and GPTQ, 8 for the others.
        group_size: input elements that share a scale; AWQ and GPTQ.
        samples: sequences that are read for calibration; 0 for FP8 with dynamic scales.
        sequence_length: tokens of a sequence.
        seed: of what is drawn at random.
        dampening: of the Hessian's diagonal; GPTQ and INT8.
        smoothing: how much of the activations' range moves into the weights; INT8 (SmoothQuant).
        grid: scales that AWQ tries for each layer.
        text: SHA-256 of the text for calibration and judgement; empty for the repository's.
    """

    method: str
    bits: int = 4
    group_size: int = 128
    samples: int = 128
    sequence_length: int = 2048
    seed: int = 0
    dampening: float = 0.01
    smoothing: float = 0.8
    grid: int = 20
    text: str = ""

    @property
    def precision(self) -> str:
        """The ``quantization`` of models.yml that it is an answer to."""
        return PRECISIONS[self.method]

    @property
    def tool(self) -> str:
        """The environment that makes it."""
        return TOOLS.get(self.method, DEFAULT_TOOL)

    @property
    def environment(self) -> str:
        """The tool with its version, as the directory of the environment is named."""
        return f"{self.tool}-{TOOL_VERSIONS[self.tool]}"

    @property
    def tokens(self) -> int:
        """Tokens that are read for calibration."""
        return self.samples * self.sequence_length

    def to_document(self) -> dict[str, Any]:
        """The recipe as JSON has it."""
        return asdict(self)


def recipe(method: str, **parameters: Any) -> Recipe:
    """A recipe with the method's defaults for what is not given.

    Raises:
        FleetError: no such method or parameter, or a value that the method has no use for.
    """
    if method not in PRECISIONS:
        raise FleetError("quantize.method", f"must be one of {', '.join(PRECISIONS)}, got {method!r}")
    unknown = sorted(set(parameters) - {field.name for field in fields(Recipe)})
    if unknown:
        raise FleetError(f"quantize.{unknown[0]}", "is no parameter of a recipe")
    given = {name: value for name, value in parameters.items() if value is not None}
    if method not in _CALIBRATED:
        given |= {"samples": 0, "sequence_length": 0}
    if PRECISIONS[method] in ("int8", "fp8"):
        given |= {"bits": 8, "group_size": 0}
    for name in ("samples", "sequence_length"):
        if method in _CALIBRATED and given.get(name, 1) < 1:
            raise FleetError(f"quantize.{name}", f"must be above 0, because {method} is calibrated, got {given[name]}")
    return Recipe(method, **given)


def recipe_from_document(document: Mapping[str, Any]) -> Recipe:
    """A recipe that was written down before.

    Raises:
        FleetError: it is not one.
    """
    if not isinstance(document.get("method"), str):
        raise FleetError("recipe.method", "is missing")
    known = {field.name for field in fields(Recipe)}
    return Recipe(**{name: value for name, value in document.items() if name in known})


def result_key(source_digest: str, chosen: Recipe) -> str:
    """SHA-256 that names the result before it exists: of the source, the recipe and the library's version.

    Args:
        source_digest: SHA-256 of the source's manifest.
        chosen: the recipe.
    """
    parts = {
        "schema": _KEY_SCHEMA,
        "source": source_digest,
        "recipe": {**chosen.to_document(), "text": chosen.text or TEXT_SHA256},
        "tool": chosen.environment,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def why_not_served(method: str, engine_version: str) -> str | None:
    """Why the engine does not serve what a method makes; None when it does."""
    parts = tuple(int(part) for part in engine_version.split(".")[:2] if part.isdigit())
    if method == "gptq_g_idx" and parts >= _NO_G_IDX_FROM:
        return (
            f"vLLM {engine_version} no longer loads checkpoints with g_idx (desc_act); gptq orders statically instead"
        )
    return None


def words(chosen: Recipe) -> str:
    """The recipe as it is told to people."""
    how = {
        "awq": f"AWQ, {chosen.bits} bits, groups of {chosen.group_size}",
        "gptq": f"GPTQ, {chosen.bits} bits, groups of {chosen.group_size}, activation order",
        "gptqmodel": f"GPTQModel, {chosen.bits} bits, groups of {chosen.group_size}, activation order in groups",
        "gptq_g_idx": f"GPTQModel, {chosen.bits} bits, groups of {chosen.group_size}, activation order by g_idx",
        "int8": "INT8 weights and activations, SmoothQuant",
        "fp8_dynamic": "FP8, scales of activations at run time",
        "fp8_static": "FP8, calibrated scales, FP8 KV cache",
    }[chosen.method]
    if not chosen.samples:
        return how
    return f"{how}, {chosen.samples} samples of {chosen.sequence_length} tokens"
