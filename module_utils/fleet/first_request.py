"""The first request to an engine that has just started: some are healthy until they are asked for something."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from .instances import CONFIG, RECORD, listen_address
from .model_work import purpose_of, work
from .openai_client import Server

if TYPE_CHECKING:
    from collections.abc import Mapping

# An engine on a GPU may compile kernels for it.
_TIMEOUT_S = 300.0


def first_request(files: Mapping[str, str], engine_env: str) -> str:
    """Why an instance does not do what its model is for; empty where it does, or does not listen.

    Args:
        files: the instance's files.
        engine_env: contents of ``engine.env``, which has the engines' key.
    """
    address = listen_address(files[CONFIG])
    record = json.loads(files.get(RECORD, "{}"))
    names = (record.get("engine_args") or {}).get("served_model_name") or [record.get("model")]
    if address is None or not names[0]:
        return ""
    host, port = address
    key = engine_env.strip().partition("VLLM_API_KEY=")[2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    done = work(Server(url, key or None, _TIMEOUT_S), str(names[0]), purpose_of(record), sampled=True)
    return done.problem
