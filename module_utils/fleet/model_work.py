"""The smallest real request that shows that a model does what it is for, and what is wrong with its answer."""

from __future__ import annotations

import base64
import json
import math
import struct
import time
import zlib
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .openai_client import Answer, Request

_MAX_TOKENS = 4
_DOCUMENTS = ("Good morning", "A GPU has memory.", "It rains in Oslo.")
_IMAGE_PIXELS = 64


@dataclass(frozen=True)
class Purpose:
    """What a model is for.

    Attributes:
        task: ``generate``, ``embed`` or ``score``.
        takes: what it understands beside text, as in ``image``.
        embedding_size: numbers of an embedding; ``None`` where that is not known.
    """

    task: str = "generate"
    takes: Sequence[str] = ()
    embedding_size: int | None = None


def purpose_of(record: Mapping[str, Any]) -> Purpose:
    """What the model of an instance of the plan, or of a route of the gateway, is for."""
    task, size = str(record.get("task") or "generate"), record.get("embedding_size")
    return Purpose(task, tuple(record.get("takes") or ()), size if isinstance(size, int) else None)


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


def work(request: Request, model: str, purpose: Purpose, *, sampled: bool = False) -> Work:
    """Have a model do what it is for: a few tokens, about an image where it takes one, one embedding or one ranking.

    Args:
        request: the server.
        model: one of the model's names.
        purpose: what the model is for.
        sampled: let the engine draw tokens as clients do, instead of taking the likeliest.
    """
    began = time.monotonic()
    answer = _ask(request, model, purpose, sampled=sampled)
    seconds = time.monotonic() - began
    problem = answer.problem
    if answer.status == HTTPStatus.OK:
        fault = _fault(answer.document, purpose)
        problem = f"answered {fault}: {answer.text[:100]}" if fault else ""
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
    answer = request("POST", f"/v2/models/{quote(model, safe='')}/generate", body)
    seconds = time.monotonic() - began
    problem = answer.problem
    if answer.status == HTTPStatus.OK:
        document = answer.document
        text = document.get("text_output") if isinstance(document, dict) else None
        problem = "" if text else f"answered without content: {answer.text[:100]}"
    return Work(answer.status, problem, seconds)


def _ask(request: Request, model: str, purpose: Purpose, *, sampled: bool) -> Answer:
    if purpose.task == "embed":
        return request("POST", "/v1/embeddings", {"model": model, "input": "Hello"})
    if purpose.task == "score":
        return request("POST", "/v1/rerank", {"model": model, "query": "Hello", "documents": list(_DOCUMENTS)})
    generation = {"model": model, "max_tokens": _MAX_TOKENS, **({} if sampled else {"temperature": 0})}
    content: Any = "Hello"
    if "image" in purpose.takes:
        image = {"type": "image_url", "image_url": {"url": image_uri()}}
        content = [image, {"type": "text", "text": "What is this?"}]
    answer = request("POST", "/v1/chat/completions", {**generation, "messages": [{"role": "user", "content": content}]})
    if answer.status == HTTPStatus.BAD_REQUEST and "chat template" in answer.text:
        return request("POST", "/v1/completions", {**generation, "prompt": "Hello"})
    return answer


def image_uri(color: tuple[int, int, int] = (200, 30, 30)) -> str:
    """A small PNG of one color, as a ``data:`` URI."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", _IMAGE_PIXELS, _IMAGE_PIXELS, 8, 2, 0, 0, 0)
    rows = (b"\0" + bytes(color) * _IMAGE_PIXELS) * _IMAGE_PIXELS
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _fault(document: Any, purpose: Purpose) -> str:
    """What is wrong with an answer; empty for a right one."""
    if not isinstance(document, dict):
        return "without content"
    if purpose.task == "embed":
        return _embedding_fault(document, purpose.embedding_size)
    if purpose.task == "score":
        return _ranking_fault(document)
    usage = document.get("usage")
    if not document.get("choices") or not isinstance(usage, dict) or not usage.get("completion_tokens"):
        return "without content"
    return ""


def _embedding_fault(document: dict[str, Any], size: int | None) -> str:
    try:
        numbers = [float(number) for number in document["data"][0]["embedding"]]
    except (KeyError, IndexError, TypeError, ValueError):
        return "without content"
    if not numbers or not all(map(math.isfinite, numbers)) or not any(numbers):
        return "with an embedding that is none"
    if size is not None and len(numbers) != size:
        return f"with an embedding of {len(numbers)} numbers instead of {size}"
    return ""


def _ranking_fault(document: dict[str, Any]) -> str:
    try:
        places = [int(entry["index"]) for entry in document["results"]]
        scores = [float(entry["relevance_score"]) for entry in document["results"]]
    except (KeyError, TypeError, ValueError):
        return "without content"
    if sorted(places) != list(range(len(_DOCUMENTS))):
        return "without a place for every document"
    if not all(map(math.isfinite, scores)) or scores != sorted(scores, reverse=True):
        return "in no order"
    return ""
