"""Typed, checked access to a model's metadata: an open GGUF file in, numbers and strings out.

Every getter checks type and range and names the key in its error. Nothing here knows what a key means.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forgec.errors import GGUFError, UnsupportedModelError
from forgec.frontend.gguf import GGUFFile
from forgec.frontend.gguf_values import described

__all__ = ["ModelKeys"]

_ARCHITECTURE = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_RECONVERT = "Convert the model again with a current convert_hf_to_gguf.py."


@dataclass(frozen=True)
class ModelKeys:
    """The metadata keys ``{architecture}.*`` of one model; every suffix below is without that prefix."""

    gguf: GGUFFile
    architecture: str

    @classmethod
    def of(cls, gguf: GGUFFile) -> ModelKeys:
        """Read 'general.architecture'. Raises GGUFError when it is missing or not a plain word."""
        name = gguf.metadata.get("general.architecture")
        if name is None:
            raise _missing(gguf, "general.architecture")
        if not isinstance(name, str) or _ARCHITECTURE.match(name) is None:
            raise GGUFError(f"metadata key 'general.architecture' must be one word, found {described(name)}")
        return cls(gguf, name)

    def key(self, suffix: str) -> str:
        """The full key."""
        return f"{self.architecture}.{suffix}"

    def has(self, suffix: str) -> bool:
        """Whether the key is present."""
        return self.key(suffix) in self.gguf.metadata

    def integer(self, suffix: str, high: int, default: int | None = None) -> int:
        """An integer from 1 to ``high``; a missing key gives ``default``, or GGUFError without one."""
        value = self._value(suffix, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise GGUFError(f"metadata key '{self.key(suffix)}' must be an integer, found {described(value)}")
        return _in_range(self.key(suffix), value, high)

    def layer_integer(self, suffix: str, high: int, layers: int, default: int | None = None) -> int:
        """As ``integer``, but the value may also be an array of one number per layer.

        Raises UnsupportedModelError when the layers differ.
        """
        value = self._value(suffix, default)
        if not isinstance(value, (np.ndarray, Sequence)) or isinstance(value, str):
            return self.integer(suffix, high, default)
        key = self.key(suffix)
        if len(value) != layers:
            raise GGUFError(f"metadata key '{key}' has {len(value)} values for {layers} layers")
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
            raise GGUFError(f"metadata key '{key}' must be an integer or an array of integers")
        distinct = sorted(set(value.tolist()))
        if len(distinct) > 1:
            shown = ", ".join(map(str, distinct[:4])) + (", …" if len(distinct) > 4 else "")
            raise UnsupportedModelError(
                f"metadata key '{key}' differs between layers ({shown}); all layers must be equal"
            )
        return _in_range(key, distinct[0], high)

    def number(self, suffix: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number in [low, high]; a missing key gives ``default``, or GGUFError without one."""
        value = self._value(suffix, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise GGUFError(f"metadata key '{self.key(suffix)}' must be a number, found {described(value)}")
        if not math.isfinite(value) or not low <= value <= high:
            raise GGUFError(
                f"metadata key '{self.key(suffix)}' must be from {low:g} to {high:g}, found {value:g}"
            )
        return float(value)

    def optional_number(self, suffix: str, low: float, high: float) -> float | None:
        """As ``number``; None where the key is missing."""
        return self.number(suffix, low, high) if self.has(suffix) else None

    def flag(self, suffix: str) -> bool | None:
        """A truth value; None where the key is missing."""
        if not self.has(suffix):
            return None
        value = self._value(suffix, None)
        if not isinstance(value, bool):
            raise GGUFError(f"metadata key '{self.key(suffix)}' must be a bool, found {described(value)}")
        return value

    def layer_flags(self, suffix: str, layers: int) -> tuple[bool, ...] | int | None:
        """One truth value per layer, or an integer of 0 or more, or None where the key is missing."""
        if not self.has(suffix):
            return None
        value, key = self._value(suffix, None), self.key(suffix)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= layers:
            return value
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iub":
            raise GGUFError(
                f"metadata key '{key}' must be an array of bools or an integer from 0 to {layers}"
            )
        if len(value) < layers:
            raise GGUFError(f"metadata key '{key}' has {len(value)} values for {layers} layers")
        return tuple(bool(flag) for flag in value[:layers])

    def text(self, suffix: str, default: str) -> str:
        """A string; a missing key gives ``default``."""
        value = self._value(suffix, default)
        if not isinstance(value, str):
            raise GGUFError(f"metadata key '{self.key(suffix)}' must be a string, found {described(value)}")
        return value

    def _value(self, suffix: str, default: object) -> object:
        value = self.gguf.metadata.get(self.key(suffix), default)
        if value is None:
            raise _missing(self.gguf, self.key(suffix))
        return value


def _missing(gguf: GGUFFile, key: str) -> GGUFError:
    return GGUFError(f"'{gguf.path.name}' lacks the metadata key '{key}'", _RECONVERT)


def _in_range(key: str, value: int, high: int) -> int:
    if not 1 <= value <= high:
        raise GGUFError(f"metadata key '{key}' must be from 1 to {high}, found {value}")
    return value
