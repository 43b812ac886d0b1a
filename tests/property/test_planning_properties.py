"""What holds for every fleet, whatever is asked of it."""

import copy
from pathlib import Path

import pytest
from fleet.carrying import Carrying
from fleet.checkpoint import load_model_facts
from fleet.configurations import ResolvedModel
from fleet.hardware import gpu_by_name
from fleet.host_document import parse_hosts
from fleet.host_means import GIB, SERVER_BYTES, WORKER_BYTES, checkpoint_bytes
from fleet.memory import CONTEXT_BYTES
from fleet.plan_document import canonical_json, plan_from_json, plan_to_document
from fleet.planning import make_plan
from fleet.requests import ModelRequest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CONFIGS = Path(__file__).parents[1] / "data" / "model_configs"
FACTS = {
    name: load_model_facts(CONFIGS / f"{name}.json")
    for name in ("llama-3-8b", "llama-2-13b", "llama-3-70b", "qwen2.5-0.5b")
}
CARRYING = Carrying()
HOSTS = ("h1", "h2", "h3")
LABELS = ("fast", "batch")
L40S = gpu_by_name("L40S", where="test")

pytestmark = pytest.mark.filterwarnings("error")
thorough = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@st.composite
def hosts(draw):
    documents = {}
    for name in HOSTS[: draw(st.integers(1, 3))]:
        count = draw(st.integers(1, 6))
        gpus = [
            {
                "index": index,
                "uuid": f"GPU-{name}-{index}",
                "name": draw(st.sampled_from(["NVIDIA L40S"] * 8 + ["NVIDIA T4"])),
                "memory_total_bytes": 46068 * 1024**2,
                "numa_node": index // 2,
                "health": {"status": draw(st.sampled_from(["ok"] * 6 + ["degraded", "blocked"])), "checks": []},
            }
            for index in range(count)
        ]
        links = [
            {
                "a": f"GPU-{name}-{a}",
                "b": f"GPU-{name}-{b}",
                "path": "PIX" if a // 2 == b // 2 else "SYS",
                "p2p": draw(st.sampled_from(["verified", "untested", "failed"])),
            }
            for a in range(count)
            for b in range(a + 1, count)
        ]
        excluded = draw(st.lists(st.integers(0, count - 1), unique=True, max_size=2))
        labels = draw(st.lists(st.sampled_from(LABELS), unique=True))
        documents[name] = {"gpus": gpus, "links": links, "policy": {"exclude_gpus": excluded, "labels": labels}}
        if draw(st.integers(0, 2)) == 0:
            documents[name]["memory_total_bytes"] = draw(st.sampled_from([7, 13, 25, 600])) * GIB
        if draw(st.integers(0, 2)) == 0:
            free = draw(st.sampled_from([4, 20, 60, 900])) * GIB
            documents[name]["disk"] = [{"path": "/var/lib/l40s-fleet", "free_bytes": free}]
    return {"schema": 1, "hosts": documents}


