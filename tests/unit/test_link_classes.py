from __future__ import annotations

from dataclasses import replace

import pytest
from fleet.host_document import PcieLink, parse_hosts
from fleet.link_classes import with_link_classes
from fleet.speed_collectives import PCIE_ALL_REDUCE
from plan_samples import facts


def hosts(*names):
    return parse_hosts(facts(*names), where="facts.json")


def measured(host, factor):
    return replace(
        host, all_reduce={size: {b: s * factor for b, s in curve} for size, curve in PCIE_ALL_REDUCE.items()}
    )


def kinds(found):
    return {host.name: {gpu.model.kind for gpu in host.gpus} for host in found}


def test_default_links_make_no_classes():
    given = hosts("a", "b")
    assert with_link_classes(given) == given


def test_hosts_that_are_alike_are_one_class_with_the_slowest_curve():
    a, b, c = hosts("a", "b", "c")
    found = with_link_classes([measured(a, 3.0), measured(b, 3.05), c])
    assert kinds(found) == {"a": {"L40S with the links of a"}, "b": {"L40S with the links of a"}, "c": {"L40S"}}
    model = found[0].gpus[0].model
    assert model.links.all_reduce_s(2, 1 << 20) == pytest.approx(3.05 * dict(PCIE_ALL_REDUCE[2])[1 << 20])
    assert model == found[1].gpus[0].model


def test_one_class_alone_needs_no_name():
    found = with_link_classes([measured(one, 2.0) for one in hosts("a", "b")])
    assert kinds(found) == {"a": {"L40S"}, "b": {"L40S"}}
    assert found[0].gpus[0].model.links is not None


def test_a_link_below_the_card_is_apart_from_its_neighbours():
    (host,) = hosts("a")
    gpus = tuple(replace(gpu, link=PcieLink(4, 4 if gpu.index == 3 else 16)) for gpu in host.gpus)
    (found,) = with_link_classes([replace(host, gpus=gpus)])
    assert [gpu.model.kind for gpu in found.gpus] == ["L40S"] * 3 + ["L40S with the links of a"]
    slow, fast = found.gpus[3].model.links, found.gpus[0].model.links
    assert fast is None
    assert slow.send_bytes_per_s == pytest.approx(25e9 / 4)


def test_the_order_of_hosts_does_not_matter():
    a, b, c = hosts("a", "b", "c")
    given = [measured(a, 3.0), measured(b, 1.5), c]
    forward, backward = with_link_classes(given), with_link_classes(given[::-1])
    assert {one.name: one for one in forward} == {one.name: one for one in backward}
