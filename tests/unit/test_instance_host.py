"""Files of instances on a real file system, health of a real server; systemd is the recorder below."""

from __future__ import annotations

import http.server
import subprocess
import threading
from pathlib import Path

import pytest
from fleet.instance_host import InstanceHost, Places
from fleet.instances import CONFIG, ENVIRONMENT, ORDER, Step, decide, parse_desired, removals, unit_of
from fleet.put_back import retreat
from fleet.systemd import Systemd

HELPERS = Path(__file__).resolve().parents[2] / "roles" / "serving" / "files"
STOPPED = {"ActiveState": "inactive", "SubState": "dead", "InvocationID": "", "NRestarts": "0"}


class Recorder:
    """Answers systemctl as a host would on which every unit starts at once; keeps what it was asked."""

    def __init__(self) -> None:
        self.units: dict[str, dict[str, str]] = {}
        self.asked: list[str] = []
        self.journal = ""

    def __call__(self, arguments):
        program, verb, *rest = arguments
        if program == "journalctl":
            return 0, self.journal, ""
        units = [name for name in rest if name.startswith("vllm@") and "*" not in name]
        if verb == "show":
            blocks = []
            for name in units:
                state = {"Id": name, **STOPPED, **self.units.get(name, {})}
                blocks.append("\n".join(f"{key}={value}" for key, value in state.items()))
            return 0, "\n\n".join(blocks), ""
        if verb == "list-units":
            return 0, "\n".join(f"{name} loaded active running" for name in self.units), ""
        self.asked.append(" ".join([verb, *rest]))
        for name in units:
            if verb == "enable":
                self.units.setdefault(name, {})["UnitFileState"] = "enabled"
            elif verb == "restart":
                run = str(len(self.asked))
                self.units.setdefault(name, {}).update(ActiveState="active", SubState="running", InvocationID=run)
            elif verb == "stop":
                self.units.pop(name, None)
        return 0, "", ""


@pytest.fixture
def places(tmp_path):
    names = ("cache", "private", "run")
    made = Places(
        configuration=tmp_path / "etc",
        unit_file=tmp_path / "vllm@.service",
        boot_links=tmp_path / "wants",
        runtime=tmp_path / "run",
        left_behind=tuple(tmp_path / name for name in names),
    )
    made.configuration.mkdir()
    made.unit_file.write_text("[Service]\n")
    (made.configuration / "engine.env").write_text("VLLM_API_KEY=secret\n")
    return made


