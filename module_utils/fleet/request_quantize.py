"""``quantize`` of a model in models.yml: how a quantized checkpoint is made of it, and what it has to hold."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from .document_checks import Document

_Count = Annotated[int, Field(ge=1)]


class Quantize(Document):
    """How a quantized checkpoint is made, where the source is in full precision."""

    method: Literal["awq", "gptq", "gptqmodel", "gptq_g_idx", "int8", "fp8_dynamic", "fp8_static"] | None = Field(
        default=None,
        description="The method. Left out: that of quantization; fp8 without a method is made by the engine on load.",
    )
    calibration: Annotated[str, StringConstraints(min_length=1)] | None = Field(
        default=None,
        description="A text in UTF-8 on the controller, relative to the models file. It calibrates, and its last tenth"
        " judges. Left out: the repository's.",
    )
    samples: _Count | None = Field(default=None, description="Sequences for calibration. Left out: 128.")
    sequence_length: _Count | None = Field(default=None, description="Tokens of a sequence. Left out: 2,048.")
    group_size: _Count | None = Field(default=None, description="Inputs that share a scale, INT4. Left out: 128.")
    dampening: float | None = Field(default=None, gt=0, lt=1, description="Of GPTQ's Hessian. Left out: 0.01.")
    smoothing: float | None = Field(default=None, ge=0, le=1, description="SmoothQuant's strength. Left out: 0.8.")
    seed: Annotated[int, Field(ge=0)] | None = Field(default=None, description="Of what is drawn. Left out: 0.")
    judged_tokens: _Count = Field(default=8192, description="Tokens of held-out text that the gate reads.")
    max_perplexity_ratio: float = Field(
        default=1.10, ge=1, description="Perplexity over the source's, above which the result is not used."
    )
    min_agreement: float = Field(
        default=0.85, ge=0, le=1, description="Share of places with the source's token, below which it is not used."
    )
