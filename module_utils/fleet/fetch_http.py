"""Fetches one file over HTTP: by ranges, continued where it was cut off, checked by SHA-256. Does I/O.

Runs on managed hosts: standard library only.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

_CHUNK_BYTES = 1 << 20
# Content networks in front of a hub refuse whole answers above 50 GB; a bounded range always passes.
_SEGMENT_BYTES = 4 << 30
_TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_REASONS = {
    401: "the server wants a token, or does not accept the one that it was given",
    403: "the server refuses: the token may not read this",
    404: "the server does not have it",
}


@dataclass(frozen=True)
class Patience:
    """How long to go on where a server does not answer well.

    Attributes:
        attempts: tries in a row that bring no byte before the file is given up.
        stall_s: silence on a connection after which it is opened anew.
        first_wait_s: wait after the first failure; it doubles with each further one.
        longest_wait_s: no wait is longer, also when the server asks for it (``Retry-After``): then it is given up.
    """

    attempts: int = 6
    stall_s: float = 60.0
    first_wait_s: float = 1.0
    longest_wait_s: float = 300.0


@dataclass(frozen=True)
class Location:
    """One place where a file can be had.

    Attributes:
        url: http, https, or file on this host.
        token: sent as a bearer token to the host of ``url`` and to no other.
        direct: never through a proxy (hosts of the fleet).
    """

    url: str
    token: str = ""
    direct: bool = False


class _TransientError(Exception):
    """Worth another try. ``wait_s`` is what the server asked for, None when it did not say."""

    def __init__(self, problem: str, wait_s: float | None = None) -> None:
        super().__init__(problem)
        self.wait_s = wait_s


class _SameHostToken(urllib.request.HTTPRedirectHandler):
    """Follows redirections; the token goes with them only while they stay on the host that it is for."""

    def redirect_request(  # noqa: PLR0917 (as the base class has them)
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.unredirected_hdrs.get("Authorization")
        if new is not None and token and urlsplit(newurl)[:2] == urlsplit(req.full_url)[:2]:
            new.add_unredirected_header("Authorization", token)
        return new


class Fetcher:
    """Fetches files.

    Args:
        patience: when to give up.
        proxy: proxy for locations that are not direct; empty takes the environment's.
        certificate: PEM of the only certificate that direct locations may show; None for the system's authorities.
        report: called with the number of bytes that were gained, negative when some had to be thrown away.
        wait: sleeps; it may raise to end the work.
    """

    def __init__(
        self,
        *,
        patience: Patience | None = None,
        proxy: str = "",
        certificate: str | None = None,
        report: Callable[[int], None] = lambda count: None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._patience = patience or Patience()
        self._report = report
        self._wait = wait
        proxies = {"http": proxy, "https": proxy} if proxy else None
        self._public = urllib.request.build_opener(_SameHostToken, urllib.request.ProxyHandler(proxies))
        context = ssl.create_default_context(cadata=certificate)
        # The certificate is made for one run and pinned: it stands for the host, whatever its name.
        context.check_hostname = certificate is None
        self._direct = urllib.request.build_opener(
            _SameHostToken, urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )

    def fetch(self, path: Path, size_bytes: int, sha256: str, locations: Iterable[Location]) -> None:
        """Bring a file whole and right; what is there of it already is continued.

        Args:
            path: the file. Whatever its size, it is right only when this returns.
            size_bytes: its size.
            sha256: its SHA-256 in hexadecimal.
            locations: where it can be had, tried in turn.

        Raises:
            FleetError: no location gave it; says what the last one answered. What was fetched stays, unless wrong.
        """
        error: FleetError | None = None
        for location in locations:
            try:
                self._fetch(path, size_bytes, sha256, location)
            except FleetError as problem:
                error = problem
            else:
                return
        raise error or FleetError(str(path), "there is nowhere to fetch it from")

    def _fetch(self, path: Path, size_bytes: int, sha256: str, location: Location) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            for last_try in (False, True):
                found = self._complete(file, size_bytes, location)
                if found == sha256:
                    os.fsync(file.fileno())
                    return
                self._discard(file)
                if last_try:
                    problem = f"its SHA-256 is {found[:12]}..., {sha256[:12]}... was planned"
                    raise FleetError(location.url, problem)

    def _complete(self, file: IO[bytes], size_bytes: int, location: Location) -> str:
        """Bring the rest of a file; returns the SHA-256 of all of it."""
        if file.seek(0, os.SEEK_END) > size_bytes:
            self._discard(file)
        digest = hashlib.sha256()
        file.seek(0)
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
        if location.url.startswith("file:"):
            self._copy(file, size_bytes, digest, location)
        failures = 0
        while (offset := file.tell()) < size_bytes:
            try:
                digest = self._segment(file, offset, size_bytes, digest, location)
            except _TransientError as problem:
                failures = failures + 1 if file.tell() == offset else 0
                self._pause(problem, failures, location)
        return digest.hexdigest()

    def _copy(self, file: IO[bytes], size_bytes: int, digest: hashlib._Hash, location: Location) -> None:
        """Append the rest from a file of this host."""
        path = unquote(location.url.removeprefix("file://"))
        try:
            with open(path, "rb") as source:
                source.seek(file.tell())
                while file.tell() < size_bytes and (chunk := source.read(_CHUNK_BYTES)):
                    self._append(file, chunk, digest)
        except OSError as error:
            raise FleetError(path, _words(error)) from None
        if file.tell() != size_bytes:
            raise FleetError(path, f"is {file.tell()} bytes long, {size_bytes} were planned")

    def _pause(self, problem: _TransientError, failures: int, location: Location) -> None:
        longest = self._patience.longest_wait_s
        if failures >= self._patience.attempts:
            raise FleetError(location.url, f"{problem}; given up after {failures} tries")
        wait_s = problem.wait_s
        if wait_s is None:
            wait_s = min(longest, self._patience.first_wait_s * 2 ** max(0, failures - 1)) if failures else 0.0
        if wait_s > longest:
            raise FleetError(location.url, f"{problem}; it asks to wait {wait_s:.0f} s, which is too long")
        if wait_s:
            self._wait(wait_s)

    def _segment(
        self, file: IO[bytes], offset: int, size_bytes: int, digest: hashlib._Hash, location: Location
    ) -> hashlib._Hash:
        """Append what one request brings. Returns the digest, a new one where the server began from the start."""
        end = min(size_bytes, offset + _SEGMENT_BYTES)
        with self._open(location, f"bytes={offset}-{end - 1}") as answer:
            if answer.status == 200 and offset:
                self._discard(file)
                digest, offset, end = hashlib.sha256(), 0, size_bytes
            elif answer.status == 200:
                end = size_bytes
            self._check_size(answer, offset, size_bytes, location)
            left = end - offset
            while left:
                try:
                    # What has come is written at once: a kill loses nothing.
                    chunk = answer.read1(min(left, _CHUNK_BYTES))
                except (OSError, http.client.HTTPException) as error:
                    raise _TransientError(f"the connection broke ({_words(error)})") from None
                if not chunk:
                    raise _TransientError(f"the connection ended {left} bytes early")
                self._append(file, chunk, digest)
                left -= len(chunk)
        return digest

    def _open(self, location: Location, byte_range: str) -> http.client.HTTPResponse:
        request = urllib.request.Request(  # noqa: S310 (http and https are all that this opener knows)
            location.url, headers={"Range": byte_range, "Accept-Encoding": "identity"}
        )
        request.add_header("User-Agent", "l40s-fleet")
        if location.token:
            request.add_unredirected_header("Authorization", f"Bearer {location.token}")
        opener = self._direct if location.direct else self._public
        try:
            return opener.open(request, timeout=self._patience.stall_s)  # type: ignore[no-any-return]
        except urllib.error.HTTPError as error:
            problem = f"answered {error.code} {error.reason}"
            wait_s = _seconds(error.headers.get("Retry-After"))
            error.close()
            if error.code in _TRANSIENT_STATUS:
                raise _TransientError(problem, wait_s) from None
            why = _REASONS.get(error.code)
            raise FleetError(location.url, f"{problem}: {why}" if why else problem) from None
        except urllib.error.URLError as error:
            reason = error.reason
            if isinstance(reason, ssl.SSLError):
                raise FleetError(location.url, f"no trusted connection ({_words(reason)})") from None
            raise _TransientError(f"cannot be reached ({_words(reason)})") from None
        except (OSError, http.client.HTTPException) as error:
            raise _TransientError(f"cannot be reached ({_words(error)})") from None

    @staticmethod
    def _check_size(answer: http.client.HTTPResponse, offset: int, size_bytes: int, location: Location) -> None:
        """Refuse an answer about another file, before a byte of it is written."""
        said = answer.headers.get("Content-Range") if answer.status == 206 else None
        first, _, total = (said or "").removeprefix("bytes ").partition("/")
        if said is None:
            total = answer.headers.get("Content-Length") or str(size_bytes)
        elif first.partition("-")[0] != str(offset):
            raise FleetError(location.url, f"answered with {said}, bytes from {offset} were asked for")
        if total not in ("*", str(size_bytes)):
            raise FleetError(location.url, f"is {total} bytes long, {size_bytes} were planned")

    def _append(self, file: IO[bytes], chunk: bytes, digest: hashlib._Hash) -> None:
        rest = memoryview(chunk)
        while rest:
            rest = rest[file.write(rest) :]
        digest.update(chunk)
        self._report(len(chunk))

    def _discard(self, file: IO[bytes]) -> None:
        self._report(-file.seek(0, os.SEEK_END))
        file.seek(0)
        file.truncate()


def _seconds(value: str | None) -> float | None:
    """``Retry-After`` in seconds. A date is left out: clocks differ, and the waits of our own do as well."""
    return float(value) if value is not None and value.isdigit() else None


def _words(error: object) -> str:
    if isinstance(error, (TimeoutError, socket.timeout)):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
