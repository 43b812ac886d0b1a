"""What the watchers of ranks know of one another: their settings, and the connection between two of them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BEAT_S = 2.0
SILENCE_S = 15.0
HANDSHAKE_S = 5.0
LINE_BYTES = 1024


@dataclass(frozen=True)
class Settings:
    """What a rank knows of its instance.

    Attributes:
        instance: id of the instance.
        rank: of this host.
        ranks: how many hosts there are.
        leader: address of the host of rank 0.
        port: where rank 0 waits for the others.
        revision: of what has to be the same everywhere.
        key: the engines' key.
        command: the engine.
        served: a file that is there once the engine serves; ``vllm-wait-healthy`` writes it for rank 0.
    """

    instance: str
    rank: int
    ranks: int
    leader: str
    port: int
    revision: str
    key: str
    command: tuple[str, ...]
    served: Path

    def proof(self, challenge: str, rank: int, revision: str) -> str:
        """What shows that a rank knows the key."""
        text = " ".join((challenge, self.instance, str(rank), revision))
        return hmac.new(self.key.encode(), text.encode(), hashlib.sha256).hexdigest()


def settings_of(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Read the settings from the command line and the environment."""
    leader, port = environment["FLEET_RANK_LINK"].rsplit(" ", 1)
    runtime = environment.get("RUNTIME_DIRECTORY") or f"/run/l40s-fleet/{arguments[0]}"
    return Settings(
        instance=arguments[0],
        rank=int(environment["FLEET_RANK"]),
        ranks=int(environment["FLEET_RANKS"]),
        leader=leader,
        port=int(port),
        revision=environment["FLEET_RANK_REVISION"],
        key=environment.get("VLLM_API_KEY", ""),
        command=tuple(arguments[1:]),
        served=Path(runtime) / "served",
    )


@dataclass(eq=False)
class Link:
    """A connection to the watcher of another rank."""

    rank: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, line: str) -> None:
        """Send a line, as far as the other side can still be reached."""
        if not self.writer.is_closing():
            self.writer.write(f"{line}\n".encode())

    async def receive(self) -> str:
        """The next line that is more than a sign of life; empty when the connection has ended."""
        while True:
            try:
                line = await asyncio.wait_for(self.reader.readline(), SILENCE_S)
            except (OSError, ValueError, asyncio.TimeoutError):
                return ""
            if line != b"beat\n":
                return line.decode("utf-8", "replace").strip()

    async def beat(self) -> None:
        """Show that this side lives."""
        while not self.writer.is_closing():
            self.send("beat")
            await asyncio.sleep(BEAT_S)

    async def flush(self) -> None:
        """Wait until what was sent is on its way."""
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(self.writer.drain(), HANDSHAKE_S)

    def close(self) -> None:
        """End the connection, also for one who reads."""
        self.writer.close()

    @property
    def own_address(self) -> str:
        """The address of this host on the connection."""
        return str(self.writer.get_extra_info("sockname")[0])
