"""Runs the processes of a link test, each in a process group of its own that is killed when it takes too long."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .link_worker import MARK

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_POLL_S = 0.05
# After one rank has failed the others wait for it in vain.
_GRACE_S = 2.0
_REAP_S = 5.0
# What a process needs of the environment to find libraries; nothing that would change how it communicates.
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG")


@dataclass(frozen=True)
class Engine:
    """How workers are started.

    Args:
        python: the engine's interpreter, which has torch.
        program: the text of ``link_worker.py``.
        backend: ``nccl``, or ``gloo`` on CPUs.
    """

    python: str
    program: str
    backend: str


@dataclass(frozen=True)
class Outcome:
    """What became of the ranks of one task: the result of rank 0, or why there is none."""

    result: Mapping[str, Any] = field(default_factory=dict)
    failure: str | None = None


def run_task(
    engine: Engine, task: Mapping[str, Any], uuids: Sequence[str], timeout_s: float, *, hang: bool = False
) -> Outcome:
    """Run one task over some GPUs, one process each, and return what became of it within the time.

    Args:
        engine: how workers are started.
        task: ``task`` and what belongs to it, see ``link_worker.Worker``.
        uuids: of the GPUs; the order is that of the ranks.
        timeout_s: after this every process is killed, with all that it has started.
        hang: let the last rank wait for ever.
    """
    with tempfile.TemporaryDirectory(prefix="l40s-link-test-") as directory:
        requests = [
            {
                **task,
                "backend": engine.backend,
                "rank": rank,
                "world": len(uuids),
                "store": f"{directory}/store",
                "hang": hang,
            }
            for rank in range(len(uuids))
        ]
        with _started(engine, requests, uuids, Path(directory)) as processes:
            failure = _wait(processes, timeout_s)
            stuck = _kill(processes)
        if stuck:
            pids = ", ".join(map(str, stuck))
            return Outcome(failure=f"{failure or 'ended'}; process {pids} waits in the kernel, only a reboot ends it")
        answers = [_answer(Path(directory) / f"out-{rank}") for rank in range(len(uuids))]
        errors = [f"rank {rank}: {answer['error']}" for rank, answer in enumerate(answers) if "error" in answer]
        # A rank that says what is wrong knows better than the clock.
        if errors:
            return Outcome(failure=errors[0])
        if failure is not None:
            return Outcome(failure=failure)
        silent = [rank for rank, answer in enumerate(answers) if "result" not in answer]
        if silent:
            said = _last_line(Path(directory) / f"err-{silent[0]}")
            status = processes[silent[0]].returncode
            return Outcome(failure=f"rank {silent[0]} ended with status {status}{f': {said}' if said else ''}")
        return Outcome(answers[0]["result"])


@contextlib.contextmanager
def _started(
    engine: Engine, requests: Sequence[Mapping[str, Any]], uuids: Sequence[str], directory: Path
) -> Iterator[list[subprocess.Popen[bytes]]]:
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {
        "HOME": str(directory),
        "CUDA_VISIBLE_DEVICES": ",".join(uuids),
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "NCCL_DEBUG": "WARN",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank, request in enumerate(requests):
            with (directory / f"out-{rank}").open("wb") as out, (directory / f"err-{rank}").open("wb") as err:
                command = [engine.python, "-c", engine.program, json.dumps(request)]
                processes.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=err,
                        cwd=directory,
                        env=environment,
                        start_new_session=True,
                    )
                )
        yield processes
    finally:
        _kill(processes)


def _wait(processes: Sequence[subprocess.Popen[bytes]], timeout_s: float) -> str | None:
    """Wait for all, and return why that was given up, if it was."""
    deadline = time.monotonic() + timeout_s
    reason = f"no answer within {timeout_s:g} s: it hangs"
    shortened = False
    while None in (statuses := [process.poll() for process in processes]):
        failed = [rank for rank, status in enumerate(statuses) if status not in (None, 0)]
        if failed and not shortened:
            shortened = True
            deadline = min(deadline, time.monotonic() + _GRACE_S)
            reason = f"rank {failed[0]} failed"
        if time.monotonic() > deadline:
            return reason
        time.sleep(_POLL_S)
    return None


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Kill every process group, and return the processes that do not die."""
    stuck = []
    for process in processes:
        # Also where the process has ended: what it started may run on.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        try:
            process.wait(_REAP_S)
        except subprocess.TimeoutExpired:
            stuck.append(process.pid)
    return stuck


def _answer(path: Path) -> dict[str, Any]:
    for line in reversed(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        if line.startswith(MARK):
            return dict(json.loads(line.removeprefix(MARK)))
    return {}


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
