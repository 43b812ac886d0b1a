"""What a plan says about a model, so that its speed can be computed again without the checkpoint: facts as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from itertools import groupby
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from .document_checks import nearest, shown
from .errors import FleetError
from .model_facts import ModelFacts
from .quantization_config import QuantizationFacts

if TYPE_CHECKING:
    from .configurations import ResolvedModel

# What only memory depends on stays out, and what the checkpoint does not say.
_LEFT_OUT = frozenset({"checkpoint", "encoder", "rotary_caches", "unknown"})
_MAY_BE_ZERO = frozenset(
    {
        "final_norm_parameters",
        "float32_parameters",
        "group_size",
        "kv_lora_rank",
        "layer_pattern",
        "norm_parameters",
        "qk_rope_head_dim",
        "sharded_parameters",
    }
)
_LARGEST = 2**48
# Names that the annotations use and the modules import for type checkers only.
_NAMES = {"Mapping": Mapping, "QuantizationFacts": QuantizationFacts}


def model_section(model: ResolvedModel) -> dict[str, Any]:
    """What a plan says about a model that it was asked for: facts, demand and objectives."""
    request = model.request
    demand, objectives = request.demand, request.objectives
    return {
        "facts": facts_to_document(model.facts),
        "demand": None if demand is None else demand.model_dump(),
        "objectives": objectives.model_dump(),
    }


def facts_to_document(facts: ModelFacts) -> dict[str, Any]:
    """The facts that speed depends on, without what equals a default. Layers are written as [kind, how many]."""
    document = _encode(facts)
    document["layer_pattern"] = [[kind, len(list(run))] for kind, run in groupby(facts.layer_pattern)]
    return document  # type: ignore[no-any-return]


def facts_from_document(document: object, *, where: str, path: str) -> ModelFacts:
    """Read what ``facts_to_document`` wrote.

    Raises:
        FleetError: a key is missing, unknown or has a wrong value; names file and path.
    """
    if not isinstance(document, dict):
        raise FleetError(f"{where}: {path}", f"must be a mapping, got {shown(document)}")
    pattern = _pattern(document.get("layer_pattern"), f"{where}: {path}.layer_pattern")
    facts: ModelFacts = _decode_object(ModelFacts, {**document, "layer_pattern": list(pattern)}, f"{where}: {path}")
    if max(pattern) >= len(facts.layer_kinds):
        raise FleetError(
            f"{where}: {path}.layer_pattern", f"names kind {max(pattern)}, there are {len(facts.layer_kinds)}"
        )
    return facts


def _encode(value: Any) -> Any:
    if is_dataclass(value):
        kept = {}
        for one in fields(value):
            item = getattr(value, one.name)
            if one.name not in _LEFT_OUT and (one.default is MISSING or item != one.default):
                kept[one.name] = _encode(item)
        return kept
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    return value


def _pattern(value: object, where: str) -> list[int]:
    layers: list[int] = []
    if not isinstance(value, list) or not value:
        raise FleetError(where, f"must be a list of [kind, how many], got {shown(value)}")
    for index, run in enumerate(value):
        if not isinstance(run, list) or len(run) != 2:
            raise FleetError(f"{where}[{index}]", f"must be [kind, how many], got {shown(run)}")
        kind, count = (_whole(one, f"{where}[{index}]", least=least) for one, least in zip(run, (0, 1), strict=True))
        if count > 10_000:
            raise FleetError(f"{where}[{index}]", f"{count} layers are more than any model has")
        layers += [kind] * count
    return layers


def _decode_object(cls: Any, document: object, where: str) -> Any:
    if not isinstance(document, dict):
        raise FleetError(where, f"must be a mapping, got {shown(document)}")
    hints = get_type_hints(cls, localns=_NAMES)
    known = {one.name: one for one in fields(cls) if one.name not in _LEFT_OUT}
    for name in document:
        if name not in known:
            raise FleetError(f"{where}.{name}", f"is no fact of a model, {nearest(str(name), known)}")
    values = {}
    for name, one in known.items():
        if name in document:
            values[name] = _decode(hints[name], document[name], f"{where}.{name}", name)
        elif one.default is MISSING:
            raise FleetError(f"{where}.{name}", "is missing")
    return cls(**values)


def _decode(kind: Any, value: object, where: str, name: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (UnionType, Union):
        if value is None:
            return None
        return _decode(next(one for one in arguments if one is not type(None)), value, where, name)
    if origin is Literal:
        if value not in arguments:
            raise FleetError(where, f"must be one of {', '.join(map(str, arguments))}, got {shown(value)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise FleetError(where, f"must be a list, got {shown(value)}")
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise FleetError(where, f"must have {len(arguments)} elements, got {shown(value)}")
        return tuple(_decode(arguments[0], item, f"{where}[{index}]", name) for index, item in enumerate(value))
    return _decode_object(kind, value, where) if is_dataclass(kind) else _plain(kind, value, where, name)


def _plain(kind: type, value: object, where: str, name: str) -> object:
    if kind is int:
        return _whole(value, where, least=-1 if name == "group_size" else 0 if name in _MAY_BE_ZERO else 1)
    if not isinstance(value, kind):
        raise FleetError(where, f"must be {'true or false' if kind is bool else 'a text'}, got {shown(value)}")
    return value


def _whole(value: object, where: str, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
        raise FleetError(where, f"must be a whole number of {least} or more, got {shown(value)}")
    return value
