"""What the callback plugin preload has loaded before the first fork, in a run of Ansible itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
# Of each kind that a task would otherwise load in its own process; filters and tests get a number behind their name.
WANTED = (
    "ansible.plugins.action.validate_argument_spec",
    "ansible.plugins.become.sudo",
    "ansible.plugins.connection.ssh",
    "ansible.plugins.filter.core",
    "ansible.plugins.filter.fleet",
    "ansible.plugins.shell.sh",
    "ansible.plugins.test.core",
)
PROBE = """
from ansible.plugins.callback import CallbackBase
import sys
DOCUMENTATION = "name: zz_probe\\ntype: aggregate\\nshort_description: probe\\ndescription: [probe]\\n"
class CallbackModule(CallbackBase):
    CALLBACK_VERSION, CALLBACK_TYPE, CALLBACK_NAME = 2.0, "aggregate", "zz_probe"
    def v2_playbook_on_play_start(self, play):
        print("LOADED", *sorted(sys.modules))
"""


def _loaded(tmp_path: Path, callbacks: Path) -> set[str]:
    (tmp_path / "probe").mkdir(exist_ok=True)
    (tmp_path / "probe" / "zz_probe.py").write_text(PROBE)
    playbook = tmp_path / "empty.yml"
    playbook.write_text("- hosts: localhost\n  gather_facts: false\n  tasks: []\n")
    configuration = tmp_path / "ansible.cfg"
    configuration.write_text(
        (CHECKOUT / "ansible.cfg")
        .read_text()
        .replace("callback_plugins = playbooks/callback_plugins", f"callback_plugins = {callbacks}:{tmp_path}/probe")
        .replace("filter_plugins = filter_plugins", f"filter_plugins = {CHECKOUT}/filter_plugins")
    )
    run = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", playbook],
        env={"ANSIBLE_CONFIG": str(configuration), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("LOADED"))
    return {re.sub(r"_\d+$", "", name) for name in line.split()}


def test_what_tasks_need_is_loaded_before_the_first_of_them(tmp_path: Path) -> None:
    assert set(WANTED) <= _loaded(tmp_path, CHECKOUT / "playbooks" / "callback_plugins")


def test_without_it_they_would_not_be(tmp_path: Path) -> None:
    assert not set(WANTED) <= _loaded(tmp_path, tmp_path / "nowhere")
