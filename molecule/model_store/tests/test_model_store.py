"""Checkpoints are whole, readable by the engines, and mended when they are damaged."""

from __future__ import annotations

import json
import os
import subprocess

from lab_support import CHECKOUT, LAB

testinfra_hosts = ["ansible://l40s-01"]

STORE = "/var/lib/l40s-fleet/models"
SOURCE = CHECKOUT / "build" / "lab" / "checkpoints" / "tiny-llama"


def play(playbook, **variables):
    """Runs one of this scenario's playbooks again; returns the node's line of the recap."""
    command = ["ansible-playbook", "--inventory", CHECKOUT / "inventory" / "lab" / "hosts.yml"]
    command += ["--extra-vars", json.dumps(variables), CHECKOUT / "molecule" / "model_store" / f"{playbook}.yml"]
    environment = {**os.environ, "L40S_LAB": LAB, "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg")}
    environment |= {"ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split("PLAY RECAP")[1]


def checkpoint(host):
    (directory,) = host.check_output("find %s -mindepth 1 -maxdepth 1 -name 'tiny-llama-*'", STORE).split()
    return directory


def sums(text):
    return {line.split(maxsplit=1)[1].rsplit("/", 1)[-1]: line.split()[0] for line in text.splitlines()}


def test_the_copy_is_what_the_controller_has(host):
    here = sums(host.check_output("cd %s && sha256sum *", checkpoint(host)))
    assert here == sums(
        subprocess.run(["sha256sum", *SOURCE.iterdir()], capture_output=True, text=True, check=True).stdout
    )


def test_nothing_half_is_left(host):
    assert host.check_output("find %s -name '.staging-*' -o -name '.ansible_tmp*'", STORE) == ""


def test_engines_can_read_it_and_only_root_can_write_it(host):
    directory = checkpoint(host)
    assert host.file(directory).mode == 0o755
    assert host.check_output("find %s -type f ! -perm 0644 -o ! -user root", directory) == ""
    assert host.run("setpriv --reuid=65534 --clear-groups cat %s/config.json", directory).rc == 0


def test_a_flipped_bit_is_found_by_a_full_check_and_mended(host):
    file = f"{checkpoint(host)}/model.safetensors"
    before = host.check_output("sha256sum %s", file)
    host.check_output(
        "cp -p %s /tmp/stamp && printf X | dd of=%s bs=1 seek=1000 conv=notrunc status=none && touch -r /tmp/stamp %s",
        *(file, file, file),
    )
    assert host.check_output("sha256sum %s", file) != before
    assert "changed=0" in play("converge"), "the quick check takes size and time for it"
    assert "changed=3" in play("converge", model_store_verify="full")
    assert host.check_output("sha256sum %s", file) == before
    assert "changed=0" in play("converge", model_store_verify="full")


def test_a_truncated_file_is_mended_by_the_next_run(host):
    file = f"{checkpoint(host)}/model.safetensors"
    before = host.check_output("sha256sum %s", file)
    host.check_output("truncate --size=-1 %s", file)
    assert "changed=3" in play("converge")
    assert host.check_output("sha256sum %s", file) == before


def test_only_models_that_the_inventory_does_not_know_are_removed(host):
    directory = checkpoint(host)
    assert host.file(f"{STORE}/forgotten-0123456789ab").is_directory
    play("prune", model_store_known_models=["tiny-llama", "another"])
    assert host.file(directory).is_directory
    assert not host.file(f"{STORE}/forgotten-0123456789ab").exists
