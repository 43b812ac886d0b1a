"""Configurations beyond one engine on GPUs of one host: engines that share a GPU, and pipelines over several hosts.

**Sharing.** A GPU is divided into equal parts. Each engine gets the utilization of its part and its KV cache in bytes
(``kv_cache_memory_bytes``), so that it starts whatever the others hold, one start at a time: what vLLM wants to be free
at start, its budget and its CUDA context, is no more than the part. Engines on one GPU take turns, so that every step
is taken to last as many times longer as there are parts, all of them busy: the rate is that of an engine of its own
under objectives as many times shorter, divided by their number.

**Several hosts.** Stages of a pipeline are divided over hosts in equal numbers; a tensor group never leaves a host.
What the hidden states take from host to host is taken off the objectives, whole batches at a time; throughput is that
of the slowest stage, beside which transfers go on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .carrying import Traffic
from .configurations import LESS_FAITHFUL, Configuration, Configurations, Misfit, less_faithful
from .memory import CONTEXT_BYTES, estimate_memory, foreign_bytes
from .network import Network
from .placement_problem import SHARED_WAYS, Shape
from .requests import Objectives as AskedObjectives

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .configurations import ResolvedModel
    from .hardware import GpuModel
    from .memory import MemoryEstimate

_GIB = 1024**3
# Of a card that is shared so much is given out, as vLLM's default utilization does for an engine of its own.
SHARED_UTILIZATION = 0.92
# Hidden states and residual, two bytes a value.
_BYTES_PER_VALUE = 4
_MOST_NODES = 4
_ROUNDS = 3


class FleetConfigurations(Configurations):
    """Configurations of every kind of shape."""

    network = Network()

    def of_shape(self, model: ResolvedModel, gpu: GpuModel, shape: Shape) -> Configuration | Misfit:
        """The best precision for this shape, or why none fits."""
        if shape.ways == 1 and shape.nodes == 1:
            return super().of_shape(model, gpu, shape)
        key = (model.request.name, shape)
        if key not in self._known:
            self._known[key] = self._part(model, gpu, shape) if shape.ways > 1 else self._over_hosts(model, gpu, shape)
        return self._known[key]

    def useful(
        self,
        model: ResolvedModel,
        gpu: GpuModel,
        most_gpus: int,
        *,
        precisions: Sequence[str] = (),
        settled: bool = False,
    ) -> tuple[tuple[Configuration, ...], tuple[Misfit, ...]]:
        """The configurations that carry more than smaller ones on as many GPUs, and what does not fit."""
        fitting, misfits = super().useful(model, gpu, most_gpus, precisions=precisions, settled=settled)
        return tuple(self._as_run(model, gpu, one) for one in fitting), misfits

    def _as_run(self, model: ResolvedModel, gpu: GpuModel, one: Configuration) -> Configuration:
        """The same under the shape by which it is known once it runs, where two shapes come to the same arguments."""
        arguments = {
            name: getattr(one.options, name) for name in ("quantization", "kv_cache_dtype", "max_num_batched_tokens")
        }
        plain = replace(one.shape, precision="", max_num_batched_tokens=0)
        shape = self.shape_as_run(model, gpu, plain, arguments)
        found = self.of_shape(model, gpu, shape)
        if shape == one.shape or isinstance(found, Misfit) or found.options != one.options:
            return one
        return self.with_capacity(model, gpu, found)

    def parts(self, model: ResolvedModel, gpu: GpuModel) -> tuple[Configuration, ...]:
        """The parts of a GPU on which a model fits, with what each carries."""
        found: list[Configuration] = []
        request = model.request
        if {request.forced_tensor_parallel, request.forced_pipeline_parallel} - {None, 1}:
            return ()
        for ways in SHARED_WAYS:
            for precision in ("", *(name for name in LESS_FAITHFUL if name in less_faithful(model))):
                one = self.of_shape(model, gpu, Shape(gpu.kind, precision=precision, ways=ways))
                if isinstance(one, Configuration):
                    found.append(self.with_capacity(model, gpu, one))
                    break
        return tuple(one for one in found if one.capacity_requests_per_s != 0.0)

    def over_hosts(self, model: ResolvedModel, gpu: GpuModel, gpus_by_host: Sequence[int]) -> tuple[Configuration, ...]:
        """Configurations on the fewest hosts and GPUs on which the model fits.

        Args:
            model: what is to run.
            gpu: the kind of GPU.
            gpus_by_host: usable GPUs of that kind on each host that may be used.
        """
        for nodes in range(2, min(_MOST_NODES, len(gpus_by_host)) + 1):
            most = sorted(gpus_by_host, reverse=True)[nodes - 1]
            for each in range(1, most + 1):
                fitting = []
                for tensor in (size for size in (2, 1, 4, 8) if each % size == 0):
                    shape = Shape(gpu.kind, tensor, nodes * each // tensor, nodes=nodes)
                    one = self._allowed(model, gpu, shape)
                    if isinstance(one, Configuration):
                        fitting.append(self.with_capacity(model, gpu, one))
                fitting = [one for one in fitting if one.capacity_requests_per_s != 0.0]
                if fitting:
                    return tuple(fitting)
        return ()

    def shape_as_run(self, model: ResolvedModel, gpu: GpuModel, shape: Shape, engine_args: Mapping[str, Any]) -> Shape:
        """The shape of an instance that runs with these arguments, where a plan could have chosen them."""
        found = super().shape_as_run(model, gpu, shape, engine_args)
        # The chunk of prompts is not chosen for parts and for several hosts.
        return found if shape.ways == 1 and shape.nodes == 1 else replace(found, max_num_batched_tokens=0)

    def with_capacity(self, model: ResolvedModel, gpu: GpuModel, one: Configuration) -> Configuration:
        """The configuration with what it carries."""
        traffic = self._traffic(model, one)
        shape = one.shape
        if (shape.ways == 1 and shape.nodes == 1) or traffic is None or one.capacity_requests_per_s is not None:
            return super().with_capacity(model, gpu, one)
        tokens = one.estimate.kv_cache_tokens_planned
        capacity = self._carrying.capacity(model.facts, gpu, one.options, tokens, traffic)
        rate = capacity.requests_per_second / shape.ways if capacity else 0.0
        found = replace(one, capacity_requests_per_s=round(rate, 6))
        self._known[model.request.name, shape] = found
        return found

    def speed(self, model: ResolvedModel, gpu: GpuModel, one: Configuration, share: float) -> dict[str, Any]:
        """The speed of an instance that gets ``share`` requests a second; empty without a demand."""
        traffic, ways = self._traffic(model, one), one.shape.ways
        if (ways == 1 and one.shape.nodes == 1) or traffic is None:
            return super().speed(model, gpu, one, share)
        found = self._carrying.at_rate(
            model.facts,
            gpu,
            one.options,
            one.estimate.kv_cache_tokens_planned,
            traffic,
            requests_per_second=share * ways,
        )
        ttft_s, tpot_s = self._over_network_s(model, one.shape, one.options.max_num_batched_tokens)
        return found | {
            "capacity_requests_per_s": one.capacity_requests_per_s,
            "requests_per_s": round(share, 6),
            "tpot_ms": round(found["tpot_ms"] * ways + tpot_s * 1e3, 2),
            "ttft_ms": round(found["ttft_ms"] * ways + ttft_s * 1e3, 1),
        }

    # -- parts of a GPU -------------------------------------------------------------------------------------------

    def _part(self, model: ResolvedModel, gpu: GpuModel, shape: Shape) -> Configuration | Misfit:
        whole = replace(shape, ways=1)
        found: Configuration | Misfit = super().of_shape(model, gpu, whole)
        if shape.gpus > 1:
            return Misfit(shape, "parallel_size", "only instances of one GPU share it", found.options)
        if "gpu_memory_utilization" in model.request.engine_args:
            problem = "gpu_memory_utilization is given, so that it cannot be chosen to suit others on the GPU"
            return Misfit(shape, "gpu_memory_utilization", problem, found.options)
        most_bytes = gpu.torch_visible_bytes - foreign_bytes(gpu)
        part_bytes = min(int(gpu.torch_visible_bytes * SHARED_UTILIZATION), most_bytes) // shape.ways
        outside = CONTEXT_BYTES
        for _ in range(_ROUNDS):
            # Rounded down, so that what the engine makes of it is no more.
            utilization = int((part_bytes - outside) / gpu.torch_visible_bytes * 1e4) / 1e4
            if utilization <= 0.0:
                return Misfit(shape, "memory", "nothing is left beside the CUDA context", found.options)
            found = self._examine(_as_part(model, utilization, shape.ways), gpu, whole)
            if isinstance(found, Misfit):
                return replace(found, shape=shape, explanation=f"1/{shape.ways} of a GPU: {found.explanation}")
            needed = max(rank.outside_bytes for rank in found.estimate.ranks)
            if found.estimate.budget_bytes + needed <= part_bytes:
                return self._with_kv_bytes(model, gpu, shape, found)
            outside = needed
        return Misfit(shape, "memory", "what lies outside of the engine's budget leaves too little", found.options)

    def _with_kv_bytes(
        self, model: ResolvedModel, gpu: GpuModel, shape: Shape, found: Configuration
    ) -> Configuration | Misfit:
        """The same with its KV cache in bytes, so that it does not depend on what others hold at start."""
        if not model.facts.has_kv_cache:
            sharing = f"Shares its GPU, {shape.ways} ways: steps are taken to last {shape.ways} times longer."
            return replace(found, shape=shape, reasons=(found.reasons[0], sharing))
        (rank,) = found.estimate.ranks
        given = found.options.kv_cache_memory_bytes
        if given is None:
            given = rank.planned_kv_cache_bytes // rank.bytes_per_block * rank.bytes_per_block
        elif given > rank.planned_kv_cache_bytes:
            short = given - rank.planned_kv_cache_bytes
            problem = f"kv_cache_memory_bytes is {short / _GIB:.2f} GiB more than 1/{shape.ways} of a GPU has left"
            return Misfit(shape, "memory", problem, found.options, short)
        options = replace(found.options, kv_cache_memory_bytes=given)
        estimate = estimate_memory(model.facts, gpu, options)
        if not estimate.fits:
            return Misfit(shape, "memory", estimate.reason, options, estimate.missing_bytes)
        others = "another" if shape.ways == 2 else f"up to {shape.ways - 1} others"
        sharing = (
            f"Shares its GPU with {others}: {given / _GIB:.2f} GiB of KV cache by kv_cache_memory_bytes, and steps are"
            f" taken to last {shape.ways} times longer."
        )
        return Configuration(shape, options, estimate, found.quantization, (_with_tokens(found, estimate), sharing))

    # -- several hosts --------------------------------------------------------------------------------------------

    def _over_hosts(self, model: ResolvedModel, gpu: GpuModel, shape: Shape) -> Configuration | Misfit:
        whole = replace(shape, nodes=1)
        found = self._examine(model, gpu, whole)
        if isinstance(found, Misfit):
            return replace(found, shape=shape)
        traffic = self._traffic(model, replace(found, shape=shape))
        if traffic is not None and model.request.name not in self._without_objectives:
            limits = (traffic.objectives.ttft_ms, traffic.objectives.tpot_ms)
            late = any(limit is not None and limit <= 0.0 for limit in limits)
            why = "the network between hosts alone takes longer than the objectives allow" if late else None
            tokens = found.estimate.kv_cache_tokens_planned
            why = why or self._carrying.why_not(model.facts, gpu, found.options, tokens, traffic)
            if why is not None:
                return Misfit(shape, "objectives", why, found.options)
        words = f"{shape.nodes} hosts, {shape.gpus // shape.nodes} GPUs on each: no host alone has what it takes."
        return replace(found, shape=shape, reasons=(*found.reasons, words))

    def _allowed(self, model: ResolvedModel, gpu: GpuModel, shape: Shape) -> Configuration | Misfit | None:
        request = model.request
        if request.forced_tensor_parallel not in (None, shape.tensor_parallel):
            return None
        if request.forced_pipeline_parallel not in (None, shape.pipeline_parallel):
            return None
        return self.of_shape(model, gpu, shape)

    def _traffic(self, model: ResolvedModel, one: Configuration) -> Traffic | None:
        """The traffic that an engine of its own on one host has to carry so that this one keeps its objectives."""
        traffic = Traffic.of(model.request)
        if traffic is None:
            return None
        asked, ways = traffic.objectives, one.shape.ways
        ttft_s, tpot_s = self._over_network_s(model, one.shape, one.options.max_num_batched_tokens)
        objectives = replace(
            asked,
            ttft_ms=None if asked.ttft_ms is None else (asked.ttft_ms - ttft_s * 1e3) / ways,
            tpot_ms=None if asked.tpot_ms is None else (asked.tpot_ms - tpot_s * 1e3) / ways,
        )
        return replace(traffic, objectives=objectives)

    def _over_network_s(self, model: ResolvedModel, shape: Shape, batched_tokens: int) -> tuple[float, float]:
        """Seconds that the first token and each further one spend between hosts."""
        demand = model.request.demand
        if shape.nodes == 1 or demand is None:
            return 0.0, 0.0
        crossings = shape.nodes - 1
        token_bytes = model.facts.hidden_size * _BYTES_PER_VALUE
        chunks = -(-demand.prompt_tokens // batched_tokens)
        chunk_s = self.network.send_s(min(batched_tokens, demand.prompt_tokens) * token_bytes)
        # A decode step may carry prompts of others, at most a full one.
        step_s = self.network.send_s(batched_tokens * token_bytes)
        return (chunks + crossings - 1) * chunk_s, crossings * step_s


def _as_part(model: ResolvedModel, utilization: float, ways: int) -> ResolvedModel:
    """The request as that of an engine of its own on so small a card and so many times as fast."""
    request, asked = model.request, model.request.objectives
    objectives = AskedObjectives(
        ttft_ms=None if asked.ttft_ms is None else asked.ttft_ms / ways,
        tpot_ms=None if asked.tpot_ms is None else asked.tpot_ms / ways,
        percentile=asked.percentile,
    )
    changes = {
        "objectives": objectives,
        "engine_args": {**request.engine_args, "gpu_memory_utilization": utilization},
    }
    return replace(model, request=request.model_copy(update=changes))


def _with_tokens(found: Configuration, estimate: MemoryEstimate) -> str:
    before = f"{found.estimate.kv_cache_tokens_planned:,} tokens of KV cache"
    return found.reasons[0].replace(before, f"{estimate.kv_cache_tokens_planned:,} tokens of KV cache")