@st.composite
def request(draw, number):
    config = draw(st.sampled_from(sorted(FACTS)))
    entry = {
        "name": f"m{number}",
        "source": "org/m",
        "max_model_len": 2048,
        "priority": draw(st.integers(0, 2)),
        "replicas": draw(st.fixed_dictionaries({"min": st.integers(1, 4)}, optional={"max": st.sampled_from([4, 6])})),
        "demand": draw(
            st.none()
            | st.fixed_dictionaries({"requests_per_second": st.sampled_from([0.1, 0.7, 2.0, 5.0, 12.5, 40.0])})
        ),
        "objectives": draw(st.sampled_from([{}, {}, {"tpot_ms": 60}, {"tpot_ms": 30, "ttft_ms": 1500}])),
        "quantization": draw(st.sampled_from(["auto", "auto", "none", "fp8"])),
        "availability": {"hosts_lost": draw(st.sampled_from([0, 0, 1]))},
        "tensor_parallel": draw(st.sampled_from([None, None, 1, 2, 4])),
        "pipeline_parallel": draw(st.sampled_from([None, None, 1, 2])),
        "placement": {
            "hosts": draw(st.none() | st.lists(st.sampled_from(HOSTS), min_size=1, unique=True)),
            "labels": draw(st.lists(st.sampled_from(LABELS), max_size=1)),
            "spread_over_hosts": draw(st.booleans()),
            "allow_multi_node": draw(st.sampled_from([False, False, True])),
            "share_gpus": draw(st.sampled_from(["auto", "auto", "never"])),
            "pins": draw(
                st.lists(
                    st.fixed_dictionaries(
                        {"host": st.sampled_from(HOSTS)},
                        optional={"gpus": st.lists(st.integers(0, 5), min_size=1, max_size=2, unique=True)},
                    ),
                    max_size=1,
                )
            ),
        },
    }
    entry = {key: value for key, value in entry.items() if value is not None}
    entry["placement"] = {key: value for key, value in entry["placement"].items() if value is not None}
    return ResolvedModel(ModelRequest.model_validate(entry), f"models[{number}]", FACTS[config])


@st.composite
def fleets(draw):
    count = draw(st.integers(1, 5))
    return draw(hosts()), [draw(request(number)) for number in range(count)]


@st.composite
def shared_fleets(draw):
    """Fleets in which others hold memory of some GPUs: now, and at a later time."""
    document, models = draw(fleets())
    later = copy.deepcopy(document)
    for time in (document, later):
        for host in time["hosts"].values():
            for gpu in host["gpus"]:
                held = draw(st.sampled_from([0, 0, 0, 0, 1, 2, 3, 9, 20, 25, 33, 44]))
                if held:
                    gpu["memory_foreign_bytes"] = held * GIB
    return document, later, models


def plan(document, models, current=(), **options):
    return make_plan(
        parse_hosts(document, where="f"), models, current, engine_version="0.33.0", carrying=CARRYING, **options
    )


def check_carried(made, asked, mine, least, frozen):
    """What the summary says is carried is what the instances add up to, and what is not is refused."""
    carried = made.summary.carried[asked.name]
    refused = any(one.model == asked.name for one in made.refused)
    if carried < 1:
        assert refused
    elif refused:
        assert asked.availability.hosts_lost or asked.placement.pins or (asked.demand and len(mine) < least)
    capacities = [one.speed.get("capacity_requests_per_s") for one in mine]
    untouched = set(frozen).isdisjoint({host for one in mine for host in one.hosts})
    if asked.demand is not None and mine and None not in capacities and untouched:
        assert carried == pytest.approx(min(1.0, sum(capacities) / asked.demand.requests_per_second), abs=2e-6)
        assert asked.replicas.max is None or len(mine) <= max(asked.replicas.max, least)


def check_sharing(made):
    """Instances that share a GPU have a part of it each, all of one size, and start where the others run."""
    by_gpu = {}
    for one in made.instances:
        for cell in one.gpus:
            by_gpu.setdefault(cell, []).append(one)
    for mine in by_gpu.values():
        if len(mine) == 1 and mine[0].sharing is None:
            continue
        assert all(one.sharing is not None for one in mine), "a GPU is given twice"
        assert len({one.sharing.ways for one in mine}) == 1
        assert len(mine) <= mine[0].sharing.ways
        assert len({one.sharing.seat for one in mine}) == len(mine)
        assert len({one.model for one in mine}) == len(mine)
        total = L40S.torch_visible_bytes
        outside = [CONTEXT_BYTES + one.memory["attention_workspace_bytes"] for one in mine]
        budgets = [one.engine_args["gpu_memory_utilization"] * total for one in mine]
        assert sum(outside) + sum(budgets) <= total
        for one in mine:
            rest = ("weights_bytes", "activation_bytes", "non_torch_bytes", "cudagraph_bytes", "runner_buffers_bytes")
            inside = sum(one.memory[name] for name in rest) + one.memory["margin_bytes"]
            assert inside + one.engine_args["kv_cache_memory_bytes"] <= one.memory["budget_bytes"]
            before = {other.id for other in mine if other.sharing.seat < one.sharing.seat}
            assert set(one.sharing.starts_after) == before


