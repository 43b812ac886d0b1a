"""The network between hosts, as far as a pipeline over several of them depends on it. Nothing is measured yet."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Network:
    """One direction between two hosts. The default is 10 Gbit/s Ethernet, nine tenths of it used, without RDMA."""

    bytes_per_s: float = 1.1e9
    latency_s: float = 100e-6

    def send_s(self, size_bytes: float) -> float:
        """Seconds until a message has arrived."""
        return self.latency_s + size_bytes / self.bytes_per_s
