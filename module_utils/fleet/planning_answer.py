"""One answer to the question of the plan: what is asked for, decided with the precisions that may be used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .configurations import LESS_FAITHFUL, Configuration, less_faithful
from .host_means import host_memory_bytes
from .placement import decide
from .placement_bound import Need, fewest_gpus_in_all
from .plan_document import id_order
from .planning_summary import candidate_order, restricted_shapes
from .running import standing_of
from .wishes import last_resorts, prepare

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .configurations import ResolvedModel
    from .fleet_configurations import FleetConfigurations
    from .fleet_view import FleetView
    from .placement_problem import Decision, HostRoom, Shape, Standing, Wish
    from .plan_document import Instance
    from .wishes import Prepared

# A packing on fewer GPUs is looked for when more than this share of them might be saved.
_WORTH_MOVING = 0.01
_SMALL_FLEET_GPUS = 64


@dataclass(frozen=True, slots=True)
class Answer:
    """A decision with what it was made of.

    Args:
        candidates: by model, the configurations that it chose among and those that run.
        why_leaving: in words, why an instance could not stay, by id.
        improvement: what moving more would bring, if anything.
        lacking: what is not carried, the highest priority first.
    """

    decision: Decision
    prepared: Mapping[str, Prepared]
    candidates: Mapping[str, tuple[Configuration, ...]]
    why_leaving: Mapping[str, str]
    improvement: dict[str, Any] | None
    lacking: tuple[object, ...]

    @property
    def capacity(self) -> dict[str, dict[Shape, float]]:
        """Requests/s that an instance carries, by model and shape."""
        return {
            name: {one.shape: one.capacity_requests_per_s or 0.0 for one in candidates}
            for name, candidates in self.candidates.items()
        }


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, whatever the precisions that may be used."""

    view: FleetView
    configurations: FleetConfigurations
    models: Mapping[str, ResolvedModel]
    untouchable: Sequence[Instance]
    touchable: Mapping[str, Instance]

    @property
    def may_be_less_precise(self) -> bool:
        """Whether any model may use a less faithful precision."""
        return any(map(_chooses_precision, self.models.values()))

    def answer(
        self,
        precisions: Mapping[str, Sequence[str]],
        *,
        optimize: bool,
        settled: bool = False,
    ) -> Answer:
        """Decide.

        Args:
            precisions: less faithful ones that a model may use, by model.
            optimize: move what runs if that places more, or the same on fewer GPUs.
            settled: it is decided who uses those precisions: these models use no other.
        """
        prepared = {
            name: prepare(
                model,
                self.view,
                self.configurations,
                [one for one in (*self.untouchable, *self.touchable.values()) if one.model == name],
                precisions=precisions.get(name, ()) if _chooses_precision(model) else (),
                settled=settled and name in precisions,
            )
            for name, model in self.models.items()
        }
        standing: list[Standing] = []
        why_leaving: dict[str, str] = {}
        candidates = {name: {one.shape: one for one in ready.configurations} for name, ready in prepared.items()}
        for one in sorted(self.touchable.values(), key=lambda one: id_order(one.id)):
            ready = prepared.get(one.model)
            if ready is None or ready.wish is None:
                continue
            now, why = standing_of(one, ready.model, self.view, self.configurations)
            standing.append(now)
            if why:
                why_leaving[one.id] = why
            elif now.shape not in candidates[one.model]:
                found = self._running(one, now, ready.model)
                if found is not None:
                    candidates[one.model][now.shape] = found
        wishes = {
            name: _with_candidates(
                replace(ready.wish, sacrifices=frozenset() if settled else ready.wish.sacrifices),
                ready.model,
                candidates[name],
            )
            for name, ready in prepared.items()
            if ready.wish is not None
        }

        def resorts() -> list[Wish]:
            for name, wish in wishes.items():
                model = self.models[name]
                parts, wide = last_resorts(model, self.view, self.configurations)
                candidates[name] |= {one.shape: one for one in (*parts, *wide) if one.shape not in candidates[name]}
                shared, over_hosts = (tuple(one.shape for one in found) for found in (parts, wide))
                offered = replace(wish, shared_shapes=shared, wide_shapes=over_hosts)
                wishes[name] = _with_candidates(offered, model, candidates[name])
            return list(wishes.values())

        rooms = list(self.view.rooms.values())
        draft = not precisions and self.may_be_less_precise
        decision = decide(list(wishes.values()), rooms, standing, draft=draft, last_resorts=resorts)
        improvement = None
        if standing and not (draft and decision.shortages) and _may_improve(decision, wishes, candidates, rooms):
            best = decide(list(wishes.values()), rooms, standing, optimize=True)
            if _score(best, wishes) < _score(decision, wishes):
                improvement = {
                    "replicas_more": decision.missing - best.missing,
                    "gpus_fewer": decision.gpus_used - best.gpus_used,
                    "moves": sum(1 for one in best.placed if one.standing is not None and one.cause is not None),
                }
                if optimize:
                    decision, improvement = best, None
        return Answer(
            decision,
            prepared,
            {name: tuple(sorted(found.values(), key=candidate_order)) for name, found in candidates.items()},
            why_leaving,
            improvement,
            _lacking(decision, wishes),
        )

    def _running(self, one: Instance, now: Standing, model: ResolvedModel) -> Configuration | None:
        gpu = self.view.model_as_run(one)
        if gpu is None:
            return None
        found = self.configurations.of_shape(model, gpu, now.shape)
        if not isinstance(found, Configuration):
            return None
        return self.configurations.with_capacity(model, gpu, found)


