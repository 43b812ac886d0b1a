"""Requests to an OpenAI-compatible server or Triton, and the smallest one that makes a model work."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

UNREACHED = 0
"""Status of an answer that did not come."""

_MAX_TOKENS = 4


@dataclass(frozen=True)
class Answer:
    """What a server answered.

    Attributes:
        status: HTTP status, or ``UNREACHED``.
        text: body, or why there is none.
    """

    status: int
    text: str

    @property
    def document(self) -> Any:
        """The body as JSON; ``None`` where it is none."""
        try:
            return json.loads(self.text)
        except ValueError:
            return None

    @property
    def problem(self) -> str:
        """One line for a person: status, and what the server said."""
        said = self.text
        document = self.document
        if isinstance(document, dict) and "error" in document:
            error = document["error"]
            said = str(error.get("message") if isinstance(error, dict) else error)
        said = " ".join(said.split())[:200]
        return said if self.status == UNREACHED else f"{self.status}: {said}" if said else str(self.status)


class Request(Protocol):
    """Sends one request to one server."""

    def __call__(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        """Return what the server answered."""


class Server:
    """A server that is asked with one key.

    Args:
        url: as in ``http://127.0.0.1:8100``.
        key: the bearer token; ``None`` sends none.
        timeout_s: how long one answer may take.
    """

    def __init__(self, url: str, key: str | None, timeout_s: float) -> None:
        self._address = urlsplit(url)
        self._key = key
        self._timeout_s = timeout_s

    def __call__(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        """Send one request."""
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        connection = http.client.HTTPConnection(
            self._address.hostname or "", self._address.port, timeout=self._timeout_s
        )
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read().decode(errors="replace"))
        except TimeoutError:
            return Answer(UNREACHED, f"no answer within {self._timeout_s:g} s")
        except (OSError, http.client.HTTPException) as error:
            return Answer(UNREACHED, str(error) or type(error).__name__)
        finally:
            connection.close()


@dataclass(frozen=True)
class Work:
    """What came of the smallest real request.

    Attributes:
        status: of the answer.
        problem: why the model did not work; empty when it did.
        seconds: from the request to the whole answer.
    """

    status: int
    problem: str
    seconds: float


def work(request: Request, model: str, task: str, *, sampled: bool = False) -> Work:
    """Have a model do what it is for: a few tokens, one embedding or one score.

    Args:
        request: the server.
        model: one of the model's names.
        task: ``generate``, ``embed`` or ``score``.
        sampled: let the engine draw tokens as clients do, instead of taking the likeliest.
    """
    began = time.monotonic()
    answer = _ask(request, model, task, sampled=sampled)
    seconds = time.monotonic() - began
    problem = answer.problem
    if answer.status == HTTPStatus.OK:
        problem = "" if _has_content(answer.document, task) else f"answered without content: {answer.text[:100]}"
    return Work(answer.status, problem, seconds)


def work_on_triton(request: Request, model: str, *, chat: bool = False) -> Work:
    """Have a model on Triton generate a few tokens.

    Args:
        request: the server.
        model: one of the model's names, or that of an ensemble.
        chat: an ensemble that takes chat messages.
    """
    began = time.monotonic()
    body: dict[str, Any] = {"text_input": "Hello"}
    if chat:
        body = {"messages": json.dumps([{"role": "user", "content": "Hello"}]), "stream": False}
    body["sampling_parameters"] = json.dumps({"max_tokens": _MAX_TOKENS, "temperature": 0, "ignore_eos": True})
    answer = request("POST", f"/v2/models/{model}/generate", body)
    seconds = time.monotonic() - began
    problem = answer.problem
    if answer.status == HTTPStatus.OK:
        document = answer.document
        text = document.get("text_output") if isinstance(document, dict) else None
        problem = "" if text else f"answered without content: {answer.text[:100]}"
    return Work(answer.status, problem, seconds)


def _ask(request: Request, model: str, task: str, *, sampled: bool) -> Answer:
    if task == "embed":
        return request("POST", "/v1/embeddings", {"model": model, "input": "Hello"})
    if task == "score":
        return request("POST", "/v1/score", {"model": model, "text_1": "Hello", "text_2": "Good morning"})
    generation = {"model": model, "max_tokens": _MAX_TOKENS, **({} if sampled else {"temperature": 0})}
    answer = request("POST", "/v1/chat/completions", {**generation, "messages": [{"role": "user", "content": "Hello"}]})
    if answer.status == HTTPStatus.BAD_REQUEST and "chat template" in answer.text:
        return request("POST", "/v1/completions", {**generation, "prompt": "Hello"})
    return answer


def _has_content(document: Any, task: str) -> bool:
    if not isinstance(document, dict):
        return False
    if task in {"embed", "score"}:
        return bool(document.get("data"))
    usage = document.get("usage")
    return bool(document.get("choices")) and isinstance(usage, dict) and usage.get("completion_tokens", 0) > 0


def model_names(answer: Answer) -> tuple[str, ...]:
    """The ids in an answer of ``/v1/models``, sorted."""
    document = answer.document
    entries = document.get("data") if isinstance(document, dict) else None
    return tuple(sorted(str(entry["id"]) for entry in entries or () if isinstance(entry, dict) and "id" in entry))
