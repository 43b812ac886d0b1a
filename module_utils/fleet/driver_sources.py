"""A package source for components that a Debian host does not have yet, from the mirror that it has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_ONE_LINE = re.compile(r"^deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+(.+?)\s*(?:#.*)?$", re.MULTILINE)
_FIELD = re.compile(r"^(\w[\w-]*):[ \t]*(.*(?:\n[ \t].+)*)", re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """One suite of one package source of binary packages, in the order of apt's files."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str


def read_sources(root: Path, leave_out: str = "") -> list[Source]:
    """Return a host's package sources.

    Args:
        root: of the host.
        leave_out: path of a file that does not count.
    """
    apt = root / "etc/apt"
    paths = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    found: list[Source] = []
    for path in paths:
        if f"/{path.relative_to(root)}" == leave_out:
            continue
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if path.suffix == ".list":
            found += _one_line_sources(text)
        elif path.suffix == ".sources":
            found += _deb822_sources(text)
    return found


def missing_components_source(sources: Sequence[Source], release: str, components: Sequence[str]) -> str | None:
    """Return a source file for the components that no source of the host has.

    Args:
        sources: of the host.
        release: codename of the host's release.
        components: what is wanted, as in ``contrib``, ``non-free``.

    Returns:
        The file's text; None where the host's sources have every component, and where none of them is of its release.
    """
    own = [one for one in sources if one.suite.partition("-")[0] == release and "main" in one.components]
    have = {component for one in sources if one.suite == release for component in one.components}
    missing = [component for component in components if component not in have]
    if not missing or not own:
        return None
    stanzas = []
    for uri in dict.fromkeys(one.uri for one in own):
        suites = [one for one in own if one.uri == uri]
        lines = (
            "Types: deb",
            f"URIs: {uri}",
            f"Suites: {' '.join(dict.fromkeys(one.suite for one in suites))}",
            f"Components: {' '.join(missing)}",
            f"Signed-By: {next((one.signed_by for one in suites if one.signed_by), _KEYRING)}",
        )
        stanzas.append("\n".join(lines))
    return "# Ansible managed: l40s-fleet, role nvidia_driver\n" + "\n\n".join(stanzas) + "\n"


def _one_line_sources(text: str) -> list[Source]:
    found = []
    for options, uri, suite, components in _ONE_LINE.findall(text):
        signed_by = re.search(r"signed-by=(\S+)", options, re.IGNORECASE)
        found.append(Source(uri, suite, tuple(components.split()), signed_by[1] if signed_by else ""))
    return found


def _deb822_sources(text: str) -> list[Source]:
    found: list[Source] = []
    without_comments = re.sub(r"^#.*\n?", "", text, flags=re.MULTILINE)
    for stanza in re.split(r"\n\s*\n", without_comments):
        fields = {name.lower(): value.strip() for name, value in _FIELD.findall(stanza)}
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        # A key in the file itself cannot be pointed at; Debian's keyring stands for it.
        key = fields.get("signed-by", "")
        found += [
            Source(uri, suite, tuple(fields.get("components", "").split()), key if key.startswith("/") else "")
            for uri in fields.get("uris", "").split()
            for suite in fields.get("suites", "").split()
        ]
    return found
