"""Changes that do not work out: what served before serves again, and the run says why, once."""

from __future__ import annotations

import json
import threading
import time

from lab_support import CHECKOUT, run_playbook

testinfra_hosts = ["ansible://l40s-01"]

UNIT = "vllm@tiny-llama-1.service"
DIRECTORY = "/etc/l40s-fleet/instances"
PLAYBOOK = CHECKOUT / "molecule" / "serving" / "change.yml"
# Two blocks of 128 tokens: too few for one request of 1,024, which shows only once the engine has loaded its weights.
TOO_LITTLE_MEMORY = {"kv_cache_memory_bytes": 262144}


def change(**variables):
    return run_playbook(PLAYBOOK, "--extra-vars", json.dumps(variables))


def started_from(host):
    """Start of the unit, and what its files hold."""
    shown = host.check_output("systemctl show --property=MainPID,InvocationID %s", UNIT)
    return shown, host.check_output(f"cat {DIRECTORY}/tiny-llama-1/*")


def healthy(host):
    look = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8100/health', timeout=2)"
    return host.run("python3 -c %s", look).rc == 0


def words(run):
    """What a run said, however it broke its lines."""
    return " ".join(run.output.split())


def test_what_the_engine_refuses_leaves_the_instance_as_it_is(host):
    """A context longer than the model's, forced past the planner."""
    before = started_from(host)
    run = change(scenario_engine_args={"max_model_len": 99999})
    assert run.status != 0
    assert words(run).count("is greater than the derived max_model_len") == 1, run.output
    assert "the engine refuses the configuration of tiny-llama-1; nothing was changed" in words(run)
    assert "Traceback" not in run.output
    assert started_from(host) == before
    assert healthy(host)


def test_check_mode_hears_the_refusal_too(host):
    run = run_playbook(PLAYBOOK, "--check", "--extra-vars", '{"scenario_engine_args": {"no_such_argument": 1}}')
    assert run.status != 0
    assert "unrecognized arguments: --no-such-argument" in words(run)


def test_an_instance_that_does_not_start_gets_its_files_back_and_serves_again(host):
    """The engine takes the configuration, and finds out at its start that one request does not fit."""
    _, files = started_from(host)
    down, back = [], []
    over = threading.Event()

    def watch():
        """Moments at which the failed start was seen, and at which the instance answered again."""
        while not over.is_set():
            journal = host.run("journalctl --unit=%s --output=cat --lines=200", UNIT).stdout
            if not down and "is needed, which is larger than the available KV cache memory" in journal:
                down.append(time.monotonic())
            if down and not back and healthy(host):
                back.append(time.monotonic())
            time.sleep(0.5)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    run = change(scenario_engine_args=TOO_LITTLE_MEMORY)
    over.set()
    watcher.join()
    assert run.status != 0
    assert words(run).count("larger than the available KV cache memory") == 1, run.output
    assert f"{UNIT} died while starting; what ran before serves again" in words(run)
    assert healthy(host)
    assert started_from(host)[1] == files
    assert host.service(UNIT).is_enabled
    assert not host.file(f"{DIRECTORY}/tiny-llama-1/previous").exists
    print(f"it served again {back[0] - down[0]:.0f} s after the failed start")
    assert back[0] - down[0] < 60


def test_an_instance_that_never_served_is_stopped_and_the_next_run_takes_it_away(host):
    before = started_from(host)
    run = change(scenario_new_engine_args=TOO_LITTLE_MEMORY)
    assert run.status != 0
    assert "vllm@newcomer-1.service died while starting; it has never served and is stopped" in words(run)
    newcomer = host.service("vllm@newcomer-1.service")
    assert not newcomer.is_running
    assert not newcomer.is_enabled
    run = change()
    assert run.status == 0, run.output
    assert not host.file(f"{DIRECTORY}/newcomer-1").exists
    assert started_from(host) == before