def _chooses_precision(model: ResolvedModel) -> bool:
    return model.request.demand is not None and bool(less_faithful(model))


def _with_candidates(wish: Wish, model: ResolvedModel, candidates: Mapping[Shape, Configuration]) -> Wish:
    """The wish with what each candidate carries and takes."""
    arguments = model.request.engine_args
    return replace(
        wish,
        capacity={shape: one.capacity_requests_per_s or 0.0 for shape, one in candidates.items()},
        host_memory={shape: host_memory_bytes(shape, arguments) for shape in candidates},
    )


def _may_improve(
    decision: Decision,
    wishes: Mapping[str, Wish],
    candidates: Mapping[str, Mapping[Shape, Configuration]],
    rooms: Sequence[HostRoom],
) -> bool:
    """Whether more moves could carry more, or the same on fewer GPUs."""
    if decision.shortages:
        free = sum(len(gpus) for gpus in decision.free.values())
        # A large fleet that is all but full is not made to carry much more.
        gpus = sum(len(room.gpus) for room in rooms)
        return gpus <= _SMALL_FLEET_GPUS or free > gpus * _WORTH_MOVING
    restricted = {name: restricted_shapes(wish, candidates[name]) for name, wish in wishes.items()}
    needs = [Need(wish, tuple(candidates[name]), restricted[name]) for name, wish in wishes.items()]
    parts = sum(one.shape.parts for one in decision.placed if one.shape in restricted[one.model])
    bound = fewest_gpus_in_all(needs, restricted_parts=parts)
    return decision.gpus_used > bound * (1.0 + _WORTH_MOVING)


def _score(decision: Decision, wishes: Mapping[str, Wish]) -> tuple[object, ...]:
    return (*_lacking(decision, wishes), decision.gpus_used)


def _lacking(decision: Decision, wishes: Mapping[str, Wish]) -> tuple[object, ...]:
    lacking: dict[int, list[float]] = {wish.priority: [0.0, 0.0, 0.0] for wish in wishes.values()}
    priorities = {name: wish.priority for name, wish in wishes.items()}
    for one in decision.shortages:
        row = lacking[priorities[one.model]]
        row[0] += one.missing
        row[1] += 1.0 - one.carried
        row[2] += 1.0
    return tuple(tuple(round(value, 6) for value in lacking[priority]) for priority in sorted(lacking, reverse=True))


def less_precise(question: Question, *, optimize: bool) -> Answer:
    """Precision is given up only where demand would be left otherwise, and only by as few models as will do.

    All new replicas of a model that does are alike, in the least faithful precision that any of them needs; the others
    do not even consider it.
    """
    everyone = dict.fromkeys(question.models, LESS_FAITHFUL)
    all_may = question.answer(everyone, optimize=optimize)
    giving_up: dict[str, str] = {}
    for one in all_may.decision.placed:
        wish = all_may.prepared[one.model].wish
        if wish is not None and one.shape in wish.sacrifices:
            names = (one.shape.precision, giving_up.get(one.model, LESS_FAITHFUL[0]))
            giving_up[one.model] = max(names, key=LESS_FAITHFUL.index)
    if not giving_up:
        return all_may
    few_do = question.answer({name: (used,) for name, used in giving_up.items()}, optimize=optimize, settled=True)
    return few_do if few_do.lacking <= all_may.lacking else all_may
