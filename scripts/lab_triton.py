"""The lab's Triton: a real tritonserver with the lab's vLLM backend, installed once, shared read-only by the nodes."""

from __future__ import annotations

from pathlib import Path

from lab_engine import install_environment
from lab_host import LAB_SOURCES, cache_directory

INSTALLER = LAB_SOURCES / "triton" / "triton-install"
PREFIX = Path("/opt/triton")


def store() -> Path:
    """Where it is on this machine; nodes see it at PREFIX."""
    return cache_directory() / "engines" / "triton"


def install(lab: str, image: str) -> None:
    """Makes sure that the store holds the lab's Triton."""
    what = f"Triton into {store()} (once; about ten seconds)"
    install_environment(lab, image, INSTALLER, [], place=store(), what=what)
