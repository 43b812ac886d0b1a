"""The plan stage of a run: from what Ansible gathered to the plan, its applied document, and each host's part."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .document_checks import faults_error
from .errors import FleetError
from .fetch_sources import RemoteSources, lock_path_of
from .host_document import HostDocument, parse_host, parse_hosts, stable_part, with_policy
from .host_notices import notices_of
from .host_policy import HostPolicy, parse_policies
from .model_sources import LocalCheckpoint, read_models_file, resolve_models
from .plan_document import Plan, instance_document, parse_instance, parse_plan, plan_to_document
from .plan_table import move_words, plan_table
from .planning import make_plan
from .quantize_evidence import evidence_of, records_of
from .quantize_jobs import plan_and_work
from .quantize_texts import calibration_texts
from .requests import host_name_faults
from .triton_releases import DEFAULT_RELEASE, vllm_of_release

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .configurations import ResolvedModel
    from .fetch_description import SourceOptions
    from .plan_document import Instance
    from .quantize_evidence import Evidence, Record
    from .quantize_jobs import Work
    from .quantize_plan import Outcome
    from .requests import ModelRequest

APPLIED_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class StageInput:
    """What the plan stage is given.

    Args:
        models_file: path of models.yml.
        policies: ``fleet_*`` variables by host.
        inventory_hosts: every GPU host of the inventory.
        hosts: host documents of the hosts that were probed in this run.
        attempted: hosts that this run tried to reach; None when that is not known.
        applied: every applied document that was found, in any order; None and empty ones do not matter.
        sources: how sources that are not on the controller are reached; without it they need a ``config``.
        allow_unavailable: plan by ``config`` where a source cannot be reached. Otherwise that is an error, since what
            is planned could not be served.
        accelerator: what engines and quantizers run on, ``cuda`` or ``cpu``.
        quantize: the plan may count on quantized checkpoints that are not there yet.
        triton_release: of Triton's container, as in ``26.07``.
    """

    models_file: str
    policies: Mapping[str, Mapping[str, object]]
    inventory_hosts: Sequence[str]
    hosts: Mapping[str, Mapping[str, Any]]
    applied: Sequence[Mapping[str, Any] | None]
    engine_version: str
    engine_port_base: int
    attempted: Sequence[str] | None = None
    optimize: bool = False
    sources: SourceOptions | None = None
    allow_unavailable: bool = False
    accelerator: str = "cuda"
    quantize: bool = True
    triton_release: str = DEFAULT_RELEASE

    @property
    def triton_engine_version(self) -> str:
        """VLLM's version behind Triton: the container's, or on CPU that of the engines, which Triton runs there."""
        return self.engine_version if self.accelerator == "cpu" else vllm_of_release(self.triton_release)


@dataclass(frozen=True, slots=True)
class StageResult:
    """What the plan stage hands to the others.

    Args:
        plan: the plan in force; its moves are those that led to it.
        moves: moves of this run, in words.
        applied_document: what every host keeps once the plan is applied.
        frozen: hosts that were not reached, with the reason.
        checkpoints: the checkpoints that each host needs.
        per_host: the instances of each host, as the plan has them.
        known_models: names of all models that are wanted or still run somewhere.
        notices: lines for the operator.
        table: the plan for the terminal.
        sources_lock: what the record of sources should hold now; None when it needs no change.
        quantize_jobs: by host, the quantized checkpoints to make there.
        quantized: what was made or refused on the hosts that answered, for the report.
        hosts: what the plan was made for, frozen hosts included as far as they are known.
        applied_plan: what runs now according to the hosts; None before the first run.
    """

    plan: Plan
    moves: tuple[str, ...]
    applied_document: Mapping[str, Any]
    frozen: Mapping[str, str]
    checkpoints: Mapping[str, Sequence[Mapping[str, Any]]]
    per_host: Mapping[str, Sequence[Mapping[str, Any]]]
    known_models: tuple[str, ...]
    notices: tuple[str, ...]
    table: str
    sources_lock: str | None = None
    quantize_jobs: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    quantized: tuple[Record, ...] = ()
    hosts: tuple[HostDocument, ...] = ()
    applied_plan: Plan | None = None


def validate(stage: StageInput) -> None:
    """Check everything that does not need a host: models, checkpoints, host variables.

    Raises:
        FleetError: one line for each fault.
    """
    parse_policies(stage.policies)
    requests = read_models_file(stage.models_file)
    faults = host_name_faults(requests, frozenset(stage.inventory_hosts), where=stage.models_file)
    if faults:
        raise faults_error(faults)
    calibration_texts(requests, stage.models_file)
    _resolve(stage, requests)


def run_stage(stage: StageInput) -> StageResult:
    """Make the plan of this run.

    Raises:
        FleetError: one line for each fault in models, host variables, checkpoints or documents.
    """
    policies = parse_policies(stage.policies)
    present = [name for name in sorted(stage.inventory_hosts) if policies.get(name, HostPolicy()).state == "present"]
    requests = read_models_file(stage.models_file)
    faults = host_name_faults(requests, frozenset(stage.inventory_hosts), where=stage.models_file)
    if faults:
        raise faults_error(faults)
    models, checkpoints, remote = _resolve(stage, requests)
    notices = [f"{where}: {problem}; planned by its config." for where, problem in remote.unavailable] if remote else []
    applied = _newest(stage.applied, notices)
    probed = {name: stage.hosts[name] for name in present if name in stage.hosts}
    documents = {
        host.name: with_policy(host, policies.get(host.name, host.policy))
        for host in parse_hosts({"schema": 1, "hosts": probed}, where="probe")
    }
    frozen = {name: _why_frozen(name, stage.attempted) for name in present if name not in probed}
    remembered = _remembered(applied, frozen, notices)
    # Hosts that are gone are asked no more: what the plan held there is lost.
    current = [*_running(documents, applied, notices), *_elsewhere(applied, frozenset(documents))]

    def make(wanted: Sequence[ResolvedModel]) -> Plan:
        return make_plan(
            [*documents.values(), *remembered.values()],
            wanted,
            current,
            frozen=frozen,
            engine_version=stage.engine_version,
            port_base=stage.engine_port_base,
            optimize=stage.optimize,
            triton_engine_version=stage.triton_engine_version,
        )

    evidence = evidence_of(probed, notices)
    outcome, work = plan_and_work(
        make,
        models,
        evidence,
        documents,
        engine_version=stage.engine_version,
        accelerator=stage.accelerator,
        enabled=stage.quantize,
        texts=calibration_texts(requests, stage.models_file),
    )
    plan = outcome.plan
    indices = {gpu.uuid: gpu.index for host in [*documents.values(), *remembered.values()] for gpu in host.gpus}
    moves = tuple(move_words(move, indices) for move in plan.moves)
    table = plan_table(plan, indices)
    if applied is not None and plan.same_decision(applied.plan):
        plan = _as_it_was_made(plan, applied.plan)
    needed = _checkpoints(plan, checkpoints, frozenset(frozen), outcome=outcome, work=work, evidence=evidence)
    return StageResult(
        plan=plan,
        moves=moves,
        applied_document=_applied_document(plan, applied, probed, documents, frozenset(frozen)),
        frozen=frozen,
        checkpoints=needed,
        per_host=_per_host(plan),
        known_models=tuple(sorted({request.name for request in requests} | {one.model for one in plan.instances})),
        notices=(*notices, *_notices(documents, frozen, plan), *outcome.notices, *work.notices),
        table=table,
        sources_lock=remote.lock_text() if remote else None,
        quantize_jobs=work.jobs,
        quantized=tuple(_with_copies(one, needed) for one in records_of(probed)),
        hosts=(*documents.values(), *remembered.values()),
        applied_plan=applied.plan if applied is not None else None,
    )


def _resolve(
    stage: StageInput, requests: tuple[ModelRequest, ...]
) -> tuple[tuple[ResolvedModel, ...], Mapping[str, LocalCheckpoint], RemoteSources | None]:
    remote = RemoteSources(stage.sources, lock_path_of(stage.models_file)) if stage.sources else None
    models, checkpoints = resolve_models(requests, stage.models_file, with_checkpoints=True, remote=remote)
    if remote is not None and remote.unavailable and not stage.allow_unavailable:
        raise faults_error(remote.unavailable)
    return models, checkpoints, remote


@dataclass(frozen=True, slots=True)
class _Applied:
    revision: int
    plan: Plan
    hosts: Mapping[str, Any]
    document: Mapping[str, Any]


def _newest(documents: Sequence[Mapping[str, Any] | None], notices: list[str]) -> _Applied | None:
    """The applied document of the highest revision; broken ones are told and left out."""
    found: list[_Applied] = []
    for document in documents:
        if not document:
            continue
        try:
            found.append(_parse_applied(document))
        except FleetError as error:
            notices.append(f"An applied plan was left out: {error}")
    return max(found, key=lambda one: (one.revision, str(one.document)), default=None)


def _parse_applied(document: Mapping[str, Any]) -> _Applied:
    where = "applied.json"
    if document.get("schema") != APPLIED_SCHEMA:
        raise FleetError(f"{where}: schema", f"must be {APPLIED_SCHEMA}, got {document.get('schema')!r}")
    revision, hosts = document.get("revision"), document.get("hosts")
    if isinstance(revision, bool) or not isinstance(revision, int):
        raise FleetError(f"{where}: revision", f"must be a whole number, got {revision!r}")
    if not isinstance(hosts, dict):
        raise FleetError(f"{where}: hosts", f"must be a mapping, got {hosts!r}")
    return _Applied(revision, parse_plan(document.get("plan"), where=where, path="plan"), hosts, document)


def _why_frozen(host: str, attempted: Sequence[str] | None) -> str:
    if attempted is None:
        return "not reached in this run: outside --limit, or it did not answer"
    return "did not answer" if host in attempted else "outside --limit"


def _remembered(applied: _Applied | None, frozen: Mapping[str, str], notices: list[str]) -> dict[str, HostDocument]:
    """Documents of frozen hosts, from beside the applied plan."""
    found = {}
    for name in frozen:
        document = applied.hosts.get(name) if applied else None
        if document is None:
            notices.append(f"{name} was never planned before; it is left out until it can be reached.")
            continue
        try:
            found[name] = parse_host(name, document, where="applied.json", path=f"hosts.{name}")
        except FleetError as error:
            notices.append(f"What is remembered of {name} was left out: {error}")
    return found


def _elsewhere(applied: _Applied | None, probed: frozenset[str]) -> list[Instance]:
    """What the applied plan holds on hosts that were not probed."""
    if applied is None:
        return []
    return [one for one in applied.plan.instances if not probed.issuperset(one.hosts)]


def _running(documents: Mapping[str, HostDocument], applied: _Applied | None, notices: list[str]) -> list[Instance]:
    """What runs on the hosts that were probed. Where two hosts claim one id, the applied plan decides."""
    planned = {one.id: one for one in applied.plan.instances} if applied else {}
    found: dict[str, Instance] = {}
    for name, host in documents.items():
        for index, record in enumerate(host.instances):
            one = _record(name, index, record, planned, notices)
            if one is None or name not in one.hosts:
                continue
            rival = planned.get(one.id)
            if one.id not in found or (rival is not None and rival.hosts == one.hosts):
                found[one.id] = one
    return list(found.values())


def _record(
    host: str, index: int, record: Mapping[str, Any], planned: Mapping[str, Instance], notices: list[str]
) -> Instance | None:
    identity = str(record.get("id"))
    if not record.get("corrupt"):
        try:
            return parse_instance(record, where=f"probe {host}", path=f"instances[{index}]")
        except FleetError as error:
            problem = str(error).splitlines()[0]
    else:
        problem = f"{host}: the record of {identity} is damaged ({record.get('error')})"
    notices.append(f"{problem}; what the applied plan says is used instead.")
    known = planned.get(identity)
    return known if known is not None and host in known.hosts else None


def _as_it_was_made(plan: Plan, applied: Plan) -> Plan:
    """The same decision with how it was reached: what already runs is neither moved nor chosen among much."""
    if plan.models != applied.models:
        return replace(plan, moves=applied.moves)
    summary = replace(
        plan.summary,
        gpus_lower_bound=applied.summary.gpus_lower_bound,
        gap_fraction=applied.summary.gap_fraction,
    )
    return replace(plan, moves=applied.moves, candidates=applied.candidates, summary=summary)


def _applied_document(
    plan: Plan,
    applied: _Applied | None,
    probed: Mapping[str, Mapping[str, Any]],
    documents: Mapping[str, HostDocument],
    frozen: frozenset[str],
) -> Mapping[str, Any]:
    hosts = {name: stable_part(document, documents[name].policy) for name, document in probed.items()}
    if applied is not None:
        hosts |= {name: applied.hosts[name] for name in frozen if name in applied.hosts}
        if plan.same_decision(applied.plan) and hosts == applied.hosts:
            return applied.document
    return {
        "schema": APPLIED_SCHEMA,
        "revision": applied.revision + 1 if applied is not None else 1,
        "plan": plan_to_document(plan),
        "hosts": hosts,
    }


def _with_copies(record: Record, needed: Mapping[str, Sequence[Mapping[str, Any]]]) -> Record:
    """The record with the hosts that are to copy it in this run, so that the next one finds nothing to tell."""
    if record.refused is not None:
        return record
    copying = {host for host, items in needed.items() if any(item["digest"] == record.key for item in items)}
    return replace(record, hosts=tuple(sorted({*record.hosts, *copying})))


def _checkpoints(
    plan: Plan,
    checkpoints: Mapping[str, LocalCheckpoint],
    frozen: frozenset[str],
    *,
    outcome: Outcome,
    work: Work,
    evidence: Evidence,
) -> dict[str, list[dict[str, Any]]]:
    """What each host fetches: sources of models, of prepared ones only where a job reads them or they exist already."""
    needed: dict[str, dict[str, LocalCheckpoint]] = {}
    for one in plan.instances:
        for host in one.hosts:
            prepared = one.model in outcome.preparations
            own = [] if prepared and one.model not in work.sources.get(host, ()) else [one.model]
            for name in [*own, *(each.name for each in one.further_checkpoints)]:
                if name in checkpoints:
                    needed.setdefault(host, {})[name] = checkpoints[name]
    for host, models in work.existing.items():
        for model in models:
            key = outcome.preparations[model].key
            holders = evidence.made[key]
            made = holders[min(holders)]
            needed.setdefault(host, {})[model] = LocalCheckpoint(model, "", key, made.total_bytes, made.files)
    return {
        host: [by_name[name].document() for name in sorted(by_name)]
        for host, by_name in sorted(needed.items())
        if host not in frozen
    }


def _per_host(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    result: dict[str, list[dict[str, Any]]] = {}
    for one in plan.instances:
        for host in one.hosts:
            result.setdefault(host, []).append(instance_document(one))
    return result


def _notices(documents: Mapping[str, HostDocument], frozen: Mapping[str, str], plan: Plan) -> list[str]:
    lines = [f"{host} is left as it is: {reason}." for host, reason in frozen.items()]
    lines += [*notices_of(documents.values()), *plan.summary.notes]
    if plan.summary.improvement_available is not None:
        lines.append("A better placement is known; fleet_optimize=true applies it.")
    return lines
