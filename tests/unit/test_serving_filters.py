"""From what the hosts of a play have left undone to the waves of the role serving."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "roles" / "serving" / "filter_plugins" / "serving.py"
SPEC = importlib.util.spec_from_file_location("serving_filters", SOURCE)
filters = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(filters)


def result(name: str, port: int, **options) -> dict:
    step = {"id": name, "model": "a", "action": "restart", "port": port, "serves": True, "deferred": True}
    step |= {"holds": [f"GPU-{name}"], "needs": [f"GPU-{name}"], "grows": False, "spans": False}
    return {"instances": [step], **options}


def test_hosts_that_have_nothing_to_say_do_not_matter():
    hostvars = {"h1": {"serving_result": result("a-1", 8100)}, "h2": {"serving_result": result("a-2", 8101)}, "h3": {}}
    first, second = filters.serving_waves(["h1", "h2", "h3"], hostvars)
    assert first == {
        "ids": ["a-1"],
        "hosts": ["h1"],
        "instances": [{"id": "a-1", "port": 8100}],
        "line": "1 of 2: a-1 on h1",
    }
    assert (second["ids"], second["line"]) == (["a-2"], "2 of 2: a-2 on h2")
    assert filters.serving_failed(["h1", "h2", "h3"], hostvars) == []


def test_a_host_that_failed_is_named_also_where_it_says_no_more():
    hostvars = {
        "h1": {"serving_result": {"failed": True, "msg": "refused"}},
        "h2": {"serving_result": result("a-2", 1)},
    }
    assert filters.serving_failed(["h1", "h2"], hostvars) == ["h1"]
    assert [wave["ids"] for wave in filters.serving_waves(["h1", "h2"], hostvars)] == [["a-2"]]
