"""How the check is run and read. What a real engine says is in molecule/serving."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fleet.argument_check import check_arguments
from fleet.instances import parse_desired


class SimulatedEngine:
    """Stands for systemd-run with the engine's program; keeps what it was given."""

    def __init__(self, answer: object, status: int = 0, error: str = "") -> None:
        self.answer, self.status, self.error = answer, status, error
        self.commands: list[list[str]] = []
        self.files: dict[str, str] = {}

    def __call__(self, command):
        self.commands.append(list(command))
        directory = Path(command[-1])
        self.files |= {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*.*")}
        assert {path.stat().st_mode & 0o777 for path in directory.rglob("*") if path.is_file()} == {0o644}
        text = self.answer if isinstance(self.answer, str) else "log\n" + json.dumps(self.answer) + "\n"
        return self.status, text, self.error


@pytest.fixture
def engine_directory(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "python").touch()
    (tmp_path / "program").touch()
    (tmp_path / "scratch").mkdir()
    return tmp_path


def instance(name: str, directory: Path, model: str = ""):
    config = f"model: {model or directory}\nport: 8100\n"
    item = {"id": name, "config_yaml": config, "environment": f'FLEET_ENGINE_DIRECTORY="{directory}"\n', "record": {}}
    return parse_desired([item])[0]


def check(instances, engine, root):
    return check_arguments(instances, engine, program=root / "program", scratch=root / "scratch")


def test_all_of_one_engine_are_judged_in_one_go_and_nothing_stays(engine_directory):
    engine = SimulatedEngine({"x-1": {"refusal": "ValueError: too long"}, "x-2": {}, "y-1": {"unjudged": "no NVML"}})
    wanted = [instance(name, engine_directory / "a") for name in ("x-1", "x-2", "y-1")]
    found = check(wanted, engine, engine_directory)
    assert found.refusals == {"x-1": "ValueError: too long"}
    assert found.unjudged == {"y-1": "no NVML"}
    assert engine.files["x-1/config.yaml"] == wanted[0].files["config.yaml"]
    assert len(engine.commands) == 1
    assert list((engine_directory / "scratch").iterdir()) == []


def test_each_engine_judges_its_own(engine_directory):
    engine = SimulatedEngine({})
    check([instance("x-1", engine_directory / "a"), instance("x-2", engine_directory / "b")], engine, engine_directory)
    assert [command[-3] for command in engine.commands] == [f"{engine_directory}/{name}/bin/python" for name in "ab"]


def test_the_check_has_no_privilege_no_network_and_no_gpu_memory(engine_directory):
    engine = SimulatedEngine({})
    check([instance("x-1", engine_directory / "a")], engine, engine_directory)
    (command,) = engine.commands
    assert command[0] == "systemd-run"
    for wanted in ("DynamicUser=yes", "PrivateNetwork=yes", "CapabilityBoundingSet=", "RuntimeMaxSec=180"):
        assert f"--property={wanted}" in command
    assert "--property=DevicePolicy=closed" in command
    assert not [word for word in command if "uvm" in word], "without unified memory there is no CUDA context"


@pytest.mark.parametrize(
    ("engine", "why"),
    [
        (SimulatedEngine("", 1, "Traceback\nImportError: libcudart\n"), "status 1: ImportError: libcudart"),
        (SimulatedEngine("", 143), "status 143: no answer within 180 s"),
        (SimulatedEngine("not json"), "status 0"),
    ],
)
def test_a_check_that_does_not_answer_leaves_it_to_the_start(engine_directory, engine, why):
    found = check([instance("x-1", engine_directory / "a")], engine, engine_directory)
    assert found.refusals == {}
    assert why in found.unjudged["x-1"]


@pytest.mark.parametrize("missing", ["engine", "checkpoint", "program"])
def test_on_a_bare_host_nothing_is_judged(engine_directory, missing):
    one = instance(
        "x-1", engine_directory / ("c" if missing == "engine" else "a"), "/nowhere" * (missing == "checkpoint")
    )
    if missing == "program":
        (engine_directory / "program").unlink()
    engine = SimulatedEngine({})
    assert check([one], engine, engine_directory).refusals == {}
    assert engine.commands == []
