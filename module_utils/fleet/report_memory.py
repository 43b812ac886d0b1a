"""What lies in the memory of one GPU, according to the plan: parts that add up to what the engine sees of the card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .errors import FleetError
from .memory import CONTEXT_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .memory import RankMemory
    from .plan_document import Instance

PartKind = Literal["weights", "activations", "graphs", "other", "kv", "margin", "free"]
# In the order in which they lie in the bar.
PART_NAMES: Mapping[PartKind, str] = {
    "weights": "weights",
    "activations": "activations",
    "graphs": "CUDA graphs",
    "other": "context, NCCL, workspaces",
    "kv": "KV cache",
    "margin": "margin",
    "free": "free",
}


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a card's memory. ``owner`` is the model, empty for what nobody has."""

    kind: PartKind
    size_bytes: int
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """The memory of one card. The parts add up to ``total_bytes``, or to ``over_bytes`` more than it has."""

    total_bytes: int
    parts: tuple[Part, ...]
    over_bytes: int = 0

    def of_kind(self, kind: PartKind) -> int:
        """Bytes of one kind."""
        return sum(part.size_bytes for part in self.parts if part.kind == kind)


def free_bar(total_bytes: int) -> Bar:
    """A card that nothing runs on."""
    return Bar(total_bytes, (Part("free", total_bytes),))


def gpu_bar(
    tenants: Sequence[tuple[Instance, RankMemory | None]], total_bytes: int | None, *, where: str
) -> Bar | None:
    """The memory of a card with its instances, in the order in which they start.

    Args:
        tenants: the instances, each with its rank on this card where that is known; else the figures of the tightest
            rank, which the plan holds, stand for it.
        total_bytes: what the engine sees of the card; None takes it from the instances.
        where: the plan, for errors.

    Returns:
        None where the plan does not say what an instance takes.

    Raises:
        FleetError: a figure is no number of bytes.
    """
    parts: list[Part] = []
    total = total_bytes
    for one, rank in tenants:
        path = f"{where}: instances {one.id}"
        if not one.memory:
            return None
        total = total or _bytes(one, "total_bytes", path)
        parts += [Part(kind, size, one.model) for kind, size in _parts(one, rank, path) if size > 0]
    if total is None:
        return None
    used = sum(part.size_bytes for part in parts)
    free = [Part("free", total - used)] if used < total else []
    return Bar(total, (*parts, *free), max(0, used - total))


def _parts(one: Instance, rank: RankMemory | None, path: str) -> list[tuple[PartKind, int]]:
    if rank is not None:
        weights, activations, graphs, margin = (
            rank.weights_bytes,
            rank.activation_bytes,
            rank.cudagraph_bytes,
            rank.margin_bytes,
        )
        other = rank.non_torch_bytes + rank.runner_buffers_bytes + rank.outside_bytes
        kv_cache = rank.planned_kv_cache_bytes
    else:
        weights, activations, graphs, margin = (
            _bytes(one, f"{name}_bytes", path) for name in ("weights", "activation", "cudagraph", "margin")
        )
        workspace = _bytes(one, "attention_workspace_bytes", path)
        inside = _bytes(one, "non_torch_bytes", path) + _bytes(one, "runner_buffers_bytes", path)
        other = inside + workspace + CONTEXT_BYTES
        # What lies beside the engine's budget may take some of it where the utilization is high.
        beside = _bytes(one, "budget_bytes", path) + workspace + CONTEXT_BYTES - _bytes(one, "total_bytes", path)
        kv_cache = _bytes(one, "available_kv_cache_bytes", path) - margin - max(0, beside)
    given = one.engine_args.get("kv_cache_memory_bytes")
    if isinstance(given, int) and not isinstance(given, bool):
        kv_cache = given
    return [
        ("weights", weights),
        ("activations", activations),
        ("graphs", graphs),
        ("other", other),
        ("kv", kv_cache),
        ("margin", margin),
    ]


def _bytes(one: Instance, name: str, path: str) -> int:
    value = one.memory.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise FleetError(f"{path}.memory.{name}", f"must be a whole number of bytes, got {value!r}")
    return value
