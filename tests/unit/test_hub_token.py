"""The hub's token, from a vault to the hub: in no log, no process list, and no file that others can read."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from lab_code import tiny_models
from plan_samples import ENGINE, ROOT, facts, models_text
from simulated_hub_code import Fault, SimulatedHub

TOKEN = "hf_vaultedTokenThatMustNotShow"
PLAY = """
- hosts: localhost
  gather_facts: false
  vars_files: [vault.yml]
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  tasks:
    - fleet_plan: "{{ case | combine({'hub_token': fleet_hub_token}) }}"
      vars:
        case: "{{ lookup('ansible.builtin.file', 'case.json') | from_json }}"
"""
BIN = Path(sys.executable).parent


@pytest.fixture
def hub(tmp_path):
    repository = tmp_path / "repository"
    tiny_models.write(tiny_models.LLAMA, repository)
    with SimulatedHub(token=TOKEN) as simulated:
        simulated.add("org/private", repository, private=True)
        # Asked again after two seconds: time to look at the processes.
        simulated.faults = [Fault("/api/", "503", retry_after="2")]
        yield simulated


@pytest.fixture
def environment(tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "HF_"))},
        "HOME": str(home),
        "ANSIBLE_HOME": str(home / "ansible"),
        "ANSIBLE_REMOTE_TEMP": str(home / "remote"),
        "ANSIBLE_LOCAL_TEMP": str(home / "local"),
        "ANSIBLE_LOG_PATH": str(tmp_path / "ansible.log"),
        "ANSIBLE_LIBRARY": str(ROOT / "library"),
        "ANSIBLE_MODULE_UTILS": str(ROOT / "module_utils"),
        "TMPDIR": str(home),
    }


def shown_by_processes() -> bytes:
    """Command lines and environments of all processes."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                found.append((process / name).read_bytes())
            except OSError:
                continue
    return b"\0".join(found)


def readable_with_token(root: Path) -> list[str]:
    """Files with the token that another user could open: the file and every directory above it let him."""
    found = []
    for parent, directories, names in os.walk(root):
        directories[:] = [name for name in directories if Path(parent, name).stat().st_mode & stat.S_IXOTH]
        for name in names:
            path = Path(parent, name)
            try:
                if path.stat().st_mode & stat.S_IROTH and TOKEN.encode() in path.read_bytes():
                    found.append(str(path))
            except OSError:
                continue
    return found


def test_from_the_vault_to_the_hub_and_nowhere_else(hub, environment, tmp_path):
    (tmp_path / "password").write_text("a password")
    (tmp_path / "play.yml").write_text(PLAY)
    vault = ["--vault-password-file", str(tmp_path / "password")]
    encrypted = subprocess.run(
        [BIN / "ansible-vault", "encrypt_string", *vault, "--stdin-name", "fleet_hub_token"],
        input=TOKEN,
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    (tmp_path / "vault.yml").write_text(encrypted.stdout)
    assert TOKEN not in encrypted.stdout
    (tmp_path / "models.yml").write_text(models_text({"name": "m", "source": "hf:org/private", "max_model_len": 1024}))
    case = {"models_file": str(tmp_path / "models.yml"), "inventory_hosts": ["a"], "hosts": facts("a")["hosts"]}
    case |= {"hub_endpoint": hub.url, "cache_dir": str(tmp_path / "cache"), "engine_version": ENGINE}
    case |= {"output": str(tmp_path / "plan.json"), "report": str(tmp_path / "report.html")}
    (tmp_path / "case.json").write_text(json.dumps(case))
    looks: list[tuple[bool, list[str]]] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.2):
            looks.append((TOKEN.encode() in shown_by_processes(), readable_with_token(tmp_path)))

    watch = threading.Thread(target=look)
    watch.start()
    line = [BIN / "ansible-playbook", "-vvv", "--diff", "-i", "localhost,", "-c", "local", *vault, "play.yml"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    ended.set()
    watch.join()
    assert done.returncode == 0, done.stdout + done.stderr
    assert any(one["authorized"] for one in hub.requests), "the hub was given it"
    assert len(looks) > 5
    assert not any(shown or readable for shown, readable in looks), looks
    assert TOKEN not in done.stdout + done.stderr
    assert TOKEN not in (tmp_path / "ansible.log").read_text()
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert kept == []
    # The look would have seen it.
    (tmp_path / "seen").write_text(TOKEN)
    assert readable_with_token(tmp_path) == [str(tmp_path / "seen")]
