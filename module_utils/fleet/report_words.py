"""Numbers and names as the report prints them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .plan_document import Instance, Plan

_GIB = 1024**3
_COUNTED = re.compile(r"(.*?)(\d+)")


def gib(size_bytes: float) -> str:
    """Bytes in GiB."""
    return f"{size_bytes / _GIB:.1f} GiB"


def number(value: float | None, unit: str = "") -> str:
    """A number to three digits, a hyphen where there is none."""
    if value is None:
        return "-"
    text = f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
    return f"{text} {unit}" if unit else text


def percent(share: float | None) -> str:
    """A share in percent. Not quite all is never shown as 100 %, nor a little as 0 %."""
    if share is None:
        return "-"
    hundredths = 100.0 * share
    if 99.95 <= hundredths < 100.0:
        return "99.9 %"
    if 0.0 < hundredths < 0.05:
        return "under 0.1 %"
    whole = not 0.05 <= hundredths % 1.0 <= 0.95
    return f"{hundredths:,.0f} %" if whole else f"{hundredths:,.1f} %"


def plural(count: int, word: str) -> str:
    """A count with its noun, which takes an s."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def listing(words: Iterable[str]) -> str:
    """Words as they stand in a sentence."""
    known = list(words)
    return known[0] if len(known) == 1 else f"{', '.join(known[:-1])} and {known[-1]}" if known else ""


def name_ranges(names: Iterable[str]) -> list[str]:
    """Names that count up, from the first to the last of each run: ``h0001 to h0340``, ``spare``."""
    runs: list[list[str]] = []
    following = ""
    for name in sorted(names, key=_counting):
        if name == following:
            runs[-1].append(name)
        else:
            runs.append([name])
        following = _next(name)
    return [text for run in runs for text in (run if len(run) < 3 else [f"{run[0]} to {run[-1]}"])]


def configuration_namer(plan: Plan) -> Callable[[Instance], str]:
    """A function that says in a few words how an instance of this plan is started.

    The precision of a checkpoint is no engine argument; the candidates of the plan know it.
    """
    stored: dict[tuple[object, ...], set[str]] = {}
    for candidate in plan.candidates:
        quantization = str(candidate.config.get("quantization"))
        stored.setdefault(_stored_key(candidate.model, candidate.config), set()).add(quantization)

    def name(one: Instance) -> str:
        arguments = dict(one.engine_args)
        known = stored.get(_stored_key(one.model, arguments), set()) - {"fp8"}
        if not arguments.get("quantization") and len(known) == 1:
            arguments["quantization"] = next(iter(known))
        gpus = gpus_words(len(one.gpus), one.sharing.ways if one.sharing else 1, len(one.shards))
        return f"{gpus}{sizes_words(arguments)}, {precision_words(arguments)}"

    return name


def gpus_words(gpus: int, ways: int = 1, nodes: int = 1, kind: str = "GPU") -> str:
    """How many GPUs an instance has, or which part of one, and on how many hosts."""
    if ways > 1:
        return f"1/{ways} of a GPU"
    return plural(gpus, kind) if nodes == 1 else f"{plural(gpus, kind)} on {nodes} hosts"


def _stored_key(model: str, arguments: Mapping[str, object]) -> tuple[object, ...]:
    return (model, *shape_key(arguments))


def shape_key(arguments: Mapping[str, object]) -> tuple[int, int, str]:
    """What an instance and the candidate that it was made of have in common beside their precision."""
    return (
        parallel_size(arguments, "tensor"),
        parallel_size(arguments, "pipeline"),
        str(arguments.get("kv_cache_dtype", "auto")),
    )


def sizes_words(arguments: Mapping[str, object]) -> str:
    """Parallel sizes above 1, in brackets."""
    tensor, pipeline = parallel_size(arguments, "tensor"), parallel_size(arguments, "pipeline")
    sizes = [f"TP {tensor}"] if tensor > 1 else []
    sizes += [f"PP {pipeline}"] if pipeline > 1 else []
    return f" ({', '.join(sizes)})" if sizes else ""


def parallel_size(arguments: Mapping[str, object], kind: str) -> int:
    """``tensor_parallel_size`` or ``pipeline_parallel_size``, 1 where it is not said."""
    value = arguments.get(f"{kind}_parallel_size", 1)
    return value if isinstance(value, int) else 1


def precision_words(arguments: Mapping[str, object]) -> str:
    """Weights and KV cache, from engine arguments or the configuration of a candidate."""
    quantization = arguments.get("quantization")
    weights = "unquantized" if quantization == "none" else str(quantization).upper() if quantization else "as stored"
    kv_cache = arguments.get("kv_cache_dtype")
    return weights if kv_cache in (None, "auto") else f"{weights}, {str(kv_cache).upper()} KV"


def _counting(name: str) -> tuple[str, int, str]:
    match = _COUNTED.fullmatch(name)
    return (match.group(1), int(match.group(2)), name) if match else (name, -1, name)


def _next(name: str) -> str:
    """The name that counts one further, as wide where it has leading zeros; empty for a name without a number."""
    match = _COUNTED.fullmatch(name)
    return f"{match.group(1)}{int(match.group(2)) + 1:0{len(match.group(2))}}" if match else ""
