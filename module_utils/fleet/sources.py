"""Where checkpoints come from, as models.yml writes it: the model's own and those that it is served with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

ADAPTER_CONFIG_NAME = "adapter_config.json"
_REPOSITORY = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?$", re.ASCII)

DRAFT = "draft"


@dataclass(frozen=True, slots=True)
class Source:
    """``hf:org/name@revision``, ``file:/path`` or ``https://...``; a bare path or org/name works too."""

    text: str

    @property
    def path(self) -> str | None:
        """The path of a source that lies on the controller, as it was written. None for one that is fetched."""
        kind, _, rest = self.text.partition(":")
        if kind == "file":
            return rest.removeprefix("//") if rest.startswith("///") else rest
        if kind in ("hf", "http", "https") or _REPOSITORY.match(self.text):
            return None
        return self.text

    @property
    def repository(self) -> str | None:
        """The repository on the Hugging Face hub (``org/name``), or None."""
        text = self.text.removeprefix("hf:")
        return text.partition("@")[0] if _REPOSITORY.match(text) else None

    @property
    def revision(self) -> str | None:
        """The revision of that repository, or None."""
        if self.repository is None:
            return None
        return self.text.partition("@")[2] or None

    def fault(self) -> str | None:
        """What is wrong with the way it is written, or None."""
        kind = self.text.partition(":")[0]
        if ":" in self.text and kind not in ("hf", "file", "http", "https"):
            return f"{kind}: is no kind of source, known are hf:, file: and https:"
        if kind == "hf" and self.repository is None:
            return f"must be hf:org/name or hf:org/name@revision, got {self.text!r}"
        return "file: needs a path" if self.path == "" else None


@dataclass(frozen=True, slots=True)
class FurtherSource:
    """A checkpoint that a model is served with: its draft model, an adapter.

    Args:
        label: distinguishes it among those of the model, as in ``draft``; letters, digits, ``.`` and ``-``.
        key: where it stands in the model's entry, as in ``speculative.model``.
        source: where it comes from.
        config: path of its configuration, to plan without the checkpoint.
        config_key: where that stands.
        config_name: the file that says what it is; an adapter has ``adapter_config.json``.
        kind: how it is read.
    """

    label: str
    key: str
    source: Source
    config: str | None = None
    config_key: str = ""
    config_name: str = "config.json"
    kind: Literal["model", "eagle3", "adapter"] = "model"


def stored_name(model: str, label: str) -> str:
    """Name in the store. No model's name has an underscore, so that it says which model it belongs to."""
    return f"{model}_{label}"
