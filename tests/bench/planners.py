"""Other ways to place models, to compare with: rules of thumb and a search without pipeline parallelism.

Each takes a fleet and returns instances for the simulator. None of them knows how much is asked for exactly: what they
place first is one instance (or ``replicas.min``) of each model, and they fill what is left of the GPUs with further
instances of the model that has the fewest GPUs for its work, which is kinder than what an operator does by hand.
An instance that vLLM would not start is not there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fleet.carrying import Carrying, Traffic
from fleet.configurations import base_options
from fleet.errors import FleetError
from fleet.memory import estimate_memory
from fleet.simulation import SimulatedInstance, SimulatedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fleet.configurations import ResolvedModel
    from fleet.engine_options import EngineOptions
    from fleet.hardware import GpuModel
    from fleet.host_document import HostDocument

_GIB = 1024**3
_BF16_BYTES = 2


@dataclass(frozen=True, slots=True)
class Fleet:
    """Hosts, models with a demand, and a name for tables."""

    name: str
    hosts: tuple[HostDocument, ...]
    models: tuple[ResolvedModel, ...]

    @property
    def gpus(self) -> int:
        """All of them."""
        return sum(len(host.gpus) for host in self.hosts)

    def simulated_models(self) -> list[SimulatedModel]:
        """The demands as the simulator takes them."""
        found = []
        for model in self.models:
            demand, traffic = model.request.demand, Traffic.of(model.request)
            if demand is None or traffic is None:
                raise FleetError(model.request.name, "needs a demand")
            found.append(
                SimulatedModel(
                    model.request.name,
                    demand.requests_per_second,
                    traffic.prompt_tokens,
                    traffic.output_tokens,
                    traffic.objectives,
                    model.request.max_model_len,
                )
            )
        return found


# How one instance of a model is run on this kind of GPU: its options, or None when it is not.
Choice = "Callable[[ResolvedModel, GpuModel], EngineOptions | None]"


def rule_of_thumb(fleet: Fleet) -> list[SimulatedInstance]:
    """The rule "weights x 1.2 + 2 GiB" in 16 bits, first fit, tensor parallel sizes that divide the heads."""

    def choose(model: ResolvedModel, gpu: GpuModel) -> EngineOptions | None:
        needed = model.facts.parameters * _BF16_BYTES * 1.2 + 2 * _GIB
        for size in (1, 2, 4, 8):
            if model.facts.num_attention_heads % size == 0 and needed <= size * gpu.nvml_total_bytes:
                return replace(base_options(model), tensor_parallel_size=size)
        return None

    return _fill(fleet, choose)


def one_model_a_gpu(fleet: Fleet) -> list[SimulatedInstance]:
    """vLLM's defaults, one instance on each GPU."""
    return _fill(fleet, lambda model, _: base_options(model))


