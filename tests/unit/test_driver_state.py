"""What is read of a host's driver: kernels, headers, DKMS, Secure Boot, package sources; on trees of files."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from fleet.driver_catalog import driver_set
from fleet.driver_kernels import build_failure, read_kernels
from fleet.driver_requirements import cuda_of_driver, driver_need
from fleet.driver_sources import missing_components_source, read_sources
from fleet.driver_state import DriverState, read_state
from fleet.errors import FleetError
from fleet.probe_host import Paths

if TYPE_CHECKING:
    from pathlib import Path

OLD, NEW = "6.1.0-9-amd64", "6.1.0-40-amd64"
STATUS = "Package: libcuda1\nStatus: hold ok installed\nVersion: 580.95.05-1\n\n"


class Tree:
    """A host with two kernels, a driver for both, the older kernel running, nothing amiss."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.paths = Paths(sysfs=directory / "sys", procfs=directory / "proc", root=self.root)
        self.write(self.paths.procfs / "sys/kernel/osrelease", OLD)
        self.write(self.paths.sysfs / "module/nvidia/version", "580.95.05")
        self.write(self.root / "var/lib/dpkg/status", STATUS)
        for release in (OLD, NEW):
            self.write(self.root / f"boot/vmlinuz-{release}")
            self.write(self.root / f"lib/modules/{release}/build/Makefile")
            self.build(release)

    def write(self, path: Path, text: str = "") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def build(self, release: str) -> None:
        """What DKMS leaves behind when it has built and installed the module."""
        dkms = self.root / "var/lib/dkms/nvidia"
        self.write(dkms / "580.95.05/source/dkms.conf")
        self.write(dkms / f"580.95.05/{release}/x86_64/module/nvidia.ko")
        (dkms / f"kernel-{release}-x86_64").symlink_to(f"580.95.05/{release}/x86_64")
        self.write(
            self.root / f"lib/modules/{release}/modules.dep",
            "kernel/drivers/gpu/drm/drm.ko.xz:\nupdates/dkms/nvidia-uvm.ko: updates/dkms/nvidia.ko\n"
            "updates/dkms/nvidia-modeset.ko: updates/dkms/nvidia.ko\nupdates/dkms/nvidia.ko:\n",
        )

    def unbuild(self, release: str) -> None:
        """As after a kernel upgrade whose DKMS build failed."""
        (self.root / f"var/lib/dkms/nvidia/kernel-{release}-x86_64").unlink()
        (self.root / f"var/lib/dkms/nvidia/580.95.05/{release}/x86_64/module/nvidia.ko").unlink()
        self.write(self.root / f"lib/modules/{release}/modules.dep", "kernel/drivers/gpu/drm/drm.ko.xz:\n")

    def state(self) -> DriverState:
        return read_state(self.paths)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


class TestKernels:
    def test_sound(self, tree: Tree) -> None:
        kernels = read_kernels(tree.root, OLD)
        assert (kernels.running, kernels.following) == (OLD, NEW)
        assert kernels.facts[NEW].nvidia_module == "updates/dkms/nvidia.ko"
        assert kernels.facts[NEW].dkms == ("nvidia/580.95.05: installed",)
        assert tree.state().document()["kernel_faults"] == []

    def test_a_kernel_upgrade_without_a_build(self, tree: Tree) -> None:
        tree.unbuild(NEW)
        assert tree.state().document()["kernel_faults"] == [
            f"kernel {NEW} has no nvidia module (nvidia/580.95.05: added)"
        ]

    def test_a_dangling_link_to_headers(self, tree: Tree) -> None:
        tree.unbuild(NEW)
        (tree.root / f"lib/modules/{NEW}/build/Makefile").unlink()
        assert not read_kernels(tree.root, OLD).facts[NEW].headers

    def test_grub_is_told_to_boot_the_older_one(self, tree: Tree) -> None:
        tree.write(
            tree.root / "boot/grub/grubenv", f"# GRUB Environment Block\nsaved_entry=gnulinux-{OLD}-advanced-1\n"
        )
        assert read_kernels(tree.root, OLD).following == OLD

    def test_grub_names_no_kernel(self, tree: Tree) -> None:
        tree.write(tree.root / "boot/grub/grubenv", "saved_entry=0\n")
        assert read_kernels(tree.root, OLD).following == NEW

    def test_container(self, tmp_path: Path) -> None:
        kernels = read_kernels(tmp_path, "6.18.0")
        assert kernels.following is None
        assert not kernels.facts["6.18.0"].headers


