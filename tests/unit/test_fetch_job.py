"""The fetching program as the service runs it, and hosts that copy from each other."""

from __future__ import annotations

import datetime
import hashlib
import http.client
import json
import os
import random
import signal
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fleet import fetch_job
from fleet.errors import FleetError
from fleet.fetch_credentials import make_credentials
from fleet.fetch_http import Fetcher, Location, Patience
from fleet.fetch_job import Job, JobFile, job_from_document, run_job
from fleet.fetch_progress import duration_words, progress_line
from fleet.fetch_serve import PeerServer
from simulated_hub_code import Fault, SimulatedHub

TOKEN = "hf_simulated"
QUICK = Patience(attempts=3, stall_s=2.0, first_wait_s=0.01, longest_wait_s=1.0)
CHANCE = random.Random(11)  # noqa: S311 (the same bytes every time)
FILES = {f"model-{number}.safetensors": CHANCE.randbytes(size) for number, size in enumerate((900_000, 300_000, 0, 5))}
SUMS = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
TOTAL = sum(len(data) for data in FILES.values())


@pytest.fixture
def hub(tmp_path):
    directory = tmp_path / "repository"
    directory.mkdir()
    for name, data in FILES.items():
        (directory / name).write_bytes(data)
    with SimulatedHub(token=TOKEN) as simulated:
        simulated.commit = simulated.add("org/m", directory, private=True)
        yield simulated


@pytest.fixture
def job(hub, tmp_path):
    (tmp_path / "incoming").mkdir()
    base = f"{hub.url}/org/m/resolve/{hub.commit}/"
    files = tuple(JobFile(SUMS[name], len(data), f"m/{name}", ((base + name, "hub"),)) for name, data in FILES.items())
    return Job(str(tmp_path / "incoming"), files, {"hub": TOKEN}, patience=QUICK)


def fetched(job: Job) -> dict[str, bytes]:
    return {name: (Path(job.directory) / SUMS[name]).read_bytes() for name in FILES}


def progress(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "progress.json").read_text())


def test_all_files_come_and_the_note_says_so(job, tmp_path):
    run_job(job, tmp_path / "progress.json")
    assert fetched(job) == FILES
    note = progress(tmp_path)
    assert (note["state"], note["bytes"], note["total_bytes"], note["error"]) == ("done", TOTAL, TOTAL, "")


def test_a_refusal_ends_the_job_with_one_line_and_keeps_the_rest(hub, job, tmp_path):
    hub.faults = [Fault("model-1", "403", times=99)]
    with pytest.raises(FleetError, match=r"^m/model-1\.safetensors: http.*answered 403 .*may not read this$"):
        run_job(job, tmp_path / "progress.json")
    assert progress(tmp_path)["state"] == "refused"
    hub.faults = []
    run_job(job, tmp_path / "progress.json")
    assert fetched(job) == FILES


def test_a_job_is_read_as_it_was_written_and_shows_no_token(job):
    assert job_from_document(json.loads(json.dumps(job.to_document())), where="job") == job
    assert TOKEN not in repr(job)
    with pytest.raises(FleetError, match=r"^job: is no job"):
        job_from_document({"schema": 1}, where="job")


def start(job: Job, tmp_path: Path) -> subprocess.Popen[str]:
    """The program, its job given as the controller gives it."""
    (tmp_path / "job.json").write_text(json.dumps(job.to_document()))
    with (tmp_path / "job.json").open() as text:
        return _program(tmp_path, text)


def _program(tmp_path: Path, text) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fleet.fetch_job", "-", str(tmp_path / "progress.json")],
        stdin=text,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(Path(fetch_job.__file__).parents[1])},
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_a_random_moment_the_next_run_gives_the_same_bytes(hub, job, tmp_path, seed):
    hub.faults = [Fault("^/content", "slow", times=999, bytes_per_s=600_000)]
    moment = random.Random(seed).uniform(0.05, 0.9)  # noqa: S311 (a moment)
    process = start(job, tmp_path)
    limit = time.monotonic() + 20
    while not any(Path(job.directory).iterdir()) and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(moment)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    parts = {path.name: path.stat().st_size for path in Path(job.directory).iterdir()}
    assert process.returncode == -signal.SIGKILL
    assert 0 < sum(parts.values()) < TOTAL
    hub.faults = []
    second = start(job, tmp_path)
    _, complaint = second.communicate(timeout=30)
    assert second.returncode == 0, complaint
    assert fetched(job) == FILES
    asked = {(one["path"].rpartition("/")[2], one["range"]) for one in hub.requests}
    for name, data in FILES.items():
        if 0 < (part := parts.get(SUMS[name], 0)) < len(data):
            assert (name, f"bytes={part}-{len(data) - 1}") in asked, "it goes on where it was killed"


