"""Watchers of ranks as real processes over the loopback device; the engines that they start are simulated."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fleet import rank_link
from fleet.rank_engine import interface_of, network_environment

ROOT = Path(__file__).parents[2]
# Says when it begins and when it has drained; ends when a file asks it to.
SIMULATED_ENGINE = """
import os, pathlib, signal, sys, time
home = pathlib.Path(sys.argv[1])
def drain(*_):
    time.sleep(0.3)
    (home / "drained").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, drain)
(home / "starts").open("a").write(f"{os.getpid()} {os.environ['VLLM_HOST_IP']}\\n")
while not (home / "die").exists():
    time.sleep(0.05)
(home / "die").unlink()
sys.exit(3)
"""

WATCHER = """
import sys
from fleet import rank_link, rank_watch
rank_link.SILENCE_S = {silence_s}
sys.exit(rank_watch.main())
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition, seconds=20.0):
    limit = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < limit, "did not come to pass"
        time.sleep(0.05)
    return found


class Host:
    """One rank: its directory, its watcher, its simulated engine."""

    silence_s = rank_link.SILENCE_S

    def __init__(self, directory: Path, rank: int, port: int, ranks: int = 2) -> None:
        self.directory, self.rank, self.port, self.ranks = directory / str(rank), rank, port, ranks
        self.directory.mkdir()
        self.process: subprocess.Popen[str] | None = None

    def begin(self, revision: str = "r1", key: str = "secret") -> Host:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "module_utils"),
            "RUNTIME_DIRECTORY": str(self.directory),
            "FLEET_RANK": str(self.rank),
            "FLEET_RANKS": str(self.ranks),
            "FLEET_RANK_LINK": f"127.0.0.1 {self.port}",
            "FLEET_RANK_REVISION": revision,
            "VLLM_API_KEY": key,
        }
        engine = [sys.executable, "-c", SIMULATED_ENGINE, str(self.directory)]
        with (self.directory / "journal").open("a") as journal:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WATCHER.format(silence_s=self.silence_s), "big-1", *engine],
                env=environment,
                stdout=journal,
                stderr=subprocess.STDOUT,
            )
        return self

    @property
    def starts(self) -> list[str]:
        path = self.directory / "starts"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def engine(self) -> int:
        return int(self.starts[-1].split()[0])

    @property
    def journal(self) -> str:
        return (self.directory / "journal").read_text()

    @property
    def served(self) -> Path:
        return self.directory / "served"

    def engine_lives(self) -> bool:
        try:
            os.kill(self.engine, 0)
        except ProcessLookupError:
            return False
        return True

    def status(self) -> int:
        assert self.process is not None
        return self.process.wait(timeout=20)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.starts and self.engine_lives():
            os.kill(self.engine, signal.SIGKILL)


@pytest.fixture
def pair(tmp_path):
    port = free_port()
    hosts = [Host(tmp_path, rank, port) for rank in (0, 1)]
    yield hosts
    for host in hosts:
        host.end()


@pytest.fixture
def serving(pair):
    """Both engines run, and rank 0 serves: the file is what vllm-wait-healthy writes."""
    for host in pair:
        host.begin()
    until(lambda: pair[0].starts and pair[1].starts)
    pair[0].served.touch()
    until(pair[1].served.exists)
    return pair


def test_no_engine_starts_before_all_ranks_are_there(pair):
    leader, follower = pair
    follower.begin()
    time.sleep(1.5)
    leader.begin()
    until(lambda: leader.starts and follower.starts)
    assert [line.split()[1] for line in leader.starts + follower.starts] == ["127.0.0.1"] * 2
    assert not follower.served.exists()


def test_a_follower_serves_when_rank_0_does(serving):
    assert "rank 0 serves" in serving[1].journal


@pytest.mark.parametrize("dies", [0, 1])
def test_a_killed_watcher_ends_the_others_engine(serving, dies):
    gone, other = serving[dies], serving[1 - dies]
    gone.process.kill()
    assert other.status() == 1
    assert not other.engine_lives()
    assert f"lost rank {dies}" in other.journal


