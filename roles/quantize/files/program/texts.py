"""From a text to the token sequences of calibration and of judgement. The two never share a token."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

# The last part of a text is held out.
_HELD_OUT_SHARE = 0.1


def split(text: str) -> tuple[str, str]:
    """The part for calibration and the part that is held out, cut at the end of a line."""
    cut = text.find("\n", int(len(text) * (1.0 - _HELD_OUT_SHARE))) + 1
    return text[:cut], text[cut:]


def read(path: str) -> str:
    """A text in UTF-8."""
    return Path(path).read_text(encoding="utf-8")


def windows(tokens: list[int], length: int, count: int, seed: int) -> list[list[int]]:
    """So many sequences of this length.

    Where the text has enough tokens they do not overlap; else they begin at random places, the same for the same seed.
    A text shorter than one sequence is one sequence.
    """
    if len(tokens) <= length:
        return [tokens]
    generator = random.Random(seed)  # noqa: S311 (repeatable on purpose)
    whole = len(tokens) // length
    if whole >= count:
        return [tokens[i * length : (i + 1) * length] for i in sorted(generator.sample(range(whole), count))]
    begins = sorted(generator.randrange(len(tokens) - length + 1) for _ in range(count))
    return [tokens[begin : begin + length] for begin in begins]


def consecutive(tokens: list[int], length: int, limit: int) -> list[list[int]]:
    """The text in pieces of this length, in order, ``limit`` tokens at most; a rest of one token is left out."""
    read = tokens[:limit]
    pieces = [read[begin : begin + length] for begin in range(0, len(read), length)]
    return [piece for piece in pieces if len(piece) > 1]


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, without special tokens."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
