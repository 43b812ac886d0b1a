"""What a directory on an HTTP server holds, as its SHA256SUMS says. Does I/O.

A server cannot be asked for a list of files or for their sums, so the tree carries a file as `sha256sum` writes it.
Without it nothing could be verified, and the plan would not know which checkpoint it is about.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from .checkpoint import CONFIG_NAME, INDEX_NAME
from .errors import FleetError
from .fetch_description import Description, UnreachableError, is_inside, keep, new_directory, shards_of, small_files
from .fetch_hub import file_url

if TYPE_CHECKING:
    from pathlib import Path

    from .fetch_description import SourceOptions

SUMS_NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](?:\./)?(.+)")
_TIMEOUT_S = 20.0
_HEADER_LENGTH = struct.Struct("<Q")
_FIRST_READ_BYTES = 100_000
_LONGEST_HEADER_BYTES = 100_000_000
_LONGEST_SMALL_BYTES = 64 << 20


class Tree:
    """A directory on an HTTP server.

    Args:
        url: its address.
        options: proxy and cache.
    """

    def __init__(self, url: str, options: SourceOptions) -> None:
        self._url = url.rstrip("/") + "/"
        self._options = options
        proxies = {"http": options.proxy, "https": options.proxy} if options.proxy else None
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))

    def sums(self) -> str:
        """The text of SHA256SUMS.

        Raises:
            FleetError: it is not there, or the server cannot be reached.
        """
        try:
            return self._read(SUMS_NAME, _LONGEST_SMALL_BYTES)[0].decode("utf-8", "replace")
        except UnreachableError:
            raise
        except FleetError as error:
            problem = f"{error.problem}; make it with `sha256sum * >{SUMS_NAME}` in that directory"
            raise FleetError(error.where, problem) from None

    def describe(self, sums: str, *, config_name: str = CONFIG_NAME) -> Description:
        """Files, configuration and headers of the tree that has these sums.

        Raises:
            FleetError: a file is missing, or is not what its sum says.
        """
        wanted = self._parse(sums)
        directory = new_directory(self._options.cache)
        try:
            return self._describe(wanted, directory, key_of(self._url, digest_of(sums)), config_name)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise

    def _describe(self, wanted: dict[str, str], directory: Path, key: str, config_name: str) -> Description:
        small = small_files(directory)
        for name in (config_name, INDEX_NAME):
            if name in wanted:
                content, _ = self._read(name, _LONGEST_SMALL_BYTES)
                if hashlib.sha256(content).hexdigest() != wanted[name]:
                    raise FleetError(self._url + name, f"is not what {SUMS_NAME} says")
                (small / name).write_bytes(content)
        if config_name not in wanted:
            raise FleetError(self._url + SUMS_NAME, f"names no {config_name}")
        index = small / INDEX_NAME
        shards = shards_of(frozenset(wanted), index if index.is_file() else None, self._url)
        with ThreadPoolExecutor(max_workers=8) as pool:
            headers = dict(zip(sorted(shards), pool.map(self._header, sorted(shards)), strict=True))
            sizes = dict(zip(wanted, pool.map(lambda name: self._read(name, 1)[1], wanted), strict=True))
        files: dict[str, dict[str, Any]] = {
            name: {"bytes": sizes[name], "sha256": wanted[name]} for name in sorted(wanted)
        }
        return keep(Description(directory, files, headers, self._url, ""), key, self._options.cache)

    def _parse(self, sums: str) -> dict[str, str]:
        wanted = {}
        for number, line in enumerate(sums.splitlines(), 1):
            if not line.strip():
                continue
            found = _LINE.fullmatch(line)
            if not found or ".." in found[2].split("/"):
                raise FleetError(f"{self._url}{SUMS_NAME}: line {number}", "is not as `sha256sum` writes it")
            if is_inside(found[2]) and found[2] != SUMS_NAME:
                wanted[found[2]] = found[1]
        return wanted

    def _header(self, name: str) -> dict[str, Any]:
        content, _ = self._read(name, _FIRST_READ_BYTES)
        length = _HEADER_LENGTH.unpack(content[:8])[0] if len(content) >= 8 else 0
        if not 0 < length <= _LONGEST_HEADER_BYTES:
            raise FleetError(self._url + name, "is no safetensors file")
        if len(content) < 8 + length:
            content, _ = self._read(name, 8 + length)
        try:
            header = json.loads(content[8 : 8 + length])
        except ValueError:
            raise FleetError(self._url + name, "has a malformed safetensors header") from None
        header.pop("__metadata__", None)
        return dict(header)

    def _read(self, name: str, most_bytes: int) -> tuple[bytes, int]:
        """The first bytes of a file, and its size."""
        url = file_url(self._url, name)
        request = urllib.request.Request(url, headers={"Range": f"bytes=0-{most_bytes - 1}"})  # noqa: S310 (checked kinds)
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
                content = answer.read(most_bytes)
                said = answer.headers.get("Content-Range") or ""
                size = said.rpartition("/")[2] or answer.headers.get("Content-Length") or ""
        except urllib.error.HTTPError as error:
            if error.code == 416 and error.headers.get("Content-Range") == "bytes */0":
                return b"", 0
            kind = UnreachableError if error.code >= 500 or error.code == 429 else FleetError
            error.close()
            raise kind(url, f"the server answers {error.code}") from None
        except OSError as error:
            raise UnreachableError(url, f"cannot be reached ({getattr(error, 'reason', error)})") from None
        if not size.isdigit():
            raise FleetError(url, "the server does not say how large it is")
        return content, int(size)


def digest_of(sums: str) -> str:
    """What is recorded of a tree: it changes when any file in it does."""
    return hashlib.sha256(sums.encode()).hexdigest()


def key_of(url: str, digest: str) -> str:
    """The key under which a tree's description is kept."""
    return hashlib.sha256(f"{url.rstrip('/')}/ {digest}".encode()).hexdigest()[:32]