class TensorParallelSearch:
    """A greedy search with our own memory and speed models, without pipelines and with vLLM's defaults otherwise.

    For each model by itself, the tensor parallel size and precision of the weights that carry most a GPU; as many
    instances as the demand needs, model by model, first fit.

    Args:
        precisions: of the weights that it tries.
        kv_cache_dtypes: that it tries.
    """

    def __init__(self, precisions: Sequence[str | None] = (None, "fp8"), kv_cache_dtypes: Sequence[str] = ("auto",)):
        self._precisions = precisions
        self._kv_cache_dtypes = kv_cache_dtypes
        self._carrying = Carrying()
        self._best: dict[tuple[str, str], tuple[EngineOptions, float] | None] = {}

    def __call__(self, fleet: Fleet) -> list[SimulatedInstance]:
        """Instances for the largest factor on all demands that this search places."""
        low, high = 0.0, 16.0
        best = self._place(fleet, 0.0) or []
        while high - low > 0.01 * high:
            middle = 0.5 * (low + high)
            found = self._place(fleet, middle)
            if found is None:
                high = middle
            else:
                low, best = middle, found
        return best

    def _place(self, fleet: Fleet, factor: float) -> list[SimulatedInstance] | None:
        """None when there is no room for all."""
        room = _Room(fleet.hosts)
        placed: list[SimulatedInstance] = []
        for model in fleet.models:
            demand = model.request.demand
            missing = demand.requests_per_second * factor if demand else 0.0
            count = 0
            while count < model.request.replicas.min or missing > 0.0:
                found = next(iter(room.offers(lambda gpu, model=model: self._choice(model, gpu))), None)
                if found is None:
                    return None
                gpu, options, take = found
                carried = self._best[model.request.name, gpu.name]
                take()
                missing -= carried[1] if carried else 0.0
                count += 1
                placed.append(_started(model, gpu, options))
        return placed

    def _choice(self, model: ResolvedModel, gpu: GpuModel) -> EngineOptions | None:
        key = (model.request.name, gpu.name)
        if key not in self._best:
            self._best[key] = self._search(model, gpu)
        found = self._best[key]
        return found[0] if found else None

    def _search(self, model: ResolvedModel, gpu: GpuModel) -> tuple[EngineOptions, float] | None:
        traffic = Traffic.of(model.request)
        best: tuple[float, EngineOptions, float] | None = None
        for size in (1, 2, 4, 8):
            for precision in self._precisions if model.facts.quantization is None else (None,):
                for kv_cache_dtype in self._kv_cache_dtypes:
                    options = replace(
                        base_options(model),
                        tensor_parallel_size=size,
                        quantization=precision,
                        kv_cache_dtype=kv_cache_dtype,
                        attention_backend="TRITON_ATTN" if kv_cache_dtype == "fp8" else None,
                    )
                    try:
                        estimate = estimate_memory(model.facts, gpu, options)
                    except FleetError:
                        continue
                    if not estimate.fits or traffic is None:
                        continue
                    tokens = estimate.kv_cache_tokens_planned
                    found = self._carrying.capacity(model.facts, gpu, options, tokens, traffic)
                    if found and found.requests_per_second > 0.0:
                        each = found.requests_per_second / size
                        if best is None or each > best[0]:
                            best = (each, options, found.requests_per_second)
        return None if best is None else (best[1], best[2])


class _Room:
    """Free GPUs, host by host; a tensor group stands on one host."""

    def __init__(self, hosts: Sequence[HostDocument]) -> None:
        self._free = {
            host.name: [gpu.model for gpu in host.gpus if gpu.model is not None and not gpu.blocked] for host in hosts
        }

    def offers(
        self, choose: Callable[[GpuModel], EngineOptions | None]
    ) -> Iterable[tuple[GpuModel, EngineOptions, Callable[[], None]]]:
        """First fit: the first host on which the choice for its GPUs has room, and how to take it."""
        for free in self._free.values():
            for gpu in {one.name: one for one in free}.values():
                options = choose(gpu)
                if options is not None and sum(one is gpu for one in free) >= options.world_size:

                    def take(free: list[GpuModel] = free, gpu: GpuModel = gpu, count: int = options.world_size) -> None:
                        for _ in range(count):
                            free.remove(gpu)

                    yield gpu, options, take


def _fill(fleet: Fleet, choose: Callable[[ResolvedModel, GpuModel], EngineOptions | None]) -> list[SimulatedInstance]:
    room = _Room(fleet.hosts)
    placed: list[SimulatedInstance] = []
    gpus = {model.request.name: 0 for model in fleet.models}

    def add(model: ResolvedModel) -> bool:
        for gpu, options, take in room.offers(lambda gpu: choose(model, gpu)):
            started = _started(model, gpu, options)
            if started is None:
                return False
            take()
            placed.append(started)
            gpus[model.request.name] += options.world_size
            return True
        return False

    for model in fleet.models:
        for _ in range(model.request.replicas.min):
            add(model)
    growing = list(fleet.models)
    while growing:
        model = min(growing, key=lambda one: (gpus[one.request.name] / _work(one), one.request.name))
        if not add(model):
            growing.remove(model)
    return placed


def _work(model: ResolvedModel) -> float:
    """Multiplications a second that the demand asks for."""
    demand = model.request.demand
    if demand is None:
        return 1e-9
    tokens = demand.prompt_tokens + demand.output_tokens
    return demand.requests_per_second * tokens * model.facts.active_parameters


def _started(model: ResolvedModel, gpu: GpuModel, options: EngineOptions) -> SimulatedInstance | None:
    """The instance as vLLM would start it, with the KV cache that it would find room for; None when it would not."""
    try:
        estimate = estimate_memory(model.facts, gpu, options)
    except FleetError:
        return None
    if not estimate.fits:
        return None
    return SimulatedInstance(model.request.name, model.facts, gpu, options, estimate.kv_cache_tokens)
