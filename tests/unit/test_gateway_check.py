"""Questions to a gateway, asked over real HTTP of a small server that answers by the rules given."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from fleet.gateway_check import check_gateway
from fleet.model_work import Purpose, image_uri, work
from fleet.openai_client import UNREACHED, Answer, Server

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "sk-client"
ROUTES = [
    {"model": "chat", "aliases": ["gpt"], "task": "generate", "servers": [{"id": "chat-1"}]},
    {"model": "vectors", "aliases": [], "task": "embed", "servers": [{"id": "vectors-1"}]},
    {"model": "waits", "aliases": [], "task": "generate", "servers": []},
]
GENERATED = {"choices": [{"message": {"content": "Hi"}}], "usage": {"completion_tokens": 2}}


class Gateway(HTTPServer):
    """Answers as the gateway does; ``behave`` overrides the answer to one (path, model) pair."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.names = ["chat", "gpt", "vectors"]
        self.behave: dict[tuple[str, str], list[tuple[int, Any]]] = {}
        self.check_keys = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Gateway

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200, {"status": "ok"})
        elif self.authorized():
            self.answer(200, {"object": "list", "data": [{"id": name} for name in self.server.names]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.authorized():
            return
        scripted = self.server.behave.get((self.path, body["model"]))
        if scripted:
            self.answer(*(scripted.pop(0) if len(scripted) > 1 else scripted[0]))
        elif body["model"] not in self.server.names:
            self.answer(404, {"error": {"message": "no such model"}})
        else:
            self.answer(200, {"data": [{"embedding": [0.1]}]} if self.path == "/v1/embeddings" else GENERATED)

    def authorized(self) -> bool:
        if self.server.check_keys and self.headers["Authorization"] != f"Bearer {KEY}":
            self.answer(401, {"error": {"message": "Incorrect API key provided."}})
            return False
        return True

    def answer(self, status: int, document: Any) -> None:
        text = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def problems(gateway: Gateway, key: str | None = KEY, settle_s: float = 0) -> dict[str, str]:
    client = Server(gateway.url, key, 5) if key else None
    findings = check_gateway(
        ROUTES, client, Server(gateway.url, "wrong", 5), settle_s=settle_s, sleep=lambda seconds: None
    )
    return {finding.what: finding.problem for finding in findings}


def test_a_gateway_as_planned_has_no_problem(gateway: Gateway) -> None:
    asked = ("wrong key", "unknown model", "/v1/models", "model chat", "model gpt", "model vectors")
    assert problems(gateway) == dict.fromkeys(asked, "")


def test_models_that_are_not_as_planned_are_named(gateway: Gateway) -> None:
    gateway.names = ["chat", "vectors", "old"]
    found = problems(gateway)
    assert found["/v1/models"] == "lists chat, old, vectors, planned chat, gpt, vectors"
    assert found["model gpt"] == "404: no such model"
    assert found["model chat"] == ""


def test_a_gateway_that_takes_any_key_is_caught(gateway: Gateway) -> None:
    gateway.check_keys = False
    assert problems(gateway)["wrong key"] == "answered 200, not 401"


def test_without_a_key_no_model_is_asked_for(gateway: Gateway) -> None:
    assert problems(gateway, key=None) == {"wrong key": ""}


def test_an_engine_that_comes_back_is_waited_for(gateway: Gateway) -> None:
    unready = (503, {"error": {"message": "No instance is ready."}})
    gateway.behave["/v1/chat/completions", "chat"] = [unready, unready, (200, GENERATED)]
    assert problems(gateway, settle_s=5)["model chat"] == ""


def test_an_engine_that_stays_away_is_a_problem(gateway: Gateway) -> None:
    gateway.behave["/v1/chat/completions", "chat"] = [(503, {"error": {"message": "No instance is ready."}})]
    assert problems(gateway, settle_s=2)["model chat"] == "503: No instance is ready."


def test_a_gateway_that_is_not_there_is_one_problem() -> None:
    nobody = Server("http://127.0.0.1:9", KEY, 1)
    findings = check_gateway(ROUTES, nobody, nobody, settle_s=0)
    assert [(one.what, one.problem) for one in findings] == [
        ("gateway", "does not answer: [Errno 111] Connection refused")
    ]


def test_a_model_without_a_chat_template_completes(gateway: Gateway) -> None:
    refusal = (400, {"error": {"message": "default chat template is no longer allowed"}})
    gateway.behave["/v1/chat/completions", "chat"] = [refusal]
    assert work(Server(gateway.url, KEY, 5), "chat", Purpose()).problem == ""


@pytest.mark.parametrize(
    "empty", [{}, [], {"choices": []}, {"choices": [{}], "usage": {"completion_tokens": 0}}, {"choices": [{}]}]
)
def test_an_answer_without_content_is_a_problem(gateway: Gateway, empty: Any) -> None:
    gateway.behave["/v1/chat/completions", "chat"] = [(200, empty)]
    assert work(Server(gateway.url, KEY, 5), "chat", Purpose()).problem.startswith("answered without content")


def result(index: int, score: float) -> dict[str, Any]:
    return {"index": index, "relevance_score": score}


@pytest.mark.parametrize(
    ("purpose", "path", "document", "problem"),
    [
        (Purpose("embed"), "/v1/embeddings", {"data": [{"embedding": [0.5, -0.5]}]}, ""),
        (Purpose("embed", embedding_size=2), "/v1/embeddings", {"data": [{"embedding": [0.5, -0.5]}]}, ""),
        (
            Purpose("embed", embedding_size=3),
            "/v1/embeddings",
            {"data": [{"embedding": [0.5, -0.5]}]},
            "answered with an embedding of 2 numbers instead of 3",
        ),
        (
            Purpose("embed"),
            "/v1/embeddings",
            {"data": [{"embedding": [0.0, 0.0]}]},
            "answered with an embedding that is none",
        ),
        (Purpose("embed"), "/v1/embeddings", {"data": []}, "answered without content"),
        (Purpose("score"), "/v1/rerank", {"results": [result(2, 0.9), result(0, 0.2), result(1, 0.1)]}, ""),
        (
            Purpose("score"),
            "/v1/rerank",
            {"results": [result(2, 0.1), result(0, 0.2), result(1, 0.3)]},
            "answered in no order",
        ),
        (
            Purpose("score"),
            "/v1/rerank",
            {"results": [result(2, 0.9), result(2, 0.2), result(1, 0.1)]},
            "answered without a place for every document",
        ),
        (Purpose("score"), "/v1/rerank", {"data": [{"score": 0.5}]}, "answered without content"),
        (Purpose(takes=("image",)), "/v1/chat/completions", GENERATED, ""),
    ],
)
def test_an_answer_is_judged_by_what_the_model_is_for(
    gateway: Gateway, purpose: Purpose, path: str, document: Any, problem: str
) -> None:
    gateway.behave[path, "chat"] = [(200, document)]
    found = work(Server(gateway.url, KEY, 5), "chat", purpose).problem
    assert found.startswith(problem)
    assert bool(found) == bool(problem)


def test_a_model_that_takes_images_is_asked_about_one() -> None:
    sent: list[Any] = []

    def request(method: str, path: str, body: Any = None) -> Answer:
        sent.append((method, path, body["messages"][0]["content"]))
        return Answer(200, json.dumps(GENERATED))

    assert work(request, "m", Purpose(takes=("image", "video"))).problem == ""
    ((_, path, content),) = sent
    assert path == "/v1/chat/completions"
    assert [part["type"] for part in content] == ["image_url", "text"]
    encoded = content[0]["image_url"]["url"].removeprefix("data:image/png;base64,")
    assert base64.b64decode(encoded).startswith(b"\x89PNG")
    assert image_uri((0, 0, 255)) != image_uri((255, 0, 0))


def test_adapters_are_asked_for_and_listed_like_models(gateway: Gateway) -> None:
    routes = [{**ROUTES[0], "adapters": ["tuned"]}]
    client = Server(gateway.url, KEY, 5)
    gateway.names = ["chat", "gpt"]
    found = {one.what: one.problem for one in check_gateway(routes, client, Server(gateway.url, "x", 5), settle_s=0)}
    assert found["/v1/models"] == "lists chat, gpt, planned chat, gpt, tuned"
    assert found["model tuned"] == "404: no such model"


def test_a_server_that_says_nothing_is_given_up() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as silent:
        answer = Server(f"http://127.0.0.1:{silent.server_port}", None, 0.05)("GET", "/health")
    assert (answer.status, answer.problem) == (UNREACHED, "no answer within 0.05 s")
