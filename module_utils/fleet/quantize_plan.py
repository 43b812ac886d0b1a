"""Quantized checkpoints in the plan: a model is planned as if its checkpoint were there, and jobs make it so."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .errors import FleetError
from .families import FAMILIES
from .plan_document import CheckpointReference
from .quantization_config import PLANNED, QuantizationFacts
from .quantize_costs import output_bytes
from .quantize_gate import Limits, why_rejected
from .quantize_recipes import MADE, Recipe, recipe, result_key, why_not_served, words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .configurations import ResolvedModel
    from .model_facts import ModelFacts
    from .plan_document import Plan
    from .quantize_evidence import Evidence
    from .request_quantize import Quantize


@dataclass(frozen=True, slots=True)
class Text:
    """A user's text for calibration: its path on the controller and its SHA-256."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Preparation:
    """A model that is served from a quantized checkpoint of our own making.

    Args:
        source: the model as its source is.
        recipe: how the checkpoint is made.
        limits: what it has to hold.
        key: SHA-256 that names the result; empty when the source's digest is not known.
        judged_tokens: of held-out text that it is judged on.
        text: the user's text; None for the repository's.
    """

    source: ResolvedModel
    recipe: Recipe
    limits: Limits
    key: str
    judged_tokens: int
    text: Text | None = None

    @property
    def model(self) -> ResolvedModel:
        """The model as it is planned."""
        reference = None
        if self.key:
            size = output_bytes(self.source.facts, self.recipe)
            reference = CheckpointReference(self.source.request.name, self.key, size)
        request = self.source.request
        if self.recipe.method == "fp8_static" and request.kv_cache_dtype == "auto":
            # The checkpoint carries scales for an FP8 cache, which the engine then uses.
            request = request.model_copy(update={"kv_cache_dtype": "fp8"})
        facts = replace(self.source.facts, quantization=quantized_as(self.recipe), checkpoint=None)
        note = f"Served from a checkpoint that the fleet makes of the source: {words(self.recipe)}."
        return replace(self.source, request=request, facts=facts, checkpoint=reference, notes=(note,))


@dataclass(frozen=True, slots=True)
class Outcome:
    """A plan, and what it takes for granted.

    Args:
        preparations: by model.
        notices: lines for the operator.
    """

    plan: Plan
    preparations: Mapping[str, Preparation] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


def quantized_as(chosen: Recipe) -> QuantizationFacts:
    """What a recipe's result looks like once loaded."""
    if chosen.precision == "fp8":
        known = PLANNED["fp8"]
        group = -1 if chosen.method == "fp8_dynamic" else 0
        return replace(known, method="compressed-tensors", group_size=group, online=False)
    known = PLANNED[chosen.precision]
    if chosen.precision == "int8":
        return known
    return replace(known, group_size=chosen.group_size, act_order=chosen.method == "gptq_g_idx")


