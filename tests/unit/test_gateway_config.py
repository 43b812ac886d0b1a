"""A set of configuration files that is checked as a whole."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from fleet import gateway_config
from fleet.errors import FleetError

if TYPE_CHECKING:
    from pathlib import Path

# Stands for the service's own check: refuses a set in which main.cfg names a file that is not there.
CHECK = [
    sys.executable,
    "-c",
    "import pathlib, sys; d = pathlib.Path(sys.argv[1]); named = (d / 'main.cfg').read_text().split()[-1]\n"
    "if not (d / named).exists(): print('[NOTICE] reading'); sys.exit(f'[ALERT] {d}/main.cfg: no file {named}')",
    "{directory}",
]


def a_set(directory: Path, **files: str) -> gateway_config.ConfigSet:
    named = {name.replace("_", "."): text for name, text in files.items()}
    return gateway_config.config_set(directory, named, 0o640, None)


def test_a_good_set_is_put_in_place_and_then_as_wanted(tmp_path: Path) -> None:
    config = a_set(tmp_path / "new", main_cfg="revision @REVISION@ use a.map", a_map="x y\n")
    assert gateway_config.differing_files(config) == ["a.map", "main.cfg"]
    gateway_config.check(config, CHECK)
    gateway_config.install(config, ["a.map", "main.cfg"])
    assert gateway_config.differing_files(config) == []
    assert (tmp_path / "new" / "main.cfg").read_text() == f"revision {config.revision} use a.map"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.map", "main.cfg"]


def test_a_refused_set_is_explained_with_the_final_path_and_leaves_nothing(tmp_path: Path) -> None:
    config = a_set(tmp_path, main_cfg="use b.map")
    with pytest.raises(FleetError) as error:
        gateway_config.check(config, CHECK)
    assert str(error.value).endswith(f"[ALERT] {tmp_path}/main.cfg: no file b.map")
    assert str(error.value).count("\n") == 0
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="could not be checked"):
        gateway_config.check(a_set(tmp_path, main_cfg="x"), [str(tmp_path / "absent")])


@pytest.mark.parametrize("drift", ["text", "mode", "absent"])
def test_drift_on_disk_is_seen(tmp_path: Path, drift: str) -> None:
    config = a_set(tmp_path, main_cfg="x", a_map="y")
    gateway_config.install(config, list(config.files))
    path = tmp_path / "a.map"
    if drift == "text":
        path.write_text("z")
    elif drift == "mode":
        path.chmod(0o644)
    else:
        path.unlink()
    assert gateway_config.differing_files(config) == ["a.map"]


def test_the_revision_is_of_names_and_texts_and_not_of_their_order(tmp_path: Path) -> None:
    first = a_set(tmp_path, a_cfg="1", b_cfg="2").revision
    assert a_set(tmp_path, b_cfg="2", a_cfg="1").revision == first
    assert (
        len({first, a_set(tmp_path, a_cfg="2", b_cfg="1").revision, a_set(tmp_path, a_cfg="12", b_cfg="").revision})
        == 3
    )


@pytest.mark.parametrize("name", ["../up", "a/b", "", "..", "/etc/passwd"])
def test_names_stay_in_the_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(FleetError, match="without a directory"):
        gateway_config.config_set(tmp_path, {name: ""}, 0o640, None)


def test_text_must_be_text(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=r"files\['a'\]: must be text, got dict"):
        gateway_config.config_set(tmp_path, {"a": {}}, 0o640, None)


def test_a_service_that_does_not_run_has_loaded_nothing() -> None:
    assert gateway_config.loaded_revision("http://127.0.0.1:9/revision") is None
