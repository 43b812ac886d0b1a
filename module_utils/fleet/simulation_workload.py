"""Requests of one model in a simulation: random arrivals and lengths, and the router that spreads them."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from math import log, sqrt
from typing import TYPE_CHECKING, Literal
from zlib import crc32

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_CHUNK = 4096
# Beyond every context; a drawn length has to be a whole number that numpy holds.
_LONGEST = 2**40
# What HAProxy scales weights with (SRV_EWGHT_MAX); only ratios count.
_WEIGHT_SCALE = 256.0


@dataclass(frozen=True, slots=True)
class Lengths:
    """How prompts and answers vary around their means.

    Args:
        kind: ``fixed``, or ``lognormal`` with ``variation``.
        variation: standard deviation over mean.
    """

    kind: Literal["fixed", "lognormal"] = "fixed"
    variation: float = 0.5


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Poisson arrivals.

    Equal seeds and names give equal gaps and lengths whatever the rate, so that a rate is the only difference between
    two runs.
    """

    name: str
    seed: int
    requests_per_second: float
    prompt_tokens: int
    output_tokens: int
    lengths: Lengths
    most_tokens: int | None = None

    def stream(self) -> Iterator[tuple[float, int, int]]:
        """Arrival in seconds, prompt and output tokens, for ever."""
        streams = np.random.SeedSequence([self.seed, crc32(self.name.encode())]).spawn(3)
        gaps, prompts, outputs = (np.random.Generator(np.random.PCG64(one)) for one in streams)
        at_s = 0.0
        while True:
            times = at_s + np.cumsum(gaps.exponential(1.0 / self.requests_per_second, _CHUNK))
            at_s = float(times[-1])
            chunk = zip(
                times.tolist(),
                self._tokens(prompts, self.prompt_tokens),
                self._tokens(outputs, self.output_tokens),
                strict=True,
            )
            for arrival_s, prompt, output in chunk:
                if self.most_tokens is None:
                    yield arrival_s, prompt, output
                else:
                    prompt_kept = min(prompt, max(1, self.most_tokens - 1))
                    yield arrival_s, prompt_kept, max(1, min(output, self.most_tokens - prompt_kept))

    def _tokens(self, random: np.random.Generator, mean: int) -> list[int]:
        if self.lengths.kind == "fixed" or mean == 1:
            return [mean] * _CHUNK
        variance = log(1.0 + self.lengths.variation**2)
        drawn = random.lognormal(log(mean) - 0.5 * variance, sqrt(variance), _CHUNK)
        whole: list[int] = np.clip(np.rint(drawn), 1, _LONGEST).astype(int).tolist()
        return whole


class LeastConnections:
    """HAProxy's ``balance leastconn``: the server with the fewest requests for its weight, round robin among equals.

    Args:
        weights: of the servers.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = tuple(weights)
        self._version = [0] * len(weights)
        self._moves = 0
        self._heap: list[tuple[float, int, int, int]] = []
        for server in range(len(weights)):
            self.changed(server, 0)

    def changed(self, server: int, connections: int) -> None:
        """A server now carries so many requests; among equals it goes to the end."""
        key = (connections + 1) * _WEIGHT_SCALE / self._weights[server] if connections else 0.0
        self._moves += 1
        self._version[server] += 1
        heapq.heappush(self._heap, (key, self._moves, server, self._version[server]))

    def pick(self) -> int:
        """The server that gets the next request. ``changed`` has to be called for it."""
        heap = self._heap
        while heap[0][3] != self._version[heap[0][2]]:
            heapq.heappop(heap)
        return heap[0][2]
