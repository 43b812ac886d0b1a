"""Small signed apt repositories with packages that are named as NVIDIA's, for the tests of the driver's packages.

The packages are real and hold next to nothing. Beside good ones there are repositories that fail in every way that a
repository can: signed by another key, with a package that is not what the index says, with a package that cannot be
configured.
"""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import subprocess
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pathlib

# Version, and what the configuration of the kernel module's package does.
GOOD = {"580.82.07": "", "580.95.05": "", "590.44.01": ""}
NAMES = {
    "nvidia-driver-cuda": (
        "libcuda1 (= {v}-1), libnvidia-ml1 (= {v}-1), nvidia-smi (= {v}-1), nvidia-persistenced (= {v}-1)"
    ),
    "nvidia-kernel-open-dkms": "nvidia-driver-cuda (= {v}-1)",
    "libcuda1": "libnvidia-ptxjitcompiler1 (= {v}-1)",
    "libnvidia-ml1": "",
    "libnvidia-cfg1": "",
    "libnvidia-ptxjitcompiler1": "",
    "nvidia-smi": "libnvidia-ml1 (= {v}-1)",
    "nvidia-persistenced": "libnvidia-cfg1 (= {v}-1)",
}


class Repositories:
    """Repositories in a directory, served over HTTP as long as the object is entered."""

    def __init__(self, directory: pathlib.Path, address: str) -> None:
        self.directory = directory
        self.key = directory / "key.asc"
        self._home = directory / "gnupg"
        self._home.mkdir(mode=0o700)
        for name in ("test", "stranger"):
            self._gpg(
                "--batch", "--passphrase", "", "--quick-generate-key", f"{name}@l40s-fleet.invalid", "ed25519", "sign"
            )
        self.key.write_text(self._gpg("--armor", "--export", "test@l40s-fleet.invalid"))
        self._make("good", GOOD, "test")
        self._make("stranger", GOOD, "stranger")
        self._make("corrupt", GOOD, "test")
        for package in (directory / "corrupt").glob("libcuda1_580.95.05*.deb"):
            package.write_bytes(package.read_bytes()[:-1] + b"?")
        self._make("unconfigurable", {"580.99.01": "echo 'the module cannot be built' >&2; exit 1"}, "test")
        self._make("slow", {"580.97.01": "sleep 300"}, "test")
        handler = lambda *arguments: _Quiet(*arguments, directory=str(directory))  # noqa: E731
        self._server = http.server.ThreadingHTTPServer((address, 0), handler)
        self._address = address

    def url(self, name: str) -> str:
        """The address of a repository."""
        return f"http://{self._address}:{self._server.server_port}/{name}/"

    def __enter__(self) -> Repositories:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _make(self, name: str, versions: dict[str, str], signer: str) -> None:
        repository = self.directory / name
        repository.mkdir()
        index = ""
        for version, configure in versions.items():
            for package, depends in NAMES.items():
                script = configure if package == "nvidia-kernel-open-dkms" else ""
                index += self._build(repository, package, version, depends.format(v=version), script)
            index += self._build(repository, "cuda-compat-13-0", version, "", "")
        (repository / "Packages").write_text(index)
        (repository / "Packages.gz").write_bytes(gzip.compress(index.encode(), mtime=0))
        release = f"Origin: l40s-fleet-test\nLabel: {name}\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n"
        for file in ("Packages", "Packages.gz"):
            content = (repository / file).read_bytes()
            release += f" {hashlib.sha256(content).hexdigest()} {len(content)} {file}\n"
        (repository / "Release").write_text(release)
        self._gpg(
            "--batch", "--yes", "--local-user", f"{signer}@l40s-fleet.invalid", "--digest-algo", "SHA512",
            "--clearsign", "--output", str(repository / "InRelease"), str(repository / "Release"),
        )  # fmt: skip

    def _build(self, repository: pathlib.Path, package: str, version: str, depends: str, configure: str) -> str:
        root = self.directory / "root" / f"{repository.name}-{package}-{version}"
        (root / "DEBIAN").mkdir(parents=True)
        document = root / "usr/share" / package / "version"
        document.parent.mkdir(parents=True)
        document.write_text(version + "\n")
        control = f"Package: {package}\nVersion: {version}-1\nArchitecture: amd64\nMaintainer: l40s-fleet tests\n"
        control += f"Depends: {depends}\n" if depends else ""
        # As NVIDIA's own packages do to the distribution's.
        if package == "nvidia-kernel-open-dkms":
            control += "Conflicts: nvidia-open-kernel-dkms, nvidia-kernel-dkms\nReplaces: nvidia-open-kernel-dkms\n"
        control += f"Description: stands for {package} in tests\n"
        (root / "DEBIAN/control").write_text(control)
        if configure:
            script = root / "DEBIAN/postinst"
            script.write_text(f"#!/bin/sh\n{configure}\n")
            script.chmod(0o755)
        target = repository / f"{package}_{version}-1_amd64.deb"
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", root, target], check=True, stdout=subprocess.DEVNULL
        )
        content = target.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        return f"{control}Filename: ./{target.name}\nSize: {len(content)}\nSHA256: {digest}\n\n"

    def _gpg(self, *arguments: str) -> str:
        done = subprocess.run(
            ["gpg", "--quiet", "--homedir", self._home, "--pinentry-mode", "loopback", *arguments],
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Tests have no use for an access log."""
