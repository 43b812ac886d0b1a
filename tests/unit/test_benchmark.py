"""A benchmark's parts: which instance, what is sent, what is kept. An engine is measured in molecule/benchmark."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from fleet.benchmark import choose, peak_of, peak_words, predict, requests_of_step, result_document, result_lines
from fleet.benchmark_page import render_page
from fleet.benchmark_step import Step, bench_command, run_step, service_command, step_words
from fleet.errors import FleetError
from plan_samples import facts, model, plan

DEMAND = {"requests_per_second": 1.0, "prompt_tokens": 512, "output_tokens": 64}
STEP = Step(
    engine_directory="/opt/vllm/0.33.0",
    url="http://127.0.0.1:8100",
    model="chat",
    tokenizer="/var/lib/l40s-fleet/models/chat-0123456789ab",
    prompt_tokens=512,
    output_tokens=64,
    concurrency=16,
    requests=64,
    warmups=2,
    limit_s=300,
)
# As vLLM 0.31.0's `vllm bench serve` writes it, without the lists.
RESULT = {
    "duration": 4.0,
    "completed": 63,
    "failed": 1,
    "request_throughput": 15.75,
    "output_throughput": 1008.0,
    "total_token_throughput": 9072.0,
    **{
        f"{key}_{name}_ms": value
        for name, value in (("ttft", 80.0), ("tpot", 12.5), ("itl", 12.0), ("e2el", 900.0))
        for key in ("mean", "median", "std", "p50", "p95", "p99")
    },
}


@pytest.fixture(scope="module")
def made():
    fleet = facts("a", "b")
    two = model("chat", aliases=["talk"], replicas={"min": 2}, demand=DEMAND)
    return plan(fleet, [two, model("alone", demand=DEMAND), model("vectors", task="embed", replicas={"min": 2})])


def measured(concurrency, tokens_per_s, **changes):
    found = run_step(replace(STEP, concurrency=concurrency), lambda _: (0, json.dumps(RESULT), ""))
    return {**found, "output_tokens_per_s": tokens_per_s, **changes}


@pytest.mark.parametrize("wish", [{"instance": "chat-1"}, {"model": "chat"}, {"model": "talk"}])
def test_an_instance_is_chosen_with_the_traffic_of_its_model(made, wish):
    target = choose(made, **wish)
    assert (target.instance.id, target.others) == ("chat-1", ("chat-2",))
    assert (target.prompt_tokens, target.output_tokens) == (512, 64)


@pytest.mark.parametrize(
    ("wish", "complaint"),
    [
        ({}, "say which: -e benchmark_instance=ID, or -e benchmark_model=NAME"),
        ({"instance": "chat-9"}, "chat-9 is not in the plan; its instances are: alone-1, chat-1, chat-2, vectors-1"),
        ({"model": "cat"}, "cat has no instance in the plan; its models are: alone, chat, vectors"),
        ({"instance": "alone-1"}, "alone-1 is the only instance of alone"),
        ({"model": "vectors"}, "vectors-1: only vLLM instances that generate text, this is a embed"),
        ({"model": "chat", "prompt_tokens": 4000, "output_tokens": 200}, "are more than the 4096 tokens"),
        ({"model": "chat", "output_tokens": 1}, "must be given, 1 and 2 or more"),
    ],
)
def test_what_cannot_be_benchmarked_is_refused(made, wish, complaint):
    with pytest.raises(FleetError, match=re.escape(complaint)):
        choose(made, **wish)


def test_the_only_instance_is_benchmarked_by_force(made):
    assert choose(made, instance="alone-1", force=True).others == ()


def test_a_step_sends_some_requests_for_each_client_as_long_as_they_fit_into_its_time():
    bounds = {"rounds": 4, "most": 300, "seconds": 10}
    assert requests_of_step(16, [], **bounds) == 64
    assert requests_of_step(128, [], **bounds) == 300
    slow = [{"requests_per_s": 3.0}]
    assert requests_of_step(16, slow, **bounds) == 30
    assert requests_of_step(64, slow, **bounds) == 64
    assert requests_of_step(16, [{"requests_per_s": 0.0}], **bounds) == 64


def test_the_engine_s_key_is_on_no_command_line(monkeypatch, tmp_path):
    """The part that the service runs, with a program in the place of vLLM that says what it was given."""
    program = tmp_path / "program"
    program.write_text(
        '#!/bin/sh\necho "$@" >&2\nenv >&2\nfor last; do :; done\necho "{}" >"$RUNTIME_DIRECTORY/$last"\n'
    )
    program.chmod(0o755)
    command = service_command(STEP)
    assert "EnvironmentFile=/etc/l40s-fleet/engine.env" in " ".join(command)
    start = command.index("/bin/sh")
    inner = [*command[start : start + 4], str(program)]
    environment = {
        **os.environ,
        "VLLM_API_KEY": "the-key",
        "BENCHMARK_LIMIT_S": "5",
        "RUNTIME_DIRECTORY": str(tmp_path),
    }
    done = subprocess.run(inner, capture_output=True, text=True, env=environment, check=True)
    lines = done.stderr.splitlines()
    assert "the-key" not in lines[0]
    assert [line for line in lines[1:] if "the-key" in line] == ["OPENAI_API_KEY=the-key"]
    assert done.stdout == "{}\n"


def test_the_bench_is_that_of_the_engine():
    command = bench_command(STEP)
    assert command[:3] == ["/opt/vllm/0.33.0/bin/vllm", "bench", "serve"]
    assert {"--max-concurrency=16", "--num-prompts=64", "--random-input-len=512", "--ignore-eos"} <= set(command)
    assert "--trust-remote-code" not in command
    assert "--trust-remote-code" in bench_command(replace(STEP, trust_remote_code=True))


def test_a_step_is_summed_up():
    found = measured(16, 1008.0)
    assert (found["completed"], found["failed"], found["requests_per_s"]) == (63, 1, 15.75)
    assert found["tpot_ms"] == {"mean": 12.5, "p50": 12.5, "p95": 12.5, "p99": 12.5}
    assert step_words(found) == (
        "16 concurrent: 1,008.0 output tokens/s, TTFT p50 80.0 ms, TPOT p50 12.5 ms, 63 requests in 4.0 s, 1 failed"
    )


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ((1, "", "a\nConnectionError: refused\n"), "exited 1: ConnectionError: refused"),
        ((0, "no JSON", ""), "wrote no result"),
        ((0, json.dumps({**RESULT, "completed": 0, "failed": 64}), ""), "none of 64 requests was answered"),
    ],
)
def test_a_step_that_measured_nothing_fails_with_the_reason(answer, complaint):
    with pytest.raises(FleetError, match=re.escape(f"vllm bench serve, 16 concurrent: {complaint}")):
        run_step(STEP, lambda _: answer)


def test_a_step_that_takes_too_long_is_stopped_and_said():
    found = run_step(STEP, lambda _: (124, "", ""))
    assert found["timed_out"]
    assert step_words(found) == "16 concurrent: not done in time, stopped"


def test_the_peak_is_named_with_the_least_that_comes_near_to_it():
    steps = [measured(1, 100.0), measured(4, 390.0), measured(16, 400.0), measured(32, 300.0)]
    assert peak_of(steps) == {
        "concurrency": 16,
        "output_tokens_per_s": 400.0,
        "enough_concurrency": 4,
        "at_the_end": False,
    }
    assert peak_of(steps[:3])["at_the_end"]
    assert peak_of([measured(1, 0.0, timed_out=True)]) is None


def test_prediction_rises_with_concurrency_until_there_is_no_more_room(made):
    target = choose(made, instance="chat-1")
    rows = predict(made, target, [1, 4, 16, 1000, 2000], None)
    assert rows.gpu == "L40S"
    rates = [row["output_tokens_per_s"] for row in rows.rows]
    assert rates[0] < rates[1] < rates[2] < rates[3] == rates[4]
    # One client alone: its prompt, then one step a token; 8 billion weights of 2 bytes at 864 GB/s bound the step.
    assert 15.0 < rows.rows[0]["tpot_ms"] < 30.0
    assert rates[0] < 1000.0 / rows.rows[0]["tpot_ms"]


def kept(made, accelerator="cuda", steps=None):
    target = choose(made, instance="chat-1")
    steps = steps or [measured(1, 40.0), measured(4, 150.0), measured(16, 140.0)]
    prediction = predict(made, target, [step["concurrency"] for step in steps], None)
    engine = {"version": "0.33.0", "accelerator": accelerator}
    return result_document(target, steps, prediction, engine=engine, at="2026-11-24T15:00:00Z")


def test_measured_stands_beside_predicted(made):
    document = json.loads(json.dumps(kept(made)))
    assert document["prediction"] == {"gpu": "L40S", "comparable": True, "why": ""}
    assert all(step["predicted"]["output_tokens_per_s"] > 0 for step in document["steps"])
    lines = result_lines(document)
    assert lines[0] == "chat-1: throughput peaks at 4 concurrent requests with 150.0 output tokens/s."
    assert re.fullmatch(r" +4 concurrent: +150.0 output tokens/s, predicted [\d.,]+", lines[2])


def test_a_prediction_for_other_hardware_is_not_compared(made):
    document = kept(made, "cpu")
    assert not document["prediction"]["comparable"]
    assert result_lines(document)[-1] == (
        "The prediction is not to be compared: it is for the L40S, and this engine runs on vLLM's CPU build."
    )


class Page(HTMLParser):
    """What a page holds: tags, texts, and polylines."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.lines, self.images = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        if tag == "polyline":
            self.lines.append((values["class"], values["points"].split()))
        if values.get("role") == "img":
            self.images.append(values["aria-label"])

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_the_page_names_the_peak_and_draws_every_step(made):
    page = Page(render_page(kept(made)))
    assert "script" not in page.tags
    assert "chat-1: throughput peaks at 4 concurrent requests with 150.0 output tokens/s." in page.texts
    assert len(page.images) == 3
    assert "1: 40, 4: 150, 16: 140" in page.images[0]
    drawn = [points for kind, points in page.lines if kind == "curve sustained" and len(points) == 3]
    assert len(drawn) == 3
    heights = [float(point.split(",")[1]) for point in drawn[0]]
    assert heights[1] < heights[2] < heights[0]
    assert [len(points) for kind, points in page.lines if kind == "curve decode"].count(3) == 2
    assert render_page(kept(made)) == render_page(kept(made))


def test_the_page_draws_no_prediction_for_other_hardware(made):
    page = Page(render_page(kept(made, "cpu")))
    assert not [points for kind, points in page.lines if kind == "curve decode"]
    assert any("this engine runs on vLLM's CPU build" in text for text in page.texts)


def test_the_page_of_a_sweep_that_was_stopped_at_once(made):
    stopped = run_step(replace(STEP, concurrency=1), lambda _: (124, "", ""))
    document = kept(made, steps=[stopped])
    assert peak_words(document) == "chat-1: no request was answered."
    assert "not done in time, stopped" in Page(render_page(document)).texts
