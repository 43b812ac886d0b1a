from __future__ import annotations

import os
import time

import pytest
from fleet import manifest_cache
from fleet.checkpoint import manifest
from test_checkpoint import checkpoint, tiny_tensors

AGO_NS = time.time_ns() - 60 * 10**9


@pytest.fixture
def read(monkeypatch):
    """Names of the files that were read."""
    names = []
    original = manifest_cache.sha256_of
    monkeypatch.setattr(manifest_cache, "sha256_of", lambda path: names.append(path.name) or original(path))
    return names


@pytest.fixture
def path(tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    checkpoint(directory, tiny_tensors())
    for file in directory.iterdir():
        os.utime(file, ns=(AGO_NS, AGO_NS))
    return directory


def test_what_has_not_changed_is_not_read_again(path, tmp_path, read):
    first = manifest(path, cache=tmp_path / "cache")
    assert sorted(read) == ["config.json", "model.safetensors"]
    read.clear()
    assert manifest(path, cache=tmp_path / "cache") == first
    assert read == []


@pytest.mark.parametrize("change", ["time", "inode", "size"])
def test_what_has_changed_is(path, tmp_path, read, change):
    manifest(path, cache=tmp_path / "cache")
    read.clear()
    file = path / "config.json"
    if change == "inode":
        other = tmp_path / "other"
        other.write_bytes(file.read_bytes())
        os.utime(other, ns=(AGO_NS, AGO_NS))
        other.replace(file)
    elif change == "size":
        file.write_text(file.read_text() + " ")
        os.utime(file, ns=(AGO_NS, AGO_NS))
    else:
        os.utime(file, ns=(AGO_NS + 1, AGO_NS + 1))
    manifest(path, cache=tmp_path / "cache")
    assert read == ["config.json"]


def test_what_was_just_written_is_read_again(path, tmp_path, read):
    (path / "config.json").touch()
    for _ in range(2):
        manifest(path, cache=tmp_path / "cache")
    assert read.count("config.json") == 2


def test_a_damaged_cache_costs_time_and_no_more(path, tmp_path, read):
    first = manifest(path, cache=tmp_path / "cache")
    (file,) = (tmp_path / "cache" / "manifests").iterdir()
    file.write_text("{")
    assert manifest(path, cache=tmp_path / "cache") == first
