"""The nodes of a lab: system containers on a network of their own, reached over SSH with keys made for this lab."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import socket
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lab_engine
import lab_quantizers
import lab_sysfs
import lab_topology
import lab_triton
from lab_host import CHECKOUT, LAB_SOURCES, STATE, LabError, cache_directory, podman, run, say
from lab_sysfs import write_sysfs
from lab_topology import GPU_HOSTS, NODES, Lab, nvml_description

LABEL = "l40s-fleet"
USER = "ops"
READY_TIMEOUT_S = 60.0
# Engines are part of a node's boot, which is over when they serve; the node can be reached long before. Whether they
# start is not the lab's business.
WITH_ENGINES = ("running", "starting", "degraded")
COMPILE = (
    *("gcc", "-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror"),
    *("-fPIC", "-fvisibility=hidden", "-pthread", "-shared", "-Wl,-soname,libnvidia-ml.so.1", "-Wl,-z,defs"),
)
NVML_LIBRARY = "libnvidia-ml-simulated.so"


@dataclass(frozen=True)
class LabNodes:
    """The nodes of one lab and the files that belong to them."""

    lab: Lab

    @property
    def directory(self) -> Path:
        """All state of this lab."""
        return STATE / self.lab.name

    @property
    def ssh_config(self) -> Path:
        """What ssh, Ansible and testinfra need to reach the nodes by their inventory names."""
        return self.directory / "ssh" / "config"

    def containers(self) -> dict[str, dict[str, Any]]:
        """The containers of a lab of this name, from whichever checkout, by container name."""
        listed = podman("ps", "--all", "--filter", f"label={LABEL}.lab={self.lab.name}", "--format", "json").stdout
        return {container["Names"][0]: container for container in json.loads(listed or "[]")}

    def up(self, images: dict[str, str]) -> None:
        """Brings nodes up, replaces those that are not as they should be, and waits until all can be reached.

        Args:
            images: the image of each node that is to be there.
        """
        existing = self._replace_foreign(self.containers())
        self._prepare_ssh()
        self._prepare_secrets()
        self._prepare_network()
        deadline = time.monotonic() + READY_TIMEOUT_S
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: self._up_node(node, images[node], existing, deadline), images))

    def _up_node(self, node: str, image: str, existing: dict[str, dict[str, Any]], deadline: float) -> None:
        name = self.lab.container(node)
        container = existing.get(name)
        arguments = self._run_arguments(node)
        specification = _specification(image, arguments)
        if container is not None and container["Labels"].get(f"{LABEL}.specification") == specification:
            if container["State"] == "running":
                return
            say(self.lab.name, f"starting {node}")
            podman("start", name)
            self._wait_for(node, deadline, WITH_ENGINES)
            return
        say(self.lab.name, f"{'creating' if container is None else 'replacing'} {node} ({self.lab.address(node)})")
        if container is not None:
            podman("rm", "--force", "--time", "5", name)
        self._prepare_node(node)
        label = f"--label={LABEL}.specification={specification}"
        podman("run", "--detach", label, *arguments, image, "/sbin/init")
        self._wait_for(node, deadline)
        if node in GPU_HOSTS:
            self._install_nvml(node)

    def down(self) -> None:
        """Removes containers, network and state."""
        names = list(self.containers())
        if names:
            podman("rm", "--force", "--time", "5", *names)
        podman("network", "rm", "--force", self.lab.network, check=False)
        for directory in (self.directory, control_sockets(self.lab)):
            shutil.rmtree(directory, ignore_errors=True)

    def restart(self, node: str) -> None:
        """Restarts a node, as a reboot does, and waits until it can be reached again."""
        podman("restart", "--time", "30", self.lab.container(node))
        self._wait_for(node, time.monotonic() + READY_TIMEOUT_S, WITH_ENGINES)

    def _replace_foreign(self, existing: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        owners = foreign_owners(existing)
        if not owners:
            return existing
        say(self.lab.name, f"replacing the lab of the same name that belongs to {', '.join(owners)}")
        podman("rm", "--force", "--time", "5", *existing)
        return {}

    def _prepare_network(self) -> None:
        if podman("network", "exists", self.lab.network, check=False).returncode != 0:
            subnet = f"{self.lab.prefix}.0/24"
            podman("network", "create", f"--label={LABEL}.lab={self.lab.name}", "--subnet", subnet, self.lab.network)

    def _prepare_ssh(self) -> None:
        """Keys and the client's configuration; made once per lab."""
        ssh = self.directory / "ssh"
        ssh.mkdir(parents=True, exist_ok=True)
        ssh.chmod(0o700)
        for key in [ssh / "id_ed25519", *(ssh / f"host_key_{node}" for node in NODES)]:
            if not key.exists():
                run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"lab-{self.lab.name}", "-f", key])
        known_hosts = ""
        for node in NODES:
            kind, key_text = (ssh / f"host_key_{node}.pub").read_text().split()[:2]
            known_hosts += f"{self.lab.address(node)} {kind} {key_text}\n"
        (ssh / "known_hosts").write_text(known_hosts)
        self.ssh_config.write_text(self._ssh_config())
        addresses = {node: self.lab.address(node) for node in NODES}
        (self.directory / "addresses.json").write_text(json.dumps(addresses, indent=2) + "\n")
        control_sockets(self.lab).mkdir(mode=0o700, parents=True, exist_ok=True)

    def _prepare_secrets(self) -> None:
        """The keys of the engines and of the demo's client: at random, once per lab."""
        directory = self.directory / "secrets"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("engine_api_key", "client_key"):
            path = directory / name
            if not path.exists():
                path.touch(mode=0o600)
                path.write_text(secrets.token_urlsafe(32))

    def _ssh_config(self) -> str:
        ssh = self.directory / "ssh"
        hosts = "".join(f"Host {node}\n    HostName {self.lab.address(node)}\n\n" for node in NODES)
        return hosts + (
            "Host *\n"
            f"    User {USER}\n"
            f"    IdentityFile {ssh / 'id_ed25519'}\n"
            "    IdentitiesOnly yes\n"
            f"    UserKnownHostsFile {ssh / 'known_hosts'}\n"
            "    GlobalKnownHostsFile none\n"
            "    StrictHostKeyChecking yes\n"
            "    PasswordAuthentication no\n"
            "    ConnectTimeout 5\n"
            "    ServerAliveInterval 5\n"
            "    ServerAliveCountMax 3\n"
            "    ControlMaster auto\n"
            "    ControlPersist 60s\n"
            f"    ControlPath {control_sockets(self.lab)}/%C\n"
        )

    def _prepare_node(self, node: str) -> None:
        """The files mounted into a node at /etc/l40s-lab, anew."""
        directory = self.directory / "nodes" / node
        (directory / "ssh").mkdir(parents=True, exist_ok=True)
        ssh = self.directory / "ssh"
        shutil.copy2(ssh / f"host_key_{node}", directory / "ssh" / "ssh_host_ed25519_key")
        shutil.copy2(ssh / "id_ed25519.pub", directory / "ssh" / "authorized_keys")
        cpu_count = os.cpu_count() or 1
        write_sysfs(directory / "sys", node, cpu_count)
        (directory / "kmsg").write_text(f"6,0,0,-;Linux version: the simulated kernel log of {node}\n")
        if node in GPU_HOSTS:
            (directory / "gpus.conf").write_text(nvml_description(node, cpu_count))
            compile_nvml(directory / NVML_LIBRARY)
        self._package_cache(node).mkdir(parents=True, exist_ok=True)
        lab_engine.store().mkdir(parents=True, exist_ok=True)
        lab_quantizers.store().mkdir(parents=True, exist_ok=True)
        lab_triton.store().mkdir(parents=True, exist_ok=True)

    def _package_cache(self, node: str) -> Path:
        """Downloaded packages of one node: apt locks the directory, so nodes do not share it."""
        return cache_directory() / "apt" / self.lab.container(node)

    def _run_arguments(self, node: str) -> list[str]:
        arguments = [
            f"--name={self.lab.container(node)}",
            f"--hostname={node}",
            f"--label={LABEL}.lab={self.lab.name}",
            f"--label={LABEL}.checkout={CHECKOUT}",
            f"--network={self.lab.network}",
            f"--ip={self.lab.address(node)}",
            f"--mac-address={self.lab.mac_address(node)}",
            *(f"--add-host={other}:{self.lab.address(other)}" for other in NODES if other != node),
            "--systemd=always",
            "--shm-size=1g",
            "--privileged",
            f"--volume={self.directory / 'nodes' / node}:/etc/l40s-lab",
            f"--volume={self._package_cache(node)}:/var/cache/apt/archives",
        ]
        if node in GPU_HOSTS:
            arguments.append(f"--volume={lab_engine.store()}:{lab_engine.PREFIX}:ro")
            arguments.append(f"--volume={lab_quantizers.store()}:{lab_quantizers.PREFIX}:ro")
            arguments.append(f"--volume={lab_triton.store()}:{lab_triton.PREFIX}:ro")
        return arguments

    def _install_nvml(self, node: str) -> None:
        """Puts the library where a driver would; ldconfig makes libnvidia-ml.so.1 of its soname."""
        source = f"/etc/l40s-lab/{NVML_LIBRARY}"
        command = f"install -m 0644 {source} /usr/local/lib/{NVML_LIBRARY} && ldconfig"
        podman("exec", self.lab.container(node), "sh", "-c", command)

    def _wait_for(self, node: str, deadline: float, enough: tuple[str, ...] = ("running",)) -> None:
        state = ""
        while time.monotonic() < deadline:
            command = ["systemctl", "is-system-running"]
            state = podman("exec", self.lab.container(node), *command, check=False).stdout.strip()
            if state == "degraded" and state not in enough:
                listing = ["systemctl", "--failed", "--plain", "--no-legend"]
                failed = podman("exec", self.lab.container(node), *listing).stdout
                raise LabError(f"{node}: systemd is degraded: {' '.join(failed.split())}")
            if state in enough and answers(self.lab.address(node)):
                return
            time.sleep(0.2)
        raise LabError(f"{node}: not ready after {READY_TIMEOUT_S:.0f} s; systemd says {state or 'nothing'}")


