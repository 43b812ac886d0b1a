"""Finds on the controller what models.yml names: configurations and checkpoints. Does I/O."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint import CONFIG_NAME, load_model_facts, manifest, read_json, tensor_names
from .configurations import FurtherCheckpoint, ResolvedModel
from .document_checks import faults_error, path_of
from .eagle_head import eagle3_facts
from .encoder_memory import with_largest_image
from .errors import FleetError
from .fetch_description import UnreachableError
from .plan_document import CheckpointReference
from .requests import parse_requests, relative_to
from .sources import FurtherSource, Source, stored_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .fetch_description import Description
    from .fetch_sources import RemoteSources
    from .model_facts import ModelFacts
    from .requests import ModelRequest


_OF_IMAGES = (
    "Images: what the encoder takes in memory is computed and was never measured, so that it has a margin of its own;"
    " the time that it takes is not in the speed figures."
)


@dataclass(frozen=True, slots=True)
class LocalCheckpoint:
    """A checkpoint whose every file is known, here or elsewhere.

    Args:
        name: that it has in the stores: the model's, or one that begins with it and an underscore.
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

    def document(self) -> dict[str, Any]:
        """What the role ``model_store`` is given."""
        return {
            "name": self.name,
            "source_path": self.source_path,
            "base_url": self.base_url,
            "credential": self.credential,
            "digest": self.digest,
            "total_bytes": self.total_bytes,
            "files": dict(self.files),
        }


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
        The models in the order given, and the checkpoints found by their name in the stores.

    Raises:
        FleetError: one line for each model whose configuration or checkpoint is missing or broken.
    """
    models: list[ResolvedModel] = []
    checkpoints: dict[str, LocalCheckpoint] = {}
    faults: list[tuple[str, str]] = []
    for index, request in enumerate(requests):
        path = f"{models_file}: {path_of('models', index)}"
        finder = _Finder(models_file, path, remote if with_checkpoints else None, with_checkpoints)
        found: list[LocalCheckpoint] = []
        try:
            model = _resolve(request, path, finder, found)
        except FleetError as error:
            faults.append((error.where, error.problem))
        else:
            models.append(model)
            checkpoints |= {one.name: one for one in found}
    if faults:
        raise faults_error(faults)
    return tuple(models), checkpoints


def _resolve(request: ModelRequest, path: str, finder: _Finder, found: list[LocalCheckpoint]) -> ResolvedModel:
    """The model with all that it is served with; what checkpoints consist of is added to ``found``."""
    own = FurtherSource("", "source", Source(request.source), request.config, "config")
    model = finder.find(own, request.name, found)
    if model.facts is None:
        raise FleetError(f"{path}.source", "is no model")
    further = tuple(finder.find(one, stored_name(request.name, one.label), found) for one in request.further_sources)
    return ResolvedModel(
        request,
        path,
        _as_served(model.facts, request),
        model.checkpoint,
        further=further,
        embedding_size=_embedding_size(model.facts, request, found),
        notes=() if model.facts.encoder is None else (_OF_IMAGES,),
    )


def _as_served(facts: ModelFacts, request: ModelRequest) -> ModelFacts:
    """The model as the engine builds it for this request: one that pools has no head; images may be limited in size."""
    processor = request.engine_args.get("mm_processor_kwargs")
    pixels = processor.get("max_pixels") if isinstance(processor, dict) else None
    if facts.encoder is not None and isinstance(pixels, int):
        facts = replace(facts, encoder=with_largest_image(facts.encoder, pixels))
    return facts if request.task == "generate" or not facts.has_lm_head else replace(facts, has_lm_head=False)


def _embedding_size(facts: ModelFacts, request: ModelRequest, found: list[LocalCheckpoint]) -> int | None:
    """The hidden size, unless something says that it is projected to another."""
    files = next((one.files for one in found if one.name == request.name), {})
    projected = any("_Dense/" in file for file in files) or "hf_overrides" in request.engine_args
    return None if request.task != "embed" or projected else facts.hidden_size


@dataclass(frozen=True, slots=True)
class _Finder:
    """Finds the sources of one entry of models.yml.

    Args:
        models_file: paths are relative to it.
        path: of the entry.
        remote: hubs and HTTP trees; None when they are not asked.
        with_checkpoints: find out what a checkpoint consists of.
    """

    models_file: str
    path: str
    remote: RemoteSources | None
    with_checkpoints: bool

    def find(self, wanted: FurtherSource, name: str, found: list[LocalCheckpoint]) -> FurtherCheckpoint:
        """What a source says of itself.

        Args:
            wanted: the source.
            name: that it gets in the stores.
            found: gets what the checkpoint consists of, if that is asked for and can be found out.

        Raises:
            FleetError: it is missing or broken.
        """
        if wanted.source.path is None and self.remote is not None:
            description = self._description(wanted, self.remote)
            if description is not None:
                checkpoint = _elsewhere(name, description)
                found.append(checkpoint)
                names = [name for header in description.headers.values() for name in header]
                return self._understood(
                    wanted,
                    lambda: description.config(wanted.config_name),
                    lambda: names,
                    description.facts,
                    reference=checkpoint.reference,
                    key=wanted.key,
                )
        key, location = self._configuration(wanted)
        reference = None
        if self.with_checkpoints and wanted.source.path is not None:
            checkpoint = self._local(wanted, name)
            found.append(checkpoint)
            reference = checkpoint.reference
        file = Path(location) / wanted.config_name if Path(location).is_dir() else Path(location)
        return self._understood(
            wanted,
            lambda: read_json(file),
            lambda: tensor_names(location),
            lambda: load_model_facts(location),
            reference=reference,
            key=key,
        )

    def _understood(
        self,
        wanted: FurtherSource,
        config: Callable[[], Mapping[str, object]],
        tensors: Callable[[], Sequence[str] | None],
        facts: Callable[[], ModelFacts],
        *,
        reference: CheckpointReference | None,
        key: str,
    ) -> FurtherCheckpoint:
        try:
            said = config()
            known: ModelFacts | None = None
            if wanted.kind == "eagle3":
                known = eagle3_facts(said, tensors(), where=wanted.config_name)
            elif wanted.config_name == CONFIG_NAME:
                known = facts()
            return FurtherCheckpoint(wanted, said, known, reference)
        except FleetError as error:
            raise FleetError(f"{self.path}.{key}", str(error)) from None

    def _description(self, wanted: FurtherSource, remote: RemoteSources) -> Description | None:
        """What is elsewhere; None when it cannot be reached and there is a configuration to plan with."""
        where = f"{self.path}.{wanted.key}"
        try:
            return remote.description(wanted.source, config_name=wanted.config_name)
        except UnreachableError as error:
            if wanted.config is None:
                raise FleetError(where, str(error)) from None
            remote.unavailable.append((where, str(error)))
        except FleetError as error:
            raise FleetError(where, str(error)) from None
        return None

    def _configuration(self, wanted: FurtherSource) -> tuple[str, str]:
        """The key that names the configuration or its directory, and the path of it."""
        if wanted.config is not None:
            key, location = wanted.config_key, wanted.config
        elif wanted.source.path is not None:
            key, location = wanted.key, wanted.source.path
        else:
            raise FleetError(
                f"{self.path}.{wanted.config_key or wanted.key}",
                f"is required, because {wanted.source.text!r} does not lie on this machine;"
                f" give a {wanted.config_name}",
            )
        location = relative_to(self.models_file, location)
        if not Path(location).exists():
            raise FleetError(f"{self.path}.{key}", f"{location} does not exist")
        return key, location

    def _local(self, wanted: FurtherSource, name: str) -> LocalCheckpoint:
        where = f"{self.path}.{wanted.key}"
        location = relative_to(self.models_file, wanted.source.path or "")
        if not Path(location).is_dir():
            raise FleetError(where, f"{location} is not a directory")
        cache = self.remote.options.cache if self.remote else None
        try:
            found = manifest(location, cache=cache, config_name=wanted.config_name)
        except FleetError as error:
            raise FleetError(where, str(error)) from None
        except OSError as error:
            raise FleetError(where, f"{error.filename}: {error.strerror}") from None
        files, total = found["files"], found["total_bytes"]
        if not isinstance(files, dict) or not isinstance(total, int):
            raise FleetError(where, f"{location} has no usable manifest")
        return LocalCheckpoint(
            name=name,
            source_path=str(Path(location).absolute()),
            digest=str(found["digest"]),
            total_bytes=total,
            files=files,
        )


def _elsewhere(name: str, found: Description) -> LocalCheckpoint:
    manifest_found = found.manifest
    return LocalCheckpoint(
        name=name,
        source_path="",
        digest=str(manifest_found["digest"]),
        total_bytes=int(manifest_found["total_bytes"]),
        files=found.files,
        base_url=found.base_url,
        credential=found.credential,
    )
