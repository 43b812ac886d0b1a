"""Parameter counts as transformers builds them on the meta device. Runs under the engine's Python.

Usage: count_parameters.py CONFIG.json ...   prints {"path": parameters}
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers


def count(path: Path) -> int:
    """Parameters of the model class that the configuration names, tied ones once."""
    config = json.loads(path.read_text())
    config.pop("quantization_config", None)
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "config.json").write_text(json.dumps(config))
        parsed = transformers.AutoConfig.from_pretrained(directory)
    model_class = getattr(transformers, config["architectures"][0])
    with torch.device("meta"):
        model = model_class(parsed)
    model.tie_weights()
    return sum({id(parameter): parameter.numel() for parameter in model.parameters()}.values())


def main() -> None:
    """Print the counts as one JSON object."""
    json.dump({path: count(Path(path)) for path in sys.argv[1:]}, sys.stdout)


if __name__ == "__main__":
    main()
