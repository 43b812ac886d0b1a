"""The fleet of the test lab, as fixtures."""

from __future__ import annotations

import pytest
from fleet_lab import Fleet, working_copy


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet(working_copy(tmp_path_factory.mktemp("fleet") / "inventory"))


@pytest.fixture
def lab(fleet: Fleet) -> Fleet:
    """The fleet with the lab's own inventory, whatever an earlier test left in the copy."""
    working_copy(fleet.inventory)
    return fleet
