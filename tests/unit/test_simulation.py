"""The simulation against what is known exactly, and the closed forms against the simulation."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from fleet.capacity import Objectives
from fleet.checkpoint import load_model_facts
from fleet.engine_options import EngineOptions
from fleet.errors import FleetError
from fleet.hardware import gpu_by_name
from fleet.simulation import SimulatedInstance, SimulatedModel, Simulation, SimulationOptions
from fleet.simulation_engine import SimulatedEngine, SimulatedRequest, StepTimes
from fleet.simulation_workload import Arrivals, LeastConnections, Lengths
from fleet.speed import PromptChunk, SpeedModel

ROOT = Path(__file__).parents[2]
LLAMA = load_model_facts(ROOT / "tests" / "data" / "model_configs" / "llama-3-8b.json")
L40S = gpu_by_name("L40S", where="test")
SPEED = SpeedModel(LLAMA, L40S, EngineOptions())


def served(kv_cache_tokens=200_000, name="m", **options):
    return SimulatedInstance(name, LLAMA, L40S, EngineOptions(**options), kv_cache_tokens)


def asked(rate, prompt=1024, output=256, objectives=None, name="m"):
    return SimulatedModel(name, rate, prompt, output, objectives or Objectives())


def engine(kv_cache_tokens=200_000, *, async_scheduling=True, **options):
    speed = SpeedModel(LLAMA, L40S, EngineOptions(**options))
    return SimulatedEngine(StepTimes(speed), kv_cache_tokens, async_scheduling=async_scheduling)


def drive(one, requests):
    """Let requests arrive and run until nothing is left."""
    waiting = sorted(requests, key=lambda request: request.arrival_s)
    while waiting or one.wake_s < inf:
        if waiting and waiting[0].arrival_s <= one.wake_s:
            request = waiting.pop(0)
            one.add(request, request.arrival_s)
        else:
            one.advance()
    return requests


def arrivals(count, rate, prompt, output, seed=0):
    stream = Arrivals("m", seed, rate, prompt, output, Lengths()).stream()
    return [SimulatedRequest(*next(stream)) for _ in range(count)]


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_whole_steps_of_prompts_are_an_m_d_1_queue(load):
    # A prompt fills the budget and has one token of output, so that requests are served one by one, each in one step.
    service_s = SPEED.step(0, 0.0, [PromptChunk(2048, 0)]).seconds
    requests = drive(engine(async_scheduling=False), arrivals(25_000, load / service_s, 2048, 1))
    waits = [one.first_token_s - one.arrival_s - service_s for one in requests]
    assert sum(waits) / len(waits) / service_s == pytest.approx(load / (2.0 * (1.0 - load)), rel=0.06)
    assert sum(wait < 1e-9 for wait in waits) / len(waits) == pytest.approx(1.0 - load, abs=0.01)


def test_a_lonely_request_takes_its_steps_and_no_more():
    (request,) = drive(engine(), [SimulatedRequest(3.0, 1000, 5)])
    prompt_s = SPEED.step(0, 0.0, [PromptChunk(1000, 0)]).seconds
    steps_s = [SPEED.aggregate_step(1, 1000.0 + index).seconds for index in range(4)]
    assert request.first_token_s == pytest.approx(3.0 + prompt_s)
    assert request.finish_s == pytest.approx(3.0 + prompt_s + sum(steps_s), rel=1e-3)
    assert request.ttft_s == pytest.approx(prompt_s + SPEED.first_token_s)


def test_a_request_that_comes_during_a_step_is_in_the_next_but_one():
    first, second = SimulatedRequest(0.0, 2048, 50), SimulatedRequest(0.01, 16, 2)
    drive(engine(), [first, second])
    chunk_s = SPEED.step(0, 0.0, [PromptChunk(2048, 0)]).seconds
    decode_s = SPEED.aggregate_step(1, 2048.0).seconds
    own_s = SPEED.step(1, 2049.0, [PromptChunk(16, 0)]).seconds
    assert second.first_token_s == pytest.approx(chunk_s + decode_s + own_s, rel=1e-3)


def test_chunks_share_steps_with_running_sequences():
    running, long = SimulatedRequest(0.0, 100, 200), SimulatedRequest(0.2, 5000, 1)
    drive(engine(), [running, long])
    # 2,047 tokens of the prompt fit beside one running sequence: three steps.
    chunks_s = [SPEED.step(1, 110.0, [PromptChunk(tokens, past)]).seconds for tokens, past in CHUNKS]
    waited_s = long.first_token_s - 0.2 - sum(chunks_s)
    decode_s = SPEED.aggregate_step(1, 110.0).seconds
    assert decode_s <= waited_s <= 2.05 * decode_s


CHUNKS = [(2047, 0), (2047, 2047), (906, 4094)]


def test_sequences_of_a_pipeline_get_a_token_every_round():
    options = {"pipeline_parallel_size": 4, "max_num_batched_tokens": 512}
    speed = SpeedModel(LLAMA, L40S, EngineOptions(**options))
    requests = drive(engine(**options), [SimulatedRequest(0.05 * one, 16, 600) for one in range(32)])
    mean_s = sum(one.tpot_s for one in requests) / len(requests)
    assert mean_s == pytest.approx(speed.decode_step(32, 316.0).seconds, rel=0.04)


def test_no_tokens_and_no_blocks_are_lost():
    one = engine(kv_cache_tokens=12_000)
    requests = drive(one, arrivals(400, 3.0, 600, 200))
    assert one.preemptions > 20
    assert all(request.generated == 200 and request.finish_s > request.first_token_s for request in requests)
    assert (one.running, one.waiting, one.connections) == (0, 0, 0)
    assert one.free_blocks == one.total_blocks
    again = sum(request.preemptions for request in requests)
    assert again == one.preemptions
    # Every prompt and token once, and once more what preemption threw away.
    assert one.computed_tokens > 400 * (600 + 199)


def test_without_a_shortage_every_token_is_computed_once():
    one = engine()
    drive(one, arrivals(300, 3.0, 600, 200))
    assert one.preemptions == 0
    assert one.computed_tokens == 300 * (600 + 199)


def test_who_came_last_is_preempted_and_the_first_is_not():
    one = engine(kv_cache_tokens=2_400)
    early, late = SimulatedRequest(0.0, 1000, 700), SimulatedRequest(0.1, 600, 700)
    drive(one, [early, late])
    assert (early.preemptions, late.preemptions) == (0, 1)
    assert late.finish_s > early.finish_s


def test_max_num_seqs_bounds_what_runs():
    one = engine(max_num_seqs=4)
    requests = [SimulatedRequest(0.0, 100, 50) for _ in range(12)]
    drive(one, requests)
    events = [(request.first_token_s, 1) for request in requests] + [(request.finish_s, -1) for request in requests]
    at_once = running = 0
    for _, change in sorted(events):
        running += change
        at_once = max(at_once, running)
    assert at_once == 4


def test_steps_need_room_for_every_sequence():
    with pytest.raises(FleetError, match="max_num_batched_tokens: must be at least max_num_seqs 256, got 128"):
        engine(max_num_batched_tokens=128)


def test_leastconn_takes_the_least_loaded_and_goes_round_among_equals():
    router = LeastConnections([1.0, 1.0, 1.0])
    connections = [0, 0, 0]
    order = []
    for _ in range(6):
        server = router.pick()
        order.append(server)
        connections[server] += 1
        router.changed(server, connections[server])
    assert order == [0, 1, 2, 0, 1, 2]
    connections[1] -= 1
    router.changed(1, connections[1])
    assert router.pick() == 1


def test_weights_share_connections_in_proportion():
    router = LeastConnections([3.0, 1.0])
    connections = [0, 0]
    for _ in range(80):
        server = router.pick()
        connections[server] += 1
        router.changed(server, connections[server])
    assert connections == [60, 20]


def test_two_instances_behind_leastconn_beat_two_alone():
    together = Simulation([served(), served()], [asked(8.0)]).run(SimulationOptions(seconds=200))["m"]
    alone = Simulation([served()], [asked(4.0)]).run(SimulationOptions(seconds=400))["m"]
    assert together.tpot_s[95.0] < alone.tpot_s[95.0]
    assert together.instances == 2


def test_equal_seeds_give_equal_results_whatever_the_order():
    models = [asked(2.0, name="a"), asked(3.0, name="b")]
    instances = [served(name="a"), served(name="b"), served(name="b")]
    lognormal = SimulationOptions(seconds=60, lengths=Lengths("lognormal", 0.5))
    first = Simulation(instances, models).run(lognormal)
    assert Simulation(instances[::-1], models[::-1]).run(lognormal) == first
    assert Simulation(instances, models).run(replace(lognormal, seed=1)) != first


def test_overload_meets_no_objective():
    model = asked(12.0, objectives=Objectives(2000, 60))
    result = Simulation([served()], [model]).run(SimulationOptions(seconds=120))["m"]
    assert set(result.violated) == {"ttft", "tpot", "throughput"}
    assert result.goodput_requests_per_s < 0.05 * 12.0
    assert not result.sustained


def test_a_model_without_instances_carries_nothing():
    result = Simulation([], [asked(1.0)]).run()["m"]
    assert (result.holds, result.goodput_requests_per_s, result.ttft_s[95.0]) == (False, 0.0, inf)
    assert Simulation([], [asked(1.0)]).largest_factor().factor == 0.0


def test_requests_that_fit_nowhere_are_unfinished_and_disturb_nobody():
    result = Simulation([served(kv_cache_tokens=1000)], [asked(1.0)]).run(SimulationOptions(seconds=50))["m"]
    assert result.unfinished == result.measured > 0


def test_poisson_arrivals_and_lognormal_lengths_have_their_means():
    stream = Arrivals("m", 0, 5.0, 1000, 200, Lengths("lognormal", 0.5)).stream()
    drawn = [next(stream) for _ in range(20_000)]
    assert drawn[-1][0] / len(drawn) == pytest.approx(1 / 5.0, rel=0.03)
    assert sum(prompt for _, prompt, _ in drawn) / len(drawn) == pytest.approx(1000, rel=0.02)
    assert sum(output for _, _, output in drawn) / len(drawn) == pytest.approx(200, rel=0.02)
    cut = Arrivals("m", 0, 5.0, 1000, 200, Lengths("lognormal", 0.5), most_tokens=900).stream()
    assert all(sum(next(cut)[1:]) <= 900 for _ in range(1000))


def test_the_largest_factor_is_where_objectives_break():
    simulation = Simulation([served()], [asked(2.0, objectives=Objectives(2000, 60))])
    options = SimulationOptions(seconds=150)
    found = simulation.largest_factor(options, tolerance=0.02)
    assert found.first_violated["m"] == ("tpot",)
    assert simulation.run(replace(options, factor=found.factor))["m"].holds
    assert not simulation.run(replace(options, factor=1.04 * found.factor))["m"].holds


def test_engines_that_share_a_gpu_take_turns():
    alone = Simulation([served()], [asked(1.0)]).run(SimulationOptions(seconds=60))["m"]
    shared = Simulation([replace(served(), slowdown=2.0)], [asked(1.0)]).run(SimulationOptions(seconds=60))["m"]
    assert shared.tpot_s[50.0] > 1.9 * alone.tpot_s[50.0]


def test_few_representatives_stand_for_many_equal_instances():
    many = Simulation([served() for _ in range(24)], [asked(24 * 4.0)])
    all_of_them = many.run(SimulationOptions(seconds=60))["m"]
    some = many.run(SimulationOptions(seconds=60, representatives=8))["m"]
    assert some.measured < 0.4 * all_of_them.measured
    assert some.tpot_s[95.0] == pytest.approx(all_of_them.tpot_s[95.0], rel=0.03)
    assert some.goodput_requests_per_s == pytest.approx(all_of_them.goodput_requests_per_s, rel=0.06)


def _bench():
    path = ROOT / "tests" / "bench" / "bench_simulation.py"
    spec = importlib.util.spec_from_file_location("bench_simulation", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_simulation"] = module
    spec.loader.exec_module(module)
    return module


BENCH = _bench()
SLICE = ("8b-bf16-short", "8b-fp8-few-tokens", "8b-bf16-throughput")


@pytest.mark.parametrize("name", SLICE)
def test_closed_forms_and_simulation_agree(name):
    (case,) = (one for one in BENCH.CASES if one.name == name)
    row = BENCH.compared(case, requests=3000, tolerance=0.02)
    assert abs(row["difference"]) < BENCH.LIMIT, row


def test_the_bench_covers_what_it_is_meant_to():
    assert len(BENCH.CASES) == 20
    assert {128, 8192} <= {one.prompt_tokens for one in BENCH.CASES}
