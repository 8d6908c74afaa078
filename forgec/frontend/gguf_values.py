"""The encoding of GGUF metadata: a bounds-checked position in a mapped file, and the values found there.

A ``Cursor`` takes numbers and strings from the mapping, a ``ValueReader`` typed metadata values. Neither
allocates more than the file can justify, and neither decodes a string array before it is read.
"""

from __future__ import annotations

import mmap
import struct
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from types import MappingProxyType
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from forgec.errors import GGUFError

__all__ = ["MAX_KEY_BYTES", "Cursor", "StringArray", "ValueReader", "described", "quoted"]

MAX_KEY_BYTES = (1 << 16) - 1  # the specification's limit
MAX_NESTING = 4
# What one file may cost in bytes of text, loop steps and Python objects, however large it is. Real
# vocabularies stay below 2**20 strings and the largest known texts (whole tokenizer.json files) below 2**25.
MAX_TEXT_BYTES = 1 << 28
MAX_STRINGS = 1 << 24
MAX_NESTED_ITEMS = 1 << 16
_RUN = 4096  # strings that iterating decodes at a time

_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS = MappingProxyType(
    {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
)
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


def quoted(text: str) -> str:
    """``text`` in quotes for an error message: at most 80 characters, control characters escaped."""
    short = text if len(text) <= 80 else f"{text[:79]}…"
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in short)
    return f"'{shown}'"


