"""Requests to an OpenAI-compatible server or Triton."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

UNREACHED = 0
"""Status of an answer that did not come."""
_MAX_SAID = 600


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
        said = " ".join(said.split())[:_MAX_SAID]
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


def model_names(answer: Answer) -> tuple[str, ...]:
    """The ids in an answer of ``/v1/models``, sorted."""
    document = answer.document
    entries = document.get("data") if isinstance(document, dict) else None
    return tuple(sorted(str(entry["id"]) for entry in entries or () if isinstance(entry, dict) and "id" in entry))
