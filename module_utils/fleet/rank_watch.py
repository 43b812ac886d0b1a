"""The main process of one rank of an engine over several hosts: starts the rank with the others, and ends it with them.

vLLM's ranks do not see one another die: without this a follower waits for its leader for ever, and a leader for its
follower until VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS (300). So the ranks' watchers hold one TCP connection each to that of
rank 0, and an engine runs only while all connections stand.

- Rank 0 listens, the others connect and prove that they know the engines' key. Ranks whose configurations differ wait.
- When all are there, rank 0 says ``go`` and every rank starts its engine: no rank holds memory while it waits.
- When rank 0 answers its health check, it says ``ready``: then the followers' units become active too.
- A connection that ends, or is silent for ``SILENCE_S``, ends the engine on both sides. A rank that served exits, so
  that systemd starts it anew; one that was still starting waits for the others again.
- An engine that ends by itself ends the rank, and ``failed`` tells the others.
- A follower that is to stop says ``stop`` and goes on until rank 0's engine has drained its requests.

The program ``vllm-rank`` of the role serving calls it, with the environment of ``ranks.rank_environment`` and the
engines' key.
Standard library of Python 3.10 only: this and what it imports is installed on the hosts as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import secrets
import signal
import sys

from .rank_engine import Rank
from .rank_link import HANDSHAKE_S, LINE_BYTES, Link, Settings, settings_of

_RETRY_S = 1.0
_POLL_S = 0.5


class Leader(Rank):
    """Rank 0: waits for the others and has all start together."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._links: dict[int, Link] = {}
        self._changed = asyncio.Event()

    async def run(self) -> int:
        """Run until the rank has to begin anew; its exit status."""
        server = await asyncio.start_server(self._accept, None, self.settings.port, limit=LINE_BYTES)
        try:
            while not self.stopping.is_set():
                if not await self._gather():
                    break
                status = await self._round()
                if status is not None:
                    return status
            return 0
        finally:
            server.close()
            self._drop()

    async def _gather(self) -> bool:
        """Wait until all ranks are there; false when this one is to stop."""
        self.say(f"waits for {self.settings.ranks - 1} other")
        while len(self._links) < self.settings.ranks - 1:
            self._changed.clear()
            waits = [asyncio.ensure_future(one.wait()) for one in (self._changed, self.stopping)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            if self.stopping.is_set():
                return False
        return True

    async def _round(self) -> int | None:
        """One engine, from start to end; None when the ranks are to gather again."""
        self.events = asyncio.Queue()
        self.say("all are there; the engine starts")
        self._tell("go")
        await self.start(next(iter(self._links.values())).own_address)
        ready = self.spawn(self._tell_when_served())
        what, words = await self.next_event()
        ready.cancel()
        served = self.served
        if what == "stopped" or (what == "stop" and served):
            self.say("the engine drains and stops")
            await self.end(signal.SIGTERM if served else signal.SIGKILL)
            return 0 if what == "stopped" else 1
        await self.end(signal.SIGKILL)
        if what == "ended":
            words = f"the engine of rank 0 ended with status {words}"
        self.say(words, failure=what == "failed")
        if what in ("ended", "failed"):
            await self._tell_last(f"failed {words}")
        self._drop()
        return None if what in ("lost", "stop") and not served else 1

    async def _listen(self, link: Link) -> None:
        while line := await link.receive():
            what, _, words = line.partition(" ")
            self.events.put_nowait((what, words))
        self._remove(link)

    async def _tell_when_served(self) -> None:
        while not self.served:
            await asyncio.sleep(_POLL_S)
        self._tell("ready")

    def _tell(self, line: str) -> None:
        for link in self._links.values():
            link.send(line)

    async def _tell_last(self, line: str) -> None:
        self._tell(line)
        for link in self._links.values():
            await link.flush()

    def _remove(self, link: Link) -> None:
        link.close()
        if self._links.get(link.rank) is link:
            del self._links[link.rank]
            self._changed.set()
            self.events.put_nowait(("lost", f"lost rank {link.rank}"))

    def _drop(self) -> None:
        for link in list(self._links.values()):
            self._remove(link)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rank = 0
        with contextlib.suppress(OSError, ValueError, asyncio.TimeoutError):
            rank = await asyncio.wait_for(self._greet(reader, writer), HANDSHAKE_S)
        if not rank:
            writer.close()
            return
        link = Link(rank, reader, writer)
        if rank in self._links:
            # It has begun anew before the end of its last connection was noticed.
            self._remove(self._links[rank])
        self._links[rank] = link
        self.spawn(link.beat())
        self.spawn(self._listen(link))
        self._changed.set()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        """The rank at the other end; 0 where it is none of this instance as it is configured here."""
        challenge = secrets.token_hex(16)
        writer.write(f"challenge {challenge}\n".encode())
        word, rank, revision, proof = (await reader.readline()).decode().split()
        mine = self.settings
        known = hmac.compare_digest(proof, mine.proof(challenge, int(rank), revision))
        if word != "hello" or not known or not 0 < int(rank) < mine.ranks:
            return 0
        if revision != mine.revision:
            writer.write(b"differs\n")
            return 0
        writer.write(b"welcome\n")
        return int(rank)


class Follower(Rank):
    """Any other rank: starts its engine when rank 0 says so."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._told = ""

    async def run(self) -> int:
        """Run until the rank has to begin anew; its exit status."""
        while not self.stopping.is_set():
            link = await self._connect()
            if link is None:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.stopping.wait(), _RETRY_S)
                continue
            beat = self.spawn(link.beat())
            try:
                status = await self._round(link)
            finally:
                beat.cancel()
                link.close()
            if status is not None:
                return status
        return 0

    async def _connect(self) -> Link | None:
        try:
            return await asyncio.wait_for(self._greet(), HANDSHAKE_S)
        except (OSError, ValueError, asyncio.TimeoutError) as error:
            self._tell_once(f"waits for rank 0 at {self.settings.leader} port {self.settings.port} ({error})")
            return None

    async def _greet(self) -> Link | None:
        mine = self.settings
        reader, writer = await asyncio.open_connection(mine.leader, mine.port, limit=LINE_BYTES)
        try:
            _, challenge = (await reader.readline()).decode().split()
            proof = mine.proof(challenge, mine.rank, mine.revision)
            writer.write(f"hello {mine.rank} {mine.revision} {proof}\n".encode())
            answer = await reader.readline()
        except BaseException:
            writer.close()
            raise
        if answer == b"welcome\n":
            self._tell_once("waits for the others")
            return Link(0, reader, writer)
        writer.close()
        differs = "is configured otherwise" if answer == b"differs\n" else "does not accept this rank"
        self._tell_once(f"waits: rank 0 {differs}")
        return None

    def _tell_once(self, words: str) -> None:
        if words != self._told:
            self.say(words)
        self._told = words

    async def _round(self, link: Link) -> int | None:
        """One engine, from start to end; None when the ranks are to gather again."""
        self.events = asyncio.Queue()
        listening = self.spawn(self._listen(link))
        try:
            what, words = await self.next_event()
            if what == "go":
                self._tell_once("the engine starts")
                await self.start(link.own_address)
                what, words = await self._until_over()
            elif what == "failed":
                what = "lost"
            if what == "stopped" and self.served:
                self.say("asks rank 0 to drain")
                link.send("stop")
                self.stopping.clear()
                while (await self.next_event())[0] not in ("lost", "ended", "stopped"):
                    pass
                self.stopping.set()
            await self.end(signal.SIGKILL)
            if what == "ended":
                words = f"the engine of rank {self.settings.rank} ended with status {words}"
                link.send(f"failed {words}")
                await link.flush()
            if what != "stopped":
                self.say(words, failure=what == "failed")
        finally:
            listening.cancel()
        if what == "stopped":
            return 0
        return None if what == "lost" and not self.served else 1

    async def _until_over(self) -> tuple[str, str]:
        while True:
            what, words = await self.next_event()
            if what != "ready":
                return what, words
            self.settings.served.touch()
            self.say("rank 0 serves")

    async def _listen(self, link: Link) -> None:
        while line := await link.receive():
            what, _, words = line.partition(" ")
            self.events.put_nowait((what, words))
        self.events.put_nowait(("lost", "lost rank 0"))


async def run(settings: Settings) -> int:
    """Run the rank until it has to begin anew or is told to stop; the exit status."""
    settings.served.unlink(missing_ok=True)
    rank = Leader(settings) if settings.rank == 0 else Follower(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, rank.stopping.set)
    try:
        return await rank.run()
    finally:
        await rank.end(signal.SIGKILL)


def main() -> int:
    """Be one rank; the arguments are the instance and the command that starts its engine."""
    return asyncio.run(run(settings_of(sys.argv[1:], os.environ)))
