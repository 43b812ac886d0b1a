"""The command line ``fleet``: one subcommand per file ``command_*.py``, imported only when it is called.

Exit codes: 0 yes; 2 a valid answer that says no; 1 bad input, with at most a few lines on stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol, cast

from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_BAD_INPUT = 1


class Command(Protocol):
    """What a file ``command_<name>.py`` offers. Its docstring's first line is the help text."""

    __doc__: str | None

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Print the answer and return the exit code."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")


def command_names() -> list[str]:
    """The subcommands that exist, by file name."""
    return sorted(path.stem.removeprefix("command_") for path in Path(__file__).parent.glob("command_*.py"))


def _load(name: str) -> Command:
    return cast("Command", import_module(f"{__package__}.command_{name}"))


def _parser(argv: Sequence[str], names: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(prog="fleet", description="Plan and explain an inference fleet of NVIDIA L40S hosts.")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    called = next((argument for argument in argv if not argument.startswith("-")), None)
    # One call needs one command's code. Only help and a mistyped name need the others.
    for name in [called] if called is not None and called in names else names:
        command = _load(name)
        summary = (command.__doc__ or "").partition("\n")[0]
        command.configure(subparsers.add_parser(name, help=summary, description=summary))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    args = _parser(arguments, command_names()).parse_args(arguments)
    try:
        return _load(args.command).run(args)
    except FleetError as error:
        print(f"fleet {args.command}: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except BrokenPipeError:
        # The reader went away; Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BAD_INPUT
    except OSError as error:
        print(f"fleet {args.command}: {error.filename or 'i/o'}: {error.strerror or error}", file=sys.stderr)
        return EXIT_BAD_INPUT
