"""Reads AIConfigurator's measured kernels (Apache-2.0): the wheel aiconfigurator-core 0.12.0, installed or unpacked.

Rows are of vLLM 0.24.0 on the named GPU. Needs numpy and pyarrow, which belong to the optional group ``bench``.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

SYSTEMS = {"L40S": "l40s", "H100": "h100_sxm", "H200": "h200_sxm"}
Table = dict[str, np.ndarray]


def systems_directory() -> Path | None:
    """``systems`` of the package, or of the directory that AICONFIGURATOR_CORE names. None where neither exists."""
    given = os.environ.get("AICONFIGURATOR_CORE")
    if given:
        return Path(given) / "systems"
    found = importlib.util.find_spec("aiconfigurator_core")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations))) / "systems"


def load(gpu: str, table: str, *, version: str = "vllm/0.24.0") -> Table:
    """Columns of one table. Latency is in seconds."""
    directory = systems_directory()
    if directory is None:
        raise SystemExit("aiconfigurator-core is not installed: pip install aiconfigurator-core==0.12.0 pyarrow")
    topic, _, name = table.partition("/")
    path = directory / "data" / SYSTEMS[gpu] / topic / version / f"{name}_perf.parquet"
    columns = pq.read_table(path).to_pydict()
    rows = {key: np.asarray(values) for key, values in columns.items()}
    rows["latency"] = rows["latency"].astype(float) * 1e-3
    return rows


def select(table: Table, keep: np.ndarray) -> Table:
    """The rows where ``keep`` is true."""
    return {key: values[keep] for key, values in table.items()}