@pytest.fixture
def engine():
    """A server that answers /health as vLLM does."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def instances(port, environment="FLEET_ENGINE_DIRECTORY=/nowhere\n"):
    item = {"id": "chat-1", "config_yaml": f"host: 127.0.0.1\nport: {port}\n", "environment": environment}
    return parse_desired([{**item, "record": {"port": port, "shards": [{"host": "h", "gpus": ["GPU-a"]}]}}])


def apply(host, desired):
    observed = host.observe()
    steps = decide(desired, observed, {one.id: host.digest(one.files) for one in desired})
    host.apply(steps, observed)
    return steps, observed


def record_start(host, places, desired):
    """What the unit does when it starts."""
    for one in desired:
        (places.runtime / one.id).mkdir(parents=True, exist_ok=True)
        (places.runtime / one.id / "started").write_text(host.digest(one.files) + "\n")


def test_apply_writes_enables_starts_waits_and_is_done(places, engine):
    recorder = Recorder()
    host, desired = InstanceHost(places, Systemd(recorder)), instances(engine)
    steps, observed = apply(host, desired)
    assert host.wait(desired, steps, observed, 5) == {}
    host.settle(["chat-1"])
    assert [line.split()[0] for line in recorder.asked] == ["enable", "reset-failed", "restart"]
    directory = places.instances / "chat-1"
    assert {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()} == dict.fromkeys(
        desired[0].files, 0o644
    )
    record_start(host, places, desired)
    steps, _ = apply(host, desired)
    assert not steps[0].changes


def test_until_an_instance_is_seen_to_serve_every_run_knows_what_to_go_back_to(places, engine):
    host, good = InstanceHost(places, Systemd(Recorder())), instances(engine)
    steps, _ = apply(host, good)
    assert steps[0].previous == {}
    record_start(host, places, good)
    (step,), _ = apply(host, good)
    assert (step.action, step.settles, step.changes) == ("none", True, True), "the first run did not see it serve"
    host.settle(["chat-1"])

    broken = instances(engine, "FLEET_ENGINE_DIRECTORY=/nowhere\nA=1\n")
    for _ in range(2):
        (step,), _ = apply(host, broken)
        assert dict(step.previous) == dict(good[0].files)
    kept = {path.name: path.read_text() for path in places.previous("chat-1").iterdir()}
    assert kept == dict(good[0].files)


def test_files_that_are_put_back_are_all_that_is_there(places, engine):
    recorder = Recorder()
    host, (alone,) = InstanceHost(places, Systemd(recorder)), instances(engine)
    apply(host, [alone])
    host.settle(["chat-1"])
    record = {"port": engine, "sharing": {"ways": 2, "seat": 1, "starts_after": ["first-1"]}}
    changed = {
        "id": "chat-1",
        "config_yaml": "port: 1\n",
        "environment": "FLEET_ENGINE_DIRECTORY=/b\n",
        "record": record,
    }
    (step,), observed = apply(host, parse_desired([changed]))
    assert host.observe()["chat-1"].files.keys() > alone.files.keys()
    choice = retreat({"chat-1": "died"}, [step], observed, parse_desired([changed]))
    found = host.put_back(choice.put_back)
    assert host.wait(choice.put_back, [Step("chat-1", "restart")], found, 5) == {}
    host.settle(["chat-1"])
    seen = host.observe()["chat-1"]
    assert dict(seen.files) == dict(alone.files)
    assert seen.previous is None
    assert recorder.asked[-3:] == [
        "daemon-reload",
        "reset-failed vllm@chat-1.service",
        "restart --no-block vllm@chat-1.service",
    ]
    record_start(host, places, [alone])
    (step,), _ = apply(host, [alone])
    assert (step.action, dict(step.writes)) == ("none", {})


def test_an_instance_that_is_given_up_waits_for_the_next_run(places, engine):
    recorder = Recorder()
    host, desired = InstanceHost(places, Systemd(recorder)), instances(engine)
    apply(host, desired)
    host.give_up(["chat-1"])
    assert [line.split()[0] for line in recorder.asked[-3:]] == ["stop", "disable", "reset-failed"]
    (step,), _ = apply(host, desired)
    assert (step.action, step.enable, dict(step.previous)) == ("start", True, {})


def test_a_run_that_died_after_writing_is_finished_by_the_next(places, engine):
    host, desired = InstanceHost(places, Systemd(Recorder())), instances(engine)
    apply(host, desired)
    record_start(host, places, desired)
    changed = instances(engine, "FLEET_ENGINE_DIRECTORY=/nowhere\nA=1\n")
    (places.instances / "chat-1" / ENVIRONMENT).write_text(changed[0].files[ENVIRONMENT])
    steps, _ = apply(host, changed)
    assert (steps[0].action, dict(steps[0].writes)) == ("restart", {})


@pytest.mark.parametrize("what", ["unit", "key", "engine"])
def test_whatever_an_engine_is_started_from_restarts_it_when_it_changes(places, engine, tmp_path, what):
    (tmp_path / "engine").mkdir()
    host = InstanceHost(places, Systemd(Recorder()))
    desired = instances(engine, f'FLEET_ENGINE_DIRECTORY="{tmp_path}/engine"\n')
    apply(host, desired)
    record_start(host, places, desired)
    changed = {
        "unit": places.unit_file,
        "key": places.configuration / "engine.env",
        "engine": tmp_path / "engine" / ".complete",
    }
    changed[what].write_text("new")
    assert apply(host, desired)[0][0].action == "restart"


def test_the_unit_writes_down_the_digest_that_the_core_computes(places, engine, tmp_path):
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / ".complete").write_text("{}\n")
    host = InstanceHost(places, Systemd(Recorder()))
    desired = instances(engine, f'FLEET_ENGINE_DIRECTORY="{tmp_path}/engine"\n')
    apply(host, desired)
    (places.runtime / "chat-1").mkdir(parents=True)
    script = (HELPERS / "vllm-record-start").read_text()
    script = script.replace("/etc/l40s-fleet", str(places.configuration)).replace(
        "/run/l40s-fleet", str(places.runtime)
    )
    script = script.replace("/etc/systemd/system/vllm@.service", str(places.unit_file))
    environment = {"FLEET_ENGINE_DIRECTORY": f"{tmp_path}/engine", "PATH": "/usr/bin:/bin"}
    subprocess.run(["sh", "-c", script, "vllm-record-start", "chat-1"], env=environment, check=True)
    assert host.observe()["chat-1"].started == host.digest(desired[0].files)


def test_removal_leaves_nothing(places, engine):
    recorder = Recorder()
    host, desired = InstanceHost(places, Systemd(recorder)), instances(engine)
    apply(host, desired)
    for parent in places.left_behind:
        (parent / "chat-1").mkdir(parents=True, exist_ok=True)
    observed = host.observe()
    host.apply(removals(["chat-1"], "is not in the plan"), observed)
    assert [line.split()[0] for line in recorder.asked[-3:]] == ["stop", "disable", "reset-failed"]
    assert host.observe() == {}
    assert not [path for path in (*places.left_behind, places.instances) if path.exists()]


def test_the_order_on_a_shared_gpu_is_a_drop_in_of_the_unit(places, engine):
    recorder = Recorder()
    host, (alone,) = InstanceHost(places, Systemd(recorder)), instances(engine)
    record = {"port": engine, "sharing": {"ways": 2, "seat": 1, "starts_after": ["first-1"]}}
    item = {
        "id": "chat-1",
        "config_yaml": alone.files[CONFIG],
        "environment": alone.files[ENVIRONMENT],
        "record": record,
    }
    sharing = parse_desired([item])
    apply(host, sharing)
    drop_in = places.unit_file.parent / "vllm@chat-1.service.d" / ORDER
    assert "After=vllm@first-1.service" in drop_in.read_text().splitlines()
    assert recorder.asked[0] == "daemon-reload"
    assert host.observe()["chat-1"].files[ORDER] == sharing[0].files[ORDER]
    record_start(host, places, sharing)
    steps, _ = apply(host, [alone])
    assert steps[0].action == "none"
    assert not drop_in.exists()
    apply(host, sharing)
    host.apply(removals(["chat-1"], "is not in the plan"), host.observe())
    assert not drop_in.parent.exists()


def test_half_an_instance_is_seen(places):
    """A killed run can leave a directory without a unit, a link for the next boot, or a unit without a directory."""
    recorder = Recorder()
    recorder.units[unit_of("unit-1")] = {"ActiveState": "failed"}
    (places.instances / "directory-1").mkdir(parents=True)
    (places.instances / "directory-1" / CONFIG).write_text("port: 1\n")
    places.boot_links.mkdir()
    (places.boot_links / unit_of("link-1")).symlink_to(places.unit_file)
    (places.boot_links / "other.service").symlink_to(places.unit_file)
    assert list(InstanceHost(places, Systemd(recorder)).observe()) == ["directory-1", "link-1", "unit-1"]


def test_an_engine_that_dies_fails_with_its_own_words(places, engine):
    recorder = Recorder()
    recorder.journal = "(EngineCore pid=7) ERROR 11-24 08:16:14 [core.py:1510] ValueError: No available memory\n"
    host, desired = InstanceHost(places, Systemd(recorder)), instances(engine)
    steps, observed = apply(host, desired)
    recorder.units[unit_of("chat-1")].update(ActiveState="activating", SubState="auto-restart")
    assert host.wait(desired, steps, observed, 5) == {"chat-1": "died while starting: ValueError: No available memory"}


def test_an_engine_that_is_healthy_and_answers_no_request_has_failed(places, engine):
    """It answers /health; a completion it does not know."""
    record = {"port": engine, "model": "chat", "engine_args": {"served_model_name": ["chat"]}}
    item = {
        "id": "chat-1",
        "config_yaml": f"host: 127.0.0.1\nport: {engine}\n",
        "environment": "A=1\n",
        "record": record,
    }
    host, desired = InstanceHost(places, Systemd(Recorder())), parse_desired([item])
    steps, observed = apply(host, desired)
    failures = host.wait(desired, steps, observed, 5)
    assert failures["chat-1"].startswith("is healthy, but does not answer a request: 501")


def test_an_engine_that_never_answers_fails_in_time(places):
    host, desired = InstanceHost(places, Systemd(Recorder())), instances(1)
    steps, observed = apply(host, desired)
    assert host.wait(desired, steps, observed, 0.1) == {"chat-1": "not healthy after 0 s"}
