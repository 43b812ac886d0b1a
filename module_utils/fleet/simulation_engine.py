"""One engine in the simulation: vLLM's scheduler step by step, with the step times of ``speed``.

What is simulated, as vLLM 0.33 does it (v1/core/sched/scheduler.py, async_scheduler.py, engine/core.py):

- A step gives every running sequence one token, then continues prompts that were cut into chunks, then admits waiting
  requests first come first served, all within ``max_num_batched_tokens``; at most ``max_num_seqs`` run.
- KV blocks are allocated as tokens come. A request is admitted when its whole prompt fits; when a running sequence
  finds no free block, the one admitted last is preempted: its blocks are freed, and it computes everything anew.
- Steps are scheduled one ahead of the one that runs (asynchronous scheduling): a request that arrives during a step
  is in the next but one. With S pipeline stages, S + 1 batches are in flight, and a sequence gets a token in every
  S-th of them.
- Prefix caching finds nothing. An answer's length is known to the scheduler, as with ``max_tokens``.

A step costs the same Python time whatever the number of sequences: those of one batch advance together, so that what
happens to each of them later (a new block, the end) is looked up by the batch's step count.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING

from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .speed import SpeedModel

# vLLM's default on GPUs.
DEFAULT_BLOCK_SIZE = 16
# Step times are remembered for contexts rounded to so many tokens, 0.1 % of a step at most.
_CONTEXT_GRAIN = 16
_MOST_REMEMBERED = 1 << 17


class SimulatedRequest:
    """A request and what became of it. Times are seconds of simulated time, None until they come."""

    __slots__ = (
        "admission",
        "arrival_s",
        "computed",
        "delay_s",
        "finish_s",
        "first_token_s",
        "generated",
        "joined_at",
        "lane",
        "output_tokens",
        "preemptions",
        "prefilling",
        "prompt_tokens",
        "to_compute",
    )

    def __init__(self, arrival_s: float, prompt_tokens: int, output_tokens: int) -> None:
        self.arrival_s = arrival_s
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.first_token_s: float | None = None
        self.finish_s: float | None = None
        self.preemptions = 0
        # What comes on top of the steps until the first token reaches the client.
        self.delay_s = 0.0
        # Tokens whose keys and values are in the cache, those that have to be before the next one can be sampled, and
        # those that were sampled, the ones in flight included.
        self.computed = 0
        self.to_compute = prompt_tokens
        self.generated = 0
        self.prefilling = False
        self.admission = 0
        self.lane: _Lane | None = None
        self.joined_at = 0

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s + self.delay_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first. None for unfinished requests and answers of one token."""
        if self.finish_s is None or self.first_token_s is None or self.output_tokens < 2:
            return None
        return (self.finish_s - self.first_token_s) / (self.output_tokens - 1)


class StepTimes:
    """Step times of one kind of instance, shared by all instances of that kind."""

    def __init__(self, speed: SpeedModel) -> None:
        self.speed = speed
        self._decode: dict[tuple[int, int], tuple[float, float]] = {}
        self._mixed: dict[tuple[object, ...], tuple[float, float]] = {}

    def decode(self, sequences: int, context_tokens: int) -> tuple[float, float]:
        """Latency and interval of a step of ``sequences`` with ``context_tokens`` in all."""
        grain = round(context_tokens / (sequences * _CONTEXT_GRAIN))
        key = (sequences, grain)
        found = self._decode.get(key)
        if found is None:
            step = self.speed.aggregate_step(sequences, float(grain * _CONTEXT_GRAIN))
            found = self._decode[key] = (step.seconds, step.interval_s)
        return found

    def mixed(self, sequences: int, context_tokens: int, chunks: Sequence[tuple[int, int]]) -> tuple[float, float]:
        """As ``decode``, with prompt chunks of (tokens, tokens before them) beside."""
        grain = round(context_tokens / (sequences * _CONTEXT_GRAIN)) if sequences else 0
        key = (sequences, grain, *chunks)
        found = self._mixed.get(key)
        if found is None:
            step = self.speed.aggregate_step(
                sequences,
                float(grain * _CONTEXT_GRAIN),
                prefill_tokens=sum(tokens for tokens, _ in chunks),
                prefill_pairs=sum(tokens * (past + 0.5 * (tokens + 1)) for tokens, past in chunks),
                prefill_past_tokens=sum(past for _, past in chunks),
                prefill_sequences=len(chunks),
            )
            if len(self._mixed) > _MOST_REMEMBERED:
                self._mixed.clear()
            found = self._mixed[key] = (step.seconds, step.interval_s)
        return found


