"""Drafts that vLLM would refuse, or that would serve less than was asked for, and what to use instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .eagle_head import is_eagle3, target_hidden_size
from .plan_document import Refusal
from .sources import DRAFT

if TYPE_CHECKING:
    from .configurations import FurtherCheckpoint, ResolvedModel
    from .model_facts import ModelFacts
    from .request_speculative import Speculative

# Small models whose vocabulary is that of larger ones, by its size.
_SMALL_MODELS = {
    128256: "hf:meta-llama/Llama-3.2-1B-Instruct",
    151936: "hf:Qwen/Qwen3-0.6B",
    32000: "hf:TinyLlama/TinyLlama-1.1B-Chat-v1.0",
}
# vLLM takes a draft whose path has one of these for a head of that kind (config/speculative.py).
_READ_OFF_PATHS = ("eagle-", "eagle3", "dflash", "dspark")


def refused_speculation(model: ResolvedModel) -> Refusal | None:
    """Why the drafting that was asked for cannot be, whatever the GPUs; None when it can."""
    asked, draft = model.request.speculative, model.further_by_label(DRAFT)
    if asked is None:
        return None
    if model.request.task != "generate":
        return _refusal(model, "speculative", f"A model for {model.request.task} decodes nothing.", "speculative: none")
    if draft is None or draft.facts is None:
        return None
    if asked.method == "eagle3":
        return _head_refused(model, draft, draft.facts)
    return _draft_refused(model, draft, draft.facts, asked)


def _draft_refused(
    model: ResolvedModel, draft: FurtherCheckpoint, facts: ModelFacts, asked: Speculative
) -> Refusal | None:
    name, own = draft.source.source.text, model.facts
    if is_eagle3(draft.config):
        return _refusal(model, "speculative.method", f"{name} is an EAGLE3 head.", "speculative.method: eagle3")
    read_off = next((word for word in _READ_OFF_PATHS if word in draft.path.lower()), None)
    if read_off is not None:
        explanation = f"vLLM would take the draft for another kind: its path {draft.path} has {read_off!r} in it."
        return _refusal(model, "speculative.model", explanation, "another name of the model")
    if facts.vocab_size != own.vocab_size and not asked.use_heterogeneous_vocab:
        return _refusal(
            model,
            "speculative.model",
            f"The draft {name} has a vocabulary of {facts.vocab_size:,} tokens, the model one of {own.vocab_size:,};"
            " vLLM refuses that.",
            _instead(own.vocab_size, facts.vocab_size),
        )
    read = asked.max_model_len or facts.max_position_embeddings
    if read > facts.max_position_embeddings:
        explanation = f"The draft {name} reads at most {facts.max_position_embeddings:,} tokens, not {read:,}."
        return _refusal(
            model,
            "speculative.max_model_len",
            explanation,
            f"speculative.max_model_len: {facts.max_position_embeddings}",
        )
    wanted = model.request.max_model_len
    if wanted is not None and read < wanted:
        return _refusal(
            model,
            "speculative.max_model_len" if asked.max_model_len else "speculative.model",
            f"With a draft that reads {read:,} tokens vLLM serves no longer requests; {wanted:,} are asked for.",
            f"max_model_len: {read}, or a draft that reads {wanted:,} tokens",
        )
    return None


def _head_refused(model: ResolvedModel, draft: FurtherCheckpoint, facts: ModelFacts) -> Refusal | None:
    name, own = draft.source.source.text, model.facts
    trained_on = target_hidden_size(draft.config)
    if trained_on != own.hidden_size:
        explanation = (
            f"The head {name} was trained on hidden states of {trained_on:,}, the model's have {own.hidden_size:,}."
        )
    elif facts.vocab_size != own.vocab_size:
        explanation = (
            f"The head {name} reads a vocabulary of {facts.vocab_size:,} tokens, the model's has {own.vocab_size:,}."
        )
    else:
        return None
    return _refusal(model, "speculative.model", explanation, "the EAGLE3 head that was trained for this very model")


def _instead(vocabulary: int, drafts: int) -> str:
    small = _SMALL_MODELS.get(vocabulary)
    others = "an EAGLE3 head of the model (speculative.method: eagle3) or n-grams (speculative: {method: ngram})"
    return f"speculative.model: {small}, or {others}" if small is not None and drafts != vocabulary else others


def _refusal(model: ResolvedModel, constraint: str, explanation: str, change: str) -> Refusal:
    return Refusal(model.request.name, constraint, explanation, change)
