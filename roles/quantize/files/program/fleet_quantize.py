"""Makes one quantized checkpoint and measures it against its source.

Usage: fleet_quantize.py JOB.json DIRECTORY

Writes into DIRECTORY: status.json while it runs, checkpoint/ (without recipe.json, which whoever accepts it writes),
baseline.json (what the source chooses on the held-out text) and at last result.json. A step that was finished is not
done again by a second run. Whether the result is good enough is not decided here.
Exit status: 0 with a result, 1 with the reason in status.json and on stderr.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import scoring
import texts
import torch
from progress import Progress
from transformers import AutoTokenizer

_BACKENDS = {"llmcompressor": "with_llmcompressor", "gptqmodel": "with_gptqmodel"}
# Pieces of the held-out text that are read at a time.
_BATCH_SIZE = 8
# The rest of a source is copied: tokenizer, chat template, generation settings.
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_WRITTEN = ("config.json", "model.safetensors.index.json")
_SHARES = {"score source": 0.15, "quantize": 0.65, "score result": 0.2}


class Job:
    """One job.

    Args:
        document: job.json.
        directory: where everything is written.
    """

    def __init__(self, document: dict[str, Any], directory: Path) -> None:
        self._job = document
        self._recipe: dict[str, Any] = document["recipe"]
        self._source: str = document["source_path"]
        self._directory = directory
        self._progress = Progress(directory / "status.json", _SHARES)
        self._seconds: dict[str, float] = {}
        self._gpu_bytes = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
        self._backend = importlib.import_module(_BACKENDS[document["tool"]])

    def run(self) -> None:
        """All steps, each unless it is done."""
        torch.manual_seed(self._recipe["seed"])
        tokenizer = AutoTokenizer.from_pretrained(self._source)
        for_calibration, held_out = texts.split(texts.read(self._job["text"]))
        judged = self._job["judged"]
        pieces = texts.consecutive(texts.encode(tokenizer, held_out), judged["sequence_length"], judged["tokens"])
        if not pieces:
            raise ValueError(f"{self._job['text']}: its last tenth is too short to judge by")
        baseline = self._baseline(pieces)
        output = self._directory / "checkpoint"
        done = self._directory / "checkpoint.done"
        if not done.exists():
            tokens = texts.encode(tokenizer, for_calibration)
            self._quantize(output, tokens)
            done.touch()
        result = self._score_result(output, pieces)
        agreeing = sum(one == other for one, other in zip(result["greedy"], baseline["greedy"], strict=True))
        document = {
            "schema": 1,
            "key": self._job["key"],
            "figures": {
                "source_perplexity": baseline["perplexity"],
                "perplexity": result["perplexity"],
                "agreement": agreeing / len(baseline["greedy"]),
                "tokens": result["tokens"],
            },
            "layer_by_layer": baseline["layer_by_layer"],
            "versions": self._backend.versions(),
            "seconds": {name: round(value, 1) for name, value in self._seconds.items()},
            "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "peak_gpu_bytes": torch.cuda.max_memory_allocated() if self._gpu_bytes else 0,
        }
        _write(self._directory / "result.json", document)
        self._progress.at("score result", 1, 1)

    def fail(self, problem: str) -> None:
        """Says why there is no result."""
        self._progress.failed(problem)

    def _baseline(self, pieces: list[list[int]]) -> dict[str, Any]:
        """What the source does on the held-out text: kept from before, where it was the same, or measured now."""
        name = hashlib.sha256(json.dumps([self._job["source_digest"], pieces]).encode()).hexdigest()
        for place in (self._directory / "baseline.json", Path(self._job["baselines"]) / f"{name}.json"):
            kept = _read(place)
            if kept.get("name") == name:
                return kept
        begun = time.monotonic()
        self._progress.at("score source")
        offload = self._directory / "offload"
        model, layer_by_layer = scoring.load(
            self._source, gpu_bytes=self._gpu_bytes, host_bytes=self._job["host_bytes"], offload=offload
        )
        scored = scoring.score(
            model,
            pieces,
            # Read in parts, everything is read at once: each batch brings all layers again.
            batch_size=len(pieces) if layer_by_layer else _BATCH_SIZE,
            told=lambda done, of: self._progress.at("score source", done, of, "pieces"),
        )
        del model
        scoring.release()
        shutil.rmtree(offload, ignore_errors=True)
        self._seconds["score source"] = time.monotonic() - begun
        baseline = {"name": name, "layer_by_layer": layer_by_layer, **scored}
        _write(self._directory / "baseline.json", baseline)
        return baseline

    def _quantize(self, output: Path, tokens: list[int]) -> None:
        begun = time.monotonic()
        self._progress.at("quantize")
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        recipe = self._recipe
        samples = []
        if recipe["samples"]:
            samples = texts.windows(tokens, recipe["sequence_length"], recipe["samples"], recipe["seed"])
        layers = self._directory / "layers"
        layers.mkdir(exist_ok=True)
        self._backend.quantize(
            self._source,
            output,
            recipe,
            samples,
            told=lambda done, of: self._progress.at("quantize", done, of, "layers"),
            layers_directory=layers,
        )
        scoring.release()
        _copy_rest(Path(self._source), output)
        shutil.rmtree(layers)
        self._seconds["quantize"] = time.monotonic() - begun

    def _score_result(self, output: Path, pieces: list[list[int]]) -> dict[str, Any]:
        begun = time.monotonic()
        self._progress.at("score result")
        model = self._backend.load(
            str(output),
            gpu_bytes=self._gpu_bytes,
            host_bytes=self._job["host_bytes"],
            offload=self._directory / "offload",
        )
        scored = scoring.score(
            model,
            pieces,
            batch_size=_BATCH_SIZE,
            told=lambda done, of: self._progress.at("score result", done, of, "pieces"),
        )
        self._seconds["score result"] = time.monotonic() - begun
        return scored


def _copy_rest(source: Path, output: Path) -> None:
    for file in sorted(source.iterdir()):
        weights = file.suffix in _WEIGHT_SUFFIXES
        if file.is_file() and not weights and not file.name.startswith(".") and file.name not in _WRITTEN:
            shutil.copyfile(file, output / file.name)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _write(path: Path, document: dict[str, Any]) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(document) + "\n", encoding="utf-8")
    temporary.replace(path)


def main() -> int:
    """Reads the command line; 0 or 1 as the module docstring says."""
    job_file, directory = Path(sys.argv[1]), Path(sys.argv[2])
    os.umask(0o022)
    job = Job(json.loads(job_file.read_text(encoding="utf-8")), directory)
    try:
        job.run()
    except Exception as error:  # whatever a library raises ends the job, and is said in one line
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
        job.fail(problem[:400])
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
