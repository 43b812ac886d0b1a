"""The engine process of one rank, and what comes to pass while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from .rank_link import Settings

_SIOCGIFADDR = 0x8915


def interface_of(address: str) -> str | None:
    """The network interface that has an IPv4 address; None where it cannot be told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


def network_environment(address: str) -> dict[str, str]:
    """Has vLLM, gloo and NCCL use the address and interface by which the ranks reach one another."""
    interface = interface_of(address)
    named = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": f"={interface}"} if interface else {}
    return {"VLLM_HOST_IP": address, **named}


class Rank:
    """What leader and followers have in common: the engine, and what comes to pass while it runs.

    ``events`` holds what was heard, the first first: ``("lost" | "stop" | "failed" | "ready", words)``.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.events: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.stopping = asyncio.Event()
        self._engine: asyncio.subprocess.Process | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run something beside."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @property
    def served(self) -> bool:
        """Whether the instance has become ready since this process began."""
        return self.settings.served.exists()

    def say(self, words: str, *, failure: bool = False) -> None:
        """Tell the journal; a failure in the way that the run's output takes an engine's own last error from there."""
        sys.stdout.write(
            f"{'RankError: ' if failure else ''}rank {self.settings.rank} of {self.settings.instance}: {words}\n"
        )
        sys.stdout.flush()

    async def start(self, address: str) -> None:
        """Start the engine, as a process group of its own."""
        environment = {**network_environment(address), **os.environ}
        self._engine = await asyncio.create_subprocess_exec(
            *self.settings.command, env=environment, start_new_session=True
        )

    async def end(self, number: signal.Signals) -> None:
        """Send the engine a signal, SIGKILL to all of its processes, and wait until it has ended."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(engine.pid, number)
            else:
                engine.send_signal(number)
        await engine.wait()

    async def next_event(self) -> tuple[str, str]:
        """What comes first: an event, the engine's end (``ended``), or the wish to stop (``stopped``)."""
        waits: dict[str, asyncio.Future[Any]] = {
            "event": asyncio.ensure_future(self.events.get()),
            "stopped": asyncio.ensure_future(self.stopping.wait()),
        }
        if self._engine is not None:
            waits["ended"] = asyncio.ensure_future(self._engine.wait())
        try:
            await asyncio.wait(waits.values(), return_when=asyncio.FIRST_COMPLETED)
            if waits["stopped"].done():
                return "stopped", ""
            if waits["event"].done():
                event: tuple[str, str] = waits["event"].result()
                return event
            return "ended", str(waits["ended"].result())
        finally:
            for wait in waits.values():
                wait.cancel()