class TestBuildFailure:
    @pytest.mark.parametrize(
        ("log", "said"),
        [
            (
                "make: Entering\n  CC [M] a.o\n/build/a.c:12:3: error: too few arguments\nmake: *** [a.o] Error 1\n",
                "12:3: error:",
            ),
            (
                "  CC [M] a.o\ngcc: fatal error: Killed signal terminated program cc1\nmake: *** [a.o]\n",
                "Killed signal",
            ),
            ("  LD\nmake[1]: *** No rule to make target 'scripts/module.lds'.  Stop.\n", "No rule to make target"),
            ("  CC [M] a.o\nsomething else at the end\n", "something else at the end"),
        ],
    )
    def test_the_first_cause_is_told(self, tree: Tree, log: str, said: str) -> None:
        tree.write(tree.root / "var/lib/dkms/nvidia-current-open/535.261.03/build/make.log", log)
        told = build_failure(tree.root)
        assert told is not None
        assert told.startswith("nvidia-current-open/535.261.03 did not build: ")
        assert said in told

    def test_nothing_where_all_was_built_or_another_module_was_not(self, tree: Tree) -> None:
        tree.write(tree.root / "var/lib/dkms/zfs/2.1/build/make.log", "error: not ours")
        assert build_failure(tree.root) is None


class TestReboot:
    def test_none_is_needed(self, tree: Tree) -> None:
        assert tree.state().reboot_reasons == []

    def test_another_driver_is_loaded_than_installed(self, tree: Tree) -> None:
        tree.write(tree.paths.sysfs / "module/nvidia/version", "550.163.01")
        assert tree.state().reboot_reasons == ["kernel module 550.163.01 is loaded, driver 580.95.05 is installed"]

    def test_nouveau(self, tree: Tree) -> None:
        (tree.paths.sysfs / "module/nvidia/version").unlink()
        (tree.paths.sysfs / "module/nouveau").mkdir()
        assert tree.state().reboot_reasons[0] == "nouveau is loaded"

    def test_module_is_for_the_next_kernel_only(self, tree: Tree) -> None:
        (tree.paths.sysfs / "module/nvidia/version").unlink()
        tree.unbuild(OLD)
        assert tree.state().reboot_reasons == [f"kernel {OLD} has no nvidia module, {NEW} boots next"]

    def test_a_container_is_not_rebooted(self, tree: Tree) -> None:
        tree.write(tree.paths.sysfs / "module/nvidia/version", "550.163.01")
        tree.write(tree.root / "run/systemd/container", "podman")
        assert tree.state().reboot_reasons == []


class TestSecureBoot:
    CERTIFICATE = b"0\x82 a certificate"

    @pytest.fixture
    def secure(self, tree: Tree) -> Tree:
        variables = tree.paths.sysfs / "firmware/efi/efivars"
        variables.mkdir(parents=True)
        (variables / "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c").write_bytes(b"\x06\0\0\0\x01")
        (tree.paths.sysfs / "module/nvidia/version").unlink()
        key = tree.root / "var/lib/dkms/mok.pub"
        key.write_bytes(self.CERTIFICATE)
        return tree

    def enrol(self, tree: Tree, content: bytes) -> None:
        target = tree.paths.sysfs / "firmware/efi/mok-variables/MokListRT"
        target.parent.mkdir()
        target.write_bytes(content)

    def test_steps_at_the_console(self, secure: Tree) -> None:
        steps = secure.state().secure_boot_steps
        assert steps[0] == "run `mokutil --import /var/lib/dkms/mok.pub` and choose a one-time password"
        assert "Enroll MOK" in steps[1]

    def test_enrolled(self, secure: Tree) -> None:
        self.enrol(secure, b"header" + self.CERTIFICATE + b"trailer")
        assert secure.state().key_enrolled
        assert secure.state().secure_boot_steps == []

    def test_enrolled_from_a_text_form(self, secure: Tree) -> None:
        text = base64.encodebytes(self.CERTIFICATE).decode()
        key = f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n"
        (secure.root / "var/lib/dkms/mok.pub").write_text(key)
        self.enrol(secure, self.CERTIFICATE)
        assert secure.state().key_enrolled

    def test_another_key_is_enrolled(self, secure: Tree) -> None:
        self.enrol(secure, b"somebody else's")
        assert len(secure.state().secure_boot_steps) == 3

    def test_no_key_yet(self, secure: Tree) -> None:
        (secure.root / "var/lib/dkms/mok.pub").unlink()
        assert secure.state().secure_boot_steps[0].startswith("install dkms")

    def test_module_is_loaded_all_the_same(self, secure: Tree) -> None:
        state = secure.state()
        assert replace(state, kernel=replace(state.kernel, module_version="580.95.05")).secure_boot_steps == []


