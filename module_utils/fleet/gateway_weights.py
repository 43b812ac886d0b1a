"""How the gateway weighs the instances of a model against one another.

The gateway sends a request to the server with the fewest open ones for its weight. Instances of one model can differ in
precision, GPUs and room for sequences; each gets a weight in proportion to the sequences that it runs at its capacity,
so that all of them reach the limits of their objectives together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# HAProxy takes 1 to 256. Not the largest, so that a weight reads as a percentage of the strongest instance.
_STRONGEST = 100


def gateway_weights(sequences: Mapping[str, float | None]) -> dict[str, int]:
    """Weights of the instances of one model.

    Args:
        sequences: running sequences of each instance at its capacity; None where its record does not say.

    Returns:
        A weight from 1 to 100 for each, or nothing where all are equal or one is not known.
    """
    known = [value for value in sequences.values() if value is not None and value > 0.0]
    if len(known) < len(sequences) or len(set(known)) < 2:
        return {}
    return {name: max(1, round(_STRONGEST * (value or 0.0) / max(known))) for name, value in sequences.items()}


def weights_of_instances(instances: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Weights by instance id, from the instances of one model as the plan's JSON has them."""
    return gateway_weights({one["id"]: sequences_at_capacity(one.get("speed") or {}) for one in instances})


def sequences_at_capacity(speed: Mapping[str, Any]) -> float | None:
    """Of an instance's record; None where it does not say."""
    value = speed.get("running_sequences_at_capacity")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