def described(value: object) -> str:
    """A metadata value for an error message, whatever its type and size."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, (np.ndarray, Sequence)):
        return f"an array of {len(value)} items"
    return repr(value)


class Cursor:
    """A position in a mapped file; taking more bytes than are left is a GGUFError naming what was read."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self.data = data
        self.name = name
        self.size = len(data)
        self.position = 0

    @property
    def left(self) -> int:
        """Bytes between the position and the end of the file."""
        return self.size - self.position

    def take(self, nbytes: int, what: str) -> int:
        """Move past ``nbytes`` bytes and return where they begin."""
        begin = self.position
        if nbytes > self.size - begin:
            raise GGUFError(
                f"'{self.name}' ends inside {what}: {nbytes} bytes expected at byte {begin}, "
                f"{self.size - begin} left",
                "The file is damaged or an incomplete download; fetch it again.",
            )
        self.position = begin + nbytes
        return begin

    def u32(self, what: str) -> int:
        """The next little-endian uint32; ``what`` is named if the file ends first."""
        value: int = _U32.unpack_from(self.data, self.take(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        """The next little-endian uint64; ``what`` is named if the file ends first."""
        value: int = _U64.unpack_from(self.data, self.take(8, what))[0]
        return value

    def string(self, what: str, limit: int) -> str:
        """A length (uint64), at most ``limit``, and that many bytes of UTF-8."""
        length = self.u64(what)
        if length > limit:
            raise GGUFError(f"{what} in '{self.name}' is {length} bytes long; at most {limit} are accepted")
        begin = self.take(length, what)
        try:
            return self.data[begin : begin + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(what, self.name) from error


class StringArray(Sequence[str]):
    """A metadata array of strings that stays encoded in the mapping until an item is read.

    Reading an item that is not valid UTF-8 raises GGUFError.
    """

    def __init__(self, data: mmap.mmap, ends: array[int], begin: int, key: str, file: str) -> None:
        self._data = data
        self._ends = ends  # absolute byte position after each string
        self._begin = begin
        self._key = key
        self._file = file

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._item(i) for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside the {len(self)} strings of '{self._key}'")
        return self._item(index)

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._run(i) for i in range(0, len(self), _RUN))

    def __repr__(self) -> str:
        return f"<StringArray '{self._key}' of {len(self)} strings>"

    def _run(self, first: int) -> list[str]:
        """Up to ``_RUN`` strings, decoded in one tight loop: a third of the time of as many items."""
        begin = self._ends[first - 1] if first else self._begin
        ends = self._ends[first : first + _RUN]
        if ends[-1] - begin > MAX_TEXT_BYTES:
            return [self._item(first + i) for i in range(len(ends))]
        text = self._data[begin : ends[-1]]
        cuts = [0, *(end - begin for end in ends)]
        try:
            return [text[start + 8 : end].decode() for start, end in pairwise(cuts)]
        except UnicodeDecodeError:
            return [self._item(first + i) for i in range(len(ends))]  # raises, with the item's number

    def _item(self, index: int) -> str:
        begin = (self._ends[index - 1] if index else self._begin) + 8
        end = self._ends[index]
        if end - begin > MAX_TEXT_BYTES:
            raise GGUFError(f"item {index} of metadata key {quoted(self._key)} is {end - begin} bytes long")
        try:
            return self._data[begin:end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(f"item {index} of metadata key {quoted(self._key)}", self._file) from error


class ValueReader:
    """Reads typed metadata values; keeps the file's total of strings and nested items within bounds."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._text_bytes = 0
        self._strings = 0
        self._nested = 0

    def read(self, key: str) -> Any:
        """The value of ``key``: int, float, bool, str, NumPy array, StringArray or tuple of arrays."""
        cursor = self._cursor
        what = f"the value of metadata key {quoted(key)}"
        kind = cursor.u32(what)
        if kind == _STRING:
            text = cursor.string(what, MAX_TEXT_BYTES - self._text_bytes)
            self._text_bytes += len(text)
            return text
        if kind == _ARRAY:
            return self._array(key, what, depth=1)
        if kind == _BOOL:
            value = cursor.data[cursor.take(1, what)]
            if value > 1:
                raise GGUFError(f"{what} in '{cursor.name}' is a bool of value {value}, expected 0 or 1")
            return bool(value)
        dtype = np.dtype(self._scalar(kind, key))
        begin = cursor.take(dtype.itemsize, what)
        return np.frombuffer(cursor.data, dtype, count=1, offset=begin)[0].item()

    def _scalar(self, kind: int, key: str) -> str:
        dtype = _SCALARS.get(kind)
        if dtype is None:
            raise GGUFError(
                f"metadata key {quoted(key)} in '{self._cursor.name}' has the unknown value type {kind}",
                "The file is damaged, or newer than this version of forgec.",
            )
        return dtype

    def _array(self, key: str, what: str, depth: int) -> Any:
        cursor = self._cursor
        if depth > MAX_NESTING:
            raise GGUFError(
                f"{what} in '{cursor.name}' nests arrays more than {MAX_NESTING} deep",
            )
        kind = cursor.u32(what)
        count = cursor.u64(what)
        if kind == _STRING:
            return self._string_array(key, what, count)
        if kind == _ARRAY:
            self._nested += count
            if self._nested > MAX_NESTED_ITEMS:
                raise GGUFError(
                    f"{what} in '{cursor.name}' has {count} nested arrays; "
                    f"at most {MAX_NESTED_ITEMS} are accepted in a file"
                )
            return tuple(self._array(key, what, depth + 1) for _ in range(count))
        return self._number_array(kind, key, what, count)

    def _number_array(self, kind: int, key: str, what: str, count: int) -> npt.NDArray[Any]:
        cursor = self._cursor
        dtype = np.dtype("u1" if kind == _BOOL else self._scalar(kind, key))
        begin = cursor.take(count * dtype.itemsize, what)
        values: npt.NDArray[Any]
        if count == 0:
            values = np.empty(0, dtype)
        else:
            values = np.frombuffer(cursor.data, dtype, count=count, offset=begin)
        if kind != _BOOL:
            return values
        if count and values.max() > 1:
            raise GGUFError(f"{what} in '{cursor.name}' is a bool array with values other than 0 and 1")
        return values.view(np.bool_)

    def _string_array(self, key: str, what: str, count: int) -> StringArray:
        cursor = self._cursor
        if count * 8 > cursor.left:
            raise GGUFError(
                f"{what} in '{cursor.name}' claims {count} strings, but only {cursor.left} bytes are left"
            )
        self._strings += count
        if self._strings > MAX_STRINGS:
            raise GGUFError(
                f"{what} in '{cursor.name}' has {count} strings; at most {MAX_STRINGS} are accepted in a file"
            )
        # One tight loop: a 262k-token vocabulary is most of the time that opening a file takes.
        data, size, unpack = cursor.data, cursor.size, _U64.unpack_from
        begin = position = cursor.position
        ends = array("Q")
        append = ends.append
        for index in range(count):
            if position + 8 > size:
                raise self._string_past_end(key, index)
            position += 8 + unpack(data, position)[0]
            if position > size:
                raise self._string_past_end(key, index)
            append(position)
        cursor.position = position
        return StringArray(data, ends, begin, key, cursor.name)

    def _string_past_end(self, key: str, index: int) -> GGUFError:
        return GGUFError(
            f"'{self._cursor.name}' ends inside item {index} of metadata key {quoted(key)}",
            "The file is damaged or an incomplete download; fetch it again.",
        )


def _not_utf8(what: str, file: str) -> GGUFError:
    return GGUFError(f"{what} in '{file}' is not valid UTF-8")
