"""What models.yml can name elsewhere, by the real huggingface_hub against a simulated hub."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import huggingface_hub
import pytest
from fleet.checkpoint import load_model_facts, manifest
from fleet.errors import FleetError
from fleet.fetch_description import SourceOptions
from fleet.fetch_sources import RemoteSources
from fleet.manifest_cache import sha256_of
from fleet.model_sources import resolve_models
from fleet.requests import parse_requests
from simulated_hub_code import Fault, SimulatedHub
from test_checkpoint import checkpoint, tiny_tensors, write_safetensors

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "hf_simulated"


@pytest.fixture
def repository(tmp_path):
    """A repository in two shards, with what else repositories hold."""
    path = tmp_path / "repository"
    path.mkdir()
    checkpoint(path, {})
    (path / "model.safetensors").unlink()
    tensors = list(tiny_tensors().items())
    index = {}
    for number, part in enumerate((dict(tensors[:8]), dict(tensors[8:])), 1):
        name = f"model-0000{number}-of-00002.safetensors"
        write_safetensors(path / name, part)
        index |= dict.fromkeys(part, name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (path / "tokenizer.json").write_text('{"version": "1.0"}')
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text("{}")
    for name in ("pytorch_model.bin", "consolidated.safetensors", "figure.png", ".gitattributes"):
        (path / name).write_bytes(b"not served")
    return path


SERVED = {
    *("config.json", "model.safetensors.index.json", "tokenizer.json", "1_Pooling/config.json"),
    *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
}


@pytest.fixture
def hub(tmp_path, repository):
    with SimulatedHub(token=TOKEN, tree=tmp_path) as simulated:
        simulated.commit = simulated.add("org/m", repository)
        yield simulated


@pytest.fixture
def resolve(hub, tmp_path):
    """One run of the planner's side; a new object, as a new run has."""

    def run(source="hf:org/m", token="", endpoint=None, **options):
        models = parse_requests(
            json.dumps({"models": [{"name": "m", "source": source, **options.pop("entry", {})}]}), where="m"
        )
        described = SourceOptions(tmp_path / "cache", endpoint or hub.url, token, **options)
        remote = RemoteSources(described, tmp_path / "models.lock.json")
        (model,), checkpoints = resolve_models(
            models, str(tmp_path / "models.yml"), with_checkpoints=True, remote=remote
        )
        text = remote.lock_text()
        if text is not None:
            remote.lock_path.write_text(text)
        return model, checkpoints.get("m"), remote

    return run


def served_copy(repository: Path, to: Path) -> Path:
    for name in SERVED:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / name, to / name)
    return to


def test_a_repository_is_planned_as_its_copy_would_be(hub, resolve, repository, tmp_path):
    model, found, _ = resolve()
    copy = served_copy(repository, tmp_path / "copy")
    assert set(found.files) == SERVED
    assert found.digest == manifest(copy)["digest"]
    assert found.total_bytes == manifest(copy)["total_bytes"]
    assert model.facts.checkpoint == load_model_facts(copy).checkpoint
    assert found.base_url == f"{hub.url}/org/m/resolve/{hub.commit}/"
    assert hub.bytes_sent("^/content") <= 2 * 100_001, "no more than the headers"


def test_the_simulated_hub_gives_the_real_client_a_whole_snapshot(hub, repository, tmp_path):
    target = tmp_path / "snapshot"
    huggingface_hub.snapshot_download("org/m", local_dir=target, endpoint=hub.url, token=TOKEN)
    for name in (*SERVED, "pytorch_model.bin"):
        assert (target / name).read_bytes() == (repository / name).read_bytes()


def test_a_second_look_asks_nobody(hub, resolve):
    first = resolve()
    asked = len(hub.requests)
    second = resolve()
    assert len(hub.requests) == asked
    assert second[1] == first[1]
    assert second[0].facts.checkpoint == first[0].facts.checkpoint