class _Lane:
    """Sequences that get their tokens in the same batches. Without a pipeline there is one lane.

    ``steps`` counts the batches; ``ending`` holds sequences by the count that gives their last token, ``growing`` how
    many need a new block, by the count modulo the block size.
    """

    __slots__ = ("context", "done_s", "ending", "growing", "sequences", "steps")

    def __init__(self, block_size: int) -> None:
        self.sequences = 0
        self.context = 0
        self.steps = 0
        self.ending: dict[int, list[SimulatedRequest]] = {}
        self.growing = [0] * block_size
        self.done_s = 0.0


class _Batch:
    """One step in flight: which requests it gives their first and their last token."""

    __slots__ = ("done_s", "empty", "finished", "started")

    def __init__(self) -> None:
        self.done_s = 0.0
        self.empty = True
        self.started: list[SimulatedRequest] = []
        self.finished: list[SimulatedRequest] = []


class SimulatedEngine:
    """One engine. ``wake_s`` is when ``advance`` has to be called next.

    Args:
        times: its step times.
        kv_cache_tokens: tokens that its KV cache holds.
        async_scheduling: vLLM's argument; off for pooling models.
        slowdown: how many times longer steps take, where other engines have slices of the GPU's time.

    Raises:
        FleetError: a step has no room for one token of every sequence, or the cache none for one block.
    """

    def __init__(
        self, times: StepTimes, kv_cache_tokens: int, *, async_scheduling: bool = True, slowdown: float = 1.0
    ) -> None:
        options = times.speed.options
        if options.max_num_batched_tokens < options.max_num_seqs:
            raise FleetError(
                "max_num_batched_tokens",
                f"must be at least max_num_seqs {options.max_num_seqs}, got {options.max_num_batched_tokens}",
            )
        self.wake_s = inf
        self.connections = 0
        self.preemptions = 0
        self._block_size = options.block_size or DEFAULT_BLOCK_SIZE
        if self._block_size > kv_cache_tokens:
            raise FleetError("block_size", f"{self._block_size} is more than the {kv_cache_tokens} tokens of KV cache")
        self.total_blocks = kv_cache_tokens // self._block_size
        self.free_blocks = self.total_blocks
        self.fewest_free_blocks = self.total_blocks
        self.computed_tokens = 0
        self._times = times
        self._slowdown = slowdown
        self._budget = options.max_num_batched_tokens
        self._max_num_seqs = options.max_num_seqs
        self._stages = options.pipeline_parallel_size
        self._most_in_flight = self._stages + (1 if async_scheduling else 0)
        self._lanes = [_Lane(self._block_size) for _ in range(self._stages)]
        self._turn = 0
        self._stage_free_s = [0.0] * self._stages
        self._in_flight: deque[_Batch] = deque()
        self._waiting: deque[SimulatedRequest] = deque()
        self._prefilling: deque[SimulatedRequest] = deque()
        self._admitted: list[tuple[SimulatedRequest, int]] = []
        self._admissions = 0
        self._running = 0

    @property
    def running(self) -> int:
        """Requests that hold blocks."""
        return self._running

    @property
    def waiting(self) -> int:
        """Requests that wait for admission."""
        return len(self._waiting)

    def can_ever_serve(self, request: SimulatedRequest) -> bool:
        """Whether the cache holds the request when it runs alone."""
        return self._blocks(request.prompt_tokens + request.output_tokens) <= self.total_blocks

    def add(self, request: SimulatedRequest, now_s: float) -> None:
        """A request arrives. It has to be one that ``can_ever_serve`` accepts."""
        request.delay_s = self._times.speed.first_token_s
        self._waiting.append(request)
        self.connections += 1
        if not self._in_flight:
            self._go_on(now_s)

    def advance(self) -> list[SimulatedRequest]:
        """The oldest batch is done, at ``wake_s``. Returns the requests that it finished."""
        batch = self._in_flight.popleft()
        now_s = batch.done_s
        for request in batch.started:
            if request.first_token_s is None:
                request.first_token_s = now_s
        for request in batch.finished:
            request.finish_s = now_s
            self.free_blocks += self._blocks(request.computed)
        self._running -= len(batch.finished)
        self.connections -= len(batch.finished)
        self._go_on(now_s)
        return batch.finished

    # -- scheduling -----------------------------------------------------------------------------------------------

    def _go_on(self, now_s: float) -> None:
        """Schedule until as many batches are in flight as may be, then wait for the oldest."""
        in_flight = self._in_flight
        while True:
            if self._running or self._waiting:
                while len(in_flight) < self._most_in_flight:
                    in_flight.append(self._schedule(now_s))
            if not in_flight:
                self.wake_s = inf
                return
            if not in_flight[0].empty:
                self.wake_s = in_flight[0].done_s
                return
            in_flight.popleft()

    def _schedule(self, now_s: float) -> _Batch:
        lane = self._lanes[self._turn]
        self._turn = (self._turn + 1) % self._stages
        preemptions = self.preemptions
        self._grow(lane)
        batch = _Batch()
        sequences, context = lane.sequences, lane.context
        chunks: list[tuple[int, int]] = []
        completed: list[SimulatedRequest] = []
        budget = self._budget - sequences
        if self._prefilling:
            budget = self._continue_prompts(budget, chunks, completed)
        if self._waiting and self.preemptions == preemptions:
            self._admit(budget, chunks, completed)
        if not sequences and not chunks:
            return batch
        batch.empty = False
        if sequences:
            self._give_tokens(lane, batch)
        for request in completed:
            self._start_decoding(request, lane, batch)
        self.fewest_free_blocks = min(self.fewest_free_blocks, self.free_blocks)
        times = self._times
        latency_s, interval_s = times.mixed(sequences, context, chunks) if chunks else times.decode(sequences, context)
        # The tokens that the lane's last batch sampled are this one's input.
        ready_s = max(now_s, lane.done_s) if sequences else now_s
        batch.done_s = lane.done_s = self._passed(ready_s, self._slowdown * latency_s, self._slowdown * interval_s)
        return batch

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._block_size)

    def _grow(self, lane: _Lane) -> None:
        """Allocate the blocks that the lane's next tokens need; preempt where there are none."""
        place = lane.steps % self._block_size
        while lane.growing[place] > self.free_blocks:
            self._preempt(self._last_admitted())
        self.free_blocks -= lane.growing[place]

    def _continue_prompts(self, budget: int, chunks: list[tuple[int, int]], completed: list[SimulatedRequest]) -> int:
        """Compute more of the prompts that were cut. Returns what is left of the budget."""
        for request in list(self._prefilling):
            if budget <= 0 or not request.prefilling:
                continue
            tokens = min(budget, request.to_compute - request.computed)
            needed = self._blocks(request.computed + tokens) - self._blocks(request.computed)
            if not self._make_room(needed, request):
                continue
            self.free_blocks -= needed
            budget -= tokens
            chunks.append((tokens, request.computed))
            request.computed += tokens
            if request.computed == request.to_compute:
                self._prefilling.remove(request)
                request.prefilling = False
                completed.append(request)
        return budget

    def _make_room(self, blocks: int, request: SimulatedRequest) -> bool:
        """Preempt until so many blocks are free, in the end the request that needs them itself."""
        while blocks > self.free_blocks:
            victim = self._last_admitted()
            # Those that decode stand before every prompt that was cut.
            victim = victim if victim.prefilling else request
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _admit(self, budget: int, chunks: list[tuple[int, int]], completed: list[SimulatedRequest]) -> None:
        waiting = self._waiting
        while budget > 0 and waiting and self._running < self._max_num_seqs:
            request = waiting[0]
            if self._blocks(request.to_compute) > self.free_blocks:
                break
            waiting.popleft()
            tokens = min(budget, request.to_compute)
            self.free_blocks -= self._blocks(tokens)
            budget -= tokens
            chunks.append((tokens, 0))
            request.computed = tokens
            self._running += 1
            self._admissions += 1
            request.admission = self._admissions
            self._admitted.append((request, self._admissions))
            if tokens == request.to_compute:
                completed.append(request)
            else:
                request.prefilling = True
                self._prefilling.append(request)
        if len(self._admitted) > 4 * self._max_num_seqs:
            self._admitted = [one for one in self._admitted if _may_be_preempted(*one)]

    def _give_tokens(self, lane: _Lane, batch: _Batch) -> None:
        """Every sequence of the lane gets a token; those that get their last leave it."""
        lane.steps += 1
        lane.context += lane.sequences
        self.computed_tokens += lane.sequences
        for request in lane.ending.pop(lane.steps, ()):
            self._leave(request, lane)
            batch.finished.append(request)

    def _start_decoding(self, request: SimulatedRequest, lane: _Lane, batch: _Batch) -> None:
        """The prompt is computed in this batch, which samples a token: the first, or the next after a preemption."""
        self.computed_tokens += request.to_compute
        request.generated += 1
        batch.started.append(request)
        left = request.output_tokens - request.generated
        if left == 0:
            batch.finished.append(request)
            return
        request.lane = lane
        request.joined_at = lane.steps
        lane.sequences += 1
        lane.context += request.to_compute
        lane.growing[(lane.steps - request.to_compute) % self._block_size] += 1
        lane.ending.setdefault(lane.steps + left, []).append(request)

    def _leave(self, request: SimulatedRequest, lane: _Lane) -> None:
        """Take a sequence out of its lane, with what the steps in it have computed."""
        steps = lane.steps - request.joined_at
        lane.growing[(request.joined_at - request.to_compute) % self._block_size] -= 1
        request.computed = request.to_compute + steps
        request.generated += steps
        request.lane = None
        lane.sequences -= 1
        lane.context -= request.computed

    def _last_admitted(self) -> SimulatedRequest:
        while True:
            request, admission = self._admitted[-1]
            if _may_be_preempted(request, admission):
                return request
            self._admitted.pop()

    def _preempt(self, request: SimulatedRequest) -> None:
        """Free what the request holds and let it wait, before all others, to be computed anew."""
        lane = request.lane
        if lane is not None:
            end = request.joined_at + request.output_tokens - request.generated
            lane.ending[end].remove(request)
            self._leave(request, lane)
        elif request.prefilling:
            self._prefilling.remove(request)
            request.prefilling = False
        self.free_blocks += self._blocks(request.computed)
        request.computed = 0
        request.to_compute = request.prompt_tokens + request.generated
        request.preemptions += 1
        request.admission = 0
        self.preemptions += 1
        self._running -= 1
        self._waiting.appendleft(request)

    # -- time -----------------------------------------------------------------------------------------------------

    def _passed(self, ready_s: float, latency_s: float, interval_s: float) -> float:
        """When a batch is done: each stage takes it up when the stage before has done it and it is free itself."""
        free = self._stage_free_s
        last = self._stages - 1
        if last == 0:
            free[0] = max(ready_s, free[0]) + latency_s
            return free[0]
        # The last stage has the vocabulary beside its layers and is taken as the slowest.
        other_s = min(interval_s, (latency_s - interval_s) / last)
        at_s = ready_s
        for stage in range(last):
            at_s = free[stage] = max(at_s, free[stage]) + other_s
        free[last] = max(at_s, free[last]) + interval_s
        # What is left is the engine's own work, which delays the tokens and not the next batch.
        return free[last] + latency_s - interval_s - last * other_s


def _may_be_preempted(request: SimulatedRequest, admission: int) -> bool:
    """Whether this is the request's latest admission and it still has tokens to compute."""
    return request.admission == admission and (request.lane is not None or request.prefilling)
