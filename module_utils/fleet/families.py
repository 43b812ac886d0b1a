"""Every family of models that is known by its ``model_type``."""

from __future__ import annotations

from .model_families import FAMILIES as DECODERS
from .model_families import Family
from .model_families_pooling import POOLING_FAMILIES
from .model_families_vision import VISION_FAMILIES

FAMILIES: dict[str, Family] = {**DECODERS, **POOLING_FAMILIES, **VISION_FAMILIES}
