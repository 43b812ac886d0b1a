"""``speculative`` of a model in models.yml: how tokens are drafted, and by what."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from .document_checks import Document, shown

_Count = Annotated[int, Field(ge=1)]
_Text = Annotated[str, StringConstraints(min_length=1)]

WITH_DRAFT = ("draft_model", "eagle3")
DEFAULT_TOKENS = 3


class Speculative(Document):
    """What vLLM's ``--speculative-config`` takes, as far as it is planned, and what the plan needs besides."""

    method: Literal["auto", "ngram", "draft_model", "eagle3"] = Field(
        default="draft_model",
        description="draft_model and eagle3 draft with model; ngram looks the prompt up; auto drafts with model if"
        " there is one, else by n-grams, and only where that pays at the demand.",
    )
    model: _Text | None = Field(
        default=None, description="The draft model or EAGLE head, written as a model's source. Brought like a model."
    )
    config: _Text | None = Field(
        default=None, description="Path of the draft's config.json, to plan without its checkpoint. Left out: its own."
    )
    num_speculative_tokens: _Count | None = Field(
        default=None, description="Tokens drafted in a step. Left out: 3; with auto the number that pays most."
    )
    acceptance_rate: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Share of drafted tokens that the model accepts, as verify or the engine's log shows it. Left out:"
        " an assumption for the method, at the lower end of what was published.",
    )
    draft_tensor_parallel_size: _Count | None = Field(
        default=None, description="Of the draft: the model's own tensor parallel size, which is also the default, or 1."
    )
    max_model_len: _Count | None = Field(
        default=None, description="Longest sequence that is drafted for, in tokens. Left out: what the draft can read."
    )
    prompt_lookup_max: _Count | None = Field(default=None, description="ngram: longest run looked up. Left out: 5.")
    prompt_lookup_min: _Count | None = Field(
        default=None, description="ngram: shortest run looked up. Left out: prompt_lookup_max."
    )
    use_heterogeneous_vocab: bool = Field(
        default=False, description="draft_model: allow another vocabulary; only tokens that both have are drafted."
    )
    draft_sample_method: Literal["greedy", "probabilistic"] | None = Field(
        default=None,
        description="How the draft samples; probabilistic keeps its logits in GPU memory. Left out: greedy.",
    )
    rejection_sample_method: Literal["standard", "block", "fly"] | None = Field(
        default=None, description="How drafts are judged; fly changes answers. Left out: standard."
    )
    enforce_eager: bool | None = Field(
        default=None, description="No CUDA graphs for the draft. Left out: as the model."
    )

    def engine_document(self) -> dict[str, Any]:
        """What of it is vLLM's, under vLLM's names; ``model`` is still the source."""
        ours = {"config", "acceptance_rate"}
        document = self.model_dump(exclude=ours, exclude_none=True)
        if not self.use_heterogeneous_vocab:
            del document["use_heterogeneous_vocab"]
        document.setdefault("num_speculative_tokens", DEFAULT_TOKENS)
        return document

    def faults(self) -> list[tuple[str, str]]:
        """What contradicts itself, as (key, problem)."""
        found = []
        if self.method in WITH_DRAFT and self.model is None:
            found.append(("model", f"is required for {self.method}"))
        if self.method == "ngram" and self.model is not None:
            found.append(("model", "is not used by ngram, which looks the prompt up"))
        lookups = self.prompt_lookup_min, self.prompt_lookup_max
        if self.method not in ("ngram", "auto") and any(lookups):
            found.append(("prompt_lookup_max", f"is not used by {self.method}"))
        if lookups[0] and lookups[1] and lookups[0] > lookups[1]:
            found.append(("prompt_lookup_min", f"must be at most prompt_lookup_max {lookups[1]}, got {lookups[0]}"))
        if self.use_heterogeneous_vocab and self.method not in ("draft_model", "auto"):
            found.append(("use_heterogeneous_vocab", f"is not used by {self.method}"))
        return found


def speculative_mapping(value: object) -> object:
    """``auto`` and ``none`` as what they stand for.

    Raises:
        ValueError: neither of them, and no mapping.
    """
    if value == "none" or value is None:
        return None
    if value == "auto":
        return {"method": "auto"}
    if isinstance(value, dict | Speculative):
        return value
    msg = f"must be auto, none or a mapping with a method, got {shown(value)}"
    raise ValueError(msg)
