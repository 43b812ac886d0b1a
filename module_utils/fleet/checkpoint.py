"""Reads checkpoint directories: configuration, safetensors headers, SHA-256 manifest. Does I/O."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoint_tensors import parse_tensors, with_quantized_modules, with_tensors
from .errors import FleetError
from .families import FAMILIES
from .manifest_cache import ManifestCache
from .model import facts_from_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .model_facts import ModelFacts

CONFIG_NAME = "config.json"
INDEX_NAME = "model.safetensors.index.json"
_HEADER_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER_BYTES = 100_000_000  # the safetensors library's own limit


def load_model_facts(path: str | Path) -> ModelFacts:
    """Facts of a checkpoint directory, or of a config.json alone.

    Where the directory holds tensors, sizes are theirs, whatever the architecture. An index without its shards still
    says which modules are quantized.

    Raises:
        FleetError: something is missing or malformed; names the file.
    """
    path = Path(path)
    if not path.is_dir():
        return facts_from_config(read_json(path), where=str(path))
    headers = {shard.name: read_header(shard) for shard in sorted(path.glob("*.safetensors"))}
    return facts_with_headers(path, headers)


def facts_with_headers(path: Path, headers: Mapping[str, Mapping[str, object]]) -> ModelFacts:
    """Facts of a directory that holds a checkpoint's configuration, and the headers of its safetensors files.

    Args:
        path: where config.json and perhaps the index are.
        headers: header by file name, as ``read_header`` returns it.

    Raises:
        FleetError: something is missing or malformed; names the file.
    """
    config_path = path / CONFIG_NAME
    config = read_json(config_path)
    tensors = [tensor for name in sorted(headers) for tensor in parse_tensors(headers[name], where=str(path / name))]
    known = config.get("model_type") in FAMILIES
    if not tensors:
        facts = facts_from_config(config, where=str(config_path))
        index = path / INDEX_NAME
        return with_quantized_modules(facts, weight_map(index)) if index.is_file() else facts
    return with_tensors(facts_from_config(config, where=str(config_path)) if known else None, config, tensors)


def tensor_names(path: str | Path) -> list[str] | None:
    """Names of all tensors of a checkpoint directory; None for a configuration alone.

    Raises:
        FleetError: a file is malformed.
    """
    shards = sorted(Path(path).glob("*.safetensors"))
    return [name for shard in shards for name in read_header(shard)] if shards else None


def read_json(path: Path) -> Mapping[str, object]:
    """A JSON file that holds an object.

    Raises:
        FleetError: missing, unreadable or malformed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FleetError(str(path), "no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FleetError(str(path), f"cannot be read ({error})") from None
    try:
        document = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise FleetError(str(path), f"is not JSON ({error})") from None
    if not isinstance(document, dict):
        raise FleetError(str(path), "must hold a JSON object")
    return document


def read_header(path: Path) -> Mapping[str, Mapping[str, object]]:
    """The header of a safetensors file: name to dtype, shape and data_offsets.

    Raises:
        FleetError: not such a file, or shorter than its header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(_HEADER_LENGTH.size)
        length = _HEADER_LENGTH.unpack(prefix)[0] if len(prefix) == _HEADER_LENGTH.size else -1
        if not 0 < length <= min(_LONGEST_HEADER_BYTES, size - _HEADER_LENGTH.size):
            raise FleetError(str(path), f"is no whole safetensors file ({size} bytes)")
        try:
            header = json.loads(file.read(length))
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise FleetError(str(path), "has a malformed safetensors header") from None
    header.pop("__metadata__", None)
    try:
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except (KeyError, TypeError, IndexError):
        raise FleetError(str(path), "has a malformed safetensors header") from None
    expected = _HEADER_LENGTH.size + length + end
    if size < expected:
        raise FleetError(str(path), f"is truncated: {size} bytes of {expected}")
    return header  # type: ignore[no-any-return]


def check_complete(path: Path, *, config_name: str = CONFIG_NAME) -> None:
    """Whether a checkpoint directory is whole.

    Raises:
        FleetError: no configuration, a shard that the index names is missing, or a file is truncated.
    """
    read_json(path / config_name)
    index_path = path / INDEX_NAME
    if index_path.exists():
        for shard in sorted(set(weight_map(index_path).values())):
            if not (path / shard).is_file():
                raise FleetError(str(path / shard), f"missing, {index_path.name} names it")
    for shard_path in sorted(path.glob("*.safetensors")):
        read_header(shard_path)


def weight_map(index_path: Path) -> dict[str, str]:
    """The shard of each tensor, as an index has them.

    Raises:
        FleetError: it is no such index.
    """
    found = read_json(index_path).get("weight_map")
    if not isinstance(found, dict):
        raise FleetError(f"{index_path}: weight_map", "missing")
    return {str(name): str(shard) for name, shard in found.items()}


def manifest(path: str | Path, *, cache: Path | None = None, config_name: str = CONFIG_NAME) -> dict[str, object]:
    """Files of a checkpoint with sizes and SHA-256, and a digest over all of it.

    Args:
        path: the checkpoint.
        cache: where sums are kept, so that a file that has not changed is not read again; None reads every file.
        config_name: the file that says what it is.

    Raises:
        FleetError: the checkpoint is not whole.
    """
    root = Path(path)
    check_complete(root, config_name=config_name)
    sums = ManifestCache(cache, root)
    files: dict[str, dict[str, int | str]] = {
        file.relative_to(root).as_posix(): {"bytes": file.stat().st_size, "sha256": sums.sha256(file)}
        for file in sorted(root.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)
    }
    sums.save()
    return manifest_of(files)


def manifest_of(files: Mapping[str, Mapping[str, int | str]]) -> dict[str, object]:
    """``files`` with the digest over all of it and the sum of its sizes: the same for the same files from anywhere."""
    canonical = json.dumps(files, sort_keys=True, separators=(",", ":")).encode()
    return {
        "files": files,
        "digest": hashlib.sha256(canonical).hexdigest(),
        "total_bytes": sum(int(one["bytes"]) for one in files.values()),
    }
