"""What a change of the driver is to do, and what it must not do: pure decisions over packages and kernels."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fleet.driver_apt import Step, archive_name, error_line, parse_steps
from fleet.driver_kernels import KernelFacts, Kernels
from fleet.driver_packages import Package, installed_driver, is_driver, parse_status
from fleet.driver_plan import (
    Record,
    Wanted,
    apt_arguments,
    choose_version,
    contents,
    guard,
    has_version,
    header_packages,
    is_satisfied,
    kernel_faults,
    parse_record,
)
from fleet.errors import FleetError

WANTED = Wanted(packages=("nvidia-open-kernel-dkms", "libcuda1"), version="580", versioned=("libcuda1",))
CONTAINER = Kernels("6.18.0", None, {"6.18.0": KernelFacts("6.18.0", False, None, ())})


def installed(**versions: str) -> dict[str, Package]:
    names = {name.replace("_", "-"): version for name, version in versions.items()}
    return {name: Package(name, version, "install", "installed") for name, version in names.items()}


def kernels(running: KernelFacts, following: KernelFacts | None = None) -> Kernels:
    last = following or running
    return Kernels(running.release, last.release, {running.release: running, last.release: last})


WITH = KernelFacts("6.1.0-40-amd64", True, "updates/dkms/nvidia.ko", ("nvidia/580.1: installed",))
WITHOUT = KernelFacts("6.1.0-41-amd64", False, None, ())
UNBUILT = KernelFacts("6.1.0-41-amd64", True, None, ("nvidia/580.1: added",))


class TestVersion:
    def test_newest_that_all_parts_have(self) -> None:
        wanted = replace(WANTED, version="535", versioned=("libcuda1", "nvidia-open-kernel-dkms"))
        offered = {
            "libcuda1": ["535.309.01-0+deb12u1", "535.261.03-1"],
            "nvidia-open-kernel-dkms": ["535.261.03-1", "535.247.01-1"],
        }
        assert choose_version(offered, {}, wanted) == "535.261.03"

    def test_numbers_are_ordered_as_numbers(self) -> None:
        assert choose_version({"libcuda1": ["580.9.1-1", "580.105.08-1"]}, {}, WANTED) == "580.105.08"

    def test_what_is_installed_stays(self) -> None:
        assert choose_version({"libcuda1": ["580.95.05-1"]}, installed(libcuda1="580.82.07-1"), WANTED) == "580.82.07"

    def test_upgrade_takes_the_newest(self) -> None:
        wanted = replace(WANTED, upgrade=True)
        assert choose_version({"libcuda1": ["580.95.05-1"]}, installed(libcuda1="580.82.07-1"), wanted) == "580.95.05"

    def test_other_branch_does_not_stay(self) -> None:
        assert choose_version({"libcuda1": ["580.95.05-1"]}, installed(libcuda1="590.44.01-1"), WANTED) == "580.95.05"

    def test_two_versions_at_once_do_not_stay(self) -> None:
        wanted = replace(WANTED, versioned=("libcuda1", "libnvidia-ml1"))
        mixed = installed(libcuda1="580.82.07-1", libnvidia_ml1="580.95.05-1")
        offered = {"libcuda1": ["580.95.05-1"], "libnvidia-ml1": ["580.95.05-1"]}
        assert choose_version(offered, mixed, wanted) == "580.95.05"

    @pytest.mark.parametrize(
        ("offered", "problem"),
        [
            ({}, "package sources: none has libcuda1"),
            ({"libcuda1": ["550.163.01-2"]}, "no version 580 that all packages have .libcuda1 550.163.01."),
        ],
    )
    def test_what_nobody_has_is_said(self, offered: dict[str, list[str]], problem: str) -> None:
        with pytest.raises(FleetError, match=problem):
            choose_version(offered, {}, WANTED)

    @pytest.mark.parametrize(
        ("version", "wanted", "is_one"),
        [("580.95.05", "580", True), ("580", "580", True), ("5801.1", "580", False), ("570.1", "580", False)],
    )
    def test_branch_ends_at_a_dot(self, version: str, wanted: str, is_one: bool) -> None:
        assert has_version(version, wanted) is is_one

    def test_files_carry_the_version(self) -> None:
        wanted = replace(WANTED, files={"/a": "Pin: version @driver_version@-*\n", "/b": None})
        assert contents(wanted, "580.95.05") == {"/a": b"Pin: version 580.95.05-*\n", "/b": None}


class TestArguments:
    def test_missing_packages_and_headers(self) -> None:
        words = apt_arguments(WANTED, Record(), installed(libcuda1="580.95.05-1"), ["linux-headers-x"], "580.95.05")
        assert words[-2:] == ["nvidia-open-kernel-dkms", "linux-headers-x"]

    def test_nothing_to_do(self) -> None:
        packages = installed(libcuda1="580.95.05-1", nvidia_open_kernel_dkms="580.95.05-1")
        assert apt_arguments(WANTED, Record(), packages, [], "580.95.05") == []

    def test_what_was_asked_for_before_makes_way(self) -> None:
        record = Record(asked=("nvidia-tesla-535-kernel-dkms", "libcuda1"))
        packages = installed(libcuda1="580.95.05-1", nvidia_tesla_535_kernel_dkms="535.1-1")
        assert apt_arguments(WANTED, record, packages, [], "580.95.05")[-1] == "nvidia-tesla-535-kernel-dkms-"

    def test_what_became_a_dependency_stays(self) -> None:
        record, packages = Record(asked=("libnvidia-ml1",)), installed(libnvidia_ml1="535.1-1", libcuda1="535.1-1")
        words = apt_arguments(WANTED, record, packages, [], "580.95.05", needed=["libnvidia-ml1"])
        assert "libnvidia-ml1-" not in words

    def test_compatibility_libraries_come_beside(self) -> None:
        beside = Wanted(packages=("cuda-compat-13-0",), beside=True)
        record = Record(asked=("libcuda1",))
        assert apt_arguments(beside, record, installed(libcuda1="550.1-1"), [], "")[-1] == "cuda-compat-13-0"

    def test_removal_takes_everything_that_is_a_driver(self) -> None:
        packages = installed(libcuda1="1-1", bash="5", nvidia_container_toolkit="1.17")
        assert apt_arguments(Wanted(packages=()), Record(), packages, [], "")[-1] == "libcuda1"


class TestGuard:
    @pytest.mark.parametrize(
        ("step", "problem"),
        [
            (Step("postgresql-15", "15.1", None), "postgresql-15: apt would remove it"),
            (Step("linux-image-amd64", "6.1", "6.2"), "linux-image-amd64: is held"),
            (Step("libcuda1", None, "590.44.01-1"), "libcuda1: 580.95.05 was chosen, apt would take 590.44.01-1"),
        ],
    )
    def test_what_nobody_asked_for_is_refused(self, step: Step, problem: str) -> None:
        held = {"linux-image-amd64": Package("linux-image-amd64", "6.1", "hold", "installed")}
        with pytest.raises(FleetError, match=problem):
            guard([step], held, Record(), WANTED, "580.95.05")

    def test_its_own_holds_and_parts_may_go(self) -> None:
        record = Record(packages={"libcuda1": "535.1-1"}, installed=("gcc",))
        held = {"libcuda1": Package("libcuda1", "535.1-1", "hold", "installed")}
        steps = [
            Step("libcuda1", "535.1-1", "580.95.05-1"),
            Step("gcc", "12", None),
            Step("nvidia-alternative", "1", None),
        ]
        guard(steps, held, record, WANTED, "580.95.05")


class TestKernels:
    def test_headers_for_the_kernels_and_for_those_to_come(self) -> None:
        packages = installed(linux_image_amd64="6.1") | {
            name: Package(name, "6.1", "install", "installed")
            for name in ("linux-image-6.1.0-40-amd64", "linux-image-cloud-amd64", "linux-headers-cloud-amd64")
        }
        assert header_packages(kernels(WITH, WITHOUT), packages) == [
            "linux-headers-6.1.0-41-amd64",
            "linux-headers-amd64",
        ]

    @pytest.mark.parametrize(
        ("found", "faults"),
        [
            (CONTAINER, []),
            (kernels(WITH), []),
            (kernels(WITH, WITHOUT), ["kernel 6.1.0-41-amd64 has no nvidia module (its headers are not installed)"]),
            (kernels(WITH, UNBUILT), ["kernel 6.1.0-41-amd64 has no nvidia module (nvidia/580.1: added)"]),
            # The running kernel is an old one whose headers are gone: the next boot mends it.
            (kernels(WITHOUT, WITH), []),
            (kernels(UNBUILT, WITH), ["kernel 6.1.0-41-amd64 has no nvidia module (nvidia/580.1: added)"]),
        ],
    )
    def test_a_kernel_without_a_module_is_a_fault(self, found: Kernels, faults: list[str]) -> None:
        assert kernel_faults(found) == faults


RECORD = Record(digest=WANTED.digest, version="580.95.05", packages={"libcuda1": "580.95.05-1"})
LIBCUDA = Package("libcuda1", "580.95.05-1", "hold", "installed")
HELD = {"libcuda1": LIBCUDA}


class TestSatisfied:
    def test_as_recorded(self) -> None:
        assert is_satisfied(WANTED, RECORD, HELD, CONTAINER)

    @pytest.mark.parametrize(
        ("wanted", "packages", "found"),
        [
            (replace(WANTED, version="590"), HELD, CONTAINER),
            (replace(WANTED, upgrade=True), HELD, CONTAINER),
            (WANTED, {"libcuda1": replace(LIBCUDA, want="install")}, CONTAINER),
            (WANTED, {"libcuda1": replace(LIBCUDA, version="580.99.01-1")}, CONTAINER),
            (WANTED, {}, CONTAINER),
            (WANTED, HELD, kernels(WITH, WITHOUT)),
        ],
    )
    def test_anything_else_is_looked_at(self, wanted: Wanted, packages: dict[str, Package], found: Kernels) -> None:
        assert not is_satisfied(wanted, RECORD, packages, found)

    def test_removed(self) -> None:
        assert is_satisfied(Wanted(packages=()), Record(), installed(bash="5"), CONTAINER)
        assert not is_satisfied(Wanted(packages=()), Record(), HELD, CONTAINER)

    @pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"asked": 3}'])
    def test_damaged_record_is_none(self, content: bytes | None) -> None:
        assert parse_record(content) == Record()

    def test_record_is_read_as_it_was_written(self) -> None:
        assert parse_record(RECORD.to_bytes()) == RECORD


class TestParsing:
    def test_steps_of_apt(self) -> None:
        output = (
            "Remv nvidia-kernel-dkms [535.1-1]\n"
            "Inst libcuda1 [535.1-1] (580.95.05-1 l40s-fleet-test [amd64])\n"
            "Inst nvidia-smi (580.95.05-1 Debian:12.15/oldstable, Debian-Security:12 [amd64])\n"
            "Purg old* [1-1]\nConf libcuda1 (580.95.05-1 l40s-fleet-test [amd64])\n"
        )
        assert parse_steps(output) == [
            Step("nvidia-kernel-dkms", "535.1-1", None),
            Step("libcuda1", "535.1-1", "580.95.05-1"),
            Step("nvidia-smi", None, "580.95.05-1"),
            Step("old*", "1-1", None),
        ]

    @pytest.mark.parametrize(
        ("output", "line"),
        [
            ("Reading...\nE: Unable to locate package x\n", "Unable to locate package x"),
            (
                "dpkg: error processing package x (--configure):\n installed x package post-installation script failed"
                "\nE: Sub-process /usr/bin/dpkg returned an error code (1)\n",
                "dpkg: error processing package x (--configure): installed x package post-installation script failed",
            ),
            (
                " x : Depends: y (= 1) but 2 is to be installed\nE: Unable to correct problems\n",
                "x : Depends: y (= 1) but",
            ),
            ("", ""),
        ],
    )
    def test_the_line_that_says_why(self, output: str, line: str) -> None:
        assert error_line(output).startswith(line)

    def test_dpkg_status(self) -> None:
        text = (
            "Package: libcuda1\nStatus: hold ok installed\nArchitecture: amd64\nVersion: 535.309.01-0+deb12u1\n"
            "Description: x\n Package: in text\n\n"
            "Package: libcuda1\nStatus: install ok installed\nArchitecture: i386\nVersion: 535.309.01-0+deb12u1\n\n"
            "Package: bash\nStatus: install ok installed\nVersion: 5.2\n\n"
            "Package: nvidia-smi\nStatus: deinstall ok config-files\nVersion: 1:470.1-1\n"
        )
        found = parse_status(text, ("lib*", "nvidia-*"))
        assert set(found) == {"libcuda1", "libcuda1:i386", "nvidia-smi"}
        assert (found["libcuda1"].want, found["libcuda1"].upstream) == ("hold", "535.309.01")
        assert found["nvidia-smi"].upstream == "470.1"
        assert installed_driver(found) == "535.309.01"

    def test_names_of_drivers(self) -> None:
        assert all(map(is_driver, ("nvidia-open-kernel-dkms", "libnvidia-compute-580", "libcuda1", "cuda-compat-13-0")))
        assert not any(map(is_driver, ("nvidia-container-toolkit", "nvidia-cuda-toolkit", "cuda-toolkit-13-0", "dkms")))

    def test_file_name_of_a_package(self) -> None:
        assert archive_name("x:i386", "1:2-3", "all") == "x_1%3a2-3_all.deb"
