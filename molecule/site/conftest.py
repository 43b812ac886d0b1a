"""The fleet of the test lab, as fixtures."""

from __future__ import annotations

import shutil

import pytest
import yaml
from fleet_lab import ROOT, Fleet


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    inventory = tmp_path_factory.mktemp("fleet") / "inventory"
    shutil.copytree(ROOT / "inventory" / "lab", inventory, ignore=shutil.ignore_patterns("state"))
    return Fleet(inventory)


@pytest.fixture
def lab(fleet: Fleet) -> Fleet:
    """The fleet with the lab's own inventory, whatever an earlier test left in the copy."""
    original = ROOT / "inventory" / "lab"
    shutil.rmtree(fleet.inventory)
    shutil.copytree(original, fleet.inventory, ignore=shutil.ignore_patterns("state"))
    models = yaml.safe_load((original / "models.yml").read_text())["models"]
    for model in models:
        kind, _, path = model["source"].partition(":")
        if kind == "file" and not path.startswith("/"):
            model["source"] = f"file:{(original / path).resolve()}"
    fleet.write_models(models)
    return fleet