def plan_with_quantized(
    make: Callable[[Sequence[ResolvedModel]], Plan],
    models: Sequence[ResolvedModel],
    evidence: Evidence,
    *,
    engine_version: str,
    enabled: bool,
    texts: Mapping[str, Text] | None = None,
    unmakeable: Mapping[str, str] | None = None,
    choose: bool = True,
) -> Outcome:
    """Make the plan with quantized checkpoints that are there or can be made.

    A model whose ``quantize`` or ``quantization`` names a method is planned by it, unless the quality gate refused the
    result: then by what else serves it. A model that leaves the choice open is quantized only where it could not be
    placed otherwise, by the most faithful method that places it.

    Args:
        make: makes a plan for models.
        models: as their sources are.
        evidence: what is there, and what was refused.
        engine_version: vLLM's version.
        enabled: whether checkpoints may be made; those that are there are used in any case.
        texts: users' texts by model.
        unmakeable: by model, why no checkpoint of it can be made now.
        choose: quantize models that leave the choice open, where nothing else places them.

    Raises:
        FleetError: a ``quantize`` that contradicts ``quantization``, or a parameter that a method has no use for.
    """
    texts, unmakeable = texts or {}, unmakeable or {}
    chosen: dict[str, ResolvedModel] = {}
    preparations: dict[str, Preparation] = {}
    open_choice: dict[str, ResolvedModel] = {}
    notices: list[str] = []

    def usable(one: Preparation) -> str | None:
        """Why a result cannot be counted on; None when it can."""
        return why_unusable(one, evidence, engine_version, enabled=enabled, unmakeable=unmakeable)

    for model in models:
        name, method = model.request.name, wanted_method(model)
        chosen[name] = model
        if method is None:
            if choose and model.request.quantization == "auto" and can_be_made(model.facts):
                open_choice[name] = model
            continue
        one = preparation(model, method, texts.get(name))
        problem = usable(one)
        if problem is None:
            preparations[name], chosen[name] = one, one.model
        elif enabled or evidence.figures(one.key) is not None:
            notice = f"{name}: {words(one.recipe)}: not used, because {problem}."
            notices.append(notice)
            request = model.request.model_copy(update={"quantization": "auto"})
            chosen[name] = open_choice[name] = replace(model, request=request, notes=(notice,))
    plan = make(list(chosen.values()))
    for name in sorted({one.model for one in plan.refused} & open_choice.keys()):
        for method in MADE.values():
            one = preparation(open_choice[name], method, texts.get(name))
            if usable(one) is not None:
                continue
            prepared = replace(one.model, notes=(*open_choice[name].notes, *one.model.notes))
            other = make([*(model for model in chosen.values() if model.request.name != name), prepared])
            if _refused(other) < _refused(plan):
                plan, chosen[name], preparations[name] = other, prepared, one
                break
    return Outcome(plan, preparations, tuple(notices))


def _refused(plan: Plan) -> set[str]:
    return {one.model for one in plan.refused}


def wanted_method(model: ResolvedModel) -> str | None:
    """The method that a request asks for; None when it asks for none or its source is quantized already.

    Raises:
        FleetError: ``quantize.method`` makes another precision than ``quantization`` asks for.
    """
    request, settings = model.request, model.request.quantize
    if model.facts.quantization is not None or not can_be_made(model.facts):
        return None
    named = settings.method if settings is not None else None
    if named is None:
        return MADE.get(request.quantization)
    precision = recipe(named).precision
    if request.quantization not in ("auto", precision):
        problem = f"{named} makes {precision} of it, and quantization asks for {request.quantization}"
        raise FleetError(f"{model.path}.quantize.method", problem)
    return named


def can_be_made(facts: ModelFacts) -> bool:
    """Whether the libraries can take the model: a decoder of text, in full precision, of a family that is known."""
    of_text = facts.encoder is None and facts.has_kv_cache
    return facts.quantization is None and of_text and facts.model_type in FAMILIES


def preparation(model: ResolvedModel, method: str, text: Text | None) -> Preparation:
    """The checkpoint that a method makes of a model.

    Raises:
        FleetError: a parameter that the method has no use for.
    """
    settings: Quantize | None = model.request.quantize
    parameters: dict[str, Any] = {}
    limits, judged = Limits(), 8192
    if settings is not None:
        names = ("samples", "sequence_length", "group_size", "dampening", "smoothing", "seed")
        parameters = {name: getattr(settings, name) for name in names}
        limits = Limits(settings.max_perplexity_ratio, settings.min_agreement)
        judged = settings.judged_tokens
    try:
        chosen = recipe(method, **parameters, text=text.sha256 if text else "")
    except FleetError as error:
        raise FleetError(f"{model.path}.{error.where}", error.problem) from None
    key = result_key(model.checkpoint.digest, chosen) if model.checkpoint is not None else ""
    return Preparation(model, chosen, limits, key, judged, text)


def why_unusable(
    one: Preparation, evidence: Evidence, engine_version: str, *, enabled: bool, unmakeable: Mapping[str, str]
) -> str | None:
    """Why a checkpoint can neither be used nor made; None when it can."""
    problem = why_not_served(one.recipe.method, engine_version)
    if problem is not None:
        return problem
    figures = evidence.figures(one.key)
    if figures is not None:
        refused = why_rejected(figures, one.limits)
        if refused is not None:
            return f"the quality gate refused it: {refused}"
        if one.key in evidence.made:
            return None
    if not enabled:
        return "it is not there, and fleet_quantize is off"
    return unmakeable.get(one.source.request.name)
