"""One host observed: files in a directory, systemd's recorded words, and an engine that answers over HTTP."""

from __future__ import annotations

import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from fleet.engine_reports import BACKEND_LINES, Drafting, attention_backends, cache_config, drafting, kv_cache_tokens
from fleet.instance_host import InstanceHost, Places
from fleet.instances import parse_desired
from fleet.observation import observe_host
from fleet.systemd import Systemd
from fleet.verification import ABSENT, FAILED, OK, UNPLANNED, WRONG

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

KEY = "engine-key"
# As vLLM 0.32.0 prints it, less the labels that nobody reads.
METRICS = (
    'vllm:kv_cache_usage_perc{engine="0",model_name="chat"} 0.0\n'
    "# TYPE vllm:cache_config_info gauge\n"
    'vllm:cache_config_info{block_size="128",cache_dtype="auto",engine="0",gpu_memory_utilization="0.92",'
    'kv_cache_memory_bytes="134217728",kv_cache_size_tokens="131072",num_gpu_blocks="1024"} 1.0\n'
)


class Engine(BaseHTTPRequestHandler):
    """Answers what verification asks an engine for."""

    def do_GET(self) -> None:
        entries = [{"id": name, "root": "/models/chat", "max_model_len": 4096} for name in ("chat", "gpt")]
        bodies = {"/health": "", "/metrics": METRICS, "/v1/models": json.dumps({"data": entries})}
        known = self.path != "/v1/models" or self.headers["Authorization"] == f"Bearer {KEY}"
        self.answer(200 if known else 401, bodies[self.path])

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200, json.dumps({"choices": [{}], "usage": {"completion_tokens": 4}}))

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Engine) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


class Host:
    """A host with one instance, and with what a test does to it."""

    def __init__(self, root: Path, port: int) -> None:
        self.places = Places(root / "etc", root / "vllm@.service", root / "wants", root / "run", ())
        self.record = {
            "id": "chat-1",
            "model": "chat",
            "task": "generate",
            "shards": [{"host": "l40s-01", "gpus": ["GPU-a"], "rank": 0}],
            "engine_args": {"model": "/models/chat", "served_model_name": ["chat", "gpt"], "max_model_len": 4096},
            "memory": {"kv_cache_tokens": 131072},
            "port": port,
        }
        config = f"host: 0.0.0.0\nport: {port}\n"
        item = {"id": "chat-1", "config_yaml": config, "environment": "A=1\n", "record": self.record}
        self.desired = parse_desired([item])
        self.unit = {"chat-1": ("active", "enabled")}
        self.journal = ""
        self.accelerator = "cuda"
        self.gpus = [{"uuid": "GPU-a", "index": 0, "processes": [{"instance": "chat-1"}]}]
        self.host = InstanceHost(self.places, Systemd(self.systemctl))
        directory = self.places.instances / "chat-1"
        directory.mkdir(parents=True)
        for name, text in self.desired[0].files.items():
            (directory / name).write_text(text)
        self.mark_started()

    def mark_started(self) -> None:
        marker = self.places.runtime / "chat-1" / "started"
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(self.host.digest(self.desired[0].files) + "\n")

    def systemctl(self, arguments: Sequence[str]) -> tuple[int, str, str]:
        if arguments[0] == "journalctl":
            return 0, self.journal, ""
        if "list-units" in arguments:
            return 0, "".join(f"vllm@{name}.service loaded\n" for name in self.unit), ""
        blocks = [
            f"Id=vllm@{name}.service\nActiveState={active}\nSubState=running\nUnitFileState={enabled}\n"
            for name, (active, enabled) in self.unit.items()
        ]
        return 0, "\n".join(blocks), ""

    def rows(self) -> dict[str, Any]:
        document = {"gpus": self.gpus, "instances": [{**self.record, "main_pid": os.getpid()}], "provisional": False}
        rows = observe_host(
            self.host,
            self.desired,
            {"chat-1": self.record},
            document,
            inventory_name="l40s-01",
            engine_key=KEY,
            timeout_s=5,
            accelerator=self.accelerator,
        )
        return {row.id: row for row in rows}


@pytest.fixture
def host(tmp_path: Path, port: int) -> Host:
    return Host(tmp_path, port)


def differences(host: Host, name: str = "chat-1") -> set[str]:
    # The process is this test's own, which may well be root's.
    return {one.what for one in host.rows()[name].differences} - {"user"}


def test_an_instance_as_planned(host: Host) -> None:
    row = host.rows()["chat-1"]
    assert differences(host) == set()
    assert row.status in {OK, WRONG}
    assert (row.seen.user_id, row.seen.kv_cache_tokens, row.seen.names) == (os.getuid(), 131072, ("chat", "gpt"))


def test_a_file_that_was_edited_is_seen_though_the_engine_still_runs_the_old_one(host: Host) -> None:
    path = host.places.instances / "chat-1" / "config.yaml"
    path.write_text(path.read_text() + "max-num-seqs: 9\n")
    assert differences(host) == {"config.yaml", "process"}


def test_a_record_that_is_gone_is_seen(host: Host) -> None:
    (host.places.instances / "chat-1" / "instance.json").unlink()
    assert differences(host) == {"instance.json"}


def test_a_unit_that_is_down_fails(host: Host) -> None:
    host.unit = {"chat-1": ("failed", "enabled")}
    assert host.rows()["chat-1"].status == FAILED
    assert differences(host) == {"unit"}


