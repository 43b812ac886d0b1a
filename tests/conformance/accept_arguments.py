"""Ask vLLM's own parser and configuration whether it accepts argument sets. Runs under the engine's Python.

Usage: accept_arguments.py SETS.json   prints ``[{"name", "accepted", "error"}]``

SETS.json: ``[{"name", "config": config.json's content, "engine_args": {...}}]``. Each set goes through ``vllm serve``'s
parser, its validation and ``create_engine_config``, on a directory that holds config.json alone. With SIMULATED_SM89
in the environment, the engine believes in eight GPUs of compute capability 8.9 (simulated_sm89.py).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

if os.environ.get("SIMULATED_SM89"):
    import simulated_sm89

    simulated_sm89.install()

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

try:
    from vllm.entrypoints.common.cli_args import make_arg_parser, validate_parsed_serve_args
except ImportError:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args


def command_line(engine_args: dict[str, object]) -> list[str]:
    """``vllm serve``'s flags for these EngineArgs."""
    flags = ["--skip-tokenizer-init"]
    for name, value in engine_args.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            flags.append(flag)
        elif value is False:
            flags.append(flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            # As engine_files.py writes them into config.yaml.
            flags += [flag, *(json.dumps(item) if isinstance(item, dict) else str(item) for item in value)]
        elif isinstance(value, dict):
            flags += [flag, json.dumps(value)]
        else:
            flags += [flag, str(value)]
    return flags


def refusal(parser: FlexibleArgumentParser, directory: Path, engine_args: dict[str, object]) -> str | None:
    """Why the engine does not accept the arguments, None where it does."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            args = parser.parse_args(["--model", str(directory), *command_line(engine_args)])
            validate_parsed_serve_args(args)
            AsyncEngineArgs.from_cli_args(args).create_engine_config()
    except SystemExit:
        return complaint.getvalue().strip().splitlines()[-1]
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    return None


def main() -> None:
    """Answer for every set."""
    logging.disable(logging.CRITICAL)
    answers = []
    parser = make_arg_parser(FlexibleArgumentParser())
    for item in json.loads(Path(sys.argv[1]).read_text()):
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "config.json").write_text(json.dumps(item["config"]))
            draft = item.get("draft_config")
            engine_args = dict(item["engine_args"])
            if draft is not None:
                draft_directory = Path(directory, "draft")
                draft_directory.mkdir()
                (draft_directory / "config.json").write_text(json.dumps(draft))
                engine_args["speculative_config"] = {**engine_args["speculative_config"], "model": str(draft_directory)}
            error = refusal(parser, Path(directory), engine_args)
        answers.append({"name": item["name"], "accepted": error is None, "error": error})
    sys.stdout.write("\n" + json.dumps(answers) + "\n")


if __name__ == "__main__":
    main()
