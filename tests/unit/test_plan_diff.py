import copy

from fleet.plan_diff import diff_plans
from plan_samples import facts, model, plan


def lines(old, new):
    return diff_plans(old, new).to_lines()


def test_equal_plans():
    made = plan(facts("a"), [model("m")])
    assert diff_plans(made, made).is_empty
    assert lines(made, made) == ["No difference."]


def test_added_removed_and_changed_with_the_reason():
    document = facts("a")
    old = plan(document, [model("m", replicas={"min": 2}), model("gone"), model("same")])
    new = plan(document, [model("m", engine_args={"seed": 1}), model("new"), model("same")], old.instances)
    assert [(one.id, one.kind) for one in diff_plans(old, new).changes] == [
        ("gone-1", "removed"),
        ("m-1", "changed"),
        ("m-2", "removed"),
        ("new-1", "added"),
    ]
    found = lines(old, new)
    assert "- gone-1 removed: gone is no longer wanted" in found
    assert "- m-2 removed: fewer replicas of m are wanted" in found
    assert "    seed: not set -> 1" in found


def test_moved_with_the_cause():
    old = plan(facts("a", "b"), [model("m")])
    document = copy.deepcopy(facts("a", "b"))
    del document["hosts"]["a"]
    new = plan(document, [model("m")], old.instances)
    (change,) = diff_plans(old, new).changes
    assert change.kind == "moved"
    assert change.why.startswith("lost: Moved from a GPU GPU-a-0 to b GPU 0, because a is gone;")
    assert ("place", ["a: GPU-a-0"], ["b: GPU-b-0"]) in change.details


def test_refusals_come_and_go():
    small, large = facts("a", gpus=1), facts("a", gpus=2)
    old = plan(large, [model("m", replicas={"min": 2})])
    new = plan(small, [model("m", replicas={"min": 2})], old.instances)
    document = diff_plans(old, new).to_document()
    assert [one["model"] for one in document["refused"]] == ["m"]
    assert document["removed"][0]["why"] == "lost its place (lost) and found no other"
    back = diff_plans(new, old).to_document()
    assert [one["model"] for one in back["no_longer_refused"]] == ["m"]
    assert [one["id"] for one in back["added"]] == ["m-2"]
