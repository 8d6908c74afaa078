"""Values of manifest.json that are what they must be, or a PackageError that names their place.

In comes a value of parsed JSON and where it was found, out goes the same value with its type known. Knows
nothing of what a manifest means: that is ``manifest.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from .errors import PackageError

__all__ = [
    "FILE",
    "HINT",
    "check_keys",
    "digest_at",
    "flag_at",
    "integer_at",
    "list_at",
    "object_at",
    "path_at",
    "string_at",
    "wrong",
]

FILE = "manifest.json"
HINT = "the package is damaged or was not written by forgec: compile the model again"


def wrong(where: str, found: object, expected: str) -> PackageError:
    """The error for a value that is not what it must be."""
    text = json.dumps(found, default=str)
    shown = text if len(text) <= 60 else text[:57] + "..."
    return PackageError(f"{FILE}: {where} is {shown}, expected {expected}", HINT)


def object_at(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong(where, value, "an object")
    return value


def list_at(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise wrong(where, value, "a list")
    return value


def string_at(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise wrong(where, value, "a non-empty string")
    return value


def integer_at(value: Any, where: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise wrong(where, value, f"a whole number from {low} to {high}")
    return value


def flag_at(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise wrong(where, value, "true or false")
    return value


def digest_at(value: Any, where: str) -> str:
    if not isinstance(value, str) or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise wrong(where, value, "a SHA-256 in 64 lower-case hexadecimal digits")
    return value


def path_at(value: Any, where: str) -> str:
    text = string_at(value, where)
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text or str(path) != text:
        raise wrong(where, value, "a plain relative path")
    return text


def check_keys(value: Mapping[str, Any], where: str, needed: set[str], optional: set[str]) -> None:
    missing = sorted(needed - set(value))
    if missing:
        raise PackageError(f"{FILE}: {where} lacks '{missing[0]}'", HINT)
    unknown = sorted(set(value) - needed - optional)
    if unknown:
        raise PackageError(f"{FILE}: {where} has the unknown field '{unknown[0]}'", HINT)
