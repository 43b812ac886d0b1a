"""The node image: a small Debian with systemd and sshd, made by mmdebstrap and kept by a key of its content."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from pathlib import Path

from lab_host import LAB_SOURCES, cache_directory, locked, podman, run, say

RELEASE = "bookworm"
RELEASES = (RELEASE, "trixie")
# packages.txt has bookworm's names; what other releases call those packages.
RENAMED = {"trixie": {"libpython3.11": "libpython3.13"}}
# Units of those releases that cannot run in a container, beside those that customize.sh masks.
MASKED = {"trixie": ("systemd-modules-load.service",)}
RECIPE = LAB_SOURCES / "node"
REPOSITORY = "localhost/l40s-lab-node"
# Every file is dated to the day of this release at the latest, so that the same packages give the same image.
SOURCE_DATE_EPOCH = "1748736000"
# How this machine reaches its package mirror; all else in its apt configuration is its own business.
APT_OPTIONS = re.compile(r'^(Acquire::(https?::\S+|Check-Valid-Until|Check-Date|Retries)) "(.+)";$')


def node_image(lab: str, release: str = RELEASE) -> str:
    """Makes sure that podman has the node image of a Debian release, and returns its name.

    Returns:
        The name with the content key as its tag.
    """
    packages = _packages(release)
    options = apt_options()
    sources = apt_sources(release)
    key = _content_key(release, packages, options, sources)
    image = f"{REPOSITORY}:{key}"
    if podman("image", "exists", image, check=False).returncode == 0:
        return image
    archive = cache_directory() / "images" / f"node-{release}-{key}.tar"
    with locked(archive.parent / ".lock"):
        if not archive.exists():
            say(lab, f"building the node image ({release}, {len(packages)} packages asked for; once, about 30 s)")
            _build(archive, release, packages, options, sources)
        if podman("image", "exists", image, check=False).returncode != 0:
            podman("import", "--quiet", archive, image)
    return image


def apt_sources(release: str = RELEASE) -> list[str]:
    """One-line sources for the node's release, from the mirrors that this machine itself uses for its own.

    Empty where this machine names its mirrors in a way that a container cannot follow, such as a local directory: then
    mmdebstrap takes Debian's default.
    """
    own = platform.freedesktop_os_release().get("VERSION_CODENAME", release)
    listing = run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"],
        check=False,
    ).stdout
    return sources_for_nodes(listing, own, release)


def sources_for_nodes(listing: str, own_release: str, release: str = RELEASE) -> list[str]:
    """Turns `URI release component` lines about this machine's release into sources of the node's release."""
    wanted = {f"{own_release}{suite}": f"{release}{suite}" for suite in ("", "-updates", "-security")}
    found = []
    for line in sorted(set(listing.splitlines())):
        uri, suite, component = line.split()
        if suite in wanted and component == "main" and uri.startswith(("http://", "https://")):
            found.append(f"deb {uri} {wanted[suite]} {component}")
    has_base = any(line.split()[2] == release for line in found)
    return found if has_base else []


def apt_options() -> list[str]:
    """The lines of apt configuration (proxy, certificates, tolerance of old lists) that nodes need as well."""
    dump = run(["apt-config", "dump", "Acquire"]).stdout
    options = [line for line in dump.splitlines() if APT_OPTIONS.match(line)]
    for variable in ("http_proxy", "https_proxy"):
        scheme = variable.removesuffix("_proxy")
        if os.environ.get(variable) and not any(f"{scheme}::Proxy " in line for line in options):
            options.append(f'Acquire::{scheme}::Proxy "{os.environ[variable]}";')
    return options


def _packages(release: str) -> list[str]:
    lines = (RECIPE / "packages.txt").read_text().splitlines()
    renamed = RENAMED.get(release, {})
    return [renamed.get(line, line) for line in lines if line and not line.startswith("#")]


def _content_key(release: str, packages: list[str], options: list[str], sources: list[str]) -> str:
    digest = hashlib.sha256()
    authorities = Path("/usr/local/share/ca-certificates")
    inputs = [path for directory in (RECIPE, authorities) for path in sorted(directory.rglob("*")) if path.is_file()]
    for path in inputs:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    for part in (release, SOURCE_DATE_EPOCH, *packages, *options, *sources, *MASKED.get(release, ())):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:12]


def _build(archive: Path, release: str, packages: list[str], options: list[str], sources: list[str]) -> None:
    unfinished = archive.with_suffix(".unfinished.tar")
    sources_file = archive.with_suffix(".sources.list")
    sources_file.write_text("\n".join(sources) + "\n")
    command = [
        "mmdebstrap",
        "--quiet",
        "--mode=root",
        "--variant=minbase",
        f"--include={','.join(packages)}",
        *(f"--aptopt={option}" for option in options),
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        f"--customize-hook={RECIPE / 'customize.sh'}",
        *(f'--customize-hook=chroot "$1" systemctl mask --quiet {unit}' for unit in MASKED.get(release, ())),
        release,
        str(unfinished),
        *([str(sources_file)] if sources else []),
    ]
    os.environ["SOURCE_DATE_EPOCH"] = SOURCE_DATE_EPOCH
    try:
        run(command)
    finally:
        del os.environ["SOURCE_DATE_EPOCH"]
        sources_file.unlink()
    unfinished.rename(archive)