def check_means(made, document, models, running, frozen):
    """What was put somewhere anew has host memory and disk there."""
    sizes = {model.request.name: checkpoint_bytes(model) for model in models}
    old = {(one.id, one.shards) for one in running}
    for name, host in document["hosts"].items():
        mine = [one for one in made.instances if name in one.hosts]
        if name in frozen or not any((one.id, one.shards) not in old for one in mine):
            continue
        workers = sum(len(shard.gpus) for one in mine for shard in one.shards if shard.host == name)
        if "memory_total_bytes" in host:
            reserved = max(2 * GIB, host["memory_total_bytes"] // 20)
            assert len(mine) * SERVER_BYTES + workers * WORKER_BYTES <= host["memory_total_bytes"] - reserved
        if "disk" in host:
            stored = {one.model for one in running if name in one.hosts}
            needed = sum(sizes[model] for model in {one.model for one in mine} - stored)
            assert needed <= host["disk"][0]["free_bytes"] - 2 * GIB


def started_anew(made, running):
    """What is started, or started again with other arguments or on other GPUs."""
    before = {(one.id, one.shards, canonical_json(one.engine_args)) for one in running}
    return [one for one in made.instances if (one.id, one.shards, canonical_json(one.engine_args)) not in before]


def check_foreign(made, document, running=(), frozen=()):
    """What is started finds free what it wants: its share of the card, beside its context and what others hold."""
    for one in started_anew(made, running):
        for host, uuid in one.gpus:
            if host in frozen:
                continue
            (gpu,) = [gpu for gpu in document["hosts"][host]["gpus"] if gpu["uuid"] == uuid]
            mine = [other for other in made.instances if (host, uuid) in other.gpus]
            held = gpu.get("memory_foreign_bytes", 0)
            for other in mine:
                outside = CONTEXT_BYTES + (other.memory["attention_workspace_bytes"] if held > GIB else 0)
                held += outside + other.engine_args["gpu_memory_utilization"] * L40S.torch_visible_bytes
            assert held <= L40S.torch_visible_bytes, (one.id, host, uuid)


def check_shard(one, shard, document, asked):
    """GPUs of one host that an instance may use."""
    host = document["hosts"][shard.host]
    gpus = {gpu["uuid"]: gpu for gpu in host["gpus"]}
    for uuid in shard.gpus:
        assert gpus[uuid]["health"]["status"] != "blocked"
        assert gpus[uuid]["name"] == "NVIDIA L40S"
        assert gpus[uuid]["index"] not in host["policy"]["exclude_gpus"]
    assert set(asked.placement.labels) <= set(host["policy"]["labels"])
    assert asked.placement.hosts is None or shard.host in asked.placement.hosts
    failed = {frozenset((link["a"], link["b"])) for link in host["links"] if link["p2p"] == "failed"}
    tensor = one.engine_args["tensor_parallel_size"]
    assert len(shard.gpus) % tensor == 0
    for start in range(0, len(shard.gpus), tensor):
        group = frozenset(shard.gpus[start : start + tensor])
        assert not any(pair <= group for pair in failed)


def check(made, document, models, frozen=()):
    """The constraints that no plan may break."""
    requests = {model.request.name: model.request for model in models}
    ports, ids = set(), set()
    for one in made.instances:
        assert one.id not in ids
        ids.add(one.id)
        for name in one.hosts:
            assert (name, one.port) not in ports, "a port is given twice"
            ports.add((name, one.port))
        if not set(frozen).isdisjoint(one.hosts):
            continue
        asked = requests[one.model]
        for shard in one.shards:
            check_shard(one, shard, document, asked)
        assert len({len(shard.gpus) for shard in one.shards}) == 1
        assert [shard.rank for shard in one.shards] == list(range(len(one.shards)))
        assert len(one.shards) == 1 or asked.placement.allow_multi_node
        assert one.sharing is None or asked.placement.share_gpus != "never"
        tensor, pipeline = one.engine_args["tensor_parallel_size"], one.engine_args["pipeline_parallel_size"]
        assert tensor * pipeline == len(one.gpus)
        assert asked.forced_tensor_parallel in (None, tensor)
        assert asked.forced_pipeline_parallel in (None, pipeline)
        assert one.memory["fits"]
        assert one.memory["kv_cache_tokens_planned"] >= 2048
        if len(one.shards) == 1:
            assert one.env["CUDA_VISIBLE_DEVICES"] == ",".join(one.shards[0].gpus)
    check_sharing(made)
    for name, asked in requests.items():
        mine = [one for one in made.instances if one.model == name]
        least = max(asked.replicas.min, len(asked.placement.pins), 1 + asked.availability.hosts_lost)
        refused = any(one.model == name for one in made.refused)
        check_carried(made, asked, mine, least, frozen)
        if refused or any(not set(frozen).isdisjoint(one.hosts) for one in mine):
            continue
        if asked.demand is None:
            assert len(mine) == least
        assert len(mine) >= least
        assert len({host for one in mine for host in one.hosts}) > asked.availability.hosts_lost
        for pin in asked.placement.pins:
            assert any(
                one.shards[0].host == pin.host
                and (pin.gpus is None or set(one.shards[0].gpus) == {f"GPU-{pin.host}-{index}" for index in pin.gpus})
                for one in mine
            )
    used = {cell for one in made.instances for cell in one.gpus}
    assert made.summary.gpus_used == len(used) >= made.summary.gpus_lower_bound


@thorough
@given(fleets())
def test_no_constraint_is_broken(fleet):
    document, models = fleet
    made = plan(document, models)
    check(made, document, models)
    check_means(made, document, models, (), ())


@thorough
@given(shared_fleets(), st.booleans())
def test_nothing_is_started_with_more_than_is_free(fleet, optimize):
    document, later, models = fleet
    first = plan(document, models)
    check(first, document, models)
    check_foreign(first, document)
    second = plan(later, models, first.instances, optimize=optimize)
    check(second, later, models)
    check_foreign(second, later, first.instances)


@thorough
@given(shared_fleets())
def test_what_others_hold_moves_nothing_that_runs(fleet):
    document, later, models = fleet
    # Every model has what it asks for, so that nothing has a reason to move.
    models = [one for one in models if one.request.demand is None][:1]
    first = plan(document, models)
    again = plan(later, models, first.instances)
    kept = {one.id: (one.shards, one.engine_args) for one in again.instances}
    if not first.refused:
        assert kept == {one.id: (one.shards, one.engine_args) for one in first.instances}
        assert again.moves == ()


@thorough
@given(fleets())
def test_planning_again_moves_nothing_and_changes_no_byte(fleet):
    document, models = fleet
    first = plan(document, models)
    text = canonical_json(plan_to_document(first))
    again = plan(document, models, plan_from_json(text, where="p").instances)
    assert again.moves == ()
    assert again.instances == first.instances


def carried_by_priority(made, models):
    """Sums of what is carried, the highest priority first; only models whose demand or number is all that counts."""
    priorities = sorted({model.request.priority for model in models}, reverse=True)
    return [
        round(sum(made.summary.carried[m.request.name] for m in models if m.request.priority == priority), 5)
        for priority in priorities
    ]


@thorough
@given(fleets())
def test_more_gpus_never_carry_less(fleet):
    document, models = fleet
    models = [
        ResolvedModel(
            model.request.model_copy(
                update={"availability": model.request.availability.model_copy(update={"hosts_lost": 0})}
            ),
            model.path,
            model.facts,
        )
        for model in models
    ]
    before = carried_by_priority(plan(document, models), models)
    larger = copy.deepcopy(document)
    larger["hosts"]["h4"] = {
        "gpus": [
            {"index": i, "uuid": f"GPU-h4-{i}", "name": "NVIDIA L40S", "memory_total_bytes": 46068 * 1024**2}
            for i in range(4)
        ]
    }
    assert carried_by_priority(plan(larger, models), models) >= before


@thorough
@given(fleets(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(fleet, random):
    document, models = fleet
    first = plan(document, models)
    turned = copy.deepcopy(document)
    names = list(turned["hosts"])
    random.shuffle(names)
    turned["hosts"] = {name: turned["hosts"][name] for name in names}
    for host in turned["hosts"].values():
        random.shuffle(host["gpus"])
        random.shuffle(host["links"])
    models = list(models)
    random.shuffle(models)
    current = list(first.instances)
    random.shuffle(current)
    assert canonical_json(plan_to_document(plan(turned, models))) == canonical_json(plan_to_document(first))
    assert plan(turned, models, current) == plan(document, models, first.instances)


@thorough
@given(fleets(), fleets(), st.sets(st.sampled_from(HOSTS)))
def test_any_change_keeps_the_constraints_and_frozen_hosts(before, after, frozen):
    old_document, old_models = before
    document, models = after
    first = plan(old_document, old_models)
    made = plan(document, models, first.instances, frozen=frozen)
    check(made, document, models, frozen)
    check_means(made, document, models, first.instances, frozen)
    kept = {one.id: one for one in made.instances}
    for one in first.instances:
        if not frozen.isdisjoint(one.hosts):
            left = kept[one.id]
            assert (left.shards, left.port, left.engine_args) == (one.shards, one.port, one.engine_args)
    new = {one.id for one in made.instances} - {one.id for one in first.instances}
    assert not [one.id for one in made.instances if one.id in new and not frozen.isdisjoint(one.hosts)]
    again = plan(document, models, made.instances, frozen=frozen)
    assert again.instances == made.instances
    assert again.moves == ()


@thorough
@given(fleets())
def test_optimizing_is_never_worse_and_settles(fleet):
    document, models = fleet
    first = plan(document, models)
    best = plan(document, models, first.instances, optimize=True)
    check(best, document, models)
    assert len(best.instances) >= len(first.instances)
    settled = plan(document, models, best.instances, optimize=True)
    assert settled.moves == ()


@thorough
@given(fleets(), st.data())
def test_losing_a_gpu_moves_only_what_stood_on_it(fleet, data):
    document, models = fleet
    models = [
        ResolvedModel(
            model.request.model_copy(
                update={
                    "priority": 0,
                    "demand": None,
                    "availability": model.request.availability.model_copy(update={"hosts_lost": 0}),
                }
            ),
            model.path,
            model.facts,
        )
        for model in models
    ]
    first = plan(document, models)
    name = data.draw(st.sampled_from(sorted(document["hosts"])))
    index = data.draw(st.integers(0, len(document["hosts"][name]["gpus"]) - 1))
    changed = copy.deepcopy(document)
    changed["hosts"][name]["policy"]["exclude_gpus"] = sorted(
        {*changed["hosts"][name]["policy"]["exclude_gpus"], index}
    )
    second = plan(changed, models, first.instances)
    hit = {one.id for one in first.instances if (name, f"GPU-{name}-{index}") in one.gpus}
    made_room = {move.id for move in second.moves if move.cause == "demand"}
    assert {move.id for move in second.moves} - made_room == hit - made_room
    before = {one.id: one for one in first.instances}
    touched = hit | made_room
    assert all(one.gpus == before[one.id].gpus for one in second.instances if one.id not in touched)