def test_a_branch_that_moves_moves_nothing_until_it_is_asked_for(hub, resolve, repository, tmp_path):
    first = resolve()[1]
    assert json.loads((tmp_path / "models.lock.json").read_text())["sources"] == {"hf:org/m@main": hub.commit}
    changed = tmp_path / "changed"
    shutil.copytree(repository, changed)
    (changed / "tokenizer.json").write_text('{"version": "2.0"}')
    newer = hub.add("org/m", changed)
    assert resolve()[1] == first
    assert resolve(update=True)[1].digest != first.digest
    assert json.loads((tmp_path / "models.lock.json").read_text())["sources"] == {"hf:org/m@main": newer}
    assert resolve(source=f"hf:org/m@{hub.commit}")[1] == first, "a commit is what it is"


@pytest.mark.parametrize(
    ("source", "token", "words"),
    [
        ("hf:org/none", "", r"hf:org/none: does not exist on .*, or it is private and fleet_hub_token is not set"),
        ("hf:org/none", TOKEN, r"hf:org/none: does not exist on .*, or fleet_hub_token may not read it"),
        ("hf:org/m@v9", "", r"hf:org/m: has no revision 'v9' on"),
        ("hf:org/m", "hf_stale", r"does not accept fleet_hub_token \(401\)"),
        (
            "hf:org/gated",
            "",
            r"is gated: its terms have to be accepted at http.*/org/gated, and fleet_hub_token is not set",
        ),
    ],
)
def test_refusals_are_one_line_that_says_what_to_do(request, source, token, words):
    hub, resolve, repository = (request.getfixturevalue(name) for name in ("hub", "resolve", "repository"))
    hub.add("org/gated", repository, gated=True)
    with pytest.raises(FleetError, match=words) as caught:
        resolve(source=source, token=token)
    assert "\n" not in str(caught.value)
    assert str(caught.value).split(": ")[1] == "models[0].source"
    assert "hf_stale" not in str(caught.value)


def test_a_gated_repository_opens_to_the_token(hub, resolve, repository):
    hub.add("org/gated", repository, gated=True)
    assert resolve(source="hf:org/gated", token=TOKEN)[1].credential == "hub"


def test_a_gated_repository_says_whose_account_has_to_accept_its_terms(hub, resolve, repository):
    hub.add("org/gated", repository, gated=True, accepted=False)
    with pytest.raises(FleetError) as caught:
        resolve(source="hf:org/gated", token=TOKEN)
    terms = f"is gated: its terms have to be accepted at {hub.url}/org/gated"
    assert caught.value.problem.endswith(f"{terms}, and the account of fleet_hub_token has not done so")
    assert 403 in {one["status"] for one in hub.requests}


