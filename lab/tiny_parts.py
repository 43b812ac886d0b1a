"""What the lab's checkpoints are made of: tensors with random values, and byte-level tokenizers trained on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CORPUS = Path(__file__).resolve().parent.parent / "LICENSE"

SCALE = 0.05
"""Standard deviation of random weights."""


def bfloat16_bytes(values: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
    """Little-endian bfloat16 of float32 values: their upper halves, rounded to nearest."""
    bits = values.astype("<f4").view("<u4")
    return ((bits + 0x8000) >> 16).astype("<u2").tobytes()


def write_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int, path: Path, *, layer_scale: float = SCALE) -> None:
    """Writes random bfloat16 tensors, the weights of norms as ones, as a safetensors file.

    The file is written here, not by the safetensors library: numpy has no bfloat16, and the bytes must not depend on
    the library's version. The format: the header's length in eight bytes, the header in JSON, then the tensors.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, shape in shapes.items():
        is_norm = len(shape) == 1 and name.endswith("weight")
        values = (
            np.ones(shape)
            if is_norm
            else generator.standard_normal(shape) * (layer_scale if ".layers." in name else SCALE)
        )
        begin = len(data)
        data += bfloat16_bytes(values.astype(np.float32))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, len(data)]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def tokenizer(vocab_size: int, special_tokens: Sequence[str], marks: Sequence[str] = ()) -> Tokenizer:
    """A byte-level BPE tokenizer: every text can be encoded, and comes back as it was.

    Args:
        vocab_size: tokens in all.
        special_tokens: the first ids; they do not show in texts.
        marks: the last ids; one token each, and a part of the text, as ``<think>`` is.
    """
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(marks),
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS.read_text().splitlines(), trainer)
    made.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in marks])
    if made.get_vocab_size() != vocab_size:
        raise SystemExit(f"{CORPUS}: too little text for a vocabulary of {vocab_size}")
    return made


def write_json(path: Path, document: Mapping[str, Any] | Sequence[Any]) -> None:
    """Writes one of a checkpoint's small files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
