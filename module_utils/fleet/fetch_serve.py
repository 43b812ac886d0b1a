"""Serves files of this host to other hosts of the fleet, for as long as they copy. Does I/O.

``python3 -m fleet.fetch_serve SERVE.json``: HTTPS on one address, with a certificate and a token that were made for
this run alone. A file is asked for by its SHA-256, and only those that the document lists are served, so no path of a
request is ever opened. Standard library only.
"""

from __future__ import annotations

import hmac
import json
import re
import socket
import ssl
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Mapping

_CHUNK_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_SILENCE_S = 60.0


class PeerServer(ThreadingHTTPServer):
    """The server.

    Args:
        address: where it listens.
        token: what a request has to present.
        files: path by SHA-256.
        certificate: PEM file of certificate and key.
        idle_s: it ends after so long without a request, so that a run that was killed leaves no server.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self, address: tuple[str, int], *, token: str, files: Mapping[str, str], certificate: str, idle_s: float
    ) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)
        self.token = token
        self.files = files
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.load_cert_chain(certificate)
        self.idle_s = idle_s
        self.used = time.monotonic()
        self.busy = 0
        self.lock = threading.Lock()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """One connection, in its own thread: a client that dawdles over the handshake holds up nobody."""
        request.settimeout(_SILENCE_S)
        with self.lock:
            self.busy += 1
        try:
            with self.context.wrap_socket(request, server_side=True) as wrapped:
                super().finish_request(wrapped, client_address)
        except (OSError, ssl.SSLError) as error:
            sys.stderr.write(f"{client_address[0]}: {error}\n")
        finally:
            with self.lock:
                self.busy -= 1
                self.used = time.monotonic()

    def service_actions(self) -> None:
        """Ends the server when nobody has asked for anything for a while."""
        if not self.busy and time.monotonic() - self.used > self.idle_s:
            threading.Thread(target=self.shutdown, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: PeerServer
    server_version = "l40s-fleet"
    sys_version = ""

    def do_GET(self) -> None:
        """Answers with a file or a range of it."""
        presented = self.headers.get("Authorization", "")
        if not hmac.compare_digest(presented.encode(), f"Bearer {self.server.token}".encode()):
            self._refuse(HTTPStatus.UNAUTHORIZED)
            return
        path = self.server.files.get(self.path.removeprefix("/"))
        if path is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        try:
            with Path(path).open("rb") as file:
                self._send(file)
        except FileNotFoundError:
            self._refuse(HTTPStatus.NOT_FOUND)

    def _send(self, file: Any) -> None:
        size = file.seek(0, 2)
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        end = min(size, int(asked[2]) + 1) if asked and asked[2] else size
        if first > end:
            self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            return
        self.send_response(HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK)
        self.send_header("Content-Length", str(end - first))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{size}")
        self.end_headers()
        file.seek(first)
        left = end - first
        while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
            self.wfile.write(chunk)
            left -= len(chunk)

    def _refuse(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class names it so)
        """One line a request for the journal; it holds no token."""
        sys.stderr.write(f"{self.address_string()} {format % args}\n")


def main(arguments: list[str]) -> int:
    """Serve what a file describes until it is stopped or idle."""
    (where,) = arguments
    try:
        document = json.loads(Path(where).read_text(encoding="utf-8"))
        server = PeerServer(
            (document["address"], document["port"]),
            token=document["token"],
            files=document["files"],
            certificate=str(Path(where).with_name(document["certificate"])),
            idle_s=document["idle_s"],
        )
    except (OSError, ValueError, KeyError, FleetError) as error:
        sys.stderr.write(f"{where}: cannot serve: {error}\n")
        return 1
    with server:
        server.serve_forever(poll_interval=1.0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
