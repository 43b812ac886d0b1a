"""Prints the checkpoints of this scenario as the plan stage hands them to the role.

Arguments: the hub's address, the directory of the lab's checkpoints, a directory for the cache, names of models. The
hub's token comes from standard input.
"""

import json
import sys
from pathlib import Path

from fleet.fetch_description import SourceOptions
from fleet.fetch_sources import RemoteSources
from fleet.model_sources import resolve_models
from fleet.requests import parse_requests

endpoint, lab_checkpoints, cache, *names = sys.argv[1:]
SOURCES = {
    "tiny-llama": "hf:lab/tiny-llama",
    "tiny-qwen": f"file:{lab_checkpoints}/tiny-qwen",
    "tiny-twin": f"{endpoint}/tree/lab/tiny-twin",
    "tiny-slow": "hf:lab/tiny-slow",
}
models = [{"name": name, "source": SOURCES[name]} for name in names]
requests = parse_requests(json.dumps({"models": models}), where="models.yml")
remote = RemoteSources(
    SourceOptions(Path(cache), endpoint, sys.stdin.read().strip()), Path(cache) / f"{'-'.join(names)}.lock.json"
)
Path(cache).mkdir(parents=True, exist_ok=True)
_, checkpoints = resolve_models(requests, "models.yml", with_checkpoints=True, remote=remote)
fields = ("name", "source_path", "base_url", "credential", "digest", "total_bytes")
print(
    json.dumps(
        [{**{field: getattr(one, field) for field in fields}, "files": dict(one.files)} for one in checkpoints.values()]
    )
)
lock = remote.lock_text()
if lock is not None:
    remote.lock_path.write_text(lock)
