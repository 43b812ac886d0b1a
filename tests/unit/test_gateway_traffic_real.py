"""Traffic of a real HAProxy: drained servers finish what they have, and get requests again once their checks pass."""

from __future__ import annotations

import contextlib
import http.server
import shutil
import socket
import subprocess
import threading
import time
import urllib.request

import pytest
from fleet.gateway_traffic import Traffic

pytestmark = pytest.mark.skipif(shutil.which("haproxy") is None, reason="needs haproxy")

CONFIGURATION = """
global
    stats socket {directory}/admin.sock mode 600 level admin
defaults
    mode http
    timeout connect 3s
    timeout client 30s
    timeout server 30s
frontend clients
    bind 127.0.0.1:{port}
    default_backend model_a
backend model_a
    balance leastconn
    option httpchk GET /health
    default-server check inter 200ms rise 1 fall 1
    server a-1 127.0.0.1:{first}
    server a-2 127.0.0.1:{second}
"""
SLOW_S = 1.0


class Engine(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            time.sleep(SLOW_S)
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(b"done")

    def log_message(self, *_):
        pass


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def gateway(tmp_path):
    """(admin socket, client port, ports of the two engines)."""
    engines = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Engine) for _ in range(2)]
    for engine in engines:
        engine.handle_error = lambda *_: None
        threading.Thread(target=engine.serve_forever, args=(0.01,), daemon=True).start()
    port, ports = free_port(), [engine.server_port for engine in engines]
    file = tmp_path / "haproxy.cfg"
    file.write_text(CONFIGURATION.format(directory=tmp_path, port=port, first=ports[0], second=ports[1]))
    process = subprocess.Popen(["haproxy", "-f", file], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    traffic = Traffic(tmp_path / "admin.sock")
    limit = time.monotonic() + 10
    while not (known := traffic.servers()) or not all(one.up for one in known):
        assert time.monotonic() < limit
        time.sleep(0.05)
    yield tmp_path / "admin.sock", port, ports
    process.terminate()
    process.wait()
    for engine in engines:
        engine.shutdown()
        engine.server_close()


def ask(port: int, path: str = "/") -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read()


def test_a_drained_server_finishes_what_it_has(gateway):
    admin, port, ports = gateway
    traffic, answers = Traffic(admin), []
    clients = [threading.Thread(target=lambda: answers.append(ask(port, "/slow"))) for _ in range(2)]
    for client in clients:
        client.start()
    time.sleep(SLOW_S / 4)
    begun = time.monotonic()
    outcome = traffic.drain(["a-1"], 10)
    assert (outcome.changed, outcome.waiting) == (("a-1",), ())
    assert time.monotonic() - begun > SLOW_S / 4, "one of the two slow requests was its"
    for client in clients:
        client.join()
    assert answers == [b"done"] * 2
    assert ask(port) == b"done"
    assert traffic.drain(["a-2"], 1).last == ("a-2",)
    assert traffic.restore({"a-1": ports[0]}, 5).waiting == ()
    assert all(one.in_traffic and one.up for one in traffic.servers())


def test_a_server_that_does_not_answer_is_told_and_gets_no_request(gateway):
    admin, port, _ = gateway
    traffic = Traffic(admin)
    traffic.drain(["a-1"], 10)
    # Its checks go to a port where nobody listens.
    traffic._ask(admin, f"set server model_a/a-1 addr 127.0.0.1 port {free_port()}")
    time.sleep(1)
    (moved,) = [one.port for one in traffic.servers() if one.name == "a-1"]
    assert traffic.restore({"a-1": moved}, 0.5).waiting == ("a-1",)
    assert [ask(port) for _ in range(4)] == [b"done"] * 4
