"""A simulated Hugging Face hub: the part of its protocol that a download needs, and faults on demand.

Model info with file metadata, revisions, `resolve` with ETag, X-Repo-Commit and X-Linked-* headers, redirects of large
files to another host that refuses the hub's token, byte ranges, private and gated repositories. The same port serves a
directory tree below /tree/. As a program it logs one JSON object a request and reads its faults anew for each:

    simulated_hub.py --root DIRECTORY --listen ADDRESS:PORT [--token-file FILE] [--log FILE] [--faults FILE]

DIRECTORY holds ORG/NAME/files. Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

CHUNK_BYTES = 64 << 10
_MODEL = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)")
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Fault:
    """What goes wrong.

    Args:
        path: regular expression over the request's path.
        kind: an HTTP status (`429`), `cut` (the connection ends early), `wrong` (a byte differs) or `slow`.
        times: how often; it does not go wrong after that.
        after_bytes: where it cuts, or which byte is wrong.
        retry_after: what Retry-After says, with a status.
        bytes_per_s: how slow.
    """

    path: str
    kind: str
    times: int = 1
    after_bytes: int = 100
    retry_after: str | None = None
    bytes_per_s: int = 1 << 20


@dataclass
class Repository:
    """A repository: its commits, each a directory, the last one being `main`.

    Args:
        private: it shows itself to the token only.
        gated: its content is given to those who have accepted its terms.
        accepted: the token's account has.
    """

    private: bool = False
    gated: bool = False
    accepted: bool = True
    commits: dict[str, Path] = field(default_factory=dict)

    def commit(self, directory: Path) -> str:
        """Adds a commit with the files of a directory; returns its name."""
        digest = hashlib.sha1()  # noqa: S324 (as git names commits)
        for path in files_of(directory):
            digest.update(f"{path.relative_to(directory)} {path.stat().st_size} {sha256_of(path)}\n".encode())
        self.commits[digest.hexdigest()] = directory
        return digest.hexdigest()

    def find(self, revision: str | None) -> str | None:
        """The commit of a revision."""
        if revision in (None, "main"):
            return list(self.commits)[-1]
        return revision if revision in self.commits else None


def files_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


_SUMS: dict[tuple[Path, int, int], str] = {}


def sha256_of(path: Path) -> str:
    key = (path, path.stat().st_size, path.stat().st_mtime_ns)
    if key not in _SUMS:
        with path.open("rb") as file:
            _SUMS[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _SUMS[key]


def is_large(path: Path) -> bool:
    """Whether the repository keeps it with LFS."""
    return path.suffix in (".safetensors", ".bin", ".gguf") or path.stat().st_size > 10 << 20


def git_blob(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324 (as git names blobs)


class SimulatedHub(ThreadingHTTPServer):
    """The hub. `requests` is its log, `faults` what goes wrong next, `url` its endpoint."""

    daemon_threads = True

    def __init__(
        self, address: tuple[str, int] = ("127.0.0.1", 0), *, token: str = "", tree: Path | None = None
    ) -> None:
        super().__init__(address, _Handler)
        self.token = token
        self.tree = tree
        self.repositories: dict[str, Repository] = {}
        self._requests: list[dict] = []
        self._answering = 0
        self.faults: list[Fault] = []
        self.fault_file: Path | None = None
        self.log_file: Path | None = None
        self.used: dict[str, int] = {}
        self.lock = threading.Lock()
        self.url = f"http://{address[0]}:{self.server_port}"
        # Another name of the same machine, as a content network is another host.
        self.content_url = f"http://{'localhost' if address[0] == '127.0.0.1' else address[0]}:{self.server_port}"

    def __enter__(self) -> SimulatedHub:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def add(self, name: str, directory: Path, **options: bool) -> str:
        """Adds a commit to a repository, which is made at the first one."""
        return self.repositories.setdefault(name, Repository(**options)).commit(directory)

    def bytes_sent(self, path: str = "") -> int:
        """Bytes of all answers whose path matches."""
        return sum(one["bytes"] for one in self.requests if re.search(path, one["path"]))

    def fault(self, path: str, method: str) -> Fault | None:
        """The fault of this request, if it has one. An answer without a body can only fail by its status."""
        with self.lock:
            if self.fault_file and self.fault_file.exists():
                self.faults = [Fault(**one) for one in json.loads(self.fault_file.read_text() or "[]")]
            for number, fault in enumerate(self.faults):
                key = f"{number} {fault}"
                fits = re.search(fault.path, path) and (method != "HEAD" or fault.kind.isdigit())
                if fits and self.used.get(key, 0) < fault.times:
                    self.used[key] = self.used.get(key, 0) + 1
                    return fault
        return None

    @property
    def requests(self) -> list[dict]:
        """The log, once all that is being answered is in it: a client has its answer before the log has."""
        deadline = time.monotonic() + 5.0
        while self._answering and time.monotonic() < deadline:
            time.sleep(0.005)
        return self._requests

    def begin(self) -> None:
        with self.lock:
            self._answering += 1

    def note(self, entry: dict) -> None:
        with self.lock:
            self._answering -= 1
            self._requests.append(entry)
            if self.log_file:
                with self.log_file.open("a") as log:
                    log.write(json.dumps(entry) + "\n")

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SimulatedHub

    def setup(self) -> None:
        super().setup()
        self.sent = 0

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.sent, self.status = 0, 0
        self.server.begin()
        fault = self.server.fault(path, self.command)
        try:
            if fault and fault.kind.isdigit():
                headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
                self.answer(int(fault.kind), b"", **headers)
            else:
                self.route(path, fault)
        finally:
            client, agent = self.client_address[0], self.headers.get("User-Agent", "")
            authorized = "Authorization" in self.headers
            entry = {"method": self.command, "path": path, "status": self.status, "bytes": self.sent, "client": client}
            self.server.note({**entry, "range": self.headers.get("Range"), "authorized": authorized, "agent": agent})

    def route(self, path: str, fault: Fault | None) -> None:
        if path.startswith("/content/"):
            self.content(path.removeprefix("/content/"), fault)
        elif path.startswith("/tree/"):
            root = self.server.tree
            file = root / path.removeprefix("/tree/") if root else None
            if file is not None and file.is_file():
                self.send_file(file, fault, {"ETag": f'"{sha256_of(file)}"'})
            else:
                self.answer(404)
        elif found := _MODEL.fullmatch(path):
            self.model_info(*found.groups())
        elif found := _TREE.fullmatch(path):
            self.tree(*found.groups())
        elif found := _RESOLVE.fullmatch(path):
            self.resolve(*found.groups(), fault)
        else:
            self.answer(404)

    def repository(self, name: str, revision: str | None, *, content: bool) -> tuple[str, Path] | None:
        """Commit and directory, or None when the answer has been given: why not."""
        repository = self.server.repositories.get(name)
        known = self.headers.get("Authorization") == f"Bearer {self.server.token}"
        if repository is None or (repository.private and not known):
            self.answer(401, b'{"error": "Repository not found"}', **{"X-Error-Code": "RepoNotFound"})
        elif self.headers.get("Authorization") and not known:
            self.answer(401, b"{}", **{"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repository.gated and content and not (known and repository.accepted):
            words = {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to {name} is restricted"}
            self.answer(403 if known else 401, b"{}", **words)
        elif (commit := repository.find(revision)) is None:
            self.answer(404, b"{}", **{"X-Error-Code": "RevisionNotFound"})
        else:
            return commit, repository.commits[commit]
        return None

    def model_info(self, name: str, revision: str | None) -> None:
        found = self.repository(name, revision, content=False)
        if found is None:
            return
        commit, directory = found
        siblings = []
        for path in files_of(directory):
            entry = {"rfilename": path.relative_to(directory).as_posix(), "size": path.stat().st_size}
            if is_large(path):
                entry |= {"lfs": {"sha256": sha256_of(path), "size": path.stat().st_size, "pointerSize": 135}}
            siblings.append({**entry, "blobId": git_blob(path)})
        repository = self.server.repositories[name]
        body = {"id": name, "modelId": name, "sha": commit, "private": repository.private, "siblings": siblings}
        self.answer(200, json.dumps({**body, "gated": "manual" if repository.gated else False, "tags": []}).encode())

    def tree(self, name: str, revision: str) -> None:
        found = self.repository(name, revision, content=False)
        if found is None:
            return
        entries = []
        for path in files_of(found[1]):
            size = path.stat().st_size
            entry = {"type": "file", "oid": git_blob(path), "size": size, "path": path.relative_to(found[1]).as_posix()}
            lfs = {"lfs": {"oid": sha256_of(path), "size": size, "pointerSize": 135}}
            entries.append(entry | lfs if is_large(path) else entry)
        self.answer(200, json.dumps(entries).encode())

    def resolve(self, name: str, revision: str, file_name: str, fault: Fault | None) -> None:
        found = self.repository(name, revision, content=True)
        if found is None:
            return
        commit, directory = found
        path = directory / file_name
        if not path.is_file():
            self.answer(404, b"", **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit}
        if is_large(path):
            sha256 = sha256_of(path)
            headers |= {"X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": str(path.stat().st_size)}
            self.answer(
                302, b"", Location=f"{self.server.content_url}/content/{name}/{commit}/{file_name}?sig=1", **headers
            )
        else:
            self.send_file(path, fault, {**headers, "ETag": f'"{git_blob(path)}"'})

    def content(self, rest: str, fault: Fault | None) -> None:
        """The content network, which has never heard of the hub's token."""
        organization, name, commit, file_name = rest.split("/", 3)
        if self.server.content_url != self.server.url and "Authorization" in self.headers:
            self.answer(400, b"Only one auth mechanism allowed")
            return
        directory = self.server.repositories[f"{organization}/{name}"].commits[commit]
        self.send_file(directory / file_name, fault, {"ETag": f'"{sha256_of(directory / file_name)}"'})

    def send_file(self, path: Path, fault: Fault | None, headers: dict[str, str]) -> None:
        size = path.stat().st_size
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        end = min(size, int(asked[2]) + 1) if asked and asked[2] else size
        if first > end:
            self.answer(416)
            return
        self.status = 206 if asked else 200
        self.send_response(self.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - first))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{size}")
        self.end_headers()
        if self.command != "HEAD":
            with path.open("rb") as file:
                file.seek(first)
                self.send_bytes(file, end - first, fault)

    def send_bytes(self, file, left: int, fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        while left:
            chunk = file.read(min(left, CHUNK_BYTES))
            if kind == "cut" and self.sent + len(chunk) > fault.after_bytes:
                chunk = chunk[: max(0, fault.after_bytes - self.sent)]
                left = len(chunk)
                self.close_connection = True
            if kind == "wrong" and self.sent <= fault.after_bytes < self.sent + len(chunk):
                at = fault.after_bytes - self.sent
                chunk = chunk[:at] + bytes([chunk[at] ^ 1]) + chunk[at + 1 :]
            self.wfile.write(chunk)
            self.sent += len(chunk)
            left -= len(chunk)
            if kind == "slow":
                time.sleep(len(chunk) / fault.bytes_per_s)
        self.wfile.flush()

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.sent += len(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class names it so)
        """`note` keeps the log."""


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--listen", default="127.0.0.1:0")
    # A command line can be read by everybody, which scenarios look for.
    parser.add_argument("--token-file", type=Path)
    parser.add_argument("--private", action="store_true", help="repositories show themselves to the token only")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--faults", type=Path)
    arguments = parser.parse_args()
    address, port = arguments.listen.rsplit(":", 1)
    token = arguments.token_file.read_text(encoding="utf-8").strip() if arguments.token_file else ""
    hub = SimulatedHub((address, int(port)), token=token, tree=arguments.root)
    hub.log_file, hub.fault_file = arguments.log, arguments.faults
    for directory in sorted(arguments.root.glob("*/*")):
        if directory.is_dir():
            hub.add(f"{directory.parent.name}/{directory.name}", directory, private=arguments.private)
    sys.stdout.write(f"{hub.url}\n")
    sys.stdout.flush()
    hub.serve_forever()


if __name__ == "__main__":
    main()
