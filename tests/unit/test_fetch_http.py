from __future__ import annotations

import hashlib
import random

import pytest
from fleet.errors import FleetError
from fleet.fetch_http import Fetcher, Location, Patience
from simulated_hub_code import Fault, SimulatedHub

DATA = random.Random(7).randbytes(700_000)  # noqa: S311 (the same bytes every time)
SHA256 = hashlib.sha256(DATA).hexdigest()
QUICK = Patience(attempts=4, stall_s=2.0, first_wait_s=0.01, longest_wait_s=1.0)
TOKEN = "hf_simulated"


@pytest.fixture
def hub(tmp_path):
    directory = tmp_path / "repository"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(DATA)
    with SimulatedHub(token=TOKEN) as simulated:
        simulated.commit = simulated.add("org/m", directory, private=True)
        yield simulated


@pytest.fixture
def fetch(hub, tmp_path):
    gained = []

    def run(token=TOKEN, **changes):
        place = Location(f"{hub.url}/org/m/resolve/{hub.commit}/model.safetensors", token)
        fetcher = Fetcher(patience=QUICK, report=gained.append, **changes)
        fetcher.fetch(run.path, len(DATA), SHA256, [place])

    run.path = tmp_path / "file"
    run.gained = gained
    return run


def test_a_file_comes_whole_and_the_token_stays_with_the_hub(hub, fetch):
    fetch()
    assert fetch.path.read_bytes() == DATA
    assert fetch.path.stat().st_mode & 0o777 == 0o600
    assert sum(fetch.gained) == len(DATA)
    assert [(one["status"], one["authorized"]) for one in hub.requests] == [(302, True), (206, False)]


def test_nothing_is_asked_for_when_it_is_there(hub, fetch):
    fetch.path.write_bytes(DATA)
    fetch()
    assert hub.requests == []


@pytest.mark.parametrize("have", [1, 400_000, len(DATA) - 1])
def test_it_is_continued_where_it_was_cut_off(hub, fetch, have):
    fetch.path.write_bytes(DATA[:have])
    fetch()
    assert fetch.path.read_bytes() == DATA
    assert hub.bytes_sent("^/content") == len(DATA) - have


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("^/content", "cut", times=3, after_bytes=150_000)],
        [Fault("/resolve/", "503", times=2), Fault("^/content", "500")],
        [Fault("/resolve/", "429", retry_after="0"), Fault("^/content", "cut")],
    ],
)
def test_faults_that_pass_cost_nothing_twice(hub, fetch, faults):
    hub.faults = faults
    fetch()
    assert fetch.path.read_bytes() == DATA
    assert hub.bytes_sent("^/content") == len(DATA) == sum(fetch.gained)


def test_retry_after_is_waited_for(hub, fetch):
    hub.faults = [Fault("/resolve/", "429", retry_after="1")]
    waits = []
    fetch(wait=waits.append)
    assert waits == [1.0]


def test_a_server_that_asks_for_too_long_a_wait_is_given_up(hub, fetch):
    hub.faults = [Fault("/resolve/", "429", times=9, retry_after="3600")]
    with pytest.raises(FleetError, match=r"answered 429 .*; it asks to wait 3600 s, which is too long$"):
        fetch()


def test_a_server_that_stays_away_is_given_up_and_what_came_stays(hub, fetch):
    hub.faults = [Fault("^/content", "cut", after_bytes=5), Fault("/resolve/", "503", times=1000)]
    hub.faults.reverse()
    fetch.path.write_bytes(DATA[:1000])
    with pytest.raises(FleetError, match=r"answered 503 .*; given up after 4 tries$"):
        fetch()
    assert fetch.path.read_bytes() == DATA[:1000]


def test_wrong_bytes_are_fetched_once_more(hub, fetch):
    hub.faults = [Fault("^/content", "wrong", after_bytes=300_000)]
    fetch()
    assert fetch.path.read_bytes() == DATA
    assert sum(fetch.gained) == len(DATA)


def test_a_start_that_was_wrong_is_thrown_away(hub, fetch):
    fetch.path.write_bytes(b"x" * 1000)
    fetch()
    assert fetch.path.read_bytes() == DATA


def test_bytes_that_stay_wrong_are_refused_and_not_kept(hub, fetch):
    hub.faults = [Fault("^/content", "wrong", times=9)]
    with pytest.raises(FleetError, match=rf"its SHA-256 is [0-9a-f]{{12}}\.\.\., {SHA256[:12]}\.\.\. was planned$"):
        fetch()
    assert fetch.path.read_bytes() == b""


@pytest.mark.parametrize(
    ("status", "words"), [("401", "wants a token"), ("403", "may not read"), ("404", "not have it")]
)
def test_what_another_try_would_not_help_is_refused_at_once(hub, fetch, status, words):
    hub.faults = [Fault("/resolve/", status, times=99)]
    with pytest.raises(FleetError, match=words):
        fetch()
    assert len(hub.requests) == 1


def test_another_size_is_refused_before_a_byte_is_written(hub, fetch):
    place = Location(f"{hub.url}/org/m/resolve/{hub.commit}/model.safetensors", TOKEN)
    with pytest.raises(FleetError, match=f"is {len(DATA)} bytes long, 5 were planned"):
        Fetcher(patience=QUICK).fetch(fetch.path, 5, SHA256, [place])
    assert fetch.path.read_bytes() == b""


def test_the_next_place_is_tried(hub, fetch):
    good = Location(f"{hub.url}/org/m/resolve/{hub.commit}/model.safetensors", TOKEN)
    nobody = Location("http://127.0.0.1:9/file")
    Fetcher(patience=QUICK).fetch(fetch.path, len(DATA), SHA256, [nobody, good])
    assert fetch.path.read_bytes() == DATA


def test_a_link_in_its_place_is_not_followed(fetch, tmp_path):
    fetch.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        fetch()


def test_a_proxy_is_used_but_never_for_hosts_of_the_fleet(hub, tmp_path):
    """The simulated hub answers as a proxy too; the name is known to nobody else."""
    path = f"/org/m/resolve/{hub.commit}/model.safetensors"
    fetcher = Fetcher(patience=QUICK, proxy=hub.url)
    fetcher.fetch(tmp_path / "file", len(DATA), SHA256, [Location(f"http://hub.invalid{path}", TOKEN)])
    with pytest.raises(FleetError, match="cannot be reached"):
        fetcher.fetch(tmp_path / "peer", len(DATA), SHA256, [Location(f"http://hub.invalid{path}", TOKEN, direct=True)])
    assert (tmp_path / "file").read_bytes() == DATA
