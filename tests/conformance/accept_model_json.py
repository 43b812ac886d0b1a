"""Make AsyncEngineArgs of model.json documents, as Triton's vLLM backend does. Runs under the engine's Python.

Usage: accept_model_json.py DOCUMENTS.json   prints ``{name: why it is refused, or null}``

DOCUMENTS.json: ``{name: model.json's content}``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from vllm.engine.arg_utils import AsyncEngineArgs


def refusal(arguments: dict[str, object]) -> str | None:
    """Why the arguments are refused; None where they are not."""
    try:
        AsyncEngineArgs(**arguments)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def main() -> None:
    """Answers for every document."""
    documents = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps({name: refusal(arguments) for name, arguments in documents.items()}))


if __name__ == "__main__":
    main()
