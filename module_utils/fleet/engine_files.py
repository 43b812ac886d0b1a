"""What one instance's engine reads: its ``config.yaml`` and its environment file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import yaml

from .errors import FleetError
from .ranks import rank_arguments, rank_environment

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

# The switches of vLLM 0.32 and 0.33 that have no negative form; false is what they are when they are left out.
_WITHOUT_NEGATIVE = frozenset(
    ["headless", "grpc", "disable_log_stats", "aggregate_engine_logging", "data_parallel_multi_port_external_lb"]
)
_HEADER = "# Managed by l40s-fleet: the next run overwrites changes.\n"


def render_config(engine_args: Mapping[str, Any], host: str, port: int, shutdown_timeout_s: int) -> str:
    """``config.yaml`` for ``vllm serve --config``.

    A false value becomes ``no-NAME: true``: vLLM's loader drops false values in silence (load_config_file in
    utils/argparse_utils.py of 0.32 and 0.33 looks for the negative option among those of ``vllm``, not of ``serve``).

    Args:
        engine_args: vLLM's EngineArgs by name; the value None leaves the argument out.
        host: address that the engine listens on.
        port: port that it listens on.
        shutdown_timeout_s: seconds that the engine gives to requests in flight when it is stopped.
    """
    # The gateway and the monitoring ask every few seconds.
    quiet = {"disable_access_log_for_endpoints": "/health,/metrics"}
    values = {"host": host, "port": port, "shutdown_timeout": shutdown_timeout_s, **quiet, **engine_args}
    document = dict(_option(name, values[name]) for name in sorted(values) if _is_given(name, values[name]))
    return _HEADER + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1000)


def _is_given(name: str, value: Any) -> bool:
    return value is not None and value != [] and not (value is False and name in _WITHOUT_NEGATIVE)


def _option(name: str, value: Any) -> tuple[str, Any]:
    """Name and value as vLLM's loader passes them on; it turns list items into text with str(), so objects are JSON."""
    option = name.replace("_", "-")
    if value is False:
        return f"no-{option}", True
    if isinstance(value, (list, tuple)):
        return option, [json.dumps(item, sort_keys=True) if isinstance(item, dict) else item for item in value]
    return option, value


def render_environment(values: Mapping[str, Any]) -> str:
    """An ``EnvironmentFile`` of systemd.

    Raises:
        FleetError: a value of more than one line.
    """
    lines = []
    for name in sorted(values):
        text = str(values[name])
        if "\n" in text:
            raise FleetError(f"env.{name}", "must be one line")
        escaped = "".join(f"\\{letter}" if letter in '\\"$`' else letter for letter in text)
        lines.append(f'{name}="{escaped}"\n')
    return _HEADER + "".join(lines)


def engine_files(
    instance: Mapping[str, Any],
    *,
    this_host: str,
    engine_directory: str,
    listen: str,
    shutdown_timeout_s: int,
    environment: Mapping[str, Any],
    addresses: Mapping[str, str] | None = None,
    frozen: Collection[str] = (),
) -> dict[str, Any]:
    """The item of ``fleet_instances`` for an instance of the plan, on one of its hosts.

    Args:
        instance: an instance of plan.json.
        this_host: the inventory name of the host.
        engine_directory: environment of the engine, as in ``/opt/vllm/0.33.0``.
        listen: address that engines listen on.
        shutdown_timeout_s: seconds that an engine gives to requests in flight when it is stopped.
        environment: variables of all engines of this host; the instance's own win.
        addresses: of the hosts by inventory name, at which they reach one another.
        frozen: hosts that were not reached; an instance that runs there too is held as it is.
    """
    known = addresses or {}
    arguments = {**instance["engine_args"], **rank_arguments(instance, this_host, known)}
    gpus = [gpu for shard in instance["shards"] if shard["host"] == this_host for gpu in shard["gpus"]]
    variables = {
        **environment,
        **instance.get("env", {}),
        **rank_environment(instance, this_host, known, engine_directory),
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        "FLEET_ENGINE_DIRECTORY": engine_directory,
    }
    return {
        "id": instance["id"],
        "config_yaml": render_config(arguments, listen, instance["port"], shutdown_timeout_s),
        "environment": render_environment(variables),
        "record": dict(instance),
        "held": any(shard["host"] in frozen for shard in instance["shards"]),
    }
