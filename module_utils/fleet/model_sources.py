"""Finds on the controller what models.yml names: configurations and checkpoints. Does I/O."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint import load_model_facts, manifest
from .configurations import ResolvedModel
from .document_checks import faults_error, path_of
from .errors import FleetError
from .plan_document import CheckpointReference
from .requests import parse_requests, relative_to

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .model_facts import ModelFacts
    from .requests import ModelRequest


@dataclass(frozen=True, slots=True)
class LocalCheckpoint:
    """A checkpoint that lies on the controller. ``files`` holds size and SHA-256 by relative path."""

    name: str
    source_path: str
    digest: str
    total_bytes: int
    files: Mapping[str, Any]

    @property
    def reference(self) -> CheckpointReference:
        """What an instance says about it."""
        return CheckpointReference(self.name, self.digest, self.total_bytes)


def read_models_file(path: str) -> tuple[ModelRequest, ...]:
    """Read and check models.yml.

    Raises:
        FleetError: it is missing, no UTF-8 text, or has faults.
    """
    return parse_requests(read_text(path), where=path)


def read_text(path: str) -> str:
    """A file's content.

    Raises:
        FleetError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise FleetError(path, "is no UTF-8 text") from None
    except OSError as error:
        raise FleetError(path, (error.strerror or str(error)).lower()) from None


def resolve_models(
    requests: tuple[ModelRequest, ...], models_file: str, *, with_checkpoints: bool
) -> tuple[tuple[ResolvedModel, ...], Mapping[str, LocalCheckpoint]]:
    """Read the configuration of every model and, if asked for, the whole of its checkpoint.

    Args:
        requests: the models of models.yml.
        models_file: the file they are from; paths in it are relative to it.
        with_checkpoints: check checkpoints that lie here and compute their digests. Without it only configurations
            are read, so that a plan can be made where the checkpoints are not.

    Returns:
        The models in the order given, and the checkpoints found here by model name.

    Raises:
        FleetError: one line for each model whose configuration or checkpoint is missing or broken.
    """
    models: list[ResolvedModel] = []
    checkpoints: dict[str, LocalCheckpoint] = {}
    faults: list[tuple[str, str]] = []
    for index, request in enumerate(requests):
        path = f"{models_file}: {path_of('models', index)}"
        try:
            model = ResolvedModel(request, path, _facts(request, models_file, path))
            if with_checkpoints and request.source_path is not None:
                checkpoint = _checkpoint(request, models_file, path)
                checkpoints[request.name] = checkpoint
                model = replace(model, checkpoint=checkpoint.reference)
        except FleetError as error:
            faults.append((error.where, error.problem))
        else:
            models.append(model)
    if faults:
        raise faults_error(faults)
    return tuple(models), checkpoints


def _facts(request: ModelRequest, models_file: str, path: str) -> ModelFacts:
    if request.config is not None:
        key, location = "config", request.config
    elif request.source_path is not None:
        key, location = "source", request.source_path
    else:
        raise FleetError(
            f"{path}.config",
            f"is required, because {request.source!r} does not lie on this machine; give a config.json",
        )
    location = relative_to(models_file, location)
    if not Path(location).exists():
        raise FleetError(f"{path}.{key}", f"{location} does not exist")
    try:
        return load_model_facts(location)
    except FleetError as error:
        raise FleetError(f"{path}.{key}", str(error)) from None


def _checkpoint(request: ModelRequest, models_file: str, path: str) -> LocalCheckpoint:
    location = relative_to(models_file, request.source_path or "")
    if not Path(location).is_dir():
        raise FleetError(f"{path}.source", f"{location} is not a directory")
    try:
        found = manifest(location)
    except FleetError as error:
        raise FleetError(f"{path}.source", str(error)) from None
    except OSError as error:
        raise FleetError(f"{path}.source", f"{error.filename}: {error.strerror}") from None
    files, total = found["files"], found["total_bytes"]
    if not isinstance(files, dict) or not isinstance(total, int):
        raise FleetError(f"{path}.source", f"{location} has no usable manifest")
    return LocalCheckpoint(
        name=request.name,
        source_path=str(Path(location).absolute()),
        digest=str(found["digest"]),
        total_bytes=total,
        files=files,
    )
