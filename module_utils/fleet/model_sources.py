"""Finds on the controller what models.yml names: configurations and checkpoints. Does I/O."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint import load_model_facts, manifest
from .configurations import ResolvedModel
from .document_checks import faults_error, path_of
from .errors import FleetError
from .fetch_description import UnreachableError
from .plan_document import CheckpointReference
from .requests import parse_requests, relative_to

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .fetch_description import Description
    from .fetch_sources import RemoteSources
    from .model_facts import ModelFacts
    from .requests import ModelRequest


@dataclass(frozen=True, slots=True)
class LocalCheckpoint:
    """A checkpoint whose every file is known, here or elsewhere.

    Args:
        name: of the model.
        source_path: its directory on the controller; empty when it is elsewhere.
        digest: of the manifest.
        total_bytes: of all files.
        files: size and SHA-256 by relative path.
        base_url: what a file's path is appended to, when it is elsewhere.
        credential: ``hub`` where the hub's token has to be sent.
    """

    name: str
    source_path: str
    digest: str
    total_bytes: int
    files: Mapping[str, Any]
    base_url: str = ""
    credential: str = ""

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
    requests: tuple[ModelRequest, ...],
    models_file: str,
    *,
    with_checkpoints: bool,
    remote: RemoteSources | None = None,
) -> tuple[tuple[ResolvedModel, ...], Mapping[str, LocalCheckpoint]]:
    """Read the configuration of every model and, if asked for, the whole of its checkpoint.

    Args:
        requests: the models of models.yml.
        models_file: the file they are from; paths in it are relative to it.
        with_checkpoints: find out what each checkpoint consists of, and its digest. Without it only configurations
            are read, so that a plan can be made where the checkpoints are not.
        remote: hubs and HTTP trees; without it, sources there need a ``config``. A source that cannot be reached is
            planned by its ``config`` too, without a checkpoint, and noted in ``remote.unavailable``.

    Returns:
        The models in the order given, and the checkpoints found by model name.

    Raises:
        FleetError: one line for each model whose configuration or checkpoint is missing or broken.
    """
    models: list[ResolvedModel] = []
    checkpoints: dict[str, LocalCheckpoint] = {}
    faults: list[tuple[str, str]] = []
    for index, request in enumerate(requests):
        path = f"{models_file}: {path_of('models', index)}"
        try:
            model, checkpoint = _resolve(request, models_file, path, remote if with_checkpoints else None)
            if with_checkpoints and request.source_path is not None:
                checkpoint = _checkpoint(request, models_file, path, remote)
            if checkpoint is not None:
                checkpoints[request.name] = checkpoint
                model = replace(model, checkpoint=checkpoint.reference)
        except FleetError as error:
            faults.append((error.where, error.problem))
        else:
            models.append(model)
    if faults:
        raise faults_error(faults)
    return tuple(models), checkpoints


def _resolve(
    request: ModelRequest, models_file: str, path: str, remote: RemoteSources | None
) -> tuple[ResolvedModel, LocalCheckpoint | None]:
    """The model, and its checkpoint when that is elsewhere and could be described."""
    if request.source_path is not None or remote is None:
        return ResolvedModel(request, path, _facts(request, models_file, path)), None
    try:
        found = remote.description(request)
        return ResolvedModel(request, path, found.facts()), _elsewhere(request, found)
    except UnreachableError as error:
        if request.config is None:
            raise FleetError(f"{path}.source", str(error)) from None
        remote.unavailable.append((f"{path}.source", str(error)))
    except FleetError as error:
        raise FleetError(f"{path}.source", str(error)) from None
    return ResolvedModel(request, path, _facts(request, models_file, path)), None


def _elsewhere(request: ModelRequest, found: Description) -> LocalCheckpoint:
    manifest_found = found.manifest
    return LocalCheckpoint(
        name=request.name,
        source_path="",
        digest=str(manifest_found["digest"]),
        total_bytes=int(manifest_found["total_bytes"]),
        files=found.files,
        base_url=found.base_url,
        credential=found.credential,
    )


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


def _checkpoint(request: ModelRequest, models_file: str, path: str, remote: RemoteSources | None) -> LocalCheckpoint:
    location = relative_to(models_file, request.source_path or "")
    if not Path(location).is_dir():
        raise FleetError(f"{path}.source", f"{location} is not a directory")
    try:
        found = manifest(location, cache=remote.options.cache if remote else None)
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