def test_an_engine_that_does_not_answer_fails(host: Host) -> None:
    path = host.places.instances / "chat-1" / "config.yaml"
    path.write_text("host: 0.0.0.0\nport: 9\n")
    row = host.rows()["chat-1"]
    assert row.status == FAILED
    assert row.differences[0].what == "/health"


def test_what_was_never_started_is_absent(host: Host) -> None:
    for path in (host.places.instances / "chat-1").iterdir():
        path.unlink()
    (host.places.instances / "chat-1").rmdir()
    host.unit = {}
    assert host.rows()["chat-1"].status == ABSENT


def test_instances_outside_the_plan_and_gpus_used_twice_are_seen(host: Host) -> None:
    host.unit["old-1"] = ("active", "disabled")
    host.gpus[0]["processes"].append({"instance": "old-1"})
    rows = host.rows()
    assert rows["old-1"].status == UNPLANNED
    assert "shared with old-1" in {one.observed for one in rows["chat-1"].differences}


@pytest.mark.parametrize(
    ("labels", "tokens"),
    [
        ({"kv_cache_size_tokens": "690416", "num_gpu_blocks": "10", "block_size": "16"}, 690416),
        ({"num_gpu_blocks": "2048", "block_size": "128"}, 262144),
        ({"kv_cache_size_tokens": "None", "num_gpu_blocks": "2048", "block_size": "128"}, 262144),
        ({"num_gpu_blocks": "None", "block_size": "128"}, None),
        ({}, None),
    ],
)
def test_kv_tokens_are_what_the_engine_says_or_blocks_times_their_size(labels: dict[str, str], tokens: int) -> None:
    assert kv_cache_tokens(labels) == tokens


def test_labels_of_the_cache_configuration() -> None:
    assert cache_config(METRICS)["num_gpu_blocks"] == "1024"
    assert cache_config('vllm:cache_config_info{a="x\\"y, z",b="1"} 1.0\n') == {"a": 'x\\"y, z', "b": "1"}
    assert cache_config("# nothing\n") == {}


# As platforms/cuda.py of vLLM 0.32.0 and 0.33.0 writes it, behind the prefix of an engine's log.
CHOSEN = (
    "(EngineCore pid=7) INFO 11-24 07:54:29 [cuda.py:507] Using FLASH_ATTN attention backend out of potential backends:"
    " ['FLASH_ATTN', 'FLASHINFER', 'TRITON_ATTN', 'FLEX_ATTENTION'].\n"
)
NAMED = "(EngineCore pid=7) INFO 11-24 07:54:29 [cuda.py:446] Using AttentionBackendEnum.TRITON_ATTN backend.\n"
BESIDE = (
    "(EngineCore pid=7) INFO 11-24 07:54:30 [selector.py:106] Using FLASH_ATTN MLA prefill backend.\n"
    "(EngineCore pid=7) INFO 11-24 07:54:30 [cuda.py:547] Using backend AttentionBackendEnum.FLASH_ATTN for vit"
    " attention\n"
)
ON_CPU = (
    "(EngineCore pid=7) INFO 11-24 07:54:29 [cpu.py:198] Cannot use AttentionBackendEnum.TRITON_ATTN backend on CPU.\n"
)
COUNTERS = (
    "# TYPE vllm:spec_decode_num_drafts_total counter\n"
    'vllm:spec_decode_num_drafts_total{engine="0",model_name="chat"} 12.0\n'
    'vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="chat"} 36.0\n'
    'vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="chat"} 9.0\n'
    'vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="chat",position="0"} 6.0\n'
)


@pytest.mark.parametrize(
    ("journal", "backends"),
    [
        (CHOSEN, ("FLASH_ATTN",)),
        (BESIDE + NAMED + NAMED, ("TRITON_ATTN",)),
        (BESIDE, ()),
        (ON_CPU, ("CPU_ATTN",)),
        ("", ()),
    ],
)
def test_backends_that_the_log_of_an_engine_names(journal: str, backends: tuple[str, ...]) -> None:
    assert attention_backends(journal) == backends
    kept = "\n".join(line for line in journal.splitlines() if re.search(BACKEND_LINES, line))
    assert attention_backends(kept) == backends


def test_another_attention_backend_than_the_planned_one_is_seen(host: Host) -> None:
    host.record["memory"]["attention_backend"] = "TRITON_ATTN"
    assert "attention backend" not in differences(host)
    host.journal = NAMED
    assert "attention backend" not in differences(host)
    host.journal = CHOSEN
    assert "attention backend" in differences(host)
    host.journal, host.accelerator = ON_CPU, "cpu"
    assert "attention backend" not in differences(host)
    host.accelerator = "cuda"
    assert "attention backend" in differences(host)


def test_counters_of_drafted_tokens() -> None:
    assert drafting(METRICS + COUNTERS) == Drafting(12, 36, 9)
    assert drafting(METRICS) is None


def test_speculation_that_was_planned_has_to_be_counted(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.record["engine_args"]["speculative_config"] = {"method": "ngram", "num_speculative_tokens": 3}
    assert "speculation" in differences(host)
    plain = METRICS
    monkeypatch.setattr("test_verification_observation.METRICS", plain + COUNTERS)
    assert "speculation" not in differences(host)
    assert host.rows()["chat-1"].seen.drafting == Drafting(12, 36, 9)
    monkeypatch.setattr("test_verification_observation.METRICS", plain + COUNTERS.replace(" 12.0", " 0.0"))
    (one,) = [one for one in host.rows()["chat-1"].differences if one.what == "speculation"]
    assert one.observed == "no token was drafted for its request"
