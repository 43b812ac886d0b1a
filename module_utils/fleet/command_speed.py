"""Prefill time and time per output token by batch, and what bounds them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .checkpoint import load_model_facts
from .document_checks import load_json
from .engine_flags import add_engine_flags, engine_options
from .engine_options import SpeculativeOptions
from .errors import FleetError
from .hardware import gpu_by_name
from .host_document import parse_hosts
from .host_links import links_between
from .memory import estimate_memory
from .model_sources import read_text
from .speculation import SpeculativeSpeed
from .speed import SpeedModel

if TYPE_CHECKING:
    import argparse

    from .hardware import GpuModel
    from .speed_collectives import Links


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_engine_flags(parser)
    parser.add_argument("--prompt-tokens", type=int, required=True, help="tokens of each prompt")
    parser.add_argument("--output-tokens", type=int, default=64, help="output tokens that tpot_ms is the mean over")
    parser.add_argument("--batch", default="1,4,16,64", help="batch sizes, separated by commas")
    parser.add_argument("--draft", metavar="PATH", help="configuration of a draft model, for speculative decoding")
    parser.add_argument(
        "--speculative-tokens", type=int, default=0, help="draft tokens a step; without --draft: n-gram"
    )
    parser.add_argument("--acceptance-rate", type=float, help="of one draft token, between 0 and 1")
    parser.add_argument("--facts", metavar="FACTS.json", help="host documents, for the links that a link test measured")
    parser.add_argument("--host", help="the host of --facts whose links count")
    parser.add_argument("--json", action="store_true", help="print the whole answer as JSON")


def run(args: argparse.Namespace) -> int:
    """Print one row for each batch."""
    prompt_tokens = _at_least_one(args.prompt_tokens, "--prompt-tokens")
    output_tokens = _at_least_one(args.output_tokens, "--output-tokens")
    batches = _batches(args.batch)
    model = load_model_facts(args.config)
    gpu = gpu_by_name(args.gpu, where="--gpu")
    options = engine_options(args)
    speed = SpeedModel(model, gpu, options, links=_links(args, gpu, options.world_size))
    kv_cache_tokens = estimate_memory(model, gpu, options).kv_cache_tokens
    rows = []
    for batch in batches:
        document = speed.row(batch, prompt_tokens, output_tokens).to_document()
        document["kv_cache_holds_it"] = batch * (prompt_tokens + output_tokens) <= kv_cache_tokens
        rows.append(document)
    answer: dict[str, object] = {"gpu": gpu.name, "links": speed.links.source, "rows": rows}
    speculative = None
    if args.draft is not None or args.speculative_tokens:
        speculative = _speculative(args, speed, batches, prompt_tokens + output_tokens / 2)
        answer["speculative"] = speculative
    if args.json:
        json.dump(answer, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _print_table(rows)
        if speculative is not None:
            _print_speculation(speculative)
    return 0


def _links(args: argparse.Namespace, gpu: GpuModel, count: int) -> Links | None:
    """Those of a host of ``--facts``, between the first GPUs of the kind; None for the default."""
    if args.facts is None and args.host is None:
        return None
    if args.facts is None or args.host is None:
        raise FleetError("--host" if args.host is None else "--facts", "is needed beside the other")
    hosts = parse_hosts(load_json(read_text(args.facts), where=args.facts), where=args.facts)
    host = next((one for one in hosts if one.name == args.host), None)
    if host is None:
        names = ", ".join(one.name for one in hosts) or "no host"
        raise FleetError("--host", f"{args.facts} has {names}, not {args.host}")
    uuids = [one.uuid for one in host.gpus if one.model is not None and one.model.name == gpu.name]
    if len(uuids) < count:
        raise FleetError("--host", f"{args.host} has {len(uuids)} {gpu.name}, {count} are needed")
    return links_between(host, uuids[:count])


def _speculative(
    args: argparse.Namespace, plain: SpeedModel, batches: list[int], context_tokens: float
) -> dict[str, Any]:
    draft = None if args.draft is None else load_model_facts(args.draft)
    speculative = SpeculativeOptions(
        method="ngram" if draft is None else "draft_model",
        num_speculative_tokens=_at_least_one(args.speculative_tokens, "--speculative-tokens"),
        draft=draft,
    )
    options = replace(plain.options, speculative=speculative)
    speed = SpeculativeSpeed(plain.model, plain.gpu, options, acceptance_rate=args.acceptance_rate)
    effects = [speed.effect(batch, context_tokens) for batch in batches]
    return {
        "method": speculative.method,
        "num_speculative_tokens": speculative.num_speculative_tokens,
        "tokens_per_step": round(speed.tokens_per_step, 4),
        "pays_until_batch": speed.pays_until_batch(context_tokens, max_batch=options.max_num_seqs),
        "rows": [
            {"batch": e.batch, "tpot_ms": round(e.tpot_s * 1e3, 4), "speedup": round(e.speedup, 4)} for e in effects
        ],
    }


def _at_least_one(value: int, where: str) -> int:
    if value < 1:
        raise FleetError(where, f"must be 1 or more, got {value}")
    return value


def _batches(text: str) -> list[int]:
    try:
        batches = [int(part) for part in text.split(",")]
    except ValueError:
        raise FleetError("--batch", f"must be whole numbers separated by commas, got {text!r}") from None
    return [_at_least_one(batch, "--batch") for batch in batches]


def _print_table(rows: list[dict[str, object]]) -> None:
    sys.stdout.write(f"{'batch':>6} {'prefill s':>10} {'tpot ms':>9} {'tokens/s':>10}  bound by\n")
    for row in rows:
        sys.stdout.write(
            f"{row['batch']:>6} {row['prefill_s']:>10.4f} {row['tpot_ms']:>9.2f} "
            f"{row['decode_tokens_per_s']:>10.0f}  {row['bound']}\n"
        )


def _print_speculation(answer: dict[str, Any]) -> None:
    until = answer["pays_until_batch"]
    pays = f"up to batch {until}" if until else "at no batch"
    sys.stdout.write(
        f"\n{answer['num_speculative_tokens']} draft tokens a step by {answer['method']}, "
        f"{answer['tokens_per_step']:.2f} tokens come out: pays {pays}\n"
        f"{'batch':>6} {'tpot ms':>9} {'speed-up':>9}\n"
    )
    for row in answer["rows"]:
        sys.stdout.write(f"{row['batch']:>6} {row['tpot_ms']:>9.2f} {row['speedup']:>9.2f}\n")