@pytest.mark.parametrize("dies", [0, 1])
def test_an_engine_that_ends_ends_all_ranks(serving, dies):
    (serving[dies].directory / "die").touch()
    assert [host.status() for host in serving] == [1, 1]
    assert not any(host.engine_lives() for host in serving)
    assert (
        f"RankError: rank {1 - dies} of big-1: the engine of rank {dies} ended with status 3"
        in serving[1 - dies].journal
    )


def test_ranks_that_start_wait_for_one_that_begins_anew(pair):
    leader, follower = (host.begin() for host in pair)
    until(lambda: leader.starts and follower.starts)
    follower.end()
    until(lambda: not leader.engine_lives())
    follower.begin()
    until(lambda: len(leader.starts) == 2 and len(follower.starts) == 2)
    assert leader.process.poll() is None


def test_a_follower_that_stops_lets_rank_0_drain(serving):
    leader, follower = serving
    follower.process.terminate()
    assert follower.status() == 0
    assert leader.status() == 1
    assert (leader.directory / "drained").exists()
    assert not follower.engine_lives()


def test_rank_0_drains_when_it_stops(serving):
    leader, follower = serving
    leader.process.terminate()
    assert leader.status() == 0
    assert (leader.directory / "drained").exists()
    assert follower.status() == 1
    assert not follower.engine_lives()


def test_a_rank_that_waits_stops_at_once(pair):
    for host in pair:
        host.begin()
        time.sleep(0.5)
        if host.rank == 0:
            host.process.terminate()
            assert host.status() == 0
    pair[1].process.terminate()
    assert pair[1].status() == 0
    assert not pair[0].starts + pair[1].starts


def test_ranks_that_are_configured_otherwise_wait(pair):
    leader, follower = pair
    leader.begin("r2")
    follower.begin("r1")
    until(lambda: "rank 0 is configured otherwise" in follower.journal)
    follower.end()
    follower.begin("r2")
    until(lambda: leader.starts and follower.starts)


def test_a_rank_with_another_key_is_not_let_in(pair):
    leader, follower = pair
    leader.begin()
    follower.begin(key="guessed")
    until(lambda: "rank 0 does not accept this rank" in follower.journal)
    assert not leader.starts


def test_strangers_disturb_nothing(serving):
    leader, follower = serving
    for text in (b"", b"hello 1 r1 0\n", b"\xff\xfe\n", b"x" * 5000):
        with socket.create_connection(("127.0.0.1", leader.port)) as stranger:
            stranger.sendall(text)
            stranger.settimeout(7)
            assert b"challenge" in stranger.recv(100)
    time.sleep(0.5)
    assert leader.process.poll() is None
    assert follower.process.poll() is None


def test_a_rank_that_falls_silent_is_lost(pair):
    """As when a host loses its power: nothing ends the connection."""
    leader, follower = pair
    leader.silence_s = 4.0
    for host in pair:
        host.begin()
    until(lambda: leader.starts and follower.starts)
    leader.served.touch()
    until(follower.served.exists)
    time.sleep(4.5)
    assert leader.process.poll() is None
    follower.process.send_signal(signal.SIGSTOP)
    assert leader.status() == 1
    assert "lost rank 1" in leader.journal


def test_three_ranks_are_one(tmp_path):
    port = free_port()
    hosts = [Host(tmp_path, rank, port, ranks=3).begin() for rank in range(3)]
    try:
        until(lambda: all(host.starts for host in hosts))
        hosts[0].served.touch()
        until(lambda: all(host.served.exists() for host in hosts))
        hosts[2].process.kill()
        assert [host.status() for host in hosts[:2]] == [1, 1]
    finally:
        for host in hosts:
            host.end()


def test_the_interface_of_an_address_is_named_to_gloo_and_nccl():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None
    assert network_environment("127.0.0.1") == {
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "=lo",
    }
    assert network_environment("192.0.2.1") == {"VLLM_HOST_IP": "192.0.2.1"}
