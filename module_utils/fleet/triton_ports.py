"""Which Triton server of a host an instance is put into, as the plan says it: by the server's HTTP port.

Models on one GPU share a server, so that one of them is changed while the others serve; a server holds one instance of
a model at most, so that replicas can be told apart. A model over several GPUs has a server of its own: Triton assigns
single GPUs only, and vLLM takes the first cards that its process sees. So has a model with environment variables, which
are the server's. A server takes three ports: HTTP, gRPC and metrics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from .plan_document import Instance

PORT_BASE = 8000
PORTS_A_SERVER = 3
# Up to here: the firewall of the role host covers them (host_firewall_triton_ports). A host has fewer GPUs than that.
PORT_END = 8060
# The plan's own, not a model's.
_DEVICES = "CUDA_VISIBLE_DEVICES"


def is_alone(gpus: int, env: Mapping[str, object]) -> bool:
    """Whether an instance needs a server of its own."""
    return gpus > 1 or bool(env.keys() - {_DEVICES})


class ServerPorts:
    """Gives instances their servers, one after the other; what stays comes first.

    Args:
        taken: ports in use by host, this object's servers included once it has made them.
    """

    def __init__(self, taken: MutableMapping[str, set[int]]) -> None:
        self._taken = taken
        self._models: dict[tuple[str, int], set[str]] = {}
        self._alone: set[tuple[str, int]] = set()

    def keep(self, one: Instance) -> None:
        """Take note of an instance that nothing is decided about."""
        alone = is_alone(len(one.gpus), one.env)
        for host in one.hosts:
            self._put(host, one.port, one.model, alone=alone)

    def port(self, host: str, model: str, *, alone: bool, before: int = 0) -> int:
        """The port of the server that gets an instance.

        Args:
            host: where it stands.
            model: what it runs.
            alone: it needs a server of its own.
            before: the port that it has, which it keeps where it can; 0 for a new one.
        """
        known = sorted(port for at, port in self._models if at == host)
        first = [before] if before and self._is_open(host, before, model, alone=alone) else []
        shared = [port for port in known if self._is_open(host, port, model, alone=alone)]
        chosen = next(iter([*first, *shared]), None)
        if chosen is None:
            taken = self._taken.setdefault(host, set())
            numbers = range(PORT_BASE, PORT_END, PORTS_A_SERVER)
            free = (number for number in numbers if taken.isdisjoint(range(number, number + PORTS_A_SERVER)))
            chosen = next(free, None)
            if chosen is None:
                raise FleetError(
                    "fleet_engine_port_base", f"leaves no ports for Triton on {host} ({PORT_BASE} to {PORT_END})"
                )
        self._put(host, chosen, model, alone=alone)
        return chosen

    def _is_open(self, host: str, port: int, model: str, *, alone: bool) -> bool:
        key = (host, port)
        if key in self._models:
            return not alone and key not in self._alone and model not in self._models[key]
        return self._taken.get(host, set()).isdisjoint(range(port, port + PORTS_A_SERVER))

    def _put(self, host: str, port: int, model: str, *, alone: bool) -> None:
        self._models.setdefault((host, port), set()).add(model)
        if alone:
            self._alone.add((host, port))
        self._taken.setdefault(host, set()).update(range(port, port + PORTS_A_SERVER))
