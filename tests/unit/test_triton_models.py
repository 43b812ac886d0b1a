"""Models on Triton servers: decisions, and what is done on a host. Triton and systemd are simulated here; the molecule
scenario `triton` does the same with real ones.
"""

import fcntl
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest
from fleet.errors import FleetError
from fleet.systemd import Systemd, UnitState
from fleet.triton_host import TritonHost, TritonPlaces
from fleet.triton_models import Found, Model, Server, decide, diff_of, only_removals, parse_servers
from fleet.triton_repository import with_digest

ROLE = Path(__file__).resolve().parents[2] / "roles" / "triton"
RUNNING = UnitState("active", "running", enabled=True)


def files(name, **arguments):
    return with_digest({"config.pbtxt": f'name: "{name}"\nbackend: "vllm"\n', "1/model.json": json.dumps(arguments)})


def record(name, *gpus, number=1):
    return {"id": f"{name}-{number}", "model": name, "shards": [{"host": "h", "gpus": list(gpus), "rank": 0}]}


def one(name, gpu="GPU-0", **arguments):
    return Model(name, files(name, **arguments), record(name, gpu))


def server(*models, unit="unit", port=8000):
    return {port: Server(port, unit, {model.name: model for model in models})}


def holding(*models, unit="unit", started=None, state=RUNNING, loaded="all"):
    digests = {model.name: model.digest for model in models} if loaded == "all" else loaded
    by_name = {model.name: model for model in models}
    return Found(unit, unit if started is None else started, state, by_name, digests)


def actions(steps):
    return {step.port: (step.action, {model.name: model.action for model in step.models}) for step in steps}


class TestDecide:
    def test_nothing_is_left_to_do(self):
        steps = decide(server(one("a")), {8000: holding(one("a"))})
        assert actions(steps) == {8000: ("none", {"a": "none"})}
        assert not any(step.changes for step in steps)

    def test_a_new_host(self):
        assert actions(decide(server(one("a")), {})) == {8000: ("start", {"a": "write"})}

    def test_one_model_changes_and_the_other_stays(self):
        now = {8000: holding(one("a"), one("b"))}
        assert actions(decide(server(one("a"), one("b", x=1)), now)) == {8000: ("none", {"a": "none", "b": "reload"})}

    @pytest.mark.parametrize(
        ("found", "action"),
        [
            (holding(one("a"), loaded={}), "load"),
            (holding(one("a"), loaded={"a": one("a", x=1).digest}), "reload"),
            (holding(one("a"), loaded=None), "load"),
            (holding(Model("a", files("a"), record("a", "GPU-0", number=2))), "record"),
        ],
    )
    def test_what_an_interrupted_run_left_is_finished(self, found, action):
        assert actions(decide(server(one("a")), {8000: found})) == {8000: ("none", {"a": action})}

    @pytest.mark.parametrize(
        ("found", "action"),
        [
            (holding(one("a"), unit="old"), "restart"),
            (holding(one("a"), started="old"), "restart"),
            (holding(one("a"), state=UnitState("failed")), "start"),
        ],
    )
    def test_a_server_restarts_for_its_unit_alone(self, found, action):
        assert actions(decide(server(one("a")), {8000: found})) == {8000: (action, {"a": "none"})}

    def test_what_is_not_wanted_stays_until_it_is_in_the_way(self):
        now = {8000: holding(one("a"), one("old", "GPU-1")), 8003: holding(one("older", "GPU-2"))}
        assert actions(decide(server(one("a")), now)) == {8000: ("none", {"a": "none"})}
        needed = decide(server(one("a")), now, needed_gpus=frozenset(["GPU-1", "GPU-2"]))
        assert actions(needed) == {8003: ("remove", {}), 8000: ("none", {"old": "unload", "a": "none"})}
        taken = decide(server(one("a"), one("b", "GPU-1")), now)
        assert actions(taken)[8000] == ("none", {"old": "unload", "a": "none", "b": "load"})

    def test_pruning_removes_and_does_nothing_else(self):
        now = {8000: holding(one("a"), one("old", "GPU-1")), 8003: holding(one("older", "GPU-2"))}
        steps = only_removals(decide(server(one("a", x=1)), now, prune=True))
        assert actions(steps) == {8003: ("remove", {}), 8000: ("none", {"old": "unload"})}
        assert only_removals(decide(server(one("a")), {8000: holding(one("a"))}, prune=True)) == ()

    def test_the_diff_names_files_and_models(self):
        desired, now = server(one("a", x=1)), {8000: holding(one("a"))}
        headers = [part["after_header"] for part in diff_of(decide(desired, now), desired, now, "/etc/t")]
        assert headers == [
            "/etc/t/8000/repository/a/1/model.json",
            "/etc/t/8000/repository/a/config.pbtxt",
            "Triton at port 8000",
        ]