def foreign_owners(containers: dict[str, dict[str, Any]]) -> list[str]:
    """The other checkouts that some of the containers belong to."""
    owners = {str(container["Labels"].get(f"{LABEL}.checkout")) for container in containers.values()}
    return sorted(owners - {str(CHECKOUT)})


def _specification(image: str, arguments: list[str]) -> str:
    """A digest of everything that a node is made from: nodes made from something else are replaced."""
    digest = hashlib.sha256("\0".join([image, *arguments]).encode())
    sources = [
        *sorted((LAB_SOURCES / "simulated_nvml").iterdir()),
        Path(lab_sysfs.__file__),
        Path(lab_topology.__file__),
    ]
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def control_sockets(lab: Lab) -> Path:
    """Where ssh keeps the sockets of shared connections: their paths must be short, and a checkout's may be long.

    Another checkout has another directory: an open connection would let it in without asking for its key.
    """
    return Path("/run/l40s-lab") / f"{lab.name}-{zlib.crc32(str(CHECKOUT).encode()):08x}"


def answers(address: str) -> bool:
    """Whether sshd greets."""
    try:
        with socket.create_connection((address, 22), timeout=1) as connection:
            connection.settimeout(1)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def compile_nvml(target: Path) -> None:
    """Compiles the simulated NVML."""
    sources = sorted((LAB_SOURCES / "simulated_nvml").glob("*.c"))
    run([*COMPILE, "-o", target, *sources])
