"""The preflight's row about the driver: what is there, what will be, and what the engine needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fleet.preflight_driver import judge_drivers

RECORDED = (Path(__file__).resolve().parents[1] / "data/preflight/debian-12-lab-node.txt").read_text()
INTENT = {
    "state": "present",
    "source": "nvidia_repo",
    "branch": 0,
    "version": "",
    "open_modules": True,
    "reboot": "never",
    "engine_version": "0.33.0",
    "accelerator": "cuda",
}


def host(**facts: str) -> str:
    """The recording of a sound host with other facts of its driver or system."""
    lines = [line for line in RECORDED.splitlines() if line.partition("=")[0] not in {*facts, "preflight"}]
    return "\n".join(["preflight=begin", *lines, *(f"{key}={value}" for key, value in facts.items()), "preflight=end"])


def judge(text: str, **intent: Any) -> tuple[str, str]:
    (row,) = judge_drivers({"h": text}, {"h": {**INTENT, **intent}})
    return row.status, row.line()


@pytest.mark.parametrize(
    ("facts", "intent", "line"),
    [
        (
            {"nvidia_module": "550.163.01"},
            {"source": "none"},
            "h: driver: driver 550.163.01 supports CUDA 12.4; vLLM 0.33.0 needs CUDA 13.0, which is driver 580 or "
            "newer; choose nvidia_repo or cuda_compat, or the last engine for CUDA 12 (vllm_version 0.19.1)",
        ),
        (
            {"os_version_id": "13"},
            {"source": "distro"},
            "h: driver: driver 550 of distro supports CUDA 12.4; vLLM 0.33.0 needs CUDA 13.0, which is driver 580 or "
            "newer; choose nvidia_repo or cuda_compat, or the last engine for CUDA 12 (vllm_version 0.19.1)",
        ),
        ({}, {"source": "distro"}, "h: driver: driver 535 of distro supports CUDA 12.2; vLLM 0.33.0 needs"),
        ({}, {"branch": 570}, "h: driver: driver 570 of nvidia_repo supports CUDA 12.8; vLLM 0.33.0 needs"),
        ({}, {"version": "575.57.08"}, "h: driver: driver 575 of nvidia_repo supports CUDA 12.9"),
        ({}, {"source": "none"}, "h: driver: no nvidia module is loaded, and nvidia_driver_source leaves"),
        ({}, {"source": "cuda_compat"}, "h: driver: no nvidia module is loaded"),
        ({"nvidia_module": "470.256.02"}, {"source": "cuda_compat"}, "h: driver: driver 470.256.02 is too old for"),
        ({}, {"source": "distro", "branch": 550}, "h: driver: nvidia_driver_branch: debian 12 has driver branches 535"),
        (
            {"os_version_id": "13"},
            {"source": "distro", "branch": 535},
            "h: driver: nvidia_driver_open_modules: debian 13 has driver 535 with the proprietary kernel module only",
        ),
        ({"os_id": "alpine"}, {}, "h: driver: nvidia_driver_source: no driver packages are known for alpine 12"),
        ({"nvidia_module": "570.1"}, {}, "h: driver: driver 570.1 is loaded and does not come from packages; set"),
        ({}, {"state": "absent"}, "h: driver: nvidia_driver_state is absent, and vLLM 0.33.0 needs CUDA 13.0"),
    ],
)
def test_what_would_stop_a_later_stage_is_one_line(facts: dict[str, str], intent: dict[str, Any], line: str) -> None:
    status, found = judge(host(**facts), **intent)
    assert status == "blocked"
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("facts", "intent", "words"),
    [
        ({}, {}, "driver 580 will be installed from nvidia_repo, now there is none"),
        ({"nvidia_module": "580.95.05", "nvidia_package": "580.95.05"}, {}, "driver 580.95.05"),
        ({"nvidia_module": "590.44.01"}, {"source": "none"}, "driver 590.44.01"),
        ({"nvidia_module": "550.163.01"}, {"source": "cuda_compat"}, "driver 550.163.01 with cuda-compat"),
        ({}, {"source": "none", "accelerator": "cpu"}, "engines run on the CPU"),
        ({"os_version_id": "13"}, {"source": "distro", "engine_version": "0.19.1"}, "driver 550 will be installed"),
        ({"os_id": "ubuntu", "os_version_id": "24.04"}, {"source": "distro"}, "driver 580 will be installed"),
        ({"os_id": "rocky", "os_version_id": "9.5"}, {}, "driver 580 will be installed"),
        ({"nouveau": "loaded"}, {"reboot": "when_needed"}, "driver 580 will be installed"),
    ],
)
def test_what_is_enough_is_taken(facts: dict[str, str], intent: dict[str, Any], words: str) -> None:
    status, found = judge(host(**facts), **intent)
    assert status == "ok"
    assert words in found


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"nouveau": "loaded"}, "a reboot will be needed, and nvidia_driver_reboot is never"),
        ({"nvidia_module": "550.1", "nvidia_package": "550.1"}, "now 550.1; a reboot will be needed"),
        ({"secure_boot": "1"}, "Secure Boot is on; a person will have to enrol the signing key"),
    ],
)
def test_what_a_person_will_have_to_do_is_told_before_the_first_change(facts: dict[str, str], words: str) -> None:
    status, found = judge(host(**facts))
    assert status == "degraded"
    assert words in found


def test_hosts_without_a_whole_answer_are_judged_by_that_alone() -> None:
    assert judge_drivers({"a": None, "b": "preflight=begin"}, {"a": INTENT, "b": INTENT, "c": INTENT}) == []