@pytest.mark.parametrize(
    ("items", "problem"),
    [
        ([{"port": 1, "unit": "", "models": []}] * 2, r"servers\[1\].port: 1 is listed twice"),
        ([{"port": 1, "unit": "", "models": [{"name": "../x", "files": {}, "record": None}]}], "is no name"),
        ([{"port": 1, "unit": "", "models": [{"name": "x", "files": {}, "record": None}]}], "carries no digest"),
    ],
)
def test_bad_arguments_are_named(items, problem):
    with pytest.raises(FleetError, match=problem):
        parse_servers(items)


class SimulatedTriton:
    """Loads what lies in a repository when it is told to; a model whose model.json says `bad` cannot be loaded."""

    def __init__(self, repository):
        self.repository = repository
        self.loaded = {}
        self.reasons = {}
        self.calls = []
        simulated = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                name = self.path.split("/")[3]
                digest = {"string_value": simulated.loaded[name]}
                self._answer(200, {"parameters": {"l40s_fleet_digest": digest}})

            def do_POST(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = self.path.split("/")
                if parts[-1] == "index":
                    known = {**dict.fromkeys(simulated.loaded, ("READY", "")), **simulated.reasons}
                    self._answer(200, [{"name": n, "state": s, "reason": r} for n, (s, r) in known.items()])
                    return
                self._answer(*simulated.change(parts[-1], parts[-2]))

            def _answer(self, status, document):
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.handler = Handler
        self.http = None

    def change(self, verb, name):
        self.calls.append(f"{verb} {name}")
        if verb == "unload":
            self.loaded.pop(name, None)
            self.reasons[name] = ("UNAVAILABLE", "unloaded")
            return 200, {}
        directory = self.repository / name
        bad = json.loads((directory / "1" / "model.json").read_text()).get("bad")
        if bad:
            said = f"Internal: {bad if isinstance(bad, str) else 'TypeError: bad'}\n\nAt:\n  somewhere(1)"
            self.reasons[name] = ("UNAVAILABLE", said)
            return 400, {"error": f"load failed for model '{name}': {said}"}
        config = (directory / "config.pbtxt").read_text()
        self.loaded[name] = re.search(r"[0-9a-f]{64}", config)[0]
        self.reasons.pop(name, None)
        return 200, {}

    def start(self):
        self.stop()
        self.loaded, self.reasons = {}, {}
        for path in sorted(self.repository.iterdir()):
            self.change("load", path.name)
        self.calls.clear()
        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), self.handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def stop(self):
        if self.http is not None:
            self.http.shutdown()
            self.http.server_close()
            self.http = None


class SimulatedSystemd:
    """Answers systemctl for the one server, and starts the simulated Triton."""

    def __init__(self, triton, places):
        self.triton, self.places = triton, places
        self.invocation = 0
        self.calls = []
        self.journal = ""

    def __call__(self, command):
        if command[0] == "journalctl":
            return 0, self.journal, ""
        words = [word for word in command[1:] if not word.startswith("--")]
        self.calls.append(" ".join(words))
        if words[0] == "restart":
            self.invocation += 1
            unit = self.places.unit(self.triton.port).read_text()
            self.places.runtime.mkdir(exist_ok=True)
            (self.places.runtime / f"{self.triton.port}.unit").write_text(unit)
            self.triton.start()
        if words[0] == "stop":
            self.triton.stop()
        active = "active" if self.triton.http is not None else "inactive"
        shown = f"Id=triton-{self.triton.port}.service\nActiveState={active}\nInvocationID={self.invocation}\n"
        return 0, shown if words[0] == "show" else "", ""


@pytest.fixture
def bench(tmp_path):
    places = TritonPlaces(tmp_path / "etc", tmp_path, ".service", tmp_path / "run")
    triton = SimulatedTriton(tmp_path)
    triton.repository = places.repository(triton.port)
    systemd = SimulatedSystemd(triton, places)
    host = TritonHost(places, Systemd(systemd), load_timeout_s=5)

    def apply(*models, unit="unit", **options):
        desired = server(*models, unit=unit, port=triton.port) if models else {}
        found = host.observe()
        steps = decide(desired, found, **options)
        return steps, host.apply(steps, desired, found)

    yield apply, triton, systemd, places
    triton.stop()