def test_the_token_is_in_no_process_list(hub, job, tmp_path):
    hub.faults = [Fault("^/content", "slow", times=99, bytes_per_s=500_000)]
    process = start(job, tmp_path)
    time.sleep(0.4)
    shown = [Path(f"/proc/{process.pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
    process.kill()
    process.communicate()
    assert all(TOKEN.encode() not in one for one in shown)
    assert b"fetch_job" in shown[0]


class TestPeers:
    """One host serves to another over TLS."""

    @pytest.fixture
    def credentials(self):
        return make_credentials(datetime.datetime.now(datetime.UTC))

    @pytest.fixture
    def server(self, tmp_path, credentials):
        for name, data in FILES.items():
            (tmp_path / name).write_bytes(data)
        (tmp_path / "peer.pem").write_text(credentials.certificate + credentials.key)
        peer = PeerServer(
            ("127.0.0.1", 0),
            token=credentials.token,
            files={SUMS[name]: str(tmp_path / name) for name in FILES},
            certificate=str(tmp_path / "peer.pem"),
            idle_s=30.0,
        )
        thread = threading.Thread(target=peer.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield peer
        peer.shutdown()
        peer.server_close()

    @staticmethod
    def fetch(server, credentials, path, name="model-0.safetensors", **changes):
        place = Location(f"https://127.0.0.1:{server.server_port}/{SUMS[name]}", credentials.token, direct=True)
        settings = {"patience": QUICK, "proxy": "http://127.0.0.1:9", "certificate": credentials.certificate, **changes}
        Fetcher(**settings).fetch(path, len(FILES[name]), SUMS[name], [place])

    def test_a_file_is_copied_and_continued_without_the_proxy(self, server, credentials, tmp_path):
        (tmp_path / "copy").write_bytes(FILES["model-0.safetensors"][:400_000])
        self.fetch(server, credentials, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == FILES["model-0.safetensors"]

    def test_another_token_gets_nothing(self, server, credentials, tmp_path):
        with pytest.raises(FleetError, match="answered 401"):
            self.fetch(server, credentials._replace(token="guess"), tmp_path / "copy")

    def test_a_server_with_another_certificate_is_not_believed(self, server, tmp_path):
        other = make_credentials(datetime.datetime.now(datetime.UTC))
        with pytest.raises(FleetError, match=r"no trusted connection .*certificate verify failed"):
            self.fetch(server, other, tmp_path / "copy")

    @pytest.mark.parametrize("path", ["/../../etc/passwd", "/etc/passwd", "/" + "0" * 64, "/"])
    def test_only_what_is_listed_can_be_had(self, server, credentials, path):
        context = ssl.create_default_context(cadata=credentials.certificate)
        context.check_hostname = False
        connection = http.client.HTTPSConnection("127.0.0.1", server.server_port, context=context, timeout=5)
        connection.request("GET", path, headers={"Authorization": f"Bearer {credentials.token}"})
        assert connection.getresponse().status == 404
        connection.close()

    def test_it_ends_when_nobody_asks(self, tmp_path, credentials):
        (tmp_path / "peer.pem").write_text(credentials.certificate + credentials.key)
        peer = PeerServer(("127.0.0.1", 0), token="t", files={}, certificate=str(tmp_path / "peer.pem"), idle_s=0.2)
        thread = threading.Thread(target=peer.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        thread.join(5)
        peer.server_close()
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("done", "total", "rate", "line"),
    [
        (12_345_678_901, 141_107_412_480, 410e6, "12.3 of 141.1 GB (8 %), 410 MB/s, 5 min 14 s left"),
        (0, 5_000_000, 0.0, "0.0 of 5.0 MB (0 %), nothing comes at the moment"),
        (700, 700, 10.0, "700 of 700 bytes (100 %)"),
        (1 << 30, 2 << 40, 1.25e6, "0.0 of 2.2 TB (0 %), 1.25 MB/s, 488 h 26 min left"),
    ],
)
def test_progress_in_words(done, total, rate, line):
    assert progress_line(done, total, rate) == line


def test_durations_in_words():
    assert [duration_words(s) for s in (0.2, 59.4, 60, 3599, 7500)] == [
        "1 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "2 h 5 min",
    ]
