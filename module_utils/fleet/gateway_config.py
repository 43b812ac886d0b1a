"""A set of configuration files that is checked as a whole before any of it is put in place.

Files of one service refer to each other, so a file alone cannot be judged. The set is written to a directory of its
own, the service's own check is run there, and only then is each file replaced. The digest of the set, its revision,
stands in the files themselves: a service that shows it can be asked which set it has loaded.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

REVISION_PLACEHOLDER = "@REVISION@"
"""Stands for the revision in the text of a file."""

CHECK_TIMEOUT_S = 60
LOADED_TIMEOUT_S = 3
_REVISION_DIGITS = 16


@dataclass(frozen=True)
class ConfigSet:
    """Configuration files of one service, and how they are to lie on disk.

    Attributes:
        directory: where they belong.
        files: text by file name, the revision filled in.
        mode: permission bits of each file.
        group_id: owning group; ``None`` leaves it as it is.
        revision: digest of all names and texts.
    """

    directory: Path
    files: Mapping[str, str]
    mode: int
    group_id: int | None
    revision: str


def config_set(directory: Path, files: Mapping[str, object], mode: int, group_id: int | None) -> ConfigSet:
    """Build a set: compute its revision and write that into every file that asks for it."""
    digest = hashlib.sha256()
    texts: dict[str, str] = {}
    for name, text in sorted(files.items()):
        if name != os.path.basename(name) or name in {"", ".", ".."}:
            raise FleetError(f"files[{name!r}]", "must be a file name without a directory")
        if not isinstance(text, str):
            raise FleetError(f"files[{name!r}]", f"must be text, got {type(text).__name__}")
        texts[name] = text
        for part in (name, text):
            encoded = part.encode()
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
    revision = digest.hexdigest()[:_REVISION_DIGITS]
    filled = {name: text.replace(REVISION_PLACEHOLDER, revision) for name, text in texts.items()}
    return ConfigSet(directory, filled, mode, group_id, revision)


def current_text(config: ConfigSet, name: str) -> str | None:
    """Return the text of a file as it is on disk, ``None`` where there is none."""
    try:
        return (config.directory / name).read_text(errors="replace")
    except FileNotFoundError:
        return None


def differing_files(config: ConfigSet) -> list[str]:
    """Return the names of the files whose text, mode or group on disk is not the wanted one, sorted."""
    return sorted(name for name in config.files if not _as_wanted(config, name))


def _as_wanted(config: ConfigSet, name: str) -> bool:
    if current_text(config, name) != config.files[name]:
        return False
    status = (config.directory / name).stat()
    return stat.S_IMODE(status.st_mode) == config.mode and config.group_id in {None, status.st_gid}


def check(config: ConfigSet, command: Sequence[str]) -> None:
    """Run the service's own check on a copy of the set.

    Args:
        config: what is to be checked.
        command: the program and its arguments; ``{directory}`` in them becomes the directory of the copy.

    Raises:
        FleetError: the check refused the set; the error names the files by their final paths.
    """
    copy = tempfile.mkdtemp(prefix="config-check-")
    try:
        for name, text in config.files.items():
            Path(copy, name).write_text(text)
        arguments = [argument.replace("{directory}", copy) for argument in command]
        try:
            result = subprocess.run(
                arguments,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=CHECK_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise FleetError(str(config.directory), f"could not be checked: {error}") from error
        if result.returncode != 0:
            said = (result.stderr + result.stdout).replace(copy, str(config.directory))
            raise FleetError(str(config.directory), f"refused by {command[0]}: {_complaint(said)}")
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _complaint(text: str) -> str:
    """Shorten a program's output to its first complaint; it is in the order in which the program met the faults."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    alerts = [line for line in lines if "ALERT" in line or "error" in line.lower()]
    return (alerts or lines or ["no output"])[0]


def install(config: ConfigSet, names: Sequence[str]) -> None:
    """Replace the named files, each in one step, so that a reader sees the old or the new text and never a part."""
    config.directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{name}-", dir=config.directory)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(config.files[name])
                os.fchmod(file.fileno(), config.mode)
                if config.group_id is not None:
                    os.fchown(file.fileno(), -1, config.group_id)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, config.directory / name)
        except BaseException:
            os.unlink(temporary)
            raise


def loaded_revision(url: str) -> str | None:
    """Ask the running service which revision it has loaded; ``None`` where it does not answer."""
    try:
        with urllib.request.urlopen(url, timeout=LOADED_TIMEOUT_S) as answer:  # noqa: S310 - the role gives an http URL
            text: str = answer.read().decode(errors="replace")
    except (OSError, urllib.error.URLError):
        return None
    return text.strip() or None
