"""Who fetches what from where."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "roles" / "model_store" / "filter_plugins" / "model_store.py"
SPEC = importlib.util.spec_from_file_location("model_store_filters", SOURCE)
filters = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(filters)


def checkpoint(name, files, **place):
    digest = (name.encode().hex() * 64)[:64]
    described = {path: {"bytes": 10, "sha256": path.encode().hex().ljust(64, "0")} for path in files}
    place = place or {"base_url": f"https://hub/{name}/", "credential": "hub"}
    return {
        "name": name,
        "digest": digest,
        "files": described,
        "source_path": "",
        "base_url": "",
        "credential": "",
        **place,
    }


def directory(one):
    return f"{one['name']}-{one['digest'][:12]}"


def inspected(checkpoints, lacking=(), have_bytes=0, local=()):
    """What a host says that lacks the files of some checkpoints."""
    needed = {
        file["sha256"]: {"sha256": file["sha256"], "bytes": 10, "have_bytes": have_bytes, "local": list(local)}
        for one in checkpoints
        if one["name"] in lacking
        for file in one["files"].values()
    }
    states = [
        {
            "directory": directory(one),
            "whole": one["name"] not in lacking,
            "origin": bool(one["source_path"] or one["base_url"]),
        }
        for one in checkpoints
    ]
    return {"checkpoints": states, "needed": list(needed.values())}


LLAMA = checkpoint("llama", ["a", "b c"])
QWEN = checkpoint("qwen", ["d"])


def first_round(fleet, peers=True):
    """By host, labels of what it fetches first. ``fleet``: host -> (its checkpoints, what it found)."""
    found = {host: state for host, (_, state) in fleet.items()}
    return {
        host: [one["label"] for one in filters.model_store_round(wanted, host, found, peers)]
        for host, (wanted, _) in fleet.items()
    }


def test_one_host_fetches_and_the_others_copy():
    lacks = inspected([LLAMA], ["llama"])
    assert first_round({"h1": ([LLAMA], lacks), "h2": ([LLAMA], lacks)}) == {"h1": ["llama/a", "llama/b c"], "h2": []}


def test_the_one_that_has_most_of_it_goes_on():
    fleet = {
        "h1": ([LLAMA], inspected([LLAMA], ["llama"])),
        "h2": ([LLAMA], inspected([LLAMA], ["llama"], have_bytes=4)),
    }
    assert first_round(fleet) == {"h1": [], "h2": ["llama/a", "llama/b c"]}


def test_nobody_fetches_what_a_host_has():
    fleet = {"h1": ([LLAMA], inspected([LLAMA])), "h2": ([LLAMA], inspected([LLAMA], ["llama"]))}
    assert first_round(fleet) == {"h1": [], "h2": []}


def test_each_for_itself_where_hosts_may_not_copy():
    lacks = inspected([LLAMA], ["llama"])
    fetched = first_round({"h1": ([LLAMA], lacks), "h2": ([LLAMA], lacks)}, peers=False)
    assert fetched["h1"] == fetched["h2"] == ["llama/a", "llama/b c"]


def test_files_come_from_here_then_from_hosts_then_from_where_models_come_from():
    state = inspected([LLAMA], ["llama"], local=["/mnt/my models/a"])
    servers = {directory(LLAMA): ["https://10.0.0.1:8099"]}
    one = filters.model_store_rest([LLAMA], "h2", {"h2": state}, [], servers)[1]
    sha256 = LLAMA["files"]["b c"]["sha256"]
    assert one["locations"] == [
        ["file:///mnt/my%20models/a", ""],
        [f"https://10.0.0.1:8099/{sha256}", "peer"],
        ["https://hub/llama/b%20c", "hub"],
    ]
    (only,) = filters.model_store_rest([QWEN], "h2", {"h2": inspected([QWEN], ["qwen"])}, [], {})
    assert only["locations"] == [["https://hub/qwen/d", "hub"]], "the host that should have fetched it failed"


def test_what_lies_on_the_controller_is_sent_once_and_copied_then():
    local = checkpoint("local", ["e"], source_path="/srv/local")
    lacks = inspected([local], ["local"])
    found = {"h1": lacks, "h2": lacks}
    (first,) = filters.model_store_round([local], "h1", found, True)
    assert (first["source_path"], first["locations"]) == ("/srv/local/e", [])
    servers = {directory(local): ["https://10.0.0.1:8099"]}
    (rest,) = filters.model_store_rest([local], "h2", found, [], servers)
    assert (rest["source_path"], len(rest["locations"])) == ("", 1)
    (alone,) = filters.model_store_rest([local], "h2", found, [], {})
    assert alone["source_path"] == "/srv/local/e"


def test_only_checkpoints_that_are_all_there_are_put_in_place_early():
    state = inspected([LLAMA, QWEN], ["llama", "qwen"])
    first = [{"sha256": one["sha256"]} for one in LLAMA["files"].values()]
    assert filters.model_store_complete([LLAMA, QWEN], state, first) == [LLAMA]


def test_a_host_serves_what_another_one_lacks():
    found = {"h1": inspected([LLAMA, QWEN], ["llama"]), "h2": inspected([LLAMA], ["llama"]), "h3": inspected([QWEN])}
    put = {"h1": [{"directory": directory(LLAMA)}]}
    assert filters.model_store_served(found, put) == {"h1": [directory(LLAMA)]}
    assert filters.model_store_served(found, {}) == {}


MADE = checkpoint("made", ["m"], base_url="")


def test_what_the_fleet_made_is_copied_even_where_hosts_fetch_for_themselves():
    found = {"h1": inspected([LLAMA, MADE]), "h2": inspected([LLAMA, MADE], ["llama", "made"])}
    served = filters.model_store_served(found, {}, peers=False)
    assert served == {"h1": [directory(MADE)]}
    assert filters.model_store_lost(found) == []
    first = filters.model_store_round([LLAMA, MADE], "h2", found, peers=False)
    assert {one["label"] for one in first} == {"llama/a", "llama/b c"}
    servers = filters.model_store_servers(served, "h2", {"h1": "10.0.0.1"}, 8099)
    (rest,) = filters.model_store_rest([LLAMA, MADE], "h2", found, first, servers)
    assert (rest["label"], rest["locations"]) == (
        "made/m",
        [[f"https://10.0.0.1:8099/{MADE['files']['m']['sha256']}", "peer"]],
    )


def test_what_the_fleet_made_and_nobody_has_whole_is_lost_and_left_to_be_made_again():
    found = {"h1": inspected([LLAMA, MADE], ["llama", "made"]), "h2": inspected([MADE], ["made"])}
    lost = filters.model_store_lost(found)
    assert lost == [directory(MADE)]
    assert filters.model_store_kept([LLAMA, MADE], lost) == [LLAMA]
    assert filters.model_store_kept([MADE], lost) == []


def test_hosts_begin_with_different_servers():
    served = {"h1": ["d"], "h2": ["d"], "h3": ["other"]}
    addresses = {"h1": "10.0.0.1", "h2": "fd00::2", "h3": "10.0.0.3"}
    orders = {tuple(filters.model_store_servers(served, host, addresses, 8099)["d"]) for host in ("h4", "h5")}
    assert orders == {
        ("https://10.0.0.1:8099", "https://[fd00::2]:8099"),
        ("https://[fd00::2]:8099", "https://10.0.0.1:8099"),
    }


@pytest.mark.parametrize(
    "path", ["/var/lib/l40s-fleet/models/m-0123456789ab", "/var/lib/l40s-fleet/models/m-0123456789ab/"]
)
def test_what_plan_and_engines_refer_to(path):
    plan = {"instances": [{"engine_args": {"model": path}}]}
    drafts = [{"name": "old_draft", "digest": "cd" * 32, "total_bytes": 1}]
    running = [
        {"engine_args": {"model": "/var/lib/l40s-fleet/models/old-0123456789ab"}, "further_checkpoints": drafts},
        {"corrupt": True},
    ]
    assert filters.model_store_referenced(plan, running) == [
        "m-0123456789ab",
        "old-0123456789ab",
        "old_draft-cdcdcdcdcdcd",
    ]
