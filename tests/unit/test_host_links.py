"""From a host's probe and link test to the links that the speed model counts with."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fleet.host_document import HostDocument, Link, PcieLink, parse_hosts
from fleet.host_links import links_between
from fleet.speed_collectives import PCIE_LINKS
from plan_samples import facts

UUIDS = [f"GPU-a-{index}" for index in range(4)]


def host(*links: PcieLink) -> HostDocument:
    (one,) = parse_hosts(facts("a"), where="facts.json")
    given = links or (PcieLink(4, 16),) * 4
    return replace(one, gpus=tuple(replace(gpu, link=link) for gpu, link in zip(one.gpus, given, strict=True)))


def test_sound_links_count_as_the_default() -> None:
    assert links_between(host(), UUIDS) == PCIE_LINKS
    assert links_between(host(*[PcieLink()] * 4), UUIDS) == PCIE_LINKS


@pytest.mark.parametrize(("link", "factor"), [(PcieLink(4, 8), 2), (PcieLink(3, 16), 2), (PcieLink(1, 4), 32)])
def test_a_link_below_the_card_slows_its_group(link: PcieLink, factor: float) -> None:
    slow = host(PcieLink(4, 16), link, PcieLink(4, 16), PcieLink(4, 16))
    found = links_between(slow, UUIDS[:2])
    assert found.all_reduce_s(2, 1 << 20) == pytest.approx(factor * PCIE_LINKS.all_reduce_s(2, 1 << 20))
    assert found.send_bytes_per_s == pytest.approx(PCIE_LINKS.send_bytes_per_s / factor)
    assert "slower" in found.source
    assert links_between(slow, UUIDS[2:]) == PCIE_LINKS


def test_what_was_measured_counts_and_the_slowest_pair_sets_the_pace() -> None:
    pairs = (
        Link(UUIDS[0], UUIDS[1], "PIX", "verified", 2.1e10),
        Link(UUIDS[0], UUIDS[2], "SYS", "verified", 0.9e10),
        Link(UUIDS[1], UUIDS[2], "SYS", "verified", None),
    )
    measured = replace(
        host(PcieLink(4, 8), *[PcieLink(4, 16)] * 3), links=pairs, all_reduce={2: {1024: 1e-5, 4096: 2e-5}}
    )
    found = links_between(measured, UUIDS[:3])
    assert found.source == "measured on the host"
    assert found.send_bytes_per_s == 0.9e10
    assert found.all_reduce_s(2, 4096) == pytest.approx(2e-5)
    # Groups that were not measured keep the default.
    assert found.all_reduce_s(8, 4096) == pytest.approx(PCIE_LINKS.all_reduce_s(8, 4096))


def test_a_gpu_that_is_not_there_is_no_guess() -> None:
    with pytest.raises(ValueError, match="a: 1 of 2 GPUs are known"):
        links_between(host(), [UUIDS[0], "GPU-elsewhere"])
