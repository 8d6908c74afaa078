"""A bounded GGUF reader: the path of a file (or of a first shard) in, metadata and tensor bytes out.

The file is memory-mapped and parsed once, front to back; every length is compared with the bytes that are
left before anything is allocated, and string arrays are decoded only when read. It never writes, never
copies tensor data, and judges the container only: what a model needs is ``spec``'s business.
"""

from __future__ import annotations

import math
import mmap
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from forgec.errors import GGUFError, UnsupportedModelError
from forgec.frontend.gguf_values import MAX_KEY_BYTES, Cursor, ValueReader, described, quoted
from forgec.frontend.quant import QUANT_BY_NAME, QUANT_TYPES, REMOVED_TYPES, QuantType, dequantize

__all__ = ["GGUFFile", "TensorInfo", "open_gguf"]

DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4  # ggml's GGML_MAX_DIMS
# Limits far above any real model; they keep a damaged count from filling memory with Python objects.
MAX_KEYS = 1 << 13
MAX_TENSORS = 1 << 17
MAX_SHARDS = 1024
MAX_TENSOR_NAME_BYTES = 1024  # ggml stops at 64, files that were not made for it go a little further
_MAX_ELEMENTS = 1 << 62
_MIN_KEY_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8

_SHARD_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf\Z", re.DOTALL)


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies. ``shape`` is in NumPy order, rows first: ggml's ``ne`` reversed.

    ``offset`` is in bytes from the start of the file of shard number ``shard`` (from 0); ``nbytes`` counts
    the encoded bytes, without padding.
    """

    name: str
    shape: tuple[int, ...]
    type: QuantType
    shard: int
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        """The number of elements: the product of ``shape``."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """The number of rows: all dimensions but the last."""
        return math.prod(self.shape[:-1])


@dataclass(frozen=True)
class _Shard:
    """One parsed file; ``tensors`` in file order."""

    path: Path
    data: mmap.mmap
    version: int
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]


class GGUFFile:
    """An open model: ``metadata`` of the first shard and the ``tensors`` of all shards, in file order.

    Metadata values are int, float, bool, str, read-only NumPy arrays (numbers), ``StringArray`` (a sequence
    of str, decoded on access) or tuples (nested arrays). Arrays that were handed out stay valid after
    ``close``: the mapping is released with the last of them.
    """

    def __init__(self, shards: tuple[_Shard, ...], tensors: Mapping[str, TensorInfo]) -> None:
        self.path: Path = shards[0].path
        self.shard_paths: tuple[Path, ...] = tuple(shard.path for shard in shards)
        self.version: int = shards[0].version
        self.metadata: Mapping[str, Any] = shards[0].metadata
        self.tensors: Mapping[str, TensorInfo] = tensors
        self._maps: tuple[mmap.mmap, ...] | None = tuple(shard.data for shard in shards)

    def bytes_of(self, name: str) -> npt.NDArray[np.uint8]:
        """The encoded bytes of a tensor: read-only uint8 [nbytes], a view of the mapping.

        Raises GGUFError for an unknown name or a closed file.
        """
        info = self._info(name)
        if self._maps is None:
            raise GGUFError(f"'{self.path.name}' is closed, so tensor {quoted(name)} cannot be read")
        return np.frombuffer(self._maps[info.shard], np.uint8, count=info.nbytes, offset=info.offset)

    def rows_of(self, name: str, first: int, count: int) -> npt.NDArray[np.uint8]:
        """The encoded bytes of ``count`` rows from row ``first`` on: uint8 [count, bytes of a row].

        A row is the last dimension of the tensor; the others count as one. Raises as ``bytes_of``.
        """
        info = self._info(name)
        row_bytes = info.nbytes // info.rows
        return self.bytes_of(name)[first * row_bytes : (first + count) * row_bytes].reshape(count, row_bytes)

    def array_rows(self, name: str, first: int, count: int) -> npt.NDArray[np.float32]:
        """The same rows decoded: float32 [count, columns]. Raises as ``array``."""
        info = self._info(name)
        return dequantize(self.rows_of(name, first, count), info.type.name, count, info.shape[-1])

    def release(self, name: str, first: int, count: int) -> None:
        """Let the system take back the memory of rows that were read; they can be read again.

        A mapping counts as this process's memory once it was touched, and a model is larger than that may be.
        """
        info = self._info(name)
        if self._maps is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        row_bytes = info.nbytes // info.rows
        page = mmap.PAGESIZE
        start = -(-(info.offset + first * row_bytes) // page) * page
        end = (info.offset + (first + count) * row_bytes) // page * page
        if end > start:
            self._maps[info.shard].madvise(mmap.MADV_DONTNEED, start, end - start)

    def array(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor decoded to a new float32 array of the tensor's ``shape``.

        Raises GGUFError as ``bytes_of``, UnsupportedModelError for a type without a decoder.
        """
        info = self._info(name)
        cols = info.shape[-1]
        decoded = dequantize(self.bytes_of(name), info.type.name, info.elements // cols, cols)
        return decoded.reshape(info.shape)

    def history(self) -> Mapping[str, Any]:
        """What was done to the weights since the file was written, as JSON data: nothing to a plain file."""
        return {}

    def close(self) -> None:
        """Let go of the mapping; tensors can no longer be read. Closing twice is allowed."""
        self._maps = None

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _info(self, name: str) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise GGUFError(f"'{self.path.name}' has no tensor {quoted(name)}")
        return info


def open_gguf(path: str | Path) -> GGUFFile:
    """Open a GGUF file; of a sharded model give the first shard, the others are found beside it.

    Versions 2 and 3, little endian. Raises GGUFError when a file is missing, unreadable, damaged or not
    GGUF, and UnsupportedModelError for a tensor type that is not known.
    Source: github.com/ggml-org/ggml, docs/gguf.md; shards: llama.cpp's tools/gguf-split.
    """
    path = Path(path)
    first = _read_shard(path, 0)
    count = _split_value(first, "split.count", 1)
    if count == 0:
        count = 1  # llama.cpp reads 0 as "not split"
    if count > MAX_SHARDS:
        raise GGUFError(f"'{path.name}' claims {count} shards; at most {MAX_SHARDS} are accepted")
    shards = [first]
    if count > 1:
        shards += [_read_shard(_shard_path(first, count, index), index) for index in range(1, count)]
    tensors: dict[str, TensorInfo] = {}
    for index, shard in enumerate(shards):
        if index > 0:
            _check_split(shard, index, count, first)
        for info in shard.tensors:
            if info.name in tensors:
                other = shards[tensors[info.name].shard].path.name
                raise GGUFError(
                    f"tensor {quoted(info.name)} is in '{other}' and again in '{shard.path.name}'"
                )
            tensors[info.name] = info
    expected = _split_value(first, "split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise GGUFError(
            f"'{path.name}' announces {expected} tensors in all shards, found {len(tensors)}",
            "The shards do not belong together; download all of them again.",
        )
    return GGUFFile(tuple(shards), MappingProxyType(tensors))


def _split_value(shard: _Shard, key: str, default: int) -> int:
    value = shard.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise GGUFError(
            f"metadata key {quoted(key)} of '{shard.path.name}' must be a count, found {described(value)}"
        )
    return value


def _shard_path(first: _Shard, count: int, index: int) -> Path:
    """The path of shard ``index`` (from 0), after checking that ``first`` is the first of ``count``."""
    name = first.path.name
    match = _SHARD_NAME.match(name)
    if match is None or int(match["count"]) != count:
        raise GGUFError(
            f"{quoted(name)} is one of {count} shards but is not named '<model>-00001-of-{count:05d}.gguf'",
            "Give the shards back their original names, or merge them with llama-gguf-split --merge.",
        )
    number = _split_value(first, "split.no", 0)
    if number != 0 or int(match["number"]) != 1:
        raise GGUFError(
            f"{quoted(name)} is shard {number + 1} of {count}; a model is opened through its first shard",
            f"Give '{match['stem']}-00001-of-{count:05d}.gguf'.",
        )
    path = first.path.with_name(f"{match['stem']}-{index + 1:05d}-of-{count:05d}.gguf")
    if not path.exists():
        raise GGUFError(
            f"shard {index + 1} of {count} is missing: '{path}' does not exist",
            "Put all shards of the model into one folder.",
        )
    return path


def _check_split(shard: _Shard, index: int, count: int, first: _Shard) -> None:
    """A later shard must say that it is that shard, and nothing that contradicts the first one."""
    found = (_split_value(shard, "split.no", 0), _split_value(shard, "split.count", 1))
    if found != (index, count):
        raise GGUFError(
            f"'{shard.path.name}' should be shard {index + 1} of {count}, "
            f"but its metadata say shard {found[0] + 1} of {found[1]}",
            "The shards do not belong together; download all of them again.",
        )
    for key in ("split.tensors.count", "general.architecture", "general.name"):
        own, others = shard.metadata.get(key), first.metadata.get(key)
        if own is not None and own != others:
            raise GGUFError(
                f"'{shard.path.name}' is of another model than '{first.path.name}': "
                f"their metadata key '{key}' is {described(own)} and {described(others)}",
                "The shards do not belong together; download all of them again.",
            )


def _read_shard(path: Path, shard: int) -> _Shard:
    data = _map_file(path)
    cursor = Cursor(data, path.name)
    version, tensor_count, key_count = _read_header(cursor)
    metadata = _read_metadata(cursor, key_count)
    alignment = _alignment(metadata, path.name)
    relative = _read_tensor_infos(cursor, tensor_count, shard)
    data_start = -(-cursor.position // alignment) * alignment
    tensors = _place_tensors(relative, data_start, alignment, cursor)
    return _Shard(path, data, version, MappingProxyType(metadata), tensors)


def _map_file(path: Path) -> mmap.mmap:
    try:
        status = path.stat()
        # Asked before opening: opening a pipe would wait for a writer.
        if stat.S_ISDIR(status.st_mode):
            raise GGUFError(f"'{path}' is a directory", "Give the path of a .gguf file inside it.")
        if not stat.S_ISREG(status.st_mode):
            raise GGUFError(f"'{path}' is not a regular file", "Give the path of a .gguf file.")
        if status.st_size == 0:
            raise GGUFError(f"'{path}' is empty", "The download has probably failed; fetch the file again.")
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise GGUFError(f"'{path}' does not exist", "Check the path of the .gguf file.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise GGUFError(f"'{path}' cannot be read: {reason}") from error


def _read_header(cursor: Cursor) -> tuple[int, int, int]:
    """Magic, version and counts; returns (version, tensor count, key count)."""
    magic = bytes(cursor.data[:24])
    if magic.startswith(b"version https://git-lfs"):
        raise GGUFError(
            f"'{cursor.name}' is a Git LFS pointer, not the model itself", "Run 'git lfs pull' first."
        )
    if magic[:4] != b"GGUF":
        raise GGUFError(
            f"'{cursor.name}' is not a GGUF file: it begins with {magic[:4]!r}, expected {b'GGUF'!r}",
            "Convert other formats with llama.cpp's convert_hf_to_gguf.py.",
        )
    cursor.position = 4
    version = cursor.u32("the header")
    if version & 0xFFFF == 0 and version != 0:
        raise GGUFError(
            f"'{cursor.name}' is a big-endian GGUF file; only little-endian files can be read",
            "Convert it with gguf-py's gguf-convert-endian.",
        )
    if version not in (2, 3):
        raise GGUFError(
            f"'{cursor.name}' has GGUF version {version}; versions 2 and 3 can be read",
            "Convert the model again with a current convert_hf_to_gguf.py." if version < 2 else "",
        )
    tensor_count = cursor.u64("the header")
    key_count = cursor.u64("the header")
    _check_count(cursor, "tensors", tensor_count, MAX_TENSORS, _MIN_TENSOR_BYTES)
    _check_count(cursor, "metadata keys", key_count, MAX_KEYS, _MIN_KEY_BYTES)
    return version, tensor_count, key_count


def _check_count(cursor: Cursor, what: str, count: int, limit: int, least_bytes: int) -> None:
    if count > limit:
        raise GGUFError(f"'{cursor.name}' claims {count} {what}; at most {limit} are accepted")
    if count * least_bytes > cursor.left:
        raise GGUFError(f"'{cursor.name}' claims {count} {what}, but has only {cursor.left} bytes for them")


def _read_metadata(cursor: Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    values = ValueReader(cursor)
    for index in range(count):
        key = cursor.string(f"the name of metadata key {index}", MAX_KEY_BYTES)
        if key in metadata:
            raise GGUFError(f"metadata key {quoted(key)} appears twice in '{cursor.name}'")
        metadata[key] = values.read(key)
    return metadata


def _alignment(metadata: Mapping[str, Any], name: str) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    valid = isinstance(alignment, int) and not isinstance(alignment, bool) and alignment > 0
    if not valid or alignment & (alignment - 1):
        raise GGUFError(
            f"'general.alignment' of {quoted(name)} must be a power of two, found {described(alignment)}"
        )
    return int(alignment)


def _read_tensor_infos(cursor: Cursor, count: int, shard: int) -> list[TensorInfo]:
    """The tensor table, with offsets still relative to the data section."""
    infos: list[TensorInfo] = []
    seen: set[str] = set()
    for index in range(count):
        name = cursor.string(f"the name of tensor {index}", MAX_TENSOR_NAME_BYTES)
        if name in seen:
            raise GGUFError(f"tensor {quoted(name)} appears twice in '{cursor.name}'")
        seen.add(name)
        where = f"the description of tensor {quoted(name)}"
        dimensions = cursor.u32(where)
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise GGUFError(
                f"tensor {quoted(name)} has {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}",
            )
        shape = tuple(reversed([cursor.u64(where) for _ in range(dimensions)]))
        quant = _quant_type(cursor.u32(where), name)
        nbytes = _tensor_bytes(name, shape, quant)
        infos.append(TensorInfo(name, shape, quant, shard, cursor.u64(where), nbytes))
    return infos


def _quant_type(ggml_id: int, tensor: str) -> QuantType:
    quant = QUANT_TYPES.get(ggml_id)
    if quant is not None:
        return quant
    removed = REMOVED_TYPES.get(ggml_id)
    if removed is not None:
        raise UnsupportedModelError(
            f"tensor {quoted(tensor)} has type {ggml_id} ({removed}), which was removed from ggml",
            "Convert the model again from its original weights.",
        )
    raise UnsupportedModelError(
        f"tensor {quoted(tensor)} has the unknown type {ggml_id}", f"Known types: {', '.join(QUANT_BY_NAME)}."
    )


def _tensor_bytes(name: str, shape: tuple[int, ...], quant: QuantType) -> int:
    elements = 1
    for extent in shape:
        elements *= extent
    if not 1 <= elements <= _MAX_ELEMENTS:
        raise GGUFError(
            f"tensor {quoted(name)} has shape {list(shape)}; every extent must be at least 1 "
            f"and their product at most 2**62"
        )
    if shape[-1] % quant.block != 0:
        raise GGUFError(
            f"tensor {quoted(name)} has rows of {shape[-1]} elements, which are not whole "
            f"{quant.name} blocks of {quant.block} elements"
        )
    return quant.nbytes(elements)


def _place_tensors(
    infos: list[TensorInfo], data_start: int, alignment: int, cursor: Cursor
) -> tuple[TensorInfo, ...]:
    """Make the offsets absolute; every tensor must be aligned, inside the file and clear of the others."""
    placed: list[TensorInfo] = []
    for info in infos:
        if info.offset % alignment != 0:
            raise GGUFError(
                f"tensor {quoted(info.name)} begins at byte {info.offset} of the data section, "
                f"which is not a multiple of the alignment {alignment}"
            )
        begin = data_start + info.offset
        end = begin + info.nbytes
        if end > cursor.size:
            raise GGUFError(
                f"tensor {quoted(info.name)} occupies bytes {begin} to {end}, "
                f"but '{cursor.name}' has only {cursor.size} bytes",
                "The file is probably an incomplete download; fetch it again.",
            )
        placed.append(TensorInfo(info.name, info.shape, info.type, info.shard, begin, info.nbytes))
    in_order = sorted(placed, key=lambda info: info.offset)
    for before, after in pairwise(in_order):
        if before.offset + before.nbytes > after.offset:
            raise GGUFError(
                f"tensors {quoted(before.name)} and {quoted(after.name)} of '{cursor.name}' overlap"
            )
    return tuple(placed)
