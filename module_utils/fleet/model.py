"""From a Hugging Face config.json to the facts of a model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .config_reader import ConfigReader
from .errors import FleetError
from .families import FAMILIES
from .model_facts import ModelFacts
from .quantization_config import quantization_from_config

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ModelFacts", "facts_from_config"]


def facts_from_config(config: Mapping[str, object], *, where: str) -> ModelFacts:
    """Read a config.json.

    Args:
        config: the parsed file.
        where: the file, for errors.

    Raises:
        FleetError: a key is missing or malformed, or the family is not known.
    """
    model_type = ConfigReader(config, where).text("model_type")
    family = FAMILIES.get(model_type)
    if family is None:
        raise FleetError(
            f"{where}: model_type",
            f"unknown family {model_type!r}, known are {', '.join(sorted(FAMILIES))}; "
            "for others give the checkpoint's directory, whose tensors say the size",
        )
    facts = family.build(ConfigReader(config, where, family.defaults))
    quantization = ConfigReader(config, where).mapping("quantization_config")
    if quantization is None:
        return facts
    return replace(facts, quantization=quantization_from_config(quantization, where=f"{where}: quantization_config"))
