"""The model configurations of tests/data, and what real vLLM measured on them."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleet.model import facts_from_config

if TYPE_CHECKING:
    from fleet.model_facts import ModelFacts

DATA = Path(__file__).resolve().parent.parent / "data"
CONFIGS = DATA / "model_configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.json"))


def config(name: str, **changes: object) -> dict[str, Any]:
    """The content of one config.json."""
    return {**json.loads((CONFIGS / f"{name}.json").read_text()), **changes}


@lru_cache
def facts(name: str) -> ModelFacts:
    """Facts of one configuration."""
    return facts_from_config(config(name), where=f"{name}.json")


def measured_cases() -> list[dict[str, Any]]:
    """Cases measured with real vLLM 0.24.0."""
    return [
        case
        for name in ("vllm_memory_h100.json", "vllm_memory_measured.json")
        for case in json.loads((DATA / name).read_text())["cases"]
    ]


def measured_drafting_cases() -> list[dict[str, Any]]:
    """Cases with drafts and with LoRA adapters, measured the same way."""
    cases: list[dict[str, Any]] = json.loads((DATA / "vllm_memory_further.json").read_text())["cases"]
    return cases


@lru_cache
def measured_ranks() -> dict[str, Any]:
    """What the ranks of TP and PP layouts held, and how fast one rank's share ran, with real vLLM 0.24.0 on an H200."""
    document: dict[str, Any] = json.loads((DATA / "vllm_ranks_h200.json").read_text())
    configs = {case["case"]: case["model_config"] for case in measured_cases()}
    for case in (*document["memory"], document["shares"]):
        case["model_config"] = configs[case["case"]]
    return document
