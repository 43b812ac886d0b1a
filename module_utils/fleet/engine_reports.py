"""What an engine says about itself: in its metrics, and in the log of its start. Standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .openai_client import Request

_CACHE_CONFIG = re.compile(r"^vllm:cache_config_info\{(.*)\} ", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_DRAFTING = re.compile(
    r"^vllm:spec_decode_num_(drafts|draft_tokens|accepted_tokens)(?:_total)?(?:\{.*\})? (\S+)$", re.M
)
# vLLM 0.32 and 0.33, platforms/cuda.py: named ("Using AttentionBackendEnum.TRITON_ATTN backend.") or chosen ("Using
# FLASH_ATTN attention backend out of potential backends: [...]."). The CPU build says what it does not use.
_NAMED = re.compile(r"\bUsing (?:AttentionBackendEnum\.)?([A-Z][A-Z0-9_]+)(?: attention backend out of| backend\.)")
_NOT_ON_CPU = re.compile(r"\bCannot use (?:AttentionBackendEnum\.)?[A-Z][A-Z0-9_]+ backend on CPU\.")
CPU_BACKEND = "CPU_ATTN"
CPU_BACKENDS = (CPU_BACKEND, "CPU_MLA", "AMX_MLA")
BACKEND_LINES = r"Using (AttentionBackendEnum\.)?[A-Z0-9_]+ (attention )?backend|Cannot use .* backend on CPU"
"""What ``journalctl --grep`` is to look for, so that ``attention_backends`` finds all it knows."""
_TOKEN = 100
_TOKENS = 32


@dataclass(frozen=True)
class Drafting:
    """What a speculating engine counted since its start.

    Attributes:
        drafts: steps for which tokens were drafted.
        draft_tokens: tokens drafted.
        accepted_tokens: those that the model accepted.
    """

    drafts: int
    draft_tokens: int
    accepted_tokens: int


def drafting(metrics: str) -> Drafting | None:
    """The counters of speculative decoding in an engine's /metrics; None where it has none."""
    found: dict[str, int] = {}
    for name, value in _DRAFTING.findall(metrics):
        found[name] = found.get(name, 0) + int(float(value))
    if "drafts" not in found:
        return None
    return Drafting(found["drafts"], found.get("draft_tokens", 0), found.get("accepted_tokens", 0))


def repeat(request: Request, model: str) -> bool:
    """Have the engine write one token over and over, which is what n-grams are looked up in. Whether it did."""
    body = {
        "model": model,
        "prompt": [_TOKEN] * _TOKENS,
        "allowed_token_ids": [_TOKEN],
        "max_tokens": _TOKENS,
        "ignore_eos": True,
        "temperature": 0,
    }
    return request("POST", "/v1/completions", body).status == HTTPStatus.OK


def attention_backends(journal: str) -> tuple[str, ...]:
    """The attention backends that an engine took, in the order of its log; empty where the log does not say."""
    found = [CPU_BACKEND] if _NOT_ON_CPU.search(journal) else []
    return tuple(dict.fromkeys([*found, *_NAMED.findall(journal)]))


def cache_config(metrics: str) -> dict[str, str]:
    """The labels of ``vllm:cache_config_info`` in an engine's /metrics; empty where it has none."""
    match = _CACHE_CONFIG.search(metrics)
    return dict(_LABEL.findall(match.group(1))) if match else {}


def kv_cache_tokens(labels: Mapping[str, str]) -> int | None:
    """KV cache in tokens: what the engine says itself, or blocks times block size where the version does not say it."""
    if labels.get("kv_cache_size_tokens", "").isdigit():
        return int(labels["kv_cache_size_tokens"])
    blocks, block_size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
    return int(blocks) * int(block_size) if blocks.isdigit() and block_size.isdigit() else None
