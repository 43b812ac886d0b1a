"""EAGLE heads: one decoder layer that drafts from the model's own hidden states."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .config_reader import ConfigReader
from .errors import FleetError
from .model import facts_from_config
from .model_facts import LinearModule

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from .model_facts import ModelFacts

# Hidden states of so many layers of the model go in where the configuration does not name them (llama_eagle3.py).
_AUXILIARY_STATES = 3
_LAYER_IDS = "eagle_aux_hidden_state_layer_ids"


def eagle3_facts(config: Mapping[str, object], tensors: Collection[str] | None, *, where: str) -> ModelFacts:
    """Facts of an EAGLE3 head.

    Its first layer reads embedding and hidden state side by side, ``fc`` brings the model's states to its width, and
    its output has a vocabulary of its own. The embedding is the model's where the checkpoint has none.

    Args:
        config: its config.json.
        tensors: the names of its tensors; None when they are not known, and an embedding of its own is assumed.
        where: the file, for errors.

    Raises:
        FleetError: the configuration is none of such a head.
    """
    if not is_eagle3(config):
        raise FleetError(
            f"{where}: architectures", "is no EAGLE3 head: no architecture of that name, no draft_vocab_size"
        )
    reader = ConfigReader(config, where)
    facts = facts_from_config({"model_type": "llama", **config}, where=where)
    hidden = facts.hidden_size
    first = facts.layer_kinds[facts.layer_pattern[0]]
    modules = (
        *(replace(one, input_size=2 * hidden) if one.sharding == "qkv" else one for one in first.modules),
        _plain("fc", _states(config) * target_hidden_size(config), hidden, "replicated"),
        _plain("lm_head", hidden, reader.integer("draft_vocab_size", facts.vocab_size), "column"),
    )
    own = replace(first, modules=modules, norm_parameters=first.norm_parameters + hidden)
    names = tensors if tensors is not None else ("embed_tokens.weight",)
    return replace(
        facts,
        architecture="EAGLE3 head",
        layer_kinds=(own, *facts.layer_kinds),
        layer_pattern=(0, *(kind + 1 for kind in facts.layer_pattern[1:])),
        has_lm_head=False,
        tie_word_embeddings=False,
        shares_embedding=not any(name.endswith("embed_tokens.weight") for name in names),
        unknown=() if tensors is not None else ("the head is counted with an embedding of its own",),
    )


def is_eagle3(config: Mapping[str, object]) -> bool:
    """Whether a config.json is that of an EAGLE3 head."""
    names = config.get("architectures")
    return "draft_vocab_size" in config or (isinstance(names, list) and any("Eagle3" in str(one) for one in names))


def target_hidden_size(config: Mapping[str, object]) -> int:
    """Width of the hidden states that a head was trained on."""
    reader = ConfigReader(config, "config.json")
    return reader.integer("target_hidden_size", reader.integer("hidden_size"))


def _states(config: Mapping[str, object]) -> int:
    nested = config.get("eagle_config")
    found = config.get(_LAYER_IDS) or (nested.get(_LAYER_IDS) if isinstance(nested, dict) else None)
    named = len(found) if isinstance(found, list) and found else _AUXILIARY_STATES
    return ConfigReader(config, "config.json").integer("num_aux_hidden_states", named)


def _plain(name: str, inputs: int, outputs: int, sharding: str) -> LinearModule:
    return LinearModule(
        name=name,
        input_size=inputs,
        output_sizes=(outputs,),
        sharding=sharding,  # type: ignore[arg-type]
        checkpoint_names=(name,),
        quantizable=False,
    )
