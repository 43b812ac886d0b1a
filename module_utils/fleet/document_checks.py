"""Reads YAML and JSON strictly, and turns every fault into one line that names file and path."""

from __future__ import annotations

import difflib
import json
import re
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic_core import ErrorDetails

MAX_FAULTS = 5
_SHOWN_CHARACTERS = 60


class Document(BaseModel):
    """A part of a document that a person writes: unknown keys and converted types are errors."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class MachineDocument(BaseModel):
    """A part of a document that another program writes: keys that we do not read are left alone."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


AnyDocument = TypeVar("AnyDocument", bound=BaseModel)


def faults_error(faults: Sequence[tuple[str, str]]) -> FleetError:
    """Join faults, given as (where, problem), into one error of at most ``MAX_FAULTS`` lines."""
    where, problem = faults[0]
    lines = [f"{other_where}: {other_problem}" for other_where, other_problem in faults[1:MAX_FAULTS]]
    if len(faults) > MAX_FAULTS:
        more = len(faults) - MAX_FAULTS
        lines[-1] += f" (and {more} more fault{'s' if more > 1 else ''})"
    return FleetError(where, "\n".join([problem, *lines]))


def nearest(word: str, known: Iterable[str]) -> str:
    """Say which known word was meant, or which ones there are."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6) or [name for name in names if name.startswith(word)]
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known are {', '.join(names)}" if len(names) <= 40 else "nothing known has a similar name"


def shown(value: object) -> str:
    """A value as it is quoted in an error, shortened."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def load_json(text: str, *, where: str) -> Any:
    """Parse JSON. Duplicate keys, NaN and infinities are errors.

    Raises:
        FleetError: the text is not such JSON; the line is named.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        result: dict[str, object] = {}
        for key, value in pairs:
            if key in result:
                raise FleetError(where, f"the key {shown(key)} is given twice")
            result[key] = value
        return result

    def no_number(word: str) -> NoReturn:
        raise FleetError(where, f"{word} is not a number that JSON knows")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=no_number)
    except json.JSONDecodeError as error:
        raise FleetError(f"{where}: line {error.lineno}", f"not JSON: {error.msg}") from None
    except RecursionError:
        raise FleetError(where, "nested too deeply") from None
    except ValueError as error:
        raise FleetError(where, f"not JSON: {error}") from None


def load_yaml(text: str, *, where: str) -> Any:
    """Parse one YAML document of mappings, lists, strings, numbers, booleans and null.

    Dates stay strings. Duplicate keys, keys that are no strings and aliases that contain themselves are errors.

    Raises:
        FleetError: the text is not such YAML; the line is named.
    """
    try:
        loader = _StrictLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_nodes(node, where, set(), set())
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}: line {mark.line + 1}" if mark else where
        raise FleetError(place, f"not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        first_line = str(error).splitlines()[0]
        raise FleetError(where, f"not YAML: {first_line}") from None
    except RecursionError:
        raise FleetError(where, "nested too deeply") from None
    except ValueError as error:
        raise FleetError(where, f"not YAML: {error}") from None


def check_document(document_type: type[AnyDocument], value: object, *, where: str, path: str = "") -> AnyDocument:
    """Check a parsed value against a document type.

    Args:
        document_type: what the value has to be.
        value: parsed JSON or YAML.
        where: the file, as it stands in front of a path.
        path: the path of the value inside the file, if it is not the whole.

    Raises:
        FleetError: one line for each fault, the first ``MAX_FAULTS`` of them.
    """
    try:
        return document_type.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False)
    # A list counts only its valid entries: that it is too short is news only when none of them has a fault.
    faulty = {details["loc"][:depth] for details in found for depth in range(len(details["loc"]))}
    faults = [
        (_place(where, path, details), _problem(document_type, details))
        for details in found
        if details["type"] != "too_short" or details["loc"] not in faulty
    ]
    raise faults_error(faults)


def list_as_tuple(value: object) -> object:
    """Let a list stand for a tuple: documents have lists, frozen values have tuples."""
    return tuple(value) if isinstance(value, list) else value


def labels_as_tuple(value: object) -> object:
    """Let a mapping of labels stand for a list: ``{rack: a}`` is ``[rack=a]``."""
    if isinstance(value, dict) and all(isinstance(item, str | int) for item in value.values()):
        return tuple(f"{key}={str(item).lower() if isinstance(item, bool) else item}" for key, item in value.items())
    return list_as_tuple(value)


def path_of(*parts: str | int) -> str:
    """A path as it is shown: ``path_of("models", 2, "name")`` is ``models[2].name``."""
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


class _StrictLoader(yaml.SafeLoader):
    """YAML without dates, sets, binaries and ordered maps: what JSON can say."""


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rsplit(":", 1)[-1] in {"null", "bool", "int", "float", "str", "seq", "map"}
}


def _check_nodes(node: yaml.Node, where: str, parents: set[int], finished: set[int]) -> None:
    if id(node) in finished:
        return
    if id(node) in parents:
        raise FleetError(f"{where}: line {node.start_mark.line + 1}", "an alias (*) stands inside its own anchor (&)")
    parents.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _check_nodes(child, where, parents, finished)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, child in node.value:
            place = f"{where}: line {key.start_mark.line + 1}"
            if key.tag not in {"tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"}:
                raise FleetError(place, f"a key must be a string, got {shown(getattr(key, 'value', None))}")
            if key.value in seen:
                raise FleetError(place, f"the key {shown(key.value)} is given twice")
            seen.add(key.value)
            _check_nodes(child, where, parents, finished)
    parents.remove(id(node))
    finished.add(id(node))


def _place(where: str, path: str, details: ErrorDetails) -> str:
    parts: list[str | int] = [path] if path else []
    parts.extend(part for part in details["loc"] if part != "[key]")
    inside = path_of(*parts)
    return f"{where}: {inside}" if inside else where


def _problem(document_type: type[BaseModel], details: ErrorDetails) -> str:
    kind = details["type"]
    context: Mapping[str, Any] = details.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key, {nearest(str(details['loc'][-1]), _known_keys(document_type, details['loc'][:-1]))}"
    if kind == "missing":
        return "is required"
    if kind == "value_error":
        return str(context["error"])
    got = details["input"]
    return f"must {_wanted(details, context)}, got {shown(list(got) if isinstance(got, tuple) else got)}"


def _wanted(details: ErrorDetails, context: Mapping[str, Any]) -> str:
    kind = details["type"]
    if kind in _BOUNDS:
        word, name = _BOUNDS[kind]
        return f"be {word} {context[name]:g}"
    if kind == "literal_error":
        return "be one of " + str(context["expected"]).replace(" or ", ", ").replace("'", "")
    if kind == "string_pattern_mismatch":
        return f"match {context['pattern']}"
    if kind == "too_short":
        return f"have at least {context['min_length']} entry"
    other = re.sub(r"^(Input|Value|String|List|Tuple|Dictionary) should ", "", details["msg"])
    return f"be {_WANTED[kind]}" if kind in _WANTED else other


_WANTED = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "none_required": "left out",
}
_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


def _known_keys(document_type: type[BaseModel], location: Sequence[str | int]) -> Iterable[str]:
    current: object = document_type
    for part in location:
        if isinstance(part, int):
            continue
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = _inner_document(current.model_fields[part].annotation)
        # A string that is no field is the key of a mapping whose values are the document found already.
    if isinstance(current, type) and issubclass(current, BaseModel):
        return current.model_fields.keys()
    return ()


def _inner_document(annotation: object) -> object:
    """The document type inside ``X | None``, ``tuple[X, ...]`` or ``dict[str, X]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _inner_document(argument)
        if found is not None:
            return found
    return None
