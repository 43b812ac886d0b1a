"""Typed access to a Hugging Face config.json, with errors that name the key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Mapping


class ConfigReader:
    """Reads one mapping. ``defaults`` are those of the transformers configuration class, which real files rely on."""

    def __init__(self, config: Mapping[str, object], where: str, defaults: Mapping[str, object] | None = None) -> None:
        self._config = config
        self._defaults = defaults or {}
        self.where = where

    def _get(self, key: str) -> object:
        value = self._config.get(key)
        return self._defaults.get(key) if value is None else value

    @property
    def document(self) -> Mapping[str, object]:
        """What is read, without the defaults."""
        return self._config

    def value(self, key: str) -> object:
        """Whatever stands there, None where nothing does."""
        return self._get(key)

    def has(self, key: str) -> bool:
        """Whether the key is there, or has a default, and is not null."""
        return self._get(key) is not None

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        """A whole number of at least ``minimum``.

        Raises:
            FleetError: missing without a default, or something else.
        """
        value = self._get(key)
        if value is None:
            if default is None:
                raise FleetError(f"{self.where}: {key}", "missing")
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise FleetError(f"{self.where}: {key}", f"must be a whole number of at least {minimum}, got {value!r}")
        return value

    def optional_integer(self, key: str) -> int | None:
        """A whole number above 0, or None where it is missing or null."""
        return self.integer(key) if self.has(key) else None

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise FleetError(f"{self.where}: {key}", f"must be true or false, got {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(key)
        if value is None:
            if default is None:
                raise FleetError(f"{self.where}: {key}", "missing")
            return default
        if not isinstance(value, str):
            raise FleetError(f"{self.where}: {key}", f"must be a string, got {value!r}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings, empty where it is missing or null."""
        value = self._get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise FleetError(f"{self.where}: {key}", f"must be a list of strings, got {value!r}")
        return tuple(value)

    def items(self, key: str) -> tuple[object, ...]:
        """A list of anything, empty where it is missing or null."""
        value = self._get(key)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise FleetError(f"{self.where}: {key}", f"must be a list, got {value!r}")
        return tuple(value)

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers, empty where it is missing or null."""
        value = self._get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise FleetError(f"{self.where}: {key}", f"must be a list of whole numbers, got {value!r}")
        return tuple(value)

    def mapping(self, key: str) -> Mapping[str, object] | None:
        """A mapping, or None where it is missing or null."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise FleetError(f"{self.where}: {key}", f"must be a mapping, got {value!r}")
        return value