def test_a_server_starts_with_its_models_and_a_second_run_changes_nothing(bench):
    apply, triton, systemd, places = bench
    steps, failures = apply(one("a"), one("b", "GPU-1"))
    assert (steps[0].action, failures) == ("start", {})
    assert set(triton.loaded) == {"a", "b"}
    assert json.loads((places.records(triton.port) / "a-1" / "instance.json").read_text())["model"] == "a"
    invocation = systemd.invocation
    steps, failures = apply(one("a"), one("b", "GPU-1"))
    assert not any(step.changes for step in steps)
    assert (systemd.invocation, triton.calls, failures) == (invocation, [], {})


def test_a_model_is_changed_without_the_server(bench):
    apply, triton, systemd, _ = bench
    apply(one("a"), one("b", "GPU-1"))
    invocation = systemd.invocation
    _, failures = apply(one("a"), one("b", "GPU-1", x=1))
    assert (triton.calls, failures) == (["unload b", "load b"], {})
    assert triton.loaded["b"] == one("b", x=1).digest
    assert systemd.invocation == invocation
    assert not any(step.changes for step in apply(one("a"), one("b", "GPU-1", x=1))[0])


def test_a_model_that_cannot_be_loaded_is_put_back(bench):
    apply, triton, _, places = bench
    apply(one("a"), one("b", "GPU-1"))
    _, failures = apply(one("a"), one("b", "GPU-1", bad=1))
    (problem,) = failures.values()
    assert problem.endswith("TypeError: bad; what ran before serves again")
    assert "At:" not in problem
    assert triton.loaded["b"] == one("b").digest
    assert json.loads((places.repository(triton.port) / "b" / "1" / "model.json").read_text()) == {}
    assert not list(places.root.rglob(".*"))


def test_the_words_of_the_process_that_failed_are_told(bench):
    apply, _, systemd, _ = bench
    apply(one("a"))
    prefix = "(EngineCore pid=7) ERROR 11-24 07:54:29 [core.py:1120] "
    systemd.journal = f"{prefix}Traceback (most recent call last):\n{prefix}OSError: /nowhere is not a directory\n"
    _, failures = apply(one("a", bad="RuntimeError: Engine core initialization failed. See root cause above."))
    assert list(failures.values()) == ["OSError: /nowhere is not a directory; what ran before serves again"]


def test_a_model_that_unloaded_itself_is_loaded_again(bench):
    apply, triton, _, _ = bench
    apply(one("a"))
    triton.change("unload", "a")
    triton.calls.clear()
    assert apply(one("a"))[1] == {}
    assert triton.calls == ["load a"]


def test_a_model_that_unloaded_itself_is_loaded_by_the_keeper_but_not_during_a_run(bench, monkeypatch):
    apply, triton, _, places = bench
    apply(one("a"), one("b", "GPU-1"))
    loader = SourceFileLoader("keeper", str(ROLE / "files" / "programs" / "triton-keep-loaded"))
    keeper = module_from_spec(spec_from_loader("keeper", loader))
    loader.exec_module(keeper)
    monkeypatch.setattr(keeper, "SERVERS", places.root)
    monkeypatch.setattr(keeper, "LOCK", places.runtime / "changing")
    keeper.look({})
    assert triton.calls == []
    triton.change("unload", "b")
    triton.calls.clear()
    with (places.runtime / "changing").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        keeper.look({})
    assert triton.calls == []
    tried = {}
    keeper.look(tried)
    assert triton.calls == ["load b"]
    triton.change("unload", "b")
    triton.calls.clear()
    keeper.look(tried)
    assert triton.calls == [], "not again at once"


def test_a_server_whose_model_cannot_be_loaded_says_so_and_serves_the_other(bench):
    apply, triton, _, _ = bench
    _, failures = apply(one("a"), one("b", "GPU-1", bad=1))
    assert failures == {f"triton-{triton.port}.service: b": "Internal: TypeError: bad"}
    assert set(triton.loaded) == {"a"}


def test_another_unit_restarts_the_server(bench):
    apply, triton, systemd, _ = bench
    apply(one("a"))
    invocation = systemd.invocation
    steps, failures = apply(one("a"), one("b", "GPU-1"), unit="with two GPUs")
    assert (steps[0].action, failures, systemd.invocation) == ("restart", {}, invocation + 1)
    assert set(triton.loaded) == {"a", "b"}


def test_what_is_not_wanted_any_more_leaves_nothing(bench):
    apply, triton, systemd, places = bench
    apply(one("a"), one("b", "GPU-1"))
    apply(one("a"), prune=True)
    assert triton.calls == ["unload b"]
    assert {path.name for path in places.records(triton.port).iterdir()} == {"a-1"}
    apply(prune=True)
    assert triton.http is None
    assert not (places.root / str(triton.port)).exists()
    assert not places.unit(triton.port).exists()
    assert f"disable triton-{triton.port}.service" in systemd.calls
