"""The KV cache as vLLM lays it out: groups of layers, pages, blocks, and the tokens that the engine reports."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .model_facts import AttentionFacts, ModelFacts

DEFAULT_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class _Spec:
    """What must be equal for layers to share a group. ``page_bytes`` is of one layer and one block."""

    sliding_window: int | None
    page_bytes: int
    block_size: int

    def blocks(self, max_model_len: int, in_flight_tokens: int) -> int:
        """Blocks that one request of ``max_model_len`` holds at most."""
        if self.sliding_window is None:
            return -(-max_model_len // self.block_size)
        # The window may begin inside a block, hence one more.
        tokens = min(self.sliding_window - 1 + in_flight_tokens, max_model_len)
        return -(-tokens // self.block_size) + 1


@dataclass(frozen=True, slots=True)
class KvCacheLayout:
    """Groups over the whole model, and bytes of one block on each pipeline stage's ranks."""

    block_size: int
    groups: tuple[_Spec, ...]
    bytes_per_block: tuple[int, ...]
    in_flight_tokens: int
    reserves_null_block: bool

    def blocks_per_request(self, max_model_len: int) -> int:
        """Blocks that a request of ``max_model_len`` takes, over all groups."""
        return sum(group.blocks(max_model_len, self.in_flight_tokens) for group in self.groups)

    def usable_blocks(self, num_blocks: int) -> int:
        """Blocks that the start-up check counts on: one is held back as the null block from 0.33 on."""
        return max(0, num_blocks - (1 if self.reserves_null_block else 0))

    def tokens(self, num_blocks: int, max_model_len: int) -> int:
        """``kv_cache_size_tokens`` of the engine: concurrency at ``max_model_len`` times that length."""
        return int(num_blocks / self.blocks_per_request(max_model_len) * max_model_len)

    def fits(self, num_blocks: int, max_model_len: int) -> bool:
        """Whether one request of ``max_model_len`` fits, which the engine demands at start."""
        return self.blocks_per_request(max_model_len) <= self.usable_blocks(num_blocks)

    def longest_model_len(self, num_blocks: int, limit: int) -> int:
        """The largest ``max_model_len`` up to ``limit`` that fits, 0 where none does."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            if self.fits(num_blocks, middle):
                low = middle
            else:
                high = middle - 1
        return low


def page_bytes(attention: AttentionFacts, block_size: int, element_bytes: int, tensor_parallel_size: int) -> int:
    """Bytes of one block of one layer on one rank. MLA's entry is shared by all heads, never split. Encoders: 0."""
    if attention.kind == "encoder":
        return 0
    if attention.kind == "mla":
        return block_size * (attention.kv_lora_rank + attention.qk_rope_head_dim) * element_bytes
    heads = max(1, attention.num_kv_heads // tensor_parallel_size)
    return block_size * heads * (attention.head_size + attention.head_size_v) * element_bytes


@lru_cache(maxsize=4096)
def kv_cache_layout(
    models: tuple[tuple[ModelFacts, int], ...],
    *,
    block_size: int,
    element_bytes: int,
    stages: tuple[int, ...],
    in_flight_tokens: int,
    reserves_null_block: bool,
) -> KvCacheLayout:
    """Group the layers as vLLM's ``get_kv_cache_groups`` does.

    Args:
        models: the target and, where there is one, the draft model, each with its tensor-parallel size. A draft
            model's layers are on the last stage.
        block_size: tokens of a block.
        element_bytes: bytes of one cached element.
        stages: layers of the target on each pipeline stage.
        in_flight_tokens: tokens that may be scheduled and not yet freed.
        reserves_null_block: whether the start-up check leaves out the null block.
    """
    placed = _placed_layers(models, block_size, element_bytes, stages)
    kinds = list(dict.fromkeys(spec for spec, _ in placed))
    stage_range = range(len(stages))
    if len({spec.sliding_window for spec in kinds}) == 1:
        # One type of attention, if need be with pages of several sizes: one group, whose block has all the pages.
        group = kinds[0]
        sums = tuple(sum(spec.page_bytes for spec, stage in placed if stage == s) for s in stage_range)
        return KvCacheLayout(block_size, (group,), sums, in_flight_tokens, reserves_null_block)
    page = max(spec.page_bytes for spec in kinds)
    unified = {spec: _Spec(spec.sliding_window, page, spec.block_size * (page // spec.page_bytes)) for spec in kinds}
    by_spec: dict[_Spec, list[int]] = {}
    for spec, stage in placed:
        by_spec.setdefault(unified[spec], []).append(stage)
    group_size = _group_size([len(layers) for layers in by_spec.values()])
    groups: list[_Spec] = []
    layers_per_stage = [0] * len(stages)
    for spec, layer_stages in by_spec.items():
        count = -(-len(layer_stages) // group_size)
        for index in range(count):
            groups.append(spec)
            members = layer_stages[index::count]
            for stage in stage_range:
                layers_per_stage[stage] = max(layers_per_stage[stage], members.count(stage))
    bytes_per_block = tuple(layers * page for layers in layers_per_stage)
    return KvCacheLayout(block_size, tuple(groups), bytes_per_block, in_flight_tokens, reserves_null_block)


def _group_size(counts: Sequence[int]) -> int:
    smallest, largest = min(counts), max(counts)
    # vLLM pads the smaller kind when the kinds are nearly equal, instead of splitting the larger in two.
    return largest if largest < smallest * 1.5 else smallest


def _placed_layers(
    models: Sequence[tuple[ModelFacts, int]], block_size: int, element_bytes: int, stages: Sequence[int]
) -> list[tuple[_Spec, int]]:
    stage_of_layer = [stage for stage, count in enumerate(stages) for _ in range(count)]
    placed: list[tuple[_Spec, int]] = []
    for position, (model, tensor_parallel_size) in enumerate(models):
        specs = [
            _Spec(
                kind.attention.sliding_window,
                page_bytes(kind.attention, block_size, element_bytes, tensor_parallel_size),
                block_size,
            )
            for kind in model.layer_kinds
        ]
        for index, kind_index in enumerate(model.layer_pattern):
            placed.append((specs[kind_index], stage_of_layer[index] if position == 0 else len(stages) - 1))
    return placed
