"""apt and dpkg as the driver's transaction uses them: programs are started, their answers parsed."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

# apt waits so long for another apt.
_LOCK_TIMEOUT_S = 300
_ALWAYS = (
    "--yes",
    "-o=APT::Install-Recommends=false",
    "-o=Dpkg::Use-Pty=0",
    "-o=Dpkg::Options::=--force-confdef",
    "-o=Dpkg::Options::=--force-confold",
    f"-o=DPkg::Lock::Timeout={_LOCK_TIMEOUT_S}",
)
# `Inst name [old] (new Archive [arch])`, `Remv name [old]`; the old version is missing where there is none.
_STEP = re.compile(r"^(Inst|Remv|Purg) (\S+)(?: \[(\S+)\])?(?: \((\S+)[^)]*\))?", re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """One package of what apt would do.

    Args:
        name: as apt prints it.
        old: the installed version; None where it is not installed.
        new: the version to come; None for a removal.
    """

    name: str
    old: str | None
    new: str | None


@dataclass(frozen=True)
class Outcome:
    """What a program left behind: its status and all that it printed, in order."""

    status: int
    output: str


def run_program(arguments: Sequence[str]) -> Outcome:
    """Start a program and wait for it. It gets no terminal and asks no questions.

    Raises:
        FleetError: it could not be started.
    """
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", "NEEDRESTART_SUSPEND": "1"}
    try:
        done = subprocess.run(
            list(arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            check=False,
        )
    except OSError as error:
        raise FleetError(arguments[0], f"cannot be started: {error.strerror or error}") from error
    return Outcome(done.returncode, done.stdout)


@dataclass(frozen=True)
class Apt:
    """apt with options of its own.

    Args:
        run: starts a program.
        options: added to every call, as in ``-o=Dir::Etc::sourceparts=...``.
    """

    run: Callable[[Sequence[str]], Outcome]
    options: tuple[str, ...] = ()

    def simulate(self, *arguments: str) -> list[Step]:
        """Return what apt would do; nothing is changed.

        Raises:
            FleetError: apt finds no way.
        """
        return parse_steps(self.get("--simulate", *arguments))

    def get(self, *arguments: str) -> str:
        """Run apt-get and return what it printed.

        Raises:
            FleetError: it failed; the problem is its own line about it.
        """
        done = self.run(["apt-get", *_ALWAYS, *self.options, *arguments])
        if done.status != 0:
            raise FleetError("apt-get", error_line(done.output) or f"failed with status {done.status}")
        return done.output

    def mark(self, verb: str, names: Sequence[str]) -> None:
        """``apt-mark hold|unhold|auto|manual``, nothing for no names.

        Raises:
            FleetError: it failed.
        """
        if not names:
            return
        done = self.run(["apt-mark", verb, *names])
        if done.status != 0:
            raise FleetError("apt-mark", error_line(done.output) or f"failed with status {done.status}")

    def offered(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Return the versions of packages that the package sources have, by name."""
        found: dict[str, list[str]] = {}
        for line in self.run(["apt-cache", *self.options, "madison", *names]).output.splitlines():
            words = [word.strip() for word in line.split("|")]
            if len(words) == 3:
                found.setdefault(words[0], []).append(words[1])
        return found

    def manual(self) -> frozenset[str]:
        """Return the names of all packages that are marked as installed by hand."""
        return frozenset(self.run(["apt-mark", "showmanual"]).output.split())


def wait_for_dpkg(root: Path, timeout_s: float = _LOCK_TIMEOUT_S) -> None:
    """Wait until no other program changes packages. dpkg itself does not wait, apt does.

    Raises:
        FleetError: it takes too long.
    """
    deadline = time.monotonic() + timeout_s
    for name in ("lock-frontend", "lock"):
        with (root / "var/lib/dpkg" / name).open("w") as lock:
            while True:
                try:
                    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise FleetError("dpkg", "another program has been changing packages for too long") from error
                    time.sleep(0.2)


def parse_steps(output: str) -> list[Step]:
    """Parse what ``apt-get --simulate`` prints."""
    return [
        Step(name, old or None, (new or None) if verb == "Inst" else None)
        for verb, name, old, new in _STEP.findall(output)
    ]


def error_line(output: str) -> str:
    """Return the line of an output that says best why apt or dpkg failed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    # apt tells unmet dependencies without a sign, before it sums up that there are some.
    unmet = [line for line in lines if " : " in line and ("Depends" in line or "Conflicts" in line)]
    if unmet:
        return unmet[0]
    # dpkg names the script that failed before apt sums up that dpkg did; apt's `E:` lines are right for the rest.
    for sign in ("dpkg: error processing", "Error! ", "E: ", "Err:", "W: "):
        found = [line for line in lines if line.startswith(sign)]
        if found:
            line = found[0]
            follows = lines[lines.index(line) + 1 :] if line.endswith(":") else []
            return " ".join([line.removeprefix(sign) if sign in ("E: ", "W: ") else line, *follows[:1]])
    return lines[-1] if lines else ""


def archive_name(name: str, version: str, architecture: str) -> str:
    """Return the file name that apt gives a downloaded package."""
    return f"{name.partition(':')[0]}_{version.replace(':', '%3a')}_{architecture}.deb"


def find_archive(directories: Sequence[Path], name: str, version: str) -> Path | None:
    """Return a kept package file of exactly this version; None where there is none."""
    for directory in directories:
        for architecture in ("amd64", "all", "arm64"):
            path = directory / archive_name(name, version, architecture)
            if path.is_file():
                return path
    return None


def staged_options(directories: Mapping[str, Path]) -> tuple[str, ...]:
    """Return apt's options for a configuration that lies elsewhere, as in ``Dir::State::lists``."""
    return tuple(f"-o={name}={path}" for name, path in directories.items())