@pytest.fixture
def no_proxy(monkeypatch):
    """None of this machine's; what a run sets is taken back."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    # Its session knows the proxy of the test.
    huggingface_hub.close_session()


@pytest.mark.usefixtures("no_proxy")
@pytest.mark.parametrize("source", ["hf:org/m", "http://tree.invalid/tree/served"])
def test_a_proxy_is_the_only_way_there(hub, resolve, repository, tmp_path, source):
    """The simulated hub answers as a proxy too; the names of endpoint and tree are known to nobody else."""
    served = served_copy(repository, tmp_path / "served")
    files = [name for name in SERVED if (served / name).is_file()]
    (served / "SHA256SUMS").write_text("".join(f"{sha256_of(served / name)}  {name}\n" for name in sorted(files)))
    with pytest.raises(FleetError, match="cannot be reached"):
        resolve(source=source, endpoint="http://hub.invalid")
    _, found, _ = resolve(source=source, endpoint="http://hub.invalid", proxy=hub.url)
    assert found.digest == manifest(served_copy(repository, tmp_path / "copy"))["digest"]
    assert found.base_url.startswith(("http://hub.invalid/", "http://tree.invalid/"))


def test_a_hub_that_stumbles_is_asked_again(hub, resolve):
    hub.faults = [
        Fault("/api/", "503"),
        Fault("tokenizer", "429", retry_after="0"),
        Fault("/resolve/.*safetensors$", "500"),
    ]
    assert resolve()[1] is not None


def test_bytes_that_changed_on_the_way_are_noticed(hub, resolve):
    hub.faults = [Fault("tokenizer.json", "wrong", after_bytes=3)]
    with pytest.raises(FleetError, match=r"tokenizer\.json: is not what the commit names: its bytes were changed"):
        resolve()
    assert resolve()[1] is not None, "nothing of it was kept"


def test_without_network_the_configuration_serves_for_planning(resolve, repository):
    entry = {"config": str(repository / "config.json")}
    model, found, remote = resolve(endpoint="http://127.0.0.1:9", entry=entry)
    assert (found, model.checkpoint) == (None, None)
    ((where, problem),) = remote.unavailable
    assert where.endswith("models.yml: models[0].source")
    assert "http://127.0.0.1:9 cannot be reached" in problem
    with pytest.raises(FleetError, match=r"models\[0\]\.source: hf:org/m: http://127\.0\.0\.1:9 cannot be reached"):
        resolve(endpoint="http://127.0.0.1:9")


def test_a_repository_without_safetensors_is_refused(hub, resolve, repository, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(repository / "config.json", other)
    (other / "pytorch_model.bin").write_bytes(b"pickle")
    hub.add("org/pickle", other)
    with pytest.raises(FleetError, match=r"holds no \*\.safetensors; other formats can run code"):
        resolve(source="hf:org/pickle")


class TestTree:
    @pytest.fixture
    def tree(self, hub, repository, tmp_path):
        served_copy(repository, tmp_path / "copy")
        self.write_sums(tmp_path / "copy")
        return f"{hub.url}/tree/copy"

    @staticmethod
    def write_sums(directory):
        files = manifest(directory)["files"]
        lines = [f"{one['sha256']}  ./{name}\n" for name, one in files.items() if name != "SHA256SUMS"]
        (directory / "SHA256SUMS").write_text("".join(lines))

    def test_it_is_planned_as_its_copy_would_be(self, hub, resolve, tree, tmp_path):
        model, found, _ = resolve(source=tree)
        (tmp_path / "copy" / "SHA256SUMS").unlink()
        assert found.digest == manifest(tmp_path / "copy")["digest"]
        assert model.facts.checkpoint == load_model_facts(tmp_path / "copy").checkpoint
        assert (found.base_url, found.credential) == (f"{tree}/", "")

    def test_a_second_look_asks_nobody(self, hub, resolve, tree):
        first = resolve(source=tree)[1]
        asked = len(hub.requests)
        assert resolve(source=tree)[1] == first
        assert len(hub.requests) == asked

    def test_without_sums_it_says_how_to_make_them(self, hub, resolve, tree, tmp_path):
        (tmp_path / "copy" / "SHA256SUMS").unlink()
        with pytest.raises(
            FleetError, match=r"SHA256SUMS: the server answers 404; make it with `sha256sum \* >SHA256SUMS`"
        ):
            resolve(source=tree)

    def test_one_that_was_replaced_is_not_taken_unasked(self, resolve, tree, tmp_path):
        first = resolve(source=tree)[1]
        (tmp_path / "copy" / "tokenizer.json").write_text('{"version": "3"}')
        self.write_sums(tmp_path / "copy")
        shutil.rmtree(tmp_path / "cache")
        with pytest.raises(FleetError, match=r"is not what models\.lock\.json records; fleet_update_sources=true"):
            resolve(source=tree)
        assert resolve(source=tree, update=True)[1].digest != first.digest


def test_a_damaged_record_is_named(resolve, tmp_path):
    (tmp_path / "models.lock.json").write_text("{")
    with pytest.raises(FleetError, match=r"models\.lock\.json: is no record of sources"):
        resolve()


def test_the_token_is_in_no_file_and_no_repr(resolve, tmp_path):
    _, _, remote = resolve(token=TOKEN)
    assert TOKEN not in repr(remote)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
