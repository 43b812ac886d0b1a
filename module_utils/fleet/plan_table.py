"""The plan as a table that a person reads in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .plan_document import id_order

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .plan_document import Instance, Move, Plan

_COLUMNS = ("INSTANCE", "MODEL", "HOST", "GPUS", "TPxPP", "PRECISION", "CONTEXT", "KV TOKENS", "PORT")


def plan_table(plan: Plan, gpu_indices: Mapping[str, int]) -> str:
    """Instances, then what moves and what was refused, then the figures.

    Args:
        plan: the plan.
        gpu_indices: index of a GPU by UUID, as far as known; other GPUs are shown by UUID.
    """
    rows = [_row(one, gpu_indices) for one in sorted(plan.instances, key=lambda one: id_order(one.id))]
    lines = table(_COLUMNS, rows) if rows else ["No instances."]
    if plan.moves:
        lines += ["", "Moves:"]
        lines += [f"  {move_words(move, gpu_indices)}" for move in plan.moves]
    if plan.refused:
        lines += ["", "Refused:"]
        for one in plan.refused:
            lines += [
                f"  {one.model} ({one.constraint}): {one.explanation}",
                f"    Nearest change: {one.nearest_change}",
            ]
    summary = plan.summary
    lines += ["", f"{summary.gpus_used} GPUs used, at least {summary.gpus_lower_bound} needed for the same instances."]
    if summary.improvement_available:
        better = summary.improvement_available
        gain = [
            f"places {better['replicas_more']} more" if better["replicas_more"] else "",
            f"uses {better['gpus_fewer']} GPUs fewer" if better["gpus_fewer"] > 0 else "",
        ]
        gains = " and ".join(part for part in gain if part)
        lines.append(f"fleet_optimize=true {gains}, with {better['moves']} moves.")
    lines += summary.notes
    return "\n".join(lines)


def move_words(move: Move, gpu_indices: Mapping[str, int]) -> str:
    """A move in one line."""
    origin = ", ".join(f"{place.host} {_gpus(place.gpus, gpu_indices)}" for place in move.origin)
    to = ", ".join(f"{place.host} {_gpus(place.gpus, gpu_indices)}" for place in move.to)
    return f"{move.id}: {origin} -> {to or 'nowhere'} ({move.cause})"


def short_uuids(uuids: Iterable[str]) -> dict[str, str]:
    """The shortest starts, of at least 12 characters, by which UUIDs can be told apart."""
    known = set(uuids)
    longest = max(map(len, known), default=0)
    for length in range(12, longest):
        if len({uuid[:length] for uuid in known}) == len(known):
            return {uuid: uuid[:length] for uuid in known}
    return {uuid: uuid for uuid in known}


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text below a heading, columns as wide as they have to be."""
    widths = [max(len(row[column]) for row in [columns, *rows]) for column in range(len(columns))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [columns, *rows]
    ]


def _row(one: Instance, gpu_indices: Mapping[str, int]) -> list[str]:
    arguments = one.engine_args
    tokens = one.memory.get("kv_cache_tokens_planned")
    return [
        one.id,
        one.model,
        ", ".join(one.hosts),
        _gpus([uuid for _, uuid in one.gpus], gpu_indices),
        f"{arguments.get('tensor_parallel_size', 1)}x{arguments.get('pipeline_parallel_size', 1)}",
        str(arguments.get("quantization") or "checkpoint") + _kv(arguments.get("kv_cache_dtype")),
        str(arguments.get("max_model_len", "")),
        f"{tokens:,}" if isinstance(tokens, int) else "",
        str(one.port),
    ]


def _kv(dtype: object) -> str:
    return "" if dtype in (None, "auto") else f", {dtype} KV"


def _gpus(uuids: Sequence[str], gpu_indices: Mapping[str, int]) -> str:
    return ",".join(str(gpu_indices.get(uuid, uuid)) for uuid in uuids)


def plan_lines(plan: Plan) -> str:
    """Every instance with all its arguments, one a line, for a diff."""
    lines = []
    for one in sorted(plan.instances, key=lambda one: id_order(one.id)):
        lines.append(f"{one.id}:")
        lines += [f"  {shard.host}: {', '.join(shard.gpus)}" for shard in one.shards]
        lines.append(f"  port: {one.port}")
        lines += [f"  {name}: {value}" for name, value in sorted(one.engine_args.items())]
        lines += [f"  {name}={value}" for name, value in sorted(one.env.items())]
    lines += [f"refused {one.model}: {one.explanation}" for one in plan.refused]
    return "".join(f"{line}\n" for line in lines)
