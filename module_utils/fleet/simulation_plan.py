"""From a plan to what is simulated: its instances as they are started, its demands and objectives."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .capacity import Objectives, tokens_held
from .document_checks import check_document, shown
from .engine_options import options_from_engine_args
from .errors import FleetError
from .gateway_weights import gateway_weights, sequences_at_capacity
from .model_document import facts_from_document
from .plan_gpus import gpus_of_instances
from .requests import Demand
from .requests import Objectives as AskedObjectives
from .simulation import SimulatedInstance, SimulatedModel, Simulation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .engine_options import EngineOptions
    from .hardware import GpuModel
    from .model_facts import ModelFacts
    from .plan_document import Instance, Plan


def simulation_of(plan: Plan, *, where: str) -> tuple[Simulation, dict[str, str]]:
    """What the plan says, ready to be simulated.

    Args:
        plan: with ``models`` and ``instance_gpus``, as this version writes it.
        where: the file, for errors.

    Returns:
        The simulation, and the models that are left out, with the reason.

    Raises:
        FleetError: the plan lacks what a simulation needs, or a value of it is wrong.
    """
    if plan.instances and not plan.models:
        raise FleetError(f"{where}: models", "is missing: an older version made this plan; make it again")
    models: list[SimulatedModel] = []
    facts: dict[str, ModelFacts] = {}
    left_out: dict[str, str] = {}
    for name, section in sorted(plan.models.items()):
        path = f"models.{name}"
        mine = [one for one in plan.instances if one.model == name]
        demand = section.get("demand")
        if demand is None:
            left_out[name] = "no demand"
            continue
        facts[name] = facts_from_document(section.get("facts"), where=where, path=f"{path}.facts")
        models.append(_model(name, section, mine, where=where, path=path))
    for name in {one.model for one in plan.instances} - set(plan.models):
        left_out[name] = "the plan was not asked for it"
    kinds = gpus_of_instances(plan, where=where)
    weights: dict[str, int] = {}
    for name in facts:
        weights |= gateway_weights(
            {one.id: sequences_at_capacity(one.speed) for one in plan.instances if one.model == name}
        )
    on_gpu = Counter(place for one in plan.instances for place in one.gpus)
    instances = [
        _instance(one, facts[one.model], kinds, weights.get(one.id, 1), where=where, path=f"instances[{index}]")
        for index, one in enumerate(plan.instances)
        if one.model in facts
    ]
    # Engines on one GPU take turns.
    instances = [
        replace(simulated, slowdown=float(max(on_gpu[place] for place in one.gpus)))
        for simulated, one in zip(instances, (one for one in plan.instances if one.model in facts), strict=True)
    ]
    simulation = Simulation(instances, models)
    positions = [index for index, one in enumerate(plan.instances) if one.model in facts]
    for index, simulated in zip(positions, instances, strict=True):
        try:
            simulation.check(simulated)
        except FleetError as error:
            raise FleetError(f"{where}: instances[{index}].engine_args.{error.where}", error.problem) from None
    return simulation, left_out


def _model(name: str, section: Mapping[str, Any], mine: list[Instance], *, where: str, path: str) -> SimulatedModel:
    demand = check_document(Demand, section["demand"], where=where, path=f"{path}.demand")
    asked = check_document(AskedObjectives, section.get("objectives", {}), where=where, path=f"{path}.objectives")
    longest = [one.engine_args.get("max_model_len") for one in mine]
    return SimulatedModel(
        name=name,
        requests_per_second=demand.requests_per_second,
        prompt_tokens=demand.prompt_tokens,
        # Pooling models answer with the prompt's own pass.
        output_tokens=demand.output_tokens if all(one.task == "generate" for one in mine) else 1,
        objectives=Objectives(asked.ttft_ms, asked.tpot_ms, asked.percentile),
        max_model_len=min((one for one in longest if isinstance(one, int)), default=None),
    )


def _instance(
    one: Instance, facts: ModelFacts, kinds: Mapping[str, GpuModel], weight: int, *, where: str, path: str
) -> SimulatedInstance:
    if one.id not in kinds:
        raise FleetError(f"{where}: instance_gpus", f"names no kind of GPU for {one.id}")
    tokens = one.memory.get("kv_cache_tokens_planned")
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < int(facts.has_kv_cache):
        raise FleetError(
            f"{where}: {path}.memory.kv_cache_tokens_planned", f"must be a whole number above 0, got {shown(tokens)}"
        )
    options = _options(one, where=where, path=path)
    return SimulatedInstance(
        model=one.model,
        facts=facts,
        gpu=kinds[one.id],
        options=options,
        kv_cache_tokens=tokens_held(facts, options, tokens),
        weight=float(weight),
        async_scheduling=one.task == "generate",
    )


def _options(one: Instance, *, where: str, path: str) -> EngineOptions:
    # Speculative decoding is simulated as if every draft were refused: no acceptance is known.
    arguments = {name: value for name, value in one.engine_args.items() if name != "speculative_config"}
    options = options_from_engine_args(arguments, where=f"{where}: {path}.engine_args")
    split = one.env.get("VLLM_PP_LAYER_PARTITION")
    if split is None:
        return options
    parts = split.split(",")
    if not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise FleetError(
            f"{where}: {path}.env.VLLM_PP_LAYER_PARTITION", f"must be numbers of layers, got {shown(split)}"
        )
    return replace(options, pipeline_layers=tuple(int(part) for part in parts))
