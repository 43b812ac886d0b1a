from fleet.placement import decide
from fleet.placement_gpus import choose_gpus
from fleet.placement_problem import GpuRoom, HostRoom, PinnedPlace, Shape, Standing, Wish

ONE = Shape("L40S")
TP2 = Shape("L40S", tensor_parallel=2)
PP2 = Shape("L40S", pipeline_parallel=2)


def room(name, gpus=4, switch_size=2, failed=()):
    return HostRoom(
        name,
        tuple(GpuRoom(f"{name}{n}", n, "L40S", switch=n // switch_size, numa_node=n // 4) for n in range(gpus)),
        frozenset(frozenset(pair) for pair in failed),
    )


def wish(model, count=1, shapes=(ONE,), hosts=("a", "b", "c"), **changes):
    return Wish(model, changes.pop("priority", 0), count, tuple(shapes), frozenset(hosts), **changes)


def standing(identity, host, *gpus, shape=ONE, cause=None):
    return Standing(identity, identity.rpartition("-")[0], host, gpus, shape, cause)


def places(decision):
    return sorted((one.model, one.host, one.gpus) for one in decision.placed)


def test_replicas_go_to_different_hosts():
    decision = decide([wish("m", 3)], [room("a"), room("b"), room("c")], [])
    assert [host for _, host, _ in places(decision)] == ["a", "b", "c"]


def test_without_spreading_one_host_is_filled_first():
    decision = decide([wish("m", 4, spread=False), wish("n", 1)], [room("a"), room("b")], [])
    assert {host for model, host, _ in places(decision) if model == "m"} == {"a"}
    assert [host for model, host, _ in places(decision) if model == "n"] == ["b"]


def test_what_runs_stays():
    running = [standing("m-1", "c", "c3"), standing("m-2", "c", "c0")]
    decision = decide([wish("m", 2)], [room("a"), room("b"), room("c")], running)
    assert places(decision) == [("m", "c", ("c0",)), ("m", "c", ("c3",))]
    assert all(one.stays for one in decision.placed)


def test_what_cannot_stay_moves_and_keeps_its_identity():
    running = [standing("m-1", "a", "a0", cause="excluded")]
    (placed,) = decide([wish("m")], [room("b")], running).placed
    assert (placed.host, placed.standing.id, placed.cause) == ("b", "m-1", "excluded")


def test_two_that_claim_one_gpu_are_parted():
    running = [standing("m-1", "a", "a0"), standing("n-1", "a", "a0")]
    decision = decide([wish("m"), wish("n")], [room("a")], running)
    assert places(decision) == [("m", "a", ("a0",)), ("n", "a", ("a1",))]
    assert [one.cause for one in decision.placed] == [None, "conflict"]


def test_fewer_replicas_keep_the_first():
    running = [standing("m-1", "a", "a0"), standing("m-2", "b", "b0")]
    (placed,) = decide([wish("m")], [room("a"), room("b")], running).placed
    assert placed.standing.id == "m-1"


def test_a_pin_is_kept_even_against_what_runs():
    running = [standing("m-1", "a", "a0")]
    (placed,) = decide([wish("m", pins=(PinnedPlace("b", ("b2",)),))], [room("a"), room("b")], running).placed
    assert (placed.host, placed.gpus, placed.cause, placed.standing.id) == ("b", ("b2",), "constraint", "m-1")


def test_pinned_gpus_are_left_alone_by_others_while_there_is_room():
    pinned = wish("z", priority=-1, pins=(PinnedPlace("a", ("a0",)),))
    decision = decide([wish("m", 3), pinned], [room("a")], [])
    assert not decision.shortages
    assert ("z", "a", ("a0",)) in places(decision)


def test_priority_decides_when_there_is_no_room_for_all():
    decision = decide([wish("low", 4), wish("high", 4, priority=1)], [room("a")], [])
    assert {model for model, _, _ in places(decision)} == {"high"}
    assert [(one.model, one.missing) for one in decision.shortages] == [("low", 4)]


def test_a_higher_priority_takes_the_gpus_of_the_lowest_that_suffice():
    running = [standing("low-1", "a", "a0"), standing("mid-1", "a", "a1")]
    wishes = [wish("low", priority=0), wish("mid", priority=1), wish("high", priority=2)]
    decision = decide(wishes, [room("a", gpus=2)], running)
    assert places(decision) == [("high", "a", ("a0",)), ("mid", "a", ("a1",))]
    (shortage,) = decision.shortages
    assert [(one.id, cause) for one, cause in shortage.left] == [("low-1", "priority")]


def test_an_evicted_replica_moves_where_there_is_room():
    running = [standing("low-1", "a", "a0")]
    wishes = [wish("low", hosts=("a", "b")), wish("high", priority=1, hosts=("a",))]
    decision = decide(wishes, [room("a", gpus=1), room("b", gpus=1)], running)
    assert places(decision) == [("high", "a", ("a0",)), ("low", "b", ("b0",))]


def test_equal_priority_is_never_evicted():
    decision = decide([wish("m"), wish("n")], [room("a", gpus=1)], [standing("n-1", "a", "a0")])
    assert places(decision) == [("n", "a", ("a0",))]


def test_a_second_host_is_used_when_one_may_be_lost():
    decision = decide([wish("m", 2, spread=False, min_hosts=2)], [room("a"), room("b")], [])
    assert [host for _, host, _ in places(decision)] == ["a", "b"]


def test_replicas_on_one_host_are_parted_when_one_host_may_be_lost():
    running = [standing("m-1", "a", "a0"), standing("m-2", "a", "a1")]
    decision = decide([wish("m", 2, min_hosts=2)], [room("a"), room("b")], running)
    assert [(one.standing.id, one.host, one.cause) for one in decision.placed] == [
        ("m-1", "a", None),
        ("m-2", "b", "availability"),
    ]


def test_replicas_stay_together_when_there_is_no_second_host():
    running = [standing("m-1", "a", "a0"), standing("m-2", "a", "a1")]
    decision = decide([wish("m", 2, min_hosts=2)], [room("a")], running)
    assert len(decision.placed) == 2
    assert [(one.missing, one.min_hosts, one.left) for one in decision.shortages] == [(1, True, ())]


def test_replicas_elsewhere_count_for_spreading():
    decision = decide([wish("m", elsewhere=("a",), min_hosts=2)], [room("a"), room("b", gpus=1)], [])
    assert [host for _, host, _ in places(decision)] == ["b"]


def test_a_pair_shares_a_switch():
    host = room("a", gpus=8)
    available = [gpu for gpu in host.gpus if gpu.index in (1, 2, 4, 5)]
    assert choose_gpus(host, available, TP2) == ("a4", "a5")
    available = [gpu for gpu in host.gpus if gpu.index in (1, 2, 4)]
    assert choose_gpus(host, available, TP2) == ("a1", "a2")


def test_a_single_gpu_leaves_pairs_whole():
    host = room("a")
    assert choose_gpus(host, [gpu for gpu in host.gpus if gpu.index != 2], ONE) == ("a3",)


def test_a_failed_peer_to_peer_pair_is_no_tensor_group_but_a_pipeline():
    host = room("a", gpus=2, failed=[("a0", "a1")])
    assert choose_gpus(host, host.gpus, TP2) is None
    assert choose_gpus(host, host.gpus, PP2) == ("a0", "a1")
    (placed,) = decide([wish("m", shapes=(TP2, PP2))], [host], []).placed
    assert placed.shape == PP2


def test_tensor_ranks_of_a_stage_stand_beside_one_another():
    host = room("a", gpus=4, failed=[("a0", "a1"), ("a0", "a2"), ("a1", "a3"), ("a2", "a3")])
    assert choose_gpus(host, host.gpus, Shape("L40S", 2, 2)) == ("a0", "a3", "a1", "a2")


def test_large_instances_choose_before_small_ones():
    decision = decide([wish("small", 4), wish("wide", shapes=(TP2,))], [room("a", gpus=3), room("b", gpus=3)], [])
    assert not decision.shortages


def test_optimizing_moves_what_is_in_the_way_and_nothing_else():
    running = [standing("m-1", "a", "a0"), standing("m-2", "b", "b0"), standing("n-1", "c", "c0")]
    wishes = [wish("m", 2), wish("n"), wish("wide", shapes=(TP2,))]
    hosts = [room("a", gpus=2), room("b", gpus=2), room("c", gpus=1)]
    decision = decide(wishes, hosts, running, optimize=True)
    assert decision.missing == 0
    assert sorted(one.standing.id for one in decision.placed if one.stays) == ["m-2", "n-1"]


def test_one_instance_makes_room_for_a_group_that_would_be_left():
    running = [standing("m-1", "a", "a0"), standing("n-1", "b", "b0")]
    hosts = [room("a", gpus=2), room("b", gpus=2)]
    decision = decide([wish("m"), wish("n"), wish("wide", shapes=(TP2,))], hosts, running)
    assert not decision.shortages
    assert sorted(str(one.cause) for one in decision.placed if one.standing) == ["None", "demand"]


def test_nothing_moves_when_that_does_not_help():
    running = [standing("m-1", "a", "a0"), standing("n-1", "b", "b0")]
    hosts = [room("a", gpus=2, failed=[("a0", "a1")]), room("b", gpus=2, failed=[("b0", "b1")])]
    decision = decide([wish("m"), wish("n"), wish("wide", shapes=(TP2,))], hosts, running)
    assert [one.model for one in decision.shortages] == ["wide"]
    assert all(one.stays for one in decision.placed)


def test_a_running_shape_that_carries_too_little_is_replaced():
    running = [standing(f"m-{n}", "a", f"a{n}") for n in range(4)]
    asked = wish("m", shapes=(ONE, TP2), demand=5.0, capacity={ONE: 1.0, TP2: 2.5})
    decision = decide([asked], [room("a")], running)
    assert not decision.shortages
    assert [(one.shape, one.cause) for one in decision.placed] == [(TP2, "demand"), (TP2, "demand")]


def test_another_precision_on_the_same_gpus_is_no_move():
    faster = Shape("L40S", precision="fp8")
    asked = wish(
        "m", shapes=(ONE, faster), demand=2.9, capacity={ONE: 1.0, faster: 2.0}, sacrifices=frozenset([faster])
    )
    running = [standing("m-1", "a", "a0"), standing("m-2", "a", "a1")]
    decision = decide([asked], [room("a", gpus=2)], running)
    assert not decision.shortages
    assert sorted(one.shape.precision for one in decision.placed) == ["", "fp8"]
    assert all(one.stays for one in decision.placed)


def test_demand_of_equal_priority_takes_nothing_away():
    low = wish("low", demand=2.0, capacity={ONE: 1.0})
    new = wish("new", demand=1.0, capacity={ONE: 1.0})
    running = [standing("low-1", "a", "a0"), standing("low-2", "a", "a1")]
    decision = decide([low, new], [room("a", gpus=2)], running)
    assert [(one.model, one.carried) for one in decision.shortages] == [("new", 0.0)]
    assert all(one.stays for one in decision.placed)


def test_models_of_one_priority_share_what_there_is():
    asked = [wish(name, demand=8.0, capacity={ONE: 1.0}) for name in ("m", "n")]
    decision = decide(asked, [room("a", gpus=8)], [])
    assert [(one.model, one.carried) for one in decision.shortages] == [("m", 0.5), ("n", 0.5)]


def test_the_order_of_the_input_does_not_matter():
    wishes = [wish("m", 3), wish("n", 2, priority=1), wish("wide", shapes=(TP2,))]
    hosts = [room("a"), room("b"), room("c")]
    running = [standing("m-1", "b", "b1"), standing("n-1", "c", "c0")]
    assert decide(wishes, hosts, running) == decide(wishes[::-1], hosts[::-1], running)


def test_a_pin_that_cannot_be_kept_is_named():
    decision = decide([wish("m", 2, pins=(PinnedPlace("b"),))], [room("a")], [])
    assert [(one.pin, one.missing) for one in decision.shortages] == [(0, 1)]
    assert places(decision) == [("m", "a", ("a0",))]
