"""What the gateway answers against what the plan has it serve."""

from __future__ import annotations

import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from .model_work import purpose_of, work, work_on_triton
from .openai_client import UNREACHED, model_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .model_work import Work
    from .openai_client import Request

_NO_SUCH_MODEL = "no-such-model"
_POLL_S = 0.5


@dataclass(frozen=True)
class Finding:
    """One question to the gateway.

    Attributes:
        what: the question, as in ``model chat``.
        model: the model that it is about; empty for the gateway itself.
        problem: empty when the answer was right.
        seconds: how long a model took to answer; ``None`` for other questions.
    """

    what: str
    model: str
    problem: str
    seconds: float | None = None


def check_gateway(
    routes: Sequence[Mapping[str, Any]],
    client: Request | None,
    stranger: Request,
    *,
    settle_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Finding]:
    """Ask for every model by every name, for the list of models, and for what must be refused.

    Args:
        routes: as the gateway role takes them: model, aliases, adapters, task and what it takes, servers.
        client: the gateway, asked with a client's key; ``None`` where no key is known in the clear.
        stranger: the gateway, asked with a key that it does not know.
        settle_s: how long 503 is waited out: the gateway gives it until it has seen that an engine is back.
        sleep: waits.
    """
    health = stranger("GET", "/health")
    if health.status == UNREACHED:
        return [Finding("gateway", "", f"does not answer: {health.text}")]
    served = [route for route in routes if route["servers"]]
    found = _own_answers(served, client, stranger)
    if client is None:
        return found
    for route in served:
        for name in _names(route):
            worked = _work(client, name, route)
            while worked.status == HTTPStatus.SERVICE_UNAVAILABLE and settle_s > 0:
                sleep(_POLL_S)
                settle_s -= _POLL_S
                worked = _work(client, name, route)
            found.append(Finding(f"model {name}", route["model"], worked.problem, round(worked.seconds, 3)))
    return found


def _work(client: Request, name: str, route: Mapping[str, Any]) -> Work:
    if _on_triton(route):
        return work_on_triton(client, name, chat=route.get("ensemble") == "chat")
    return work(client, name, purpose_of(route))


def _names(route: Mapping[str, Any]) -> tuple[str, ...]:
    """Everything that clients may ask for: the model, its aliases, its adapters."""
    return (route["model"], *(route.get("aliases") or ()), *(route.get("adapters") or ()))


def _on_triton(route: Mapping[str, Any]) -> bool:
    return str(route.get("engine", "vllm")) == "triton"


def _own_answers(served: Sequence[Mapping[str, Any]], client: Request | None, stranger: Request) -> list[Finding]:
    body: dict[str, Any] = {"model": served[0]["model"] if served else _NO_SUCH_MODEL, "messages": []}
    found = [_status("wrong key", stranger("POST", "/v1/chat/completions", body).status, HTTPStatus.UNAUTHORIZED)]
    if client is None:
        return found
    unknown = client("POST", "/v1/chat/completions", {"model": _NO_SUCH_MODEL, "messages": []})
    listed = client("GET", "/v1/models")
    listable = [route for route in served if not _on_triton(route)]
    wanted = tuple(sorted(name for route in listable for name in _names(route)))
    problem = "" if listed.status == HTTPStatus.OK else listed.problem
    if not problem and model_names(listed) != wanted:
        problem = f"lists {', '.join(model_names(listed)) or 'nothing'}, planned {', '.join(wanted) or 'nothing'}"
    return [*found, _status("unknown model", unknown.status, HTTPStatus.NOT_FOUND), Finding("/v1/models", "", problem)]


def _status(what: str, status: int, wanted: HTTPStatus) -> Finding:
    return Finding(what, "", "" if status == wanted else f"answered {status or 'nothing'}, not {wanted.value}")
