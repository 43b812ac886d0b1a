from __future__ import annotations

from fleet.engine_options import EngineOptions
from fleet.hardware import gpu_by_name
from fleet.memory import estimate_memory
from fleet.shared_gpu import resident_bytes, start_conflict
from model_configs import facts

L40S = gpu_by_name("L40S", where="test")
GIB = 1024**3


def instance(name, utilization, given=None):
    options = EngineOptions(
        max_model_len=2048,
        max_num_seqs=32,
        gpu_memory_utilization=utilization,
        kv_cache_memory_bytes=given,
        engine_version="0.24.0",
    )
    return estimate_memory(facts(name), L40S, options), given


def conflict(*instances, foreign_bytes=0):
    return start_conflict(L40S.torch_visible_bytes, instances, foreign_bytes=foreign_bytes)


def test_two_that_share_the_card_start():
    assert conflict(instance("llama-3-8b", 0.5), instance("llama-3.2-1b", 0.2)) is None


def test_budgets_that_add_up_to_more_than_the_card_do_not():
    found = conflict(instance("llama-3-8b", 0.5), instance("llama-3-8b", 0.6))
    assert found.position == 1
    assert "not free at start" in found.reason


def test_the_second_start_is_looked_at_with_the_first_one_running():
    """Memory given by hand makes the first one small, but the second still wants its budget free."""
    small, large = instance("llama-3.2-1b", 0.1, GIB), instance("llama-3-8b", 0.9)
    assert conflict(small, large).position == 1
    assert conflict(large, small).position == 1
    assert conflict(small, instance("llama-3-8b", 0.7)) is None


def test_foreign_memory_counts():
    first = instance("llama-3-8b", 0.9)
    assert conflict(first) is None
    assert conflict(first, foreign_bytes=6 * GIB).position == 0


def test_one_that_would_not_start_alone_is_named_with_its_own_reason():
    found = conflict(instance("llama-3-8b", 0.3))
    assert found.position == 0
    assert "weights take" in found.reason


def test_what_is_resident_is_at_least_the_weights():
    estimate, given = instance("llama-3.2-1b", 0.1, GIB)
    assert estimate.weights_bytes + GIB < resident_bytes(estimate, given) < 6 * GIB
