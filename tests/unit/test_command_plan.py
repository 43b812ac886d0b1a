import json

import pytest
from fleet.cli import main
from fleet.plan_document import plan_from_json
from plan_samples import facts, host, model, models_text


@pytest.fixture
def files(tmp_path):
    (tmp_path / "facts.json").write_text(json.dumps(facts("a", "b")))
    (tmp_path / "models.yml").write_text(models_text(model("m", replicas={"min": 2})))
    return tmp_path


def run(files, *more, facts_file="facts.json", models_file="models.yml"):
    return main(["plan", "--facts", str(files / facts_file), "--models", str(files / models_file), *more])


def test_prints_json_into_a_pipe(files, capsys):
    assert run(files) == 0
    made = plan_from_json(capsys.readouterr().out, where="stdout")
    assert [one.id for one in made.instances] == ["m-1", "m-2"]


def test_writes_the_plan_and_shows_a_table(files, capsys):
    assert run(files, "--output", str(files / "plan.json"), "--stats", str(files / "stats.json")) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == [
        "INSTANCE", "MODEL", "HOST", "GPUS", "TPxPP", "PRECISION", "CONTEXT", "KV", "TOKENS", "PORT",
    ]  # fmt: skip
    assert len(plan_from_json((files / "plan.json").read_text(), where="plan").instances) == 2
    stats = json.loads((files / "stats.json").read_text())
    assert (stats["hosts"], stats["gpus"], stats["instances"]) == (2, 8, 2)


def test_what_runs_comes_from_current_or_from_the_facts(files, capsys):
    run(files)
    first = json.loads(capsys.readouterr().out)
    for instance in first["instances"]:
        instance["shards"] = [{"host": "b", "gpus": [f"GPU-b-{instance['id'][-1]}"], "rank": 0}]
        instance["port"] = 8150 + int(instance["id"][-1])
    (files / "current.json").write_text(json.dumps(first))
    run(files, "--current", str(files / "current.json"))
    by_option = json.loads(capsys.readouterr().out)["instances"]
    document = facts("a", b=host("b") | {"instances": first["instances"]})
    (files / "facts.json").write_text(json.dumps(document))
    run(files)
    by_facts = json.loads(capsys.readouterr().out)["instances"]
    assert by_option == by_facts
    assert [(one["shards"][0]["gpus"], one["port"]) for one in by_facts] == [(["GPU-b-1"], 8151), (["GPU-b-2"], 8152)]


def test_a_refusal_exits_2_with_a_whole_plan(files, capsys):
    (files / "models.yml").write_text(models_text(model("m", replicas={"min": 99})))
    assert run(files) == 2
    made = json.loads(capsys.readouterr().out)
    assert len(made["instances"]) == 8
    assert made["refused"][0]["model"] == "m"


def test_bytes_do_not_depend_on_the_order_of_the_files(files, capsys):
    entries = [model("m", replicas={"min": 2}), model("n"), model("w", "llama-3-70b", priority=3)]
    (files / "models.yml").write_text(models_text(*entries))
    run(files)
    first = capsys.readouterr().out
    document = facts("a", "b")
    document["hosts"] = dict(reversed(document["hosts"].items()))
    for one in document["hosts"].values():
        one["gpus"].reverse()
    (files / "facts.json").write_text(json.dumps(document))
    (files / "models.yml").write_text(models_text(*reversed(entries)))
    run(files)
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--current", "{}", "current: schema: must be 1, got None"),
        ("--current", "nothing", "current: line 1: not JSON: Expecting value"),
        ("--calibration", "{", "current: line 1: not JSON: Expecting property name"),
    ],
)
def test_other_files_are_checked(files, capsys, option, text, message):
    (files / "current").write_text(text)
    assert run(files, option, str(files / "current")) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"source": "org/m"}, "models[0].config: is required, because 'org/m' does not lie on this machine"),
        ({"source": "file:nowhere"}, "models[0].source: "),
        ({"config": "nowhere.json"}, "models[0].config: "),
        ({"config": "models.yml"}, "models[0].config: "),
    ],
)
def test_a_configuration_that_is_not_there_names_the_model(files, capsys, entry, message):
    (files / "models.yml").write_text(models_text({"name": "m", "source": "org/m"} | entry))
    assert run(files) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_hosts_of_placement_are_checked_against_the_facts(files, capsys):
    (files / "models.yml").write_text(models_text(model("m", placement={"hosts": ["aa"]})))
    assert run(files) == 1
    assert "models[0].placement.hosts[0]: no host 'aa'" in capsys.readouterr().err


def test_files_that_are_not_there(files, capsys):
    assert run(files, facts_file="none.json") == 1
    assert capsys.readouterr().err.endswith("none.json: no such file or directory\n")
    (files / "latin.yml").write_bytes(b"models: [\xe4]")
    assert run(files, models_file="latin.yml") == 1
    assert capsys.readouterr().err.endswith("latin.yml: is no UTF-8 text\n")
