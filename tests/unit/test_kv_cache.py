from __future__ import annotations

import pytest
from fleet.kv_cache import kv_cache_layout
from model_configs import facts

GIB = 1024**3


def layout(name, *, element_bytes=2, in_flight=4096, stages=None):
    model = facts(name)
    return kv_cache_layout(
        ((model, 1),),
        block_size=16,
        element_bytes=element_bytes,
        stages=stages or (model.num_hidden_layers,),
        in_flight_tokens=in_flight,
        reserves_null_block=False,
    )


@pytest.mark.parametrize(
    ("name", "element_bytes", "max_model_len", "tokens"),
    [
        ("llama-3-8b", 2, 8192, 163_840),
        ("llama-3-8b", 1, 8192, 327_680),
        ("deepseek-v2-lite", 2, 16384, 690_416),
        ("gemma-3-27b-text", 2, 8192, 55_052),
        ("gemma-3-27b-text", 2, 131_072, 212_243),
    ],
)
def test_tokens_of_20_gib_are_what_vllm_0_33_reports(name, element_bytes, max_model_len, tokens):
    plan = layout(name, element_bytes=element_bytes)
    blocks = 20 * GIB // plan.bytes_per_block[0]
    reported = plan.tokens(blocks, max_model_len)
    # Uniform models count whole blocks of requests that are a multiple of the block.
    assert reported == pytest.approx(tokens, abs=16)


def test_hybrid_layers_are_grouped_by_the_smaller_kind():
    plan = layout("gemma-3-27b-text")  # 10 full and 52 sliding layers
    assert len(plan.groups) == 1 + 6
    assert plan.bytes_per_block == (10 * 16 * 16 * 256 * 2,)


def test_nearly_equal_kinds_are_padded_and_not_split():
    plan = layout("gpt-oss-20b")  # 12 and 12
    assert len(plan.groups) == 2


def test_every_stage_has_its_own_layers():
    plan = layout("llama-3-8b", stages=(20, 12))
    assert plan.bytes_per_block == (20 * 16 * 8 * 256 * 2, 12 * 16 * 8 * 256 * 2)


def test_the_longest_context_is_found_to_the_token():
    plan = layout("llama-3.1-8b")
    longest = plan.longest_model_len(1000, 131_072)
    assert longest == 16_000
    assert plan.fits(1000, longest)
    assert not plan.fits(1000, longest + 1)


def test_no_blocks_hold_no_context():
    assert layout("llama-3-8b").longest_model_len(0, 8192) == 0
