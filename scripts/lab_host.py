"""The machine that carries the lab: its packages, programs and directories."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHECKOUT = Path(__file__).resolve().parent.parent
LAB_SOURCES = CHECKOUT / "lab"
STATE = CHECKOUT / "build" / "lab"

PACKAGES = (
    "aardvark-dns",
    "conmon",
    "gcc",
    "iptables",
    "libc6-dev",
    "mmdebstrap",
    "netavark",
    "nftables",
    "openssh-client",
    "podman",
    "runc",
    "uidmap",
)

# crun refuses the hybrid cgroup layout of some kernels, which runc accepts. The machine's own containers.conf stays as
# it is: this one is passed by the environment.
CONTAINERS_CONF = """\
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"

[containers]
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
"""


class LabError(Exception):
    """Something that the user can mend; its text is the whole message."""


def cache_directory() -> Path:
    """What is dear to make and the same for every checkout: images, engines, packages."""
    configured = os.environ.get("L40S_FLEET_CACHE")
    path = Path(configured) if configured else Path.home() / ".cache" / "l40s-fleet"
    return path.expanduser().absolute()


def say(lab: str, message: str) -> None:
    """Prints one line of progress."""
    print(f"lab {lab}: {message}", flush=True)


def run(
    command: Sequence[str | Path], *, check: bool = True, timeout_s: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a program and returns what it printed.

    Raises:
        LabError: it failed; the message is its last lines on stderr.
    """
    arguments = [str(part) for part in command]
    done = subprocess.run(
        arguments,
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=timeout_s,
        env=environment(),
    )
    if check and done.returncode != 0:
        last_lines = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise LabError(f"{' '.join(arguments[:3])} failed with status {done.returncode}: {last_lines}")
    return done


def environment() -> dict[str, str]:
    """The environment of podman and all else that is started: the lab's own containers.conf."""
    return {**os.environ, "CONTAINERS_CONF": str(STATE / "containers.conf"), "LC_ALL": "C.UTF-8"}


def podman(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs podman."""
    return run(["podman", *arguments], check=check)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock: a second lab command waits for the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def require_machine() -> None:
    """Checks that this machine can carry a lab, before anything is changed.

    Raises:
        LabError: not root, or not Debian 12 or 13.
    """
    if os.geteuid() != 0:
        raise LabError("the lab needs root: its nodes are system containers (run `sudo scripts/lab up`)")
    release = platform.freedesktop_os_release()
    if release.get("ID") != "debian" or release.get("VERSION_ID") not in ("12", "13"):
        found = release.get("PRETTY_NAME", "an unknown system")
        raise LabError(f"the lab runs on Debian 12 or 13, this is {found}")


def prepare(lab: str) -> None:
    """Installs what is missing and writes the lab's containers.conf."""
    STATE.mkdir(parents=True, exist_ok=True)
    conf = STATE / "containers.conf"
    if not conf.exists() or conf.read_text() != CONTAINERS_CONF:
        conf.write_text(CONTAINERS_CONF)
    listed = run(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *PACKAGES], check=False).stdout
    installed = {line.split()[0] for line in listed.splitlines() if line.endswith(" installed")}
    missing = [name for name in PACKAGES if name not in installed]
    if not missing:
        return
    say(lab, f"installing {', '.join(missing)}")
    apt_get = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
    install = [*apt_get, "install", "--yes", "--no-install-recommends", *missing]
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    if run(install, check=False).returncode != 0:  # the package lists may be old or absent
        run([*apt_get, "update"])
        run(install)


def fail(message: str) -> int:
    """Prints the one line of an error and returns the exit status."""
    print(f"scripts/lab: {message}", file=sys.stderr)
    return 1
