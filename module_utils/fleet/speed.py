"""Step times of an engine: what one scheduler step takes, and from it prefill time and time per output token.

A step is composed of its kernels (``speed_kernels``), collectives (``speed_collectives``) and what the engine adds
(``speed_constants.OVERHEADS``). Assumptions:

- Decode runs in CUDA graphs: the batch is padded to the next captured size. Steps beyond the largest of them (512
  tokens, or twice max_num_seqs) are launched kernel by kernel and cannot be faster than the host launches them.
- Chunked prefill: a step takes the running sequences' tokens first and fills the rest of ``max_num_batched_tokens``
  with prompt tokens, which share the matrix products with decode and have attention of their own.
- Routing to experts is even and independent, so that the expected number of distinct experts is read.
- Pipeline: with S stages, S + 1 batches are in flight (vLLM schedules one ahead), and a sequence is in every S-th of
  them (``decode_stagger`` in v1/core/sched/async_scheduler.py), so that the running sequences are split evenly among S
  batches. A sequence's next token comes after its batch has passed all stages, or after all batches have passed the
  slowest stage, whichever is later.
- All ranks of a stage are equal.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from .errors import FleetError
from .memory import effective_quantization, serving_dtype
from .speed_collectives import Links, default_links
from .speed_constants import KERNELS, OVERHEADS, EngineOverheads, KernelCurves
from .speed_kernels import (
    NO_TIME,
    Bound,
    GpuRates,
    MatrixFormat,
    Time,
    decode_attention_time,
    experts_time,
    experts_touched,
    matrix_time,
    prefill_attention_time,
)
from .weights import (
    DTYPE_BYTES,
    MARLIN,
    VOCABULARY_PADDING,
    check_divisible,
    linear_tensors,
    pipeline_split,
    shard_sizes,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .engine_options import EngineOptions
    from .hardware import GpuModel
    from .model_facts import ExpertsModule, LayerFacts, LinearModule, ModelFacts
    from .quantization_config import QuantizationFacts

# vLLM's default cudagraph_capture_sizes, cut at twice max_num_seqs.
_CAPTURE_SIZES = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))
_LARGEST_CAPTURE = 512


class PromptChunk(NamedTuple):
    """A part of one prompt in a step: ``tokens`` new ones after ``past`` that earlier steps computed."""

    tokens: int
    past: int


class StepTime(NamedTuple):
    """One scheduler step.

    ``time`` is from its start until its tokens are known. ``interval_s`` is when the next batch can follow on the same
    engine: the slowest stage of a pipeline, or the step itself without one.
    """

    time: Time
    interval_s: float

    @property
    def seconds(self) -> float:
        """Seconds until the step's tokens are known."""
        return self.time.seconds


