"""What a plan says about its models, read for the report's curves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .capacity import Objectives
from .document_checks import check_document
from .model_document import facts_from_document
from .report_curves import CurveModel
from .requests import Demand
from .requests import Objectives as AskedObjectives

if TYPE_CHECKING:
    from .plan_document import Plan

# Of a model without a demand: a usual request, shortened where its context is short.
_PROMPT_TOKENS, _OUTPUT_TOKENS = 1024, 256


def curve_models(plan: Plan, *, where: str) -> dict[str, CurveModel]:
    """Facts, traffic and objectives by model.

    Raises:
        FleetError: the section is not as ``model_document`` writes it; the path is named.
    """
    pooling = {one.model for one in plan.instances if one.task != "generate"}
    found = {}
    for name, section in plan.models.items():
        path = f"models.{name}"
        facts = facts_from_document(section.get("facts"), where=where, path=f"{path}.facts")
        asked = check_document(AskedObjectives, section.get("objectives") or {}, where=where, path=f"{path}.objectives")
        demand = None
        if section.get("demand") is not None:
            demand = check_document(Demand, section["demand"], where=where, path=f"{path}.demand")
        prompt = demand.prompt_tokens if demand else min(_PROMPT_TOKENS, max(1, facts.max_position_embeddings // 2))
        output = demand.output_tokens if demand else min(_OUTPUT_TOKENS, max(1, facts.max_position_embeddings // 4))
        found[name] = CurveModel(
            facts=facts,
            prompt_tokens=prompt,
            output_tokens=1 if name in pooling else output,
            objectives=Objectives(asked.ttft_ms, asked.tpot_ms, asked.percentile),
            requests_per_s=demand.requests_per_second if demand else None,
        )
    return found
