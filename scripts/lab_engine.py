"""The engines of the lab: vLLM's CPU build, installed once by the role's own installer, shared read-only by the nodes.

It is installed in a throw-away container of the node image, so that the virtual environment fits their Python. An
environment can be moved, so its path there is no matter. Files are hard links of those in uv's cache: another version
takes the disk of what differs.
"""

from __future__ import annotations

import configparser
import os
import re
import sys
from pathlib import Path

from lab_host import CHECKOUT, LabError, cache_directory, environment, locked, podman, run, say

INSTALLER = CHECKOUT / "roles" / "vllm" / "files" / "vllm-install"
VARIABLES = CHECKOUT / "inventory" / "lab" / "group_vars" / "all" / "fleet.yml"
PREFIX = Path("/opt/vllm")
# The cache in the container that installs. One mount, since no hard link leads from one mount to another.
CACHE_INSIDE = Path("/var/cache/l40s-fleet")
PIP_CONFIGURATIONS = (
    "/etc/pip.conf",
    "/etc/xdg/pip/pip.conf",
    "~/.pip/pip.conf",
    "~/.config/pip/pip.conf",
)
# How this machine reaches its package index, in the variables that pip, uv and their libraries know.
NETWORK_VARIABLES = re.compile(
    r"^(https?|no|all)_proxy$|^(UV|PIP)_\w*(INDEX|URL|CERT|HOST|TIMEOUT)\w*$|^SSL_CERT_FILE$", re.I
)


def store() -> Path:
    """Where the engines are on this machine; nodes see it at /opt/vllm."""
    return cache_directory() / "engines" / "vllm"


def version() -> str:
    """The version that the lab's inventory asks for."""
    found = re.search(r'^vllm_version: "?([\w.]+)"?$', VARIABLES.read_text(), re.MULTILINE)
    if found is None:
        raise LabError(f"{VARIABLES}: vllm_version is not there")
    return found[1]


def python() -> Path:
    """The engine's Python, as a path inside a node."""
    return PREFIX / version() / "bin" / "python"


def install(lab: str, image: str, wanted: str | None = None) -> None:
    """Makes sure that the store holds the engine, in the version of the lab's inventory or another one."""
    wanted = wanted or version()
    arguments = ["--version", wanted, "--accelerator", "cpu"]
    what = f"vLLM {wanted} for CPU into {store()} (once; one to three minutes)"
    install_environment(lab, image, INSTALLER, arguments, place=store(), what=what)


def install_environment(lab: str, image: str, installer: Path, arguments: list[str], *, place: Path, what: str) -> None:
    """Has a role's own installer make an environment in a throw-away container, unless it is there.

    Args:
        lab: the lab, for messages.
        image: the image of the nodes, whose Python the environment is made for.
        installer: the program of the role.
        arguments: which environment.
        place: the directory of environments on this machine, in the cache.
        what: the environment in words.
    """
    check = run([sys.executable, installer, *arguments, "--prefix", place, "--check"], check=False)
    if check.returncode == 0:
        return
    with locked(place.parent / ".lock"):
        say(lab, f"installing {what}")
        place.mkdir(parents=True, exist_ok=True)
        uv = CHECKOUT / "build" / "bootstrap" / "bin" / "uv"
        if not uv.exists():
            raise LabError(f"{uv}: not there (run `make setup`)")
        wheels = find_links()
        mounts = [f"{cache_directory()}:{CACHE_INSIDE}", f"{CHECKOUT}:{CHECKOUT}:ro"]
        mounts += [f"{path}:{path}:ro" for path in wheels]
        passed = {name: value for name, value in os.environ.items() if NETWORK_VARIABLES.fullmatch(name)}
        if "SSL_CERT_FILE" in passed:
            mounts.append(f"{passed['SSL_CERT_FILE']}:{passed['SSL_CERT_FILE']}:ro")
        passed |= {"UV_CACHE_DIR": str(CACHE_INSIDE / "uv"), "UV_LINK_MODE": "hardlink"}
        podman(
            "run",
            "--rm",
            "--network=host",
            *(f"--volume={mount}" for mount in mounts),
            *(f"--env={name}={value}" for name, value in passed.items()),
            image,
            "/usr/bin/python3",
            installer,
            *arguments,
            f"--prefix={CACHE_INSIDE / place.relative_to(cache_directory())}",
            f"--uv={uv}",
            "--python=/usr/bin/python3.11",
            *(f"--find-links={path}" for path in wheels),
        )


def find_links() -> list[str]:
    """Directories with wheels that this machine's pip is told to look into."""
    words = (os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or "").replace(",", " ").split()
    parser = configparser.ConfigParser(interpolation=None)
    parser.read([Path(name).expanduser() for name in PIP_CONFIGURATIONS])
    words += parser.get("global", "find-links", fallback="").split()
    return sorted({word for word in words if word.startswith("/") and Path(word).is_dir()})


def exec_python(image: str, arguments: list[str]) -> None:
    """Replaces this process by the engine's Python in a throw-away container.

    It sees the checkout read-only at its own path and /tmp, and has no network but its own loopback.
    """
    passed = {name: value for name, value in os.environ.items() if name.startswith("VLLM_") or name == "PYTHONPATH"}
    here = Path.cwd()
    inside = here if here.is_relative_to(CHECKOUT) or here.is_relative_to("/tmp") else CHECKOUT  # noqa: S108
    command = [
        "podman",
        "run",
        "--rm",
        "--interactive",
        "--network=none",
        "--shm-size=1g",
        f"--volume={store()}:{PREFIX}:ro",
        f"--volume={CHECKOUT}:{CHECKOUT}:ro",
        "--volume=/tmp:/tmp",
        f"--workdir={inside}",
        *(f"--env={name}={value}" for name, value in passed.items()),
        "--env=HOME=/root",
        "--env=VLLM_NO_USAGE_STATS=1",
        image,
        str(python()),
        *arguments,
    ]
    os.execvpe("podman", command, environment())  # noqa: S606
