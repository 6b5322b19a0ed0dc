"""Typed reading of a config.json that somebody else wrote: every wrong value is named together with its file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from kvasir_protocol.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class ConfigFields:
    """A JSON object whose values are read by type; `source` names the file (and section) in errors.

    A null counts as absent. Where no default is given the key is required, and CheckpointError says so.
    """

    values: Mapping[str, object]
    source: str

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number of at least 1."""
        value = self._value(key, default, "a whole number of at least 1")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.wrong(key, "a whole number of at least 1")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number above 0."""
        value = self._value(key, default, "a number above 0")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.wrong(key, "a number above 0")
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """Return true or false."""
        value = self._value(key, default, "true or false")
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string."""
        value = self._value(key, default, "a string")
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of strings."""
        value = self._value(key, None, "a list of strings")
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "a list of strings")
        return tuple(value)

    def section(self, key: str) -> "ConfigFields":
        """Return the JSON object under `key`; empty where it is absent."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.wrong(key, "a JSON object")
        return ConfigFields(value or {}, f'{self.source}, "{key}"')

    def has(self, key: str) -> bool:
        """Tell whether `key` is present and not null."""
        return self.values.get(key) is not None

    def wrong(self, key: str, wanted: str) -> CheckpointError:
        """Return the error for a value that can't be used; the caller raises it."""
        return CheckpointError(f'{self.source}: "{key}" must be {wanted}, not {self.values.get(key)!r}')

    def _value(self, key: str, default: object, wanted: str) -> object:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(
                f'{self.source} lacks "{key}" ({wanted}); the file is incomplete: download the checkpoint again'
            )
        return value
