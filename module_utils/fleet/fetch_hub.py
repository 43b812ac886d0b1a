"""What a repository of a Hugging Face hub holds, by huggingface_hub. Does I/O.

Only small files and the headers of tensors are fetched: planning 140 GB takes a few MB. The weights are fetched later,
by the hosts.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .checkpoint import CONFIG_NAME, INDEX_NAME
from .errors import FleetError
from .fetch_description import Description, UnreachableError, is_inside, keep, new_directory, shards_of, small_files
from .manifest_cache import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .fetch_description import SourceOptions

COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_S = 20.0
_ATTEMPTS = 4
_LONGEST_WAIT_S = 30.0
_TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
# Weights in other formats, which vLLM leaves alone where there are safetensors, and what no engine reads.
_NOT_SERVED = (
    *(".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".gguf", ".tflite", ".mlmodel"),
    *(".npz", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".pdf", ".mp4", ".mp3", ".wav", ".zip", ".tar", ".gz"),
)
# A hub keeps larger files with their SHA-256; one that does not is no model file.
_LARGEST_WITHOUT_SUM_BYTES = 64 << 20


class Hub:
    """One hub.

    Args:
        options: endpoint, token, proxy and cache.
    """

    def __init__(self, options: SourceOptions) -> None:
        # Read by huggingface_hub when it is imported; it would otherwise send a token of the operator's own.
        for name in ("IMPLICIT_TOKEN", "TELEMETRY", "PROGRESS_BARS", "XET"):
            os.environ[f"HF_HUB_DISABLE_{name}"] = "1"
        if options.proxy:
            os.environ.update(HTTP_PROXY=options.proxy, HTTPS_PROXY=options.proxy)
        try:
            import huggingface_hub  # noqa: PLC0415 (half a second that a fleet of local checkpoints need not spend)
        except ImportError:
            raise FleetError("huggingface_hub", "is not installed on the controller (run `make setup`)") from None
        if options.proxy:
            # A session that was opened before knows another proxy, or none.
            huggingface_hub.close_session()
        self._client = huggingface_hub
        self._options = options
        self._token: str | bool = options.token or False
        self._api = huggingface_hub.HfApi(endpoint=options.endpoint, token=self._token)

    def commit(self, repository: str, revision: str | None) -> str:
        """The commit that a revision is now.

        Raises:
            FleetError: one line that says why the hub does not tell.
        """
        where = f"hf:{repository}"
        found = self._ask(
            lambda: self._api.model_info(repository, revision=revision, timeout=_TIMEOUT_S), where, revision
        )
        if not COMMIT.fullmatch(found.sha or ""):
            raise FleetError(where, f"{self._options.endpoint} names no commit, so it is no hub")
        return str(found.sha)

    def describe(self, repository: str, commit: str, *, config_name: str = CONFIG_NAME) -> Description:
        """Files, configuration and headers of a commit.

        Raises:
            FleetError: one line that says why they cannot be had, or what is missing in them.
        """
        where = f"hf:{repository}@{commit[:12]}"
        found = self._ask(
            lambda: self._api.model_info(repository, revision=commit, files_metadata=True, timeout=_TIMEOUT_S),
            where,
            commit,
        )
        entries = {one.rfilename: one for one in found.siblings or () if is_inside(one.rfilename)}
        directory = new_directory(self._options.cache)
        try:
            return self._describe(repository, commit, entries, directory, where=where, config_name=config_name)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise

    def _describe(
        self,
        repository: str,
        commit: str,
        entries: Mapping[str, Any],
        directory: Path,
        *,
        where: str,
        config_name: str,
    ) -> Description:
        small = small_files(directory)
        if config_name not in entries:
            what = "model" if config_name == CONFIG_NAME else "adapter"
            raise FleetError(where, f"holds no {config_name}, so it is no {what} that vLLM serves")
        index = None
        if INDEX_NAME in entries:
            self._small_file(repository, commit, entries[INDEX_NAME], small, where)
            index = small / INDEX_NAME
        shards = shards_of(frozenset(entries), index, where)
        names = sorted(name for name in entries if name in shards or _is_served(name))
        unsummed = [name for name in names if entries[name].lfs is None or name in (config_name, INDEX_NAME)]
        with ThreadPoolExecutor(max_workers=8) as pool:
            fetched = pool.map(lambda name: self._small_file(repository, commit, entries[name], small, where), unsummed)
            sums = dict(zip(unsummed, fetched, strict=True))
            headers = dict(pool.map(lambda name: (name, self._header(repository, commit, name, where)), sorted(shards)))
        files = {
            name: {"bytes": entries[name].size, "sha256": sums.get(name) or entries[name].lfs.sha256} for name in names
        }
        base = f"{self._options.endpoint.rstrip('/')}/{repository}/resolve/{commit}/"
        key = key_of(self._options.endpoint, repository, commit)
        return keep(Description(directory, files, headers, base, "hub"), key, self._options.cache)

    def _small_file(self, repository: str, commit: str, entry: Any, directory: Path, where: str) -> str:
        """Fetch a small file; returns its SHA-256. A git object name shows that the bytes are those of the commit."""
        name = entry.rfilename
        if entry.size is None or entry.size > _LARGEST_WITHOUT_SUM_BYTES:
            raise FleetError(f"{where}: {name}", "is large, and the hub names no SHA-256 for it")
        path = directory / name
        if not path.is_file():
            self._ask(
                lambda: self._client.hf_hub_download(
                    repository,
                    name,
                    revision=commit,
                    local_dir=directory,
                    endpoint=self._options.endpoint,
                    token=self._token,
                ),
                f"{where}: {name}",
                commit,
            )
        content = path.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        if entry.lfs is None and entry.blob_id is not None and blob != entry.blob_id:
            raise FleetError(f"{where}: {name}", "is not what the commit names: its bytes were changed on the way")
        return sha256_of(path)

    def _header(self, repository: str, commit: str, name: str, where: str) -> dict[str, Any]:
        found = self._ask(
            lambda: self._api.parse_safetensors_file_metadata(repository, name, revision=commit, timeout=_TIMEOUT_S),
            f"{where}: {name}",
            commit,
        )
        return {
            tensor: {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": list(one.data_offsets)}
            for tensor, one in found.tensors.items()
        }

    def _ask(self, call: Callable[[], Any], where: str, revision: str | None) -> Any:
        """Call huggingface_hub; its errors become one line, and those that pass are waited for."""
        for attempt in range(_ATTEMPTS):
            try:
                return call()
            # Its errors come from three libraries; each is told in one line.
            except Exception as error:
                wait_s = _wait_of(error, attempt)
                if wait_s is None or attempt == _ATTEMPTS - 1:
                    raise self._explained(error, where, revision) from None
                time.sleep(wait_s)
        raise AssertionError

    def _explained(self, error: Exception, where: str, revision: str | None) -> FleetError:
        errors, endpoint, status = self._client.errors, self._options.endpoint, _status_of(error)
        if status is None or status >= 500 or status == 429:
            return self._passing(error, where, status)
        repository = where.removeprefix("hf:").partition("@")[0].partition(":")[0]
        with_token = bool(self._options.token)
        problem = f"{endpoint} answers {status}"
        if isinstance(error, errors.GatedRepoError):
            account = "the account of fleet_hub_token has not done so" if with_token else "fleet_hub_token is not set"
            problem = f"is gated: its terms have to be accepted at {endpoint}/{repository}, and {account}"
        elif isinstance(error, errors.RevisionNotFoundError):
            problem = f"has no revision {revision or 'main'!r} on {endpoint}"
        elif isinstance(error, errors.RepositoryNotFoundError):
            private = (
                "fleet_hub_token may not read it" if with_token else "it is private and fleet_hub_token is not set"
            )
            problem = f"does not exist on {endpoint}, or {private}"
        elif status in (401, 403):
            problem = f"{endpoint} does not accept fleet_hub_token ({status})"
        return FleetError(where, problem)

    def _passing(self, error: Exception, where: str, status: int | None) -> FleetError:
        endpoint, errors = self._options.endpoint, self._client.errors
        if isinstance(error, (errors.SafetensorsParsingError, errors.NotASafetensorsRepoError)):
            return FleetError(where, "has a malformed safetensors header")
        if status == 429:
            return UnreachableError(where, f"{endpoint} asks to wait (429 Too Many Requests); run again later")
        if status is not None:
            return UnreachableError(where, f"{endpoint} answers {status}")
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return UnreachableError(where, f"{endpoint} cannot be reached ({reason[:200]})")


def key_of(endpoint: str, repository: str, commit: str) -> str:
    """The key under which a commit's description is kept."""
    return hashlib.sha256(f"{endpoint.rstrip('/')} {repository} {commit}".encode()).hexdigest()[:32]


def file_url(base_url: str, name: str) -> str:
    """The address of one file of a source."""
    return base_url + quote(name)


def _is_served(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() not in _NOT_SERVED and path.suffix != ".safetensors"


def _status_of(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _wait_of(error: Exception, attempt: int) -> float | None:
    """Seconds to wait before another try; None when none would help."""
    if _status_of(error) not in _TRANSIENT_STATUS:
        return None
    said = error.response.headers.get("Retry-After", "")  # type: ignore[attr-defined]
    wait_s = float(said) if said.isdigit() else 0.5 * 2**attempt
    return wait_s if wait_s <= _LONGEST_WAIT_S else None
