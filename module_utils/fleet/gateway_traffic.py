"""Takes servers of a running HAProxy out of traffic and puts them back, through its admin socket.

Servers that were taken out are noted beside the socket, so that a later run can put back what an interrupted one left
out, and leaves alone what an operator took out. HAProxy's own state and the note both end with the service.
"""

from __future__ import annotations

import csv
import json
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_TIMEOUT_S = 10.0
_POLL_S = 0.2
_RUNNING = 2
_NOTE = "l40s-fleet-drained"


@dataclass(frozen=True)
class Server:
    """One server of the gateway, which has the name of its instance.

    Attributes:
        backend: the backend that it is in, one for each model.
        name: the instance.
        port: where the gateway reaches it.
        up: its health checks pass.
        in_traffic: nobody has taken it out.
    """

    backend: str
    name: str
    port: int
    up: bool
    in_traffic: bool


@dataclass(frozen=True)
class Outcome:
    """What was done.

    Attributes:
        changed: servers that were taken out or put back.
        last: servers that stay, since no other serves their model.
        waiting: drained servers that still have requests, or servers that were put back and are not up.
    """

    changed: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()


def ask_socket(path: Path, command: str) -> str:
    """Sends one command to HAProxy's admin socket and returns the answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_TIMEOUT_S)
        connection.connect(str(path))
        connection.sendall(command.encode() + b"\n")
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer.decode(errors="replace")


def parse_servers(answer: str) -> tuple[Server, ...]:
    """The servers in the answer to ``show servers state``: a version, a line of names, and a line for each."""
    lines = [line for line in answer.splitlines() if line.strip()]
    names = next((line.lstrip("# ").split() for line in lines if line.startswith("# be_id")), [])
    found = []
    for line in lines:
        values: Mapping[str, str] = dict(zip(names, line.split(), strict=False))
        if line.startswith("#") or "srv_admin_state" not in values:
            continue
        found.append(
            Server(
                backend=values["be_name"],
                name=values["srv_name"],
                port=int(values.get("srv_port") or 0),
                up=int(values["srv_op_state"]) == _RUNNING,
                in_traffic=int(values["srv_admin_state"]) == 0,
            )
        )
    return tuple(found)


def parse_open_requests(answer: str) -> dict[str, int]:
    """Open requests by server, from the answer to ``show stat``."""
    rows = csv.DictReader(answer.lstrip("# ").splitlines())
    return {row["svname"]: int(row["scur"] or 0) for row in rows if row.get("svname")}


class Traffic:
    """The servers of the gateway on this host.

    Args:
        admin_socket: HAProxy's admin socket.
        ask: sends a command to it and returns the answer.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        admin_socket: Path,
        ask: Callable[[Path, str], str] = ask_socket,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._socket, self._ask, self._sleep = admin_socket, ask, sleep
        self._note = admin_socket.with_name(_NOTE)

    def servers(self) -> tuple[Server, ...] | None:
        """Every server; None where no gateway runs."""
        try:
            return parse_servers(self._ask(self._socket, "show servers state"))
        except OSError:
            return None

    def drain(self, names: Sequence[str], limit_s: float, *, dry: bool = False) -> Outcome:
        """Has no further request sent to the servers, and waits until those that they have are answered.

        A server that is the last of its model stays: it can still answer until it stops.
        """
        known = self.servers() or ()
        leaving: list[Server] = []
        last: list[Server] = []
        for one in known:
            if one.name in names and one.in_traffic and one.up:
                others = [other for other in known if other.backend == one.backend and other.name not in names]
                (leaving if any(other.up and other.in_traffic for other in others) else last).append(one)
        if dry or not leaving:
            return Outcome(tuple(one.name for one in leaving), tuple(one.name for one in last))
        self._write_note(self._noted() | {one.name for one in leaving})
        for one in leaving:
            self._set(one, "drain")
        busy = self._wait(lambda: self._busy(leaving), limit_s)
        return Outcome(tuple(one.name for one in leaving), tuple(one.name for one in last), busy)

    def restore(self, ports: Mapping[str, int] | None, limit_s: float, *, dry: bool = False) -> Outcome:
        """Puts servers back into traffic that ``drain`` took out, and waits until their health checks pass.

        Args:
            ports: the instances and where they listen now, 0 for where the gateway knows them; one that moved to
                another port is not waited for. None puts back every server that was taken out, and waits for none.
            limit_s: how long to wait, in seconds.
            dry: only say which.
        """
        noted, known = self._noted(), self.servers()
        if known is None:
            return Outcome()
        back = [one for one in known if one.name in noted and (ports is None or one.name in ports)]
        if not dry:
            for one in back:
                self._set(one, "ready")
            if noted:
                self._write_note(noted - (noted if ports is None else set(ports)))
        changed = tuple(one.name for one in back if not one.in_traffic)
        if dry or not ports:
            return Outcome(changed)
        awaited = {one.name for one in known if ports.get(one.name) in (0, one.port)}
        return Outcome(changed, waiting=self._wait(lambda: self._down(awaited), limit_s))

    def _busy(self, servers: Sequence[Server]) -> tuple[str, ...]:
        counts = parse_open_requests(self._ask(self._socket, "show stat -1 4 -1"))
        return tuple(one.name for one in servers if counts.get(one.name))

    def _down(self, names: set[str]) -> tuple[str, ...]:
        return tuple(one.name for one in self.servers() or () if one.name in names and not one.up)

    def _wait(self, left: Callable[[], tuple[str, ...]], limit_s: float) -> tuple[str, ...]:
        for _ in range(int(limit_s / _POLL_S)):
            if not left():
                return ()
            self._sleep(_POLL_S)
        return left()

    def _set(self, server: Server, state: str) -> None:
        command = f"set server {server.backend}/{server.name} state {state}"
        answer = self._ask(self._socket, command).strip()
        if answer:
            raise FleetError(f"{self._socket}: {command}", answer.splitlines()[0])

    def _noted(self) -> set[str]:
        try:
            return set(json.loads(self._note.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return set()

    def _write_note(self, names: set[str]) -> None:
        if names:
            self._note.write_text(json.dumps(sorted(names)) + "\n", encoding="utf-8")
        else:
            self._note.unlink(missing_ok=True)
