"""What others hold on a GPU, from bytes to the utilization that engines are started with, and back from a record."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fleet.foreign_memory import MARGIN_BYTES, as_started, free_utilization, start_utilization
from fleet.hardware import GPUS, gpu_by_name
from fleet.host_document import parse_hosts
from fleet.memory import CONTEXT_BYTES, foreign_bytes
from plan_samples import facts

GIB = 1024**3
L40S = gpu_by_name("L40S", where="test")


def gpu(held_bytes):
    (host,) = parse_hosts(facts("a"), where="facts.json")
    return replace(host.gpus[0], foreign_bytes=held_bytes)


@pytest.mark.parametrize("card", GPUS, ids=lambda card: card.name)
@pytest.mark.parametrize("held_gib", [1.1, 2.0, 2.6, 3.5, 5.0, 8.7, 20.0, 33.3])
def test_what_is_wanted_at_start_is_free(card, held_gib):
    held = int(held_gib * GIB)
    limit = start_utilization(replace(gpu(held), model=card))
    assert limit is not None
    assert limit * card.torch_visible_bytes + CONTEXT_BYTES + held + MARGIN_BYTES <= card.torch_visible_bytes + 1
    # No more than a step is given away.
    assert free_utilization(card, held) - limit < 0.05 or limit == 0.92


def test_a_little_does_not_matter_and_nearly_all_leaves_nothing():
    assert start_utilization(gpu(0)) is None
    assert start_utilization(gpu(GIB)) is None
    assert start_utilization(gpu(2 * GIB)) == 0.92
    assert start_utilization(gpu(42 * GIB)) == 0.0


def test_an_engine_that_wants_more_than_the_default_finds_what_is_there():
    assert start_utilization(gpu(GIB), wanted=0.98) == 0.92
    assert start_utilization(gpu(0), wanted=0.98) is None


@pytest.mark.parametrize("card", GPUS, ids=lambda card: card.name)
@pytest.mark.parametrize("limit", [0.92, *(step / 20 for step in range(2, 19))])
def test_a_record_tells_what_its_instance_was_started_with(card, limit):
    limited = replace(card, start_utilization=limit)
    assert as_started(card, {"foreign_bytes": foreign_bytes(limited)}) == limited
    assert as_started(limited, {}) == card
    assert as_started(limited, {"foreign_bytes": 0}) == card
