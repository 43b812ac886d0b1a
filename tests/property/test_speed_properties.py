"""Properties of speed and capacity that hold for any load."""

from __future__ import annotations

import json
from pathlib import Path

from fleet.capacity import CapacityModel, Objectives
from fleet.engine_options import EngineOptions
from fleet.hardware import gpu_by_name
from fleet.model import facts_from_config
from fleet.speed import PromptChunk, SpeedModel
from hypothesis import given, settings
from hypothesis import strategies as st

CONFIG = Path(__file__).parents[1] / "data" / "model_configs" / "llama-3-8b.json"
LLAMA = facts_from_config(json.loads(CONFIG.read_text()), where="llama-3-8b.json")
SPEEDS = [
    SpeedModel(LLAMA, gpu_by_name(gpu, where="test"), EngineOptions(quantization=quantization, **parallel))
    for gpu in ("L40S", "H100")
    for quantization in (None, "fp8", "awq")
    for parallel in ({}, {"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2})
]
speeds = st.sampled_from(SPEEDS)


@given(speeds, st.integers(1, 256), st.integers(1, 32768), st.integers(1, 4096))
def test_more_context_is_never_faster(speed, batch, context, more):
    assert speed.decode_step(batch, context + more).seconds >= speed.decode_step(batch, context).seconds


@given(speeds, st.integers(1, 256), st.integers(1, 8192), st.integers(1, 1024), st.integers(0, 8192))
def test_parts_add_up_and_prompts_cost_time(speed, batch, context, tokens, past):
    plain = speed.step(batch, context)
    mixed = speed.step(batch, context, [PromptChunk(tokens, past)])
    time = mixed.time
    parts = time.memory_s + time.compute_s + time.link_s + time.launch_s
    assert abs(parts - time.seconds) <= 1e-9 * time.seconds
    assert 0 < mixed.interval_s <= mixed.seconds
    assert mixed.seconds > 0.95 * plain.seconds


@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from(SPEEDS[:3]),
    st.integers(1, 8192),
    st.integers(1, 1024),
    st.integers(20_000, 400_000),
    st.floats(20.0, 300.0),
    st.floats(100.0, 20_000.0),
)
def test_looser_objectives_never_lower_capacity(  # noqa: PLR0917
    speed, prompt, output, kv, tpot_ms, ttft_ms
):
    model = CapacityModel(speed, prompt_tokens=prompt, output_tokens=output, kv_cache_tokens=kv)
    strict = model.capacity(Objectives(ttft_ms, tpot_ms)).requests_per_second
    loose = model.capacity(Objectives(1.5 * ttft_ms, 1.5 * tpot_ms)).requests_per_second
    assert 0.0 <= strict <= loose * 1.001 + 1e-9
