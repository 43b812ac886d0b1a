"""Checkpoints come once into the fleet, are whole, and are mended when they are damaged."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab_support import CHECKOUT, LAB

testinfra_hosts = ["ansible://l40s-01"]

STORE = "/var/lib/l40s-fleet/models"
CHECKPOINTS = CHECKOUT / "build" / "lab" / "checkpoints"
TOKEN = "hf_scenarioTokenThatMustNotShow"  # noqa: S105 (the simulated hub's)
# Where anything of this project, of Ansible or of a log could be.
PLACES = f"/etc /run /tmp /var/tmp /var/log {STORE} /home /usr/local/lib/l40s-fleet"
HUB = "/opt/simulated-hub"


def command(variables, *options):
    line = ["ansible-playbook", "--inventory", CHECKOUT / "inventory" / "lab" / "hosts.yml", *options]
    return [*line, "--extra-vars", json.dumps(variables), CHECKOUT / "molecule" / "model_store" / "converge.yml"]


ENVIRONMENT = {**os.environ, "L40S_LAB": LAB, "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg")}
ENVIRONMENT |= {"ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"}


def play(*options, expect=0, **variables):
    """Runs the scenario's playbook again; returns its output and the changed tasks by host."""
    done = subprocess.run(command(variables, *options), capture_output=True, text=True, env=ENVIRONMENT, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == expect, output
    assert TOKEN not in output
    return output, dict(re.findall(r"^(l40s-\d+) .* changed=(\d+)", output.split("PLAY RECAP")[1], re.MULTILINE))


def on(node, script):
    """A script on any node, as root."""
    line = ["podman", "exec", f"{LAB}-{node}", "sh", "-c", script]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout


def hub_log():
    return [json.loads(line) for line in on("gw-01", f"cat {HUB}/log").splitlines()]


def faults(*entries):
    on("gw-01", f"cat >{HUB}/faults <<'EOF'\n{json.dumps(entries)}\nEOF")


def checkpoint(model, node="l40s-01"):
    (directory,) = on(node, f"ls -d {STORE}/{model}-*").split()
    return directory


def shown_here():
    """Command lines and environments of all processes of this machine, the nodes' among them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                found.append((process / name).read_bytes())
            except OSError:
                continue
    return b"\n".join(found).replace(b"\0", b" ").decode(errors="replace")


def describe(model):
    """What the planner keeps of a model, so that a fault meets the host that fetches it and not the planner."""
    lab = CHECKOUT / "build" / "lab"
    hub = json.loads((lab / LAB / "addresses.json").read_text())["gw-01"]
    line = [sys.executable, CHECKOUT / "molecule" / "model_store" / "checkpoints.py", f"http://{hub}:8900"]
    subprocess.run([*line, lab / "checkpoints", lab / LAB / "model_store", model], input=TOKEN, text=True, check=True)


def sums(text):
    return {line.split(maxsplit=1)[1].rsplit("/", 1)[-1]: line.split()[0] for line in text.splitlines()}


def weights(model, node="l40s-01"):
    return on(node, f"sha256sum <{checkpoint(model, node)}/model.safetensors")


@pytest.mark.parametrize("node", ["l40s-01", "l40s-02"])
@pytest.mark.parametrize("model", ["tiny-llama", "tiny-qwen"])
def test_every_host_has_what_the_source_has(node, model):
    here = sums(on(node, f"cd {checkpoint(model, node)} && sha256sum *"))
    paths = [str(path) for path in (CHECKPOINTS / model).iterdir()]
    assert here == sums(subprocess.run(["sha256sum", *paths], capture_output=True, text=True, check=True).stdout)


def test_one_download_serves_all():
    addresses = json.loads((CHECKOUT / "build" / "lab" / LAB / "addresses.json").read_text())
    log = hub_log()
    fetched = [
        one for one in log if one["client"] != addresses["gw-01"] and one["agent"] == "l40s-fleet" and one["bytes"]
    ]
    assert {one["client"] for one in fetched} == {addresses["l40s-01"]}
    assert len(fetched) == len({one["path"] for one in fetched}), "each file once"
    assert sum("model.safetensors" in one["path"] for one in fetched) == 1, "the twin shares the weights of the llama"
    assert not any(one["authorized"] for one in log if one["path"].startswith("/tree/")), "the token is the hub's alone"
    copied = on("l40s-01", "journalctl --unit l40s-fleet-peer --output=cat --no-pager")
    assert copied.count('" 206') >= 8
    assert set(re.findall(r"^([\d.]+) \"GET", copied, re.MULTILINE)) == {addresses["l40s-02"]}


def test_models_share_files():
    on("l40s-01", f"test {checkpoint('tiny-llama')}/model.safetensors -ef {checkpoint('tiny-twin')}/model.safetensors")


def test_nothing_half_is_left_and_nothing_serves_any_more():
    for node in ("l40s-01", "l40s-02"):
        assert on(node, f"find {STORE} -maxdepth 1 -name '.*' ! -name .blobs; ls /run/l40s-fleet-jobs") == ""
        assert on(node, "systemctl is-active l40s-fleet-peer l40s-fleet-fetch || true").split() == ["inactive"] * 2


def test_engines_can_read_it_and_only_root_can_write_it(host):
    directory = checkpoint("tiny-llama")
    assert host.file(directory).mode == 0o755
    assert host.check_output("find %s -type f ! -perm 0644 -o ! -user root", directory) == ""
    assert host.run("setpriv --reuid=65534 --clear-groups cat %s/config.json", directory).rc == 0


def test_the_services_can_do_little(host):
    for unit in ("l40s-fleet-fetch", "l40s-fleet-peer"):
        shown = host.check_output("systemd-analyze security --no-pager %s | tail -1", unit)
        assert float(re.search(r"(\d+\.\d+) OK", shown)[1]) < 2.5, shown


def test_a_second_run_asks_nobody_and_changes_nothing():
    before = len(hub_log())
    _, changed = play()
    assert set(changed.values()) == {"0"}
    assert len(hub_log()) == before


def test_a_flipped_bit_is_found_and_mended_from_another_host(host):
    file = f"{checkpoint('tiny-llama')}/model.safetensors"
    right, asked = weights("tiny-llama"), len(hub_log())
    host.check_output(
        "cp -p %s /tmp/stamp && printf X | dd of=%s bs=1 seek=1000 conv=notrunc status=none && touch -r /tmp/stamp %s",
        *(file, file, file),
    )
    assert weights("tiny-llama") != right
    assert play()[1]["l40s-01"] != "0"
    assert weights("tiny-llama") == weights("tiny-twin") == right, "the twin shared the damaged file"
    assert len(hub_log()) == asked, "it came from the other host"


def test_what_is_wrong_with_the_hub_is_one_line_and_leaves_nothing():
    describe("tiny-slow")
    faults({"path": "/resolve/.*model.safetensors", "kind": "403", "times": 99})
    output, _ = play(expect=2, scenario_models=["tiny-slow"])
    (line,) = {
        line for line in output.splitlines() if line.startswith("[ERROR]: Task failed: tiny-slow/model.safetensors")
    }
    assert line.endswith("answered 403 Forbidden: the server refuses: the token may not read this")
    assert on("l40s-01", f"find {STORE} -maxdepth 1 -name '*tiny-slow*'") == ""


def test_killed_while_it_fetches_the_next_run_goes_on_and_the_token_was_nowhere():
    faults({"path": "^/content/.*slow", "kind": "slow", "times": 9, "bytes_per_s": 300_000})
    line = command({"scenario_models": ["tiny-slow"]})
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT, start_new_session=True
    ) as run:
        part = f"find {STORE}/.incoming -size +1000k 2>/dev/null"
        limit = time.monotonic() + 60
        while not (found := on("l40s-01", f"{part}; true").split()) and time.monotonic() < limit:
            time.sleep(0.2)
        # Everything that anyone but root and the service can look at, while it runs, here and on the controller.
        here = shown_here()
        shown = on("l40s-01", "ps axww -o args; cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'")
        os.killpg(run.pid, signal.SIGKILL)
        readable = on("l40s-01", f"setpriv --reuid=65534 --clear-groups grep -D skip -rlsF {TOKEN} {PLACES}; true")
        on("l40s-01", "systemctl kill --signal=SIGKILL l40s-fleet-fetch; systemctl stop l40s-fleet-fetch")
        output = run.stdout.read()
    assert found, output
    assert "fetch_job" in shown
    assert TOKEN not in shown + here + output
    assert "ansible-playbook" in here
    assert re.search(
        r"\[l40s-01\] fetches checkpoints: [\d.]+ of [\d.]+ MB \(\d+ %\), (nothing comes|[\d.]+ [kM]B/s)", output
    )
    assert readable == ""
    assert on("l40s-01", f"find {STORE} -maxdepth 1 -name '*tiny-slow*'") == "", (
        "no half checkpoint under its final name"
    )
    size = int(on("l40s-01", f"stat -c %s {found[0]}"))
    faults()
    output, _ = play(scenario_models=["tiny-slow"])
    assert re.search(r"fetches checkpoints: .* \(100 %\), in \d+ s at [\d.]+ [kM]B/s", output)
    assert (
        weights("tiny-slow")
        == weights("tiny-slow", "l40s-02")
        == on("gw-01", f"sha256sum <{HUB}/root/lab/tiny-slow/model.safetensors")
    )
    asked = [one["range"] for one in hub_log() if "/content/lab/tiny-slow" in one["path"]]
    assert any(int(one[6:].split("-")[0]) >= size for one in asked), "it went on where it was killed"


def test_a_controller_that_fetches_for_the_hosts_shows_the_token_to_nobody():
    for node in ("l40s-01", "l40s-02"):
        on(node, f"rm -r {checkpoint('tiny-slow', node)}; find {STORE}/.blobs -links 1 -delete")
    faults({"path": "^/content/.*slow", "kind": "slow", "times": 9, "bytes_per_s": 2_000_000})
    variables = {"scenario_models": ["tiny-slow"], "model_store_download_on": "controller"}
    cache = CHECKOUT / "build" / "lab" / LAB / "controller-cache"
    line = command(variables | {"fleet_cache_dir": str(cache)})
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT) as run:
        looks = []
        while run.poll() is None:
            looks.append(shown_here())
            time.sleep(0.2)
        output = run.stdout.read()
    faults()
    assert run.returncode == 0, output
    assert any("fleet.fetch_job" in one for one in looks)
    assert not any(TOKEN in one for one in [*looks, output])
    assert "[localhost] fetches checkpoints for l40s-01: " in output
    assert weights("tiny-slow") == weights("tiny-slow", "l40s-02")
    # Of everything that the run kept on the controller, nothing holds it.
    for place in (cache, CHECKOUT / "build" / "lab" / LAB, Path.home() / ".ansible"):
        found = subprocess.run(["grep", "-rlsF", TOKEN, place], capture_output=True, text=True, check=False).stdout
        assert found == ""
    shutil.rmtree(cache)


def test_the_token_is_in_no_log_and_no_file():
    for node in ("l40s-01", "l40s-02"):
        assert TOKEN not in on(node, "journalctl --no-pager --output=cat")
        assert on(node, f"grep -D skip -rlsF {TOKEN} {PLACES} /root; true") == ""


def test_prune_lists_first_and_removes_what_no_plan_refers_to():
    kept = {checkpoint(model) for model in ("tiny-llama", "tiny-qwen", "tiny-twin")}
    superseded = f"{STORE}/tiny-llama-0123456789ab"
    on("l40s-01", f"cp -a {checkpoint('tiny-llama')} {superseded}")
    before = set(on("l40s-01", f"ls -d {STORE}/*").split())
    output, changed = play("--check", prune=True)
    for path in (superseded, f"{STORE}/forgotten-0123456789ab", checkpoint("tiny-slow")):
        assert path in output
    assert changed["l40s-01"] == "1"
    assert set(on("l40s-01", f"ls -d {STORE}/*").split()) == before
    play(prune=True)
    assert set(on("l40s-01", f"ls -d {STORE}/*").split()) == kept
    assert on("l40s-01", f"find {STORE}/.blobs -links 1") == "", "what nobody links to is gone too"
    assert set(play("--check", prune=True)[1].values()) == {"0"}
