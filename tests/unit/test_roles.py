"""What every role keeps: its defaults are its documented interface."""

from pathlib import Path

import pytest
import yaml

ROLES = Path(__file__).parents[2] / "roles"
NAMES = sorted(path.name for path in ROLES.iterdir() if path.is_dir())
TYPES = {"bool": bool, "dict": dict, "int": int, "list": list}


def load(path: Path) -> dict:
    return (yaml.safe_load(path.read_text()) or {}) if path.is_file() else {}


def test_there_are_roles():
    assert {"vllm", "model_store", "serving", "gateway", "verify"} <= set(NAMES)


@pytest.mark.parametrize("role", NAMES)
def test_defaults_are_the_documented_options(role: str):
    specs = load(ROLES / role / "meta" / "argument_specs.yml")["argument_specs"]
    options = {name: option for spec in specs.values() for name, option in spec["options"].items()}
    defaults = load(ROLES / role / "defaults" / "main.yml")
    assert set(defaults) <= set(options)
    for name, value in defaults.items():
        assert "description" in options[name], name
        wanted = TYPES.get(options[name]["type"])
        if wanted is not None and not (isinstance(value, str) and "{{" in value):
            assert isinstance(value, wanted), name


@pytest.mark.parametrize("role", NAMES)
def test_options_are_defaulted_or_required(role: str):
    specs = load(ROLES / role / "meta" / "argument_specs.yml")["argument_specs"]
    defaults = load(ROLES / role / "defaults" / "main.yml")
    for spec in specs.values():
        for name, option in spec["options"].items():
            assert option.get("required") or name in defaults or "default" in option, name
