"""weights.bin: every tensor in the layout that its kernels read, page-aligned and digested in pieces.

The GGUF's bytes and the compile-time constants go in; one sequential file comes out. Matrices are packed in
bands of rows, a few bands ahead of the writer, on threads; what was read of the GGUF is given back to the
system, so that memory does not grow with the model.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from forgec.frontend.gguf import GGUFFile
from forgec.plan.layouts import pack
from forgec.plan.program import PackedTensor, Program

__all__ = ["CHUNK_BYTES", "WeightsDigest", "write_weights"]

#: Bytes of weights.bin under one digest: small enough to check while the next piece is uploaded.
CHUNK_BYTES = 4 << 20
#: Elements of a matrix packed at a time: 4 MiB where they become float32 on the way.
BAND_ELEMENTS = 1 << 20
#: Bands packed ahead of the writer, and pieces written ahead of the digest.
LOOKAHEAD = 4
PACKING_THREADS = 2

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class WeightsDigest:
    """Size of weights.bin and the SHA-256 of each piece of ``CHUNK_BYTES`` bytes, in hexadecimal."""

    bytes: int
    chunks: tuple[str, ...]


@dataclass(frozen=True)
class _Band:
    """``count`` rows of a tensor from row ``first`` on; a plain tensor is one band."""

    tensor: PackedTensor
    first: int
    count: int


def write_weights(
    path: Path, gguf: GGUFFile, program: Program, progress: Callable[[int, int], None] | None = None
) -> WeightsDigest:
    """Write weights.bin at ``path`` and digest it; ``progress`` hears (bytes written, bytes in all)."""
    total = program.buffer("weights").bytes
    with _DigestingWriter(path) as writer, ThreadPoolExecutor(PACKING_THREADS) as pool:
        for band, data in _packed_ahead(pool, gguf, program):
            if band.first == 0:
                writer.pad_to(band.tensor.offset)
            writer.write(data)
            if progress is not None:
                progress(writer.at, total)
        writer.pad_to(total)
        return WeightsDigest(total, writer.digests())


def _bands(program: Program) -> Iterator[_Band]:
    """Every tensor in file order; matrices in bands of whole groups of eight rows."""
    for tensor in program.tensors:
        step = tensor.rows
        if tensor.layout != "plain":
            step = max(8, BAND_ELEMENTS // tensor.cols // 8 * 8)
        for first in range(0, tensor.rows, step):
            yield _Band(tensor, first, min(step, tensor.rows - first))


def _packed_ahead(
    pool: ThreadPoolExecutor, gguf: GGUFFile, program: Program
) -> Iterator[tuple[_Band, Bytes]]:
    """Bands with their bytes, in file order, packed ``LOOKAHEAD`` bands ahead."""
    queue: deque[tuple[_Band, Future[Bytes]]] = deque()
    for band in _bands(program):
        queue.append((band, pool.submit(_packed, band, gguf, program)))
        if len(queue) > LOOKAHEAD:
            done, future = queue.popleft()
            yield done, future.result()
    while queue:
        done, future = queue.popleft()
        yield done, future.result()


def _packed(band: _Band, gguf: GGUFFile, program: Program) -> Bytes:
    """The bytes of a band as they are stored.

    Plain tensors (norms, biases, tables) are stored as float32; matrices keep the quantisation.
    """
    tensor = band.tensor
    if tensor.layout == "plain":
        return _plain(tensor, gguf, program)
    first = tensor.first_row + band.first
    raw = gguf.rows_of(tensor.source, first, band.count)
    data = pack(raw, tensor.format, tensor.layout, band.count, tensor.cols)
    if np.may_share_memory(data, raw):
        data = data.copy()  # of the mapping, which is released
    gguf.release(tensor.source, first, band.count)
    return data


def _plain(tensor: PackedTensor, gguf: GGUFFile, program: Program) -> Bytes:
    if tensor.literal:
        return np.frombuffer(tensor.literal, np.uint8)
    if tensor.rope is not None:
        factors = tensor.rope.factors_tensor(program.context)
        values = tensor.rope.table(program.context, None if factors is None else gguf.array(factors))
    else:
        first = tensor.first_row * (1 if tensor.rows == 1 else tensor.cols)
        values = gguf.array(tensor.source).reshape(-1)[first : first + tensor.rows * tensor.cols]
    return np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint8)


class _DigestingWriter:
    """A sequential file whose bytes are hashed on another thread, in pieces of ``CHUNK_BYTES``."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._hasher = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()
        self._hash = hashlib.sha256()
        self._hashed = 0
        self._digests: list[str] = []
        self.at = 0

    def __enter__(self) -> _DigestingWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._hasher.shutdown()
        self._file.close()

    def pad_to(self, offset: int) -> None:
        """Zero bytes up to ``offset``."""
        if offset > self.at:
            self.write(np.zeros(offset - self.at, np.uint8))

    def write(self, data: Bytes) -> None:
        """Append bytes, which the caller leaves unchanged from now on."""
        view = memoryview(data.data).cast("B")
        self._pending.append(self._hasher.submit(self._digest, view))
        self.at += len(view)
        while view:
            view = view[self._file.write(view) :]
        while len(self._pending) > LOOKAHEAD:
            self._pending.popleft().result()

    def digests(self) -> tuple[str, ...]:
        """One digest per piece, the last piece possibly shorter; nothing is written afterwards."""
        while self._pending:
            self._pending.popleft().result()
        if self._hashed % CHUNK_BYTES:
            self._digests.append(self._hash.hexdigest())
        return tuple(self._digests)

    def _digest(self, view: memoryview) -> None:
        """Hash the next bytes of the file; runs on the one thread of the hasher, in order."""
        while view:
            piece = view[: CHUNK_BYTES - self._hashed % CHUNK_BYTES]
            self._hash.update(piece)
            self._hashed += len(piece)
            view = view[len(piece) :]
            if self._hashed % CHUNK_BYTES == 0:
                self._digests.append(self._hash.hexdigest())
                self._hash = hashlib.sha256()