class TestSources:
    MAIN = "deb [signed-by=/k.gpg] http://mirror.example/debian trixie main\n# deb http://x trixie non-free\n"

    def sources(self, root: Path, **files: str) -> str | None:
        for name, text in files.items():
            path = root / "etc/apt/sources.list.d" / name.replace("__", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        found = read_sources(root, leave_out="/etc/apt/sources.list.d/own.sources")
        return missing_components_source(found, "trixie", ("contrib", "non-free"))

    def test_what_is_missing_comes_from_the_same_mirror(self, tmp_path: Path) -> None:
        deb822 = (
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie trixie-updates\nComponents: main contrib\n"
            "\nTypes: deb\nURIs: http://mirror.example/security\nSuites: trixie-security\nComponents: main\n"
        )
        text = self.sources(tmp_path, a__sources=deb822)
        assert text is not None
        assert "URIs: http://mirror.example/debian\nSuites: trixie trixie-updates\nComponents: non-free\n" in text
        assert "URIs: http://mirror.example/security\nSuites: trixie-security\n" in text

    def test_one_line_sources_keep_their_key(self, tmp_path: Path) -> None:
        text = self.sources(tmp_path, a__list=self.MAIN)
        assert text is not None
        assert text.endswith("Suites: trixie\nComponents: contrib non-free\nSigned-By: /k.gpg\n")

    def test_its_own_file_does_not_count(self, tmp_path: Path) -> None:
        text = self.sources(tmp_path, a__list=self.MAIN)
        assert text is not None
        assert self.sources(tmp_path, own__sources=text) == text

    def test_nothing_is_missing(self, tmp_path: Path) -> None:
        assert self.sources(tmp_path, a__list="deb http://m trixie main contrib non-free non-free-firmware\n") is None

    @pytest.mark.parametrize("text", ["deb http://m sid main\n", "deb-src http://m trixie main\n", ""])
    def test_no_source_of_the_release(self, tmp_path: Path, text: str) -> None:
        assert self.sources(tmp_path, a__list=text) is None

    def test_a_source_that_is_switched_off(self, tmp_path: Path) -> None:
        off = "Enabled: no\nTypes: deb\nURIs: http://m\nSuites: trixie\nComponents: main non-free\n"
        assert self.sources(tmp_path, a__sources=off) is None


class TestCatalog:
    @pytest.mark.parametrize(
        ("system", "source", "options", "packages"),
        [
            (("debian", "12"), "nvidia_repo", {}, ("nvidia-driver-cuda", "nvidia-kernel-open-dkms")),
            (("debian", "13"), "nvidia_repo", {"open_modules": False}, ("nvidia-driver-cuda", "nvidia-kernel-dkms")),
            (("debian", "13"), "cuda_compat", {}, ("cuda-compat-13-0",)),
            (
                ("debian", "13"),
                "distro",
                {"branch": 535, "open_modules": False},
                (
                    "nvidia-tesla-535-kernel-dkms",
                    "libnvidia-tesla-535-cuda1",
                    "libnvidia-tesla-535-ml1",
                    "libnvidia-tesla-535-cfg1",
                    "nvidia-tesla-535-smi",
                    "nvidia-persistenced",
                ),
            ),
            (
                ("ubuntu", "24.04"),
                "distro",
                {},
                (
                    "libnvidia-compute-580-server",
                    "nvidia-dkms-580-server-open",
                    "nvidia-utils-580-server",
                    "nvidia-compute-utils-580-server",
                ),
            ),
            (
                ("rocky", "9.5"),
                "nvidia_repo",
                {},
                ("nvidia-driver-cuda", "kmod-nvidia-open-dkms", "nvidia-persistenced"),
            ),
        ],
    )
    def test_packages(
        self, system: tuple[str, str], source: str, options: dict[str, object], packages: tuple[str, ...]
    ) -> None:
        assert driver_set(*system, source, **options).packages == packages  # type: ignore[arg-type]

    def test_repository_of_nvidia(self) -> None:
        found = driver_set("debian", "13", "nvidia_repo")
        assert found.repository == "https://developer.download.nvidia.com/compute/cuda/repos/debian13/x86_64/"
        assert found.key == found.repository + "8793F200.pub"

    @pytest.mark.parametrize(("needed", "branch"), [(0, 580), (580, 580), (590, 590)])
    def test_branch_follows_the_engine(self, needed: int, branch: int) -> None:
        assert driver_set("debian", "12", "nvidia_repo", needed_branch=needed).branch == branch

    def test_rhel_has_no_driver_of_its_own(self) -> None:
        with pytest.raises(FleetError, match=r"rhel 9\.4 has driver branches none itself"):
            driver_set("rhel", "9.4", "distro")

    @pytest.mark.parametrize(
        ("version", "accelerator", "need"),
        [
            ("0.33.0", "cuda", (13000, 580)),
            ("0.20.0", "cuda", (13000, 580)),
            ("0.19.1", "cuda", (12000, 525)),
            ("0.32.0", "cpu", (0, 0)),
        ],
    )
    def test_what_an_engine_needs(self, version: str, accelerator: str, need: tuple[int, int]) -> None:
        found = driver_need(version, accelerator)
        assert (found.cuda_driver_version, found.branch) == need

    @pytest.mark.parametrize(
        ("driver", "cuda"),
        [("580.95.05", 13000), ("550.163.01", 12040), ("600.1", 13010), ("535", 12020), ("390.157", None), ("x", None)],
    )
    def test_what_a_driver_speaks(self, driver: str, cuda: int | None) -> None:
        assert cuda_of_driver(driver) == cuda