@dataclass(frozen=True, slots=True)
class SpeedRow:
    """Predicted speed of one batch, as ``fleet speed`` prints it.

    ``prefill_s`` is all prompts of the batch to their first tokens; ``tpot_ms`` the mean step over the following output
    tokens with the whole batch running.
    """

    batch: int
    prefill_s: float
    tpot_ms: float
    decode_tokens_per_s: float
    bound: Bound
    prefill_bound: Bound

    def to_document(self) -> dict[str, object]:
        """A JSON object with these fields' names."""
        return {
            "batch": self.batch,
            "prefill_s": round(self.prefill_s, 6),
            "tpot_ms": round(self.tpot_ms, 4),
            "decode_tokens_per_s": round(self.decode_tokens_per_s, 2),
            "bound": self.bound,
            "prefill_bound": self.prefill_bound,
        }


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A linear layer on one rank. ``peak`` names the datasheet rate; ``activation_bytes`` is of one input element."""

    format: MatrixFormat
    peak: str
    n: int
    k: int
    weight_bytes: float
    activation_bytes: float


@dataclass(frozen=True, slots=True)
class _Experts:
    module: ExpertsModule
    format: MatrixFormat
    peak: str
    intermediate_size: int
    weight_bytes: float


@dataclass(frozen=True, slots=True)
class _Layer:
    """One kind of layer on one rank, and how many of them a stage has."""

    count: int
    matrices: tuple[_Matrix, ...]
    experts: _Experts | None
    num_heads: int
    num_kv_heads: int
    head_size: float
    cached_bytes_per_token: int
    window: int | None
    small_kernels: int
    small_bytes_per_token: float


@dataclass(frozen=True, slots=True)
class _Stage:
    layers: tuple[_Layer, ...]
    first: bool
    last: bool


class SpeedModel:
    """Step times of one model on one kind of GPU with one set of engine options.

    Building it costs about a millisecond, a step some microseconds: keep it and ask it often.

    Args:
        model: facts of the model.
        gpu: the card; every rank has one.
        options: how the engine is started.
        links: between the ranks. None takes the default for the card.
        overheads: of the engine. None takes what was fitted for the card.

    Raises:
        FleetError: the card has no measured kernels, or the options contradict the model.
    """

    def __init__(
        self,
        model: ModelFacts,
        gpu: GpuModel,
        options: EngineOptions,
        *,
        links: Links | None = None,
        overheads: EngineOverheads | None = None,
    ) -> None:
        if gpu.name not in KERNELS:
            raise FleetError("gpu", f"no measured kernels for {gpu.name}, known are {', '.join(sorted(KERNELS))}")
        check_divisible(model, options.tensor_parallel_size, where="tensor_parallel_size")
        self.model = model
        self.gpu = gpu
        self.options = options
        self.links = links or gpu.links or default_links(nvlink=gpu.nvlink)
        self._curves: KernelCurves = KERNELS[gpu.name]
        self._overheads = overheads or OVERHEADS[gpu.name]
        sustained = {
            name: rate * (self._overheads.sustained_flops if name in ("bfloat16", "float16") else 1.0)
            for name, rate in gpu.flops_per_s.items()
        }
        self._rates = GpuRates(gpu.memory_bandwidth_bytes_per_s, sustained)
        self._matrix_curves = {
            name: replace(curve, launch_s=min(curve.launch_s, self._overheads.graph_launch_s))
            for name, curve in self._curves.matrix.items()
        }
        self._dtype_bytes = DTYPE_BYTES[serving_dtype(model, options)]
        self._kv_dtype = "fp8" if options.kv_cache_dtype.startswith("fp8") else "bfloat16"
        self._tensor_size = options.tensor_parallel_size
        self._stages = self._build_stages(effective_quantization(model, options))
        # Most stages of a pipeline are alike and are computed once.
        self._bodies = tuple(dict.fromkeys(stage.layers for stage in self._stages))
        self._body_of = tuple(self._bodies.index(stage.layers) for stage in self._stages)
        self._capture_limit = 0 if options.enforce_eager else min(_LARGEST_CAPTURE, 2 * options.max_num_seqs)
        self._layers_cache: dict[tuple[int, int], Time] = {}
        self._head_cache: dict[int, Time] = {}

    @property
    def first_token_s(self) -> float:
        """What a request waits beside its steps until its first token is out."""
        return self._overheads.first_token_s

    # -- what others ask ------------------------------------------------------------------------------------------

    def step(
        self,
        decode_sequences: float,
        decode_context_tokens: float,
        prefill: Sequence[PromptChunk] = (),
        *,
        query_tokens: int = 1,
    ) -> StepTime:
        """One scheduler step.

        Args:
            decode_sequences: sequences that produce output in this step.
            decode_context_tokens: cached tokens of one of them, in the mean.
            prefill: parts of prompts that the step computes beside.
            query_tokens: tokens of each decoding sequence: 1, or more when draft tokens are verified.
        """
        new_tokens = sum(chunk.tokens for chunk in prefill)
        pairs = sum(chunk.tokens * (chunk.past + 0.5 * (chunk.tokens + 1)) for chunk in prefill)
        past = sum(chunk.past for chunk in prefill)
        return self.aggregate_step(
            decode_sequences,
            decode_context_tokens,
            prefill_tokens=new_tokens,
            prefill_pairs=pairs,
            prefill_past_tokens=past,
            prefill_sequences=len(prefill),
            query_tokens=query_tokens,
        )

    def aggregate_step(
        self,
        decode_sequences: float,
        decode_context_tokens: float,
        *,
        prefill_tokens: float = 0,
        prefill_pairs: float = 0.0,
        prefill_past_tokens: float = 0.0,
        prefill_sequences: float = 0,
        query_tokens: int = 1,
    ) -> StepTime:
        """As ``step``, from sums over the prompts instead of each of them."""
        tokens = decode_sequences * query_tokens + prefill_tokens
        if tokens <= 0:
            return StepTime(NO_TIME, 0.0)
        padded = self._padded(tokens)
        in_graph = padded <= self._capture_limit
        rows = decode_sequences * query_tokens + prefill_sequences
        total = NO_TIME
        slowest = 0.0
        bodies = []
        for body, layers in enumerate(self._bodies):
            time = self._layers_time(body, padded)
            for layer in layers:
                time = time.plus(
                    self._attention_time(
                        layer,
                        decode_sequences=decode_sequences,
                        context_tokens=decode_context_tokens,
                        query_tokens=query_tokens,
                        prefill_tokens=prefill_tokens,
                        prefill_pairs=prefill_pairs,
                        prefill_past_tokens=prefill_past_tokens,
                    )
                )
            bodies.append(time)
        for stage, body in zip(self._stages, self._body_of, strict=True):
            time = bodies[body]
            if stage.last:
                time = time.plus(self._head_time(rows))
            if not in_graph:
                time = self._launched_from_the_host(stage, time)
            own = self._overheads.step_s + self._overheads.sequence_s * (decode_sequences + prefill_sequences)
            slowest = max(slowest, time.seconds + (own if len(self._stages) == 1 else 0.0))
            total = total.plus(time)
            if not stage.last:
                size = tokens * self.model.hidden_size * self._dtype_bytes * 2.0  # hidden states and residual
                seconds = self.links.send_between_stages_s(size / self._tensor_size)
                total = total.plus(Time(seconds, link_s=seconds))
        overhead = self._overheads.step_s + self._overheads.sequence_s * (decode_sequences + prefill_sequences)
        total = total.plus(Time(overhead, launch_s=overhead))
        return StepTime(total, slowest if len(self._stages) > 1 else total.seconds)

    def decode_step(self, batch: float, context_tokens: float) -> StepTime:
        """A step in which ``batch`` sequences of ``context_tokens`` cached tokens produce one token each.

        With a pipeline, the batch is spread over the batches in flight, and the time is from one token of a sequence to
        its next.
        """
        if len(self._stages) == 1:
            return self.aggregate_step(batch, context_tokens)
        flights = self.batches_in_flight(batch)
        step = self.aggregate_step(batch / flights, context_tokens)
        return self._through_pipeline(step, flights)

    def batches_in_flight(self, sequences: float) -> float:
        """Batches that so many running sequences are spread over: as many as the pipeline has stages."""
        return min(float(len(self._stages)), max(1.0, sequences))

    def tpot_s(self, batch: int, prompt_tokens: int, output_tokens: int = 64) -> Time:
        """Mean step over output tokens 2 to ``output_tokens`` + 1, the whole batch running."""
        return self.decode_step(batch, prompt_tokens + 0.5 * (output_tokens + 1)).time

    def prefill_time(self, batch: int, prompt_tokens: int) -> Time:
        """From the arrival of ``batch`` prompts until each has its first token, in chunks."""
        total = Time(self._overheads.first_token_s, launch_s=self._overheads.first_token_s)
        steps = list(self._prefill_steps(batch, prompt_tokens))
        stages = len(self._stages)
        previous_s = 0.0
        for position, step in enumerate(steps):
            if stages == 1 or position == 0:
                total = total.plus(step.time)
            else:
                # Chunks follow one another through the pipeline: only the slowest stage separates them.
                share = max(step.interval_s, previous_s) / step.time.seconds
                total = total.plus(step.time.times(share))
            previous_s = step.interval_s
        return total

    def row(self, batch: int, prompt_tokens: int, output_tokens: int = 64) -> SpeedRow:
        """Speed of one batch size."""
        prefill = self.prefill_time(batch, prompt_tokens)
        step = self.tpot_s(batch, prompt_tokens, output_tokens)
        return SpeedRow(
            batch=batch,
            prefill_s=prefill.seconds,
            tpot_ms=step.seconds * 1e3,
            decode_tokens_per_s=batch / step.seconds,
            bound=step.bound,
            prefill_bound=prefill.bound,
        )

    # -- steps ----------------------------------------------------------------------------------------------------

    def _prefill_steps(self, batch: int, prompt_tokens: int) -> Iterable[StepTime]:
        budget = self.options.max_num_batched_tokens
        chunks: list[PromptChunk] = []
        room = budget
        for _ in range(batch):
            past = 0
            while past < prompt_tokens:
                tokens = min(room, prompt_tokens - past)
                chunks.append(PromptChunk(tokens, past))
                past += tokens
                room -= tokens
                if room == 0:
                    yield self.step(0, 0.0, chunks)
                    chunks = []
                    room = budget
        if chunks:
            yield self.step(0, 0.0, chunks)

    def _through_pipeline(self, step: StepTime, flights: float) -> StepTime:
        if flights * step.interval_s <= step.seconds:
            return step
        factor = flights * step.interval_s / step.seconds
        return StepTime(step.time.times(factor), step.interval_s)

    def _padded(self, tokens: float) -> int:
        whole = int(tokens) + (tokens > int(tokens))
        if whole > self._capture_limit:
            return whole
        return int(_CAPTURE_SIZES[bisect_left(_CAPTURE_SIZES, whole)])

    def _launched_from_the_host(self, stage: _Stage, time: Time) -> Time:
        per_layer = self._overheads.eager_layer_s if self.options.enforce_eager else self._overheads.launch_layer_s
        floor = sum(
            layer.count * max(per_layer, 0.0 if layer.experts is None else self._overheads.launch_experts_layer_s)
            for layer in stage.layers
        )
        missing = floor - time.seconds
        return time if missing <= 0 else time.plus(Time(missing, launch_s=missing))

    # -- kernels --------------------------------------------------------------------------------------------------

    def _layers_time(self, body: int, tokens: int) -> Time:
        """All of a stage but attention and head, for ``tokens`` tokens."""
        key = (body, tokens)
        cached = self._layers_cache.get(key)
        if cached is None:
            cached = NO_TIME
            for layer in self._bodies[body]:
                cached = cached.plus(self._layer_time(layer, tokens).times(layer.count))
            if len(self._layers_cache) < 1 << 16:
                self._layers_cache[key] = cached
        return cached

    def _layer_time(self, layer: _Layer, tokens: int) -> Time:
        time = NO_TIME
        for matrix in layer.matrices:
            time = time.plus(self._matrix_time(matrix, tokens))
        if layer.experts is not None:
            time = time.plus(self._experts_time(layer.experts, tokens))
        time = time.plus(self._small_kernels_time(layer.small_kernels, layer.small_bytes_per_token * tokens))
        if self._tensor_size > 1:
            size = float(tokens * self.model.hidden_size * self._dtype_bytes)
            seconds = 2.0 * self.links.all_reduce_s(self._tensor_size, size)
            time = time.plus(Time(seconds, link_s=seconds))
        return time

    def _matrix_time(self, matrix: _Matrix, tokens: float) -> Time:
        return matrix_time(
            self._matrix_curves[matrix.format],
            self._rates,
            peak=matrix.peak,
            m=tokens,
            n=matrix.n,
            k=matrix.k,
            weight_bytes=matrix.weight_bytes,
            activation_bytes=matrix.activation_bytes,
        )

    def _experts_time(self, experts: _Experts, tokens: float) -> Time:
        module = experts.module
        return experts_time(
            self._curves.experts[experts.format],
            self._rates,
            peak=experts.peak,
            tokens=tokens,
            touched=experts_touched(module.num_experts, module.experts_per_token, tokens),
            experts_per_token=module.experts_per_token,
            hidden_size=module.hidden_size,
            intermediate_size=experts.intermediate_size,
            weight_bytes=experts.weight_bytes,
        )

    def _small_kernels_time(self, count: float, moved_bytes: float) -> Time:
        launch_s = count * self._overheads.small_kernel_s
        memory_s = moved_bytes / (self._rates.bandwidth_bytes_per_s * self._overheads.small_bandwidth_fraction)
        return Time(launch_s + memory_s, memory_s=memory_s, launch_s=launch_s)

    def _attention_time(
        self,
        layer: _Layer,
        *,
        decode_sequences: float,
        context_tokens: float,
        query_tokens: int,
        prefill_tokens: float,
        prefill_pairs: float,
        prefill_past_tokens: float,
    ) -> Time:
        time = NO_TIME
        if decode_sequences > 0:
            attended = context_tokens if layer.window is None else min(context_tokens, layer.window)
            time = decode_attention_time(
                self._curves.decode[self._kv_dtype],
                self._rates,
                sequences=decode_sequences,
                query_tokens=query_tokens,
                cached_bytes=decode_sequences * attended * layer.cached_bytes_per_token,
                num_heads=layer.num_heads,
                num_kv_heads=layer.num_kv_heads,
            )
        if prefill_tokens > 0:
            if layer.window is not None:
                prefill_pairs = min(prefill_pairs, prefill_tokens * layer.window)
            time = time.plus(
                prefill_attention_time(
                    self._curves.prefill[self._kv_dtype],
                    self._rates,
                    query_tokens=prefill_tokens,
                    query_key_pairs=prefill_pairs,
                    past_bytes=prefill_past_tokens * layer.cached_bytes_per_token,
                    num_heads=layer.num_heads,
                    num_kv_heads=layer.num_kv_heads,
                    head_size=layer.head_size,
                )
            )
        return time.times(layer.count)

    def _head_time(self, rows: float) -> Time:
        """Final projection onto the vocabulary and sampling, for ``rows`` tokens."""
        if not self.model.has_lm_head or rows <= 0:
            return NO_TIME
        key = int(rows) + (rows > int(rows))
        cached = self._head_cache.get(key)
        if cached is None:
            vocabulary = -(-self.model.vocab_size // VOCABULARY_PADDING) * VOCABULARY_PADDING
            part = vocabulary // self._tensor_size
            weight_bytes = float(part * self.model.hidden_size * self._dtype_bytes)
            head = _Matrix("bfloat16", "bfloat16", part, self.model.hidden_size, weight_bytes, self._dtype_bytes)
            cached = self._matrix_time(head, key)
            # Logits are widened to 32 bits (read 2, write 4) and read once more by the sampler.
            cached = cached.plus(self._small_kernels_time(6, 10.0 * key * vocabulary))
            if self._tensor_size > 1:
                gather = self.links.all_reduce_s(self._tensor_size, 2.0 * key * vocabulary) / 2.0
                cached = cached.plus(Time(gather, link_s=gather))
            self._head_cache[key] = cached
        return cached

    # -- construction ---------------------------------------------------------------------------------------------

    def _build_stages(self, quantization: QuantizationFacts | None) -> tuple[_Stage, ...]:
        size = self.options.pipeline_parallel_size
        if size > self.model.num_hidden_layers:
            raise FleetError("pipeline_parallel_size", f"{size} stages for {self.model.num_hidden_layers} layers")
        split = self.options.pipeline_layers or tuple(pipeline_split(self.model.num_hidden_layers, size))
        stages: list[_Stage] = []
        start = 0
        for index, count in enumerate(split):
            layers = tuple(
                self._build_layer(kind, number, quantization)
                for kind, number in self.model.layers(start, start + count)
            )
            stages.append(_Stage(layers, first=index == 0, last=index == len(split) - 1))
            start += count
        return tuple(stages)

    def _build_layer(self, layer: LayerFacts, count: int, quantization: QuantizationFacts | None) -> _Layer:
        size = self._tensor_size
        attention = layer.attention
        matrices = tuple(self._build_matrix(module, layer, quantization) for module in layer.modules)
        mla = attention.kind == "mla"
        kv_heads = 1 if mla else max(1, attention.num_kv_heads // size)
        head_size = 0.5 * (attention.head_size + attention.head_size_v)
        cached_elements = (
            attention.kv_lora_rank + attention.qk_rope_head_dim
            if mla
            else kv_heads * (attention.head_size + attention.head_size_v)
        )
        element = 1 if self._kv_dtype == "fp8" else self._dtype_bytes
        kernels, moved = self._small_kernels(layer, quantization)
        return _Layer(
            count=count,
            matrices=matrices,
            experts=None if layer.experts is None else self._build_experts(layer.experts, quantization),
            num_heads=attention.num_heads // size,
            num_kv_heads=kv_heads,
            head_size=head_size,
            cached_bytes_per_token=cached_elements * element,
            window=attention.sliding_window,
            small_kernels=kernels,
            small_bytes_per_token=moved,
        )

    def _build_matrix(self, module: LinearModule, layer: LayerFacts, quantization: QuantizationFacts | None) -> _Matrix:
        inputs, outputs = shard_sizes(module, layer, self._tensor_size)
        if not module.quantizable or (
            quantization is not None
            and (quantization.weight_format == "mxfp4" or quantization.skips(module.checkpoint_names))
        ):
            quantization = None
        weight_bytes = float(sum(linear_tensors(inputs, outputs, self._dtype_bytes, quantization, MARLIN)))
        weight_format, peak, activation_bytes = self._kernel(quantization)
        return _Matrix(weight_format, peak, outputs, inputs, weight_bytes, activation_bytes)

    def _kernel(self, quantization: QuantizationFacts | None) -> tuple[MatrixFormat, str, int]:
        """Which curve, which datasheet rate, and the bytes of an input element."""
        if quantization is None:
            return "bfloat16", "bfloat16", self._dtype_bytes
        if quantization.activation_bits == 8:
            if quantization.weight_format == "fp8_block":
                return "fp8_block", "fp8", 1
            # INT8 runs the same CUTLASS kernels at the same datasheet rate as FP8; there are no rows of its own.
            return "fp8", "int8" if quantization.weight_format == "int8" else "fp8", 1
        # Hopper multiplies packed weights with Machete, as fast as 16-bit ones at any batch; others with Marlin.
        if self.gpu.is_hopper and quantization.weight_format in ("int4", "int8"):
            return "bfloat16", "bfloat16", self._dtype_bytes
        return "marlin", "bfloat16", self._dtype_bytes

    def _build_experts(self, module: ExpertsModule, quantization: QuantizationFacts | None) -> _Experts:
        intermediate = module.intermediate_size // self._tensor_size
        weight_format, peak, _ = self._kernel(quantization)
        if quantization is not None and quantization.activation_bits is None:
            weight_format = "marlin"
        sizes = ((module.hidden_size, 2 * intermediate), (intermediate, module.hidden_size))
        held = sum(
            sum(linear_tensors(inputs, outputs, self._dtype_bytes, quantization, MARLIN)) for inputs, outputs in sizes
        )
        weights = 3 * module.hidden_size * intermediate
        return _Experts(module, weight_format, peak, intermediate, held / weights)

    def _small_kernels(self, layer: LayerFacts, quantization: QuantizationFacts | None) -> tuple[int, float]:
        """Kernels beside matrices and attention: how many a layer has, and the bytes that they move a token.

        Norm with residual reads both and writes both; rotary embedding reads and writes query and key, and the cache
        entry is written; the gate reads two halves and writes one. With 8-bit activations the norm and the gate write
        one byte an element, and attention's output is quantized by a kernel of its own.
        """
        size = self._tensor_size
        attention = layer.attention
        hidden = self.model.hidden_size
        wide = float(self._dtype_bytes)
        narrow = 1.0 if quantization is not None and quantization.activation_bits == 8 else wide
        norms = max(1, layer.norm_parameters // hidden)
        query = attention.num_heads // size * attention.head_size
        key_value = max(1, attention.num_kv_heads // size) * (attention.head_size + attention.head_size_v)
        moved = norms * hidden * (3.0 * wide + narrow)
        moved += 2.0 * wide * (query + key_value) + 2.0 * wide * key_value
        kernels = norms + 2
        gated = [m for m in layer.modules if m.name.endswith("gate_up_proj")]
        for module in gated:
            moved += module.output_size // size * (wide + 0.5 * narrow)
            kernels += 1
        if narrow < wide:
            moved += attention.num_heads // size * attention.head_size_v * (wide + narrow)
            kernels += 1
        if layer.experts is not None:
            kernels += 2  # routing: softmax with top-k, and the sum over a token's experts
            moved += hidden * wide * (layer.experts.experts_per_token + 1)
        return kernels, moved
