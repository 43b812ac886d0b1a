import copy
import json
import os
import pty
import re
import subprocess
import sys

import pytest
from fleet.cli import main
from fleet.plan_diff import diff_plans
from fleet.plan_diff_table import diff_table
from fleet.plan_document import canonical_json, parse_plan, plan_to_document
from plan_samples import facts, model, plan

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def text(old, new, **options):
    return diff_table(diff_plans(old, new), {}, **options)


@pytest.fixture
def replanned():
    """m-1 is changed, m-2 and gone-1 removed, new-1 added."""
    document = facts("a")
    old = plan(document, [model("m", replicas={"min": 2}), model("gone"), model("same")])
    return old, plan(document, [model("m", engine_args={"seed": 1}), model("new"), model("same")], old.instances)


@pytest.fixture
def moved():
    old = plan(facts("a", "b"), [model("m")])
    return old, plan(facts("b"), [model("m")], old.instances)


def test_equal_plans():
    made = plan(facts("a"), [model("m")])
    assert diff_plans(made, made).is_empty
    assert text(made, made) == "No difference."


def test_added_removed_and_changed_with_the_reason(replanned):
    found = diff_plans(*replanned)
    assert [(one.id, one.kind) for one in found.changes] == [
        ("gone-1", "removed"),
        ("m-1", "changed"),
        ("m-2", "removed"),
        ("new-1", "added"),
    ]
    assert [one.why for one in found.changes[:3]] == [
        "gone is no longer wanted",
        "its request or the hosts changed",
        "fewer replicas of m are wanted",
    ]
    assert found.changes[3].why.startswith("On a GPU ")
    assert found.to_document()["changed"][0]["details"] == [{"what": "seed", "before": None, "after": 1}]


def test_the_table_says_it_all(replanned):
    lines = text(*replanned).splitlines()
    assert lines[0] == "Instances: 1 added, 2 removed, 1 changed. GPUs used: 4 -> 3."
    assert lines[2].split() == ["INSTANCE", "CHANGE", "WHAT", "BEFORE", "AFTER"]
    rows = [line.split() for line in lines]
    assert ["~", "m-1", "changed", "seed", "-", "1"] in rows
    assert any(row[:4] == ["-", "gone-1", "removed", "place"] and row[-1] == "-" for row in rows)
    assert any(row[:5] == ["+", "new-1", "added", "place", "-"] for row in rows)
    assert "      fewer replicas of m are wanted" in lines


def test_moved_with_the_cause(moved):
    (change,) = diff_plans(*moved).changes
    assert change.kind == "moved"
    assert change.why.startswith("lost: Moved from a GPU GPU-a-0 to b GPU 0, because a is gone;")
    document = diff_plans(*moved).to_document()
    assert document["moved"][0]["details"] == [{"what": "place", "before": ["a: GPU-a-0"], "after": ["b: GPU-b-0"]}]
    assert "> m-1       moved   place  a GPU-a-0  b GPU 0" in diff_table(diff_plans(*moved), {"GPU-b-0": 0})


def test_refusals_come_and_go():
    small, large = facts("a", gpus=1), facts("a", gpus=2)
    old = plan(large, [model("m", replicas={"min": 2})])
    new = plan(small, [model("m", replicas={"min": 2})], old.instances)
    document = diff_plans(old, new).to_document()
    assert [one["model"] for one in document["refused"]] == ["m"]
    assert document["removed"][0]["why"] == "lost its place (lost) and found no other"
    assert document["carried"] == [
        {"model": "m", "before": 1.0, "after": 0.5, "requests_per_s_before": None, "requests_per_s_after": None}
    ]
    assert "Nearest change: " + new.refused[0].nearest_change[:40] in text(old, new)
    back = diff_plans(new, old).to_document()
    assert [one["model"] for one in back["no_longer_refused"]] == ["m"]
    assert [one["id"] for one in back["added"]] == ["m-2"]


def test_what_is_carried_before_and_after():
    def wanted(rate):
        demand = {"requests_per_second": rate, "prompt_tokens": 512, "output_tokens": 128}
        return [model("m", demand=demand, objectives={"ttft_ms": 2000, "tpot_ms": 60})]

    old = plan(facts("a", gpus=1), wanted(2))
    new = plan(facts("a", gpus=1), wanted(1000), old.instances)
    (carried,) = diff_plans(old, new).carried
    assert (carried.before, carried.requests_before) == (1.0, 2.0)
    assert 0.0 < carried.after < 0.1
    assert carried.requests_after == pytest.approx(1000 * carried.after, rel=1e-3)


def test_colours_add_nothing_to_the_text(replanned):
    painted = text(*replanned, colour=True)
    assert COLOUR.search(painted)
    assert COLOUR.sub("", painted) == text(*replanned)


def test_a_long_value_is_wrapped_to_its_column(replanned):
    old = replanned[0]
    document = plan_to_document(old)
    changed = copy.deepcopy(document)
    changed["instances"][0]["engine_args"]["chat_template"] = "word " * 60
    assert max(map(len, text(old, parse_plan(changed, where="new")).splitlines())) < 130


@pytest.fixture
def files(tmp_path, replanned):
    paths = []
    for name, made in zip(("old.json", "new.json"), replanned, strict=True):
        (tmp_path / name).write_text(canonical_json(plan_to_document(made)))
        paths.append(str(tmp_path / name))
    (tmp_path / "facts.json").write_text(json.dumps(facts("a")))
    return [*paths, str(tmp_path / "facts.json")]


def on_a_terminal(arguments, **environment):
    """What the command prints when its standard output is a terminal."""
    leader, follower = pty.openpty()
    known = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "TERM")}
    subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        stdout=follower,
        check=True,
        env=known | {"TERM": "xterm", **environment},
    )
    os.close(follower)
    found = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not part:
            break
        found += part
    os.close(leader)
    return found.decode()


RUN = "import sys; from fleet.cli import main; sys.exit(main())"


def test_colours_only_on_a_terminal_that_wants_them(files, capsys):
    old, new, known = files
    assert main(["diff", old, new, "--facts", known]) == 0
    assert not COLOUR.search(capsys.readouterr().out)
    assert COLOUR.search(on_a_terminal(["diff", old, new]))
    assert not COLOUR.search(on_a_terminal(["diff", old, new], NO_COLOR="1"))
    assert not COLOUR.search(on_a_terminal(["diff", old, new], TERM="dumb"))


def test_json_and_indices(files, capsys):
    old, new, known = files
    assert main(["diff", old, new, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gpus_used"] == {"before": 4, "after": 3}
    assert main(["diff", old, new, "--facts", known]) == 0
    assert "a GPU " in capsys.readouterr().out


def test_bad_input_is_one_line(files, tmp_path, capsys):
    (tmp_path / "bad.json").write_text('{"schema": 1, "instances": [{"id": "x"}]}')
    assert main(["diff", files[0], str(tmp_path / "bad.json")]) == 1
    error = capsys.readouterr().err
    assert "bad.json: instances[0].model" in error
    assert "Traceback" not in error
    assert main(["diff", files[0], str(tmp_path / "absent.json")]) == 1
    assert "absent.json" in capsys.readouterr().err
