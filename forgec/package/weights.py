"""weights.bin: every tensor in the layout that its kernels read, page-aligned and digested in pieces.

The GGUF's bytes and the compile-time constants go in through ``TensorSource``; one sequential file comes
out. Tensors are packed ahead on a few threads, so at most that many are in memory at once.
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

__all__ = ["CHUNK_BYTES", "WeightsDigest", "tensor_planes", "write_weights"]

#: Bytes of weights.bin under one digest: small enough to check while the next piece is uploaded.
CHUNK_BYTES = 4 << 20
#: Tensors packed ahead of the writer.
LOOKAHEAD = 2

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class WeightsDigest:
    """Size of weights.bin and the SHA-256 of each piece of ``CHUNK_BYTES`` bytes, in hexadecimal."""

    bytes: int
    chunks: tuple[str, ...]


def tensor_planes(tensor: PackedTensor, gguf: GGUFFile, program: Program) -> tuple[Bytes, ...]:
    """The packed bytes of one tensor, plane by plane.

    Plain tensors (norms, biases, tables) are stored as float32; matrices keep the GGUF's quantisation.
    """
    if tensor.layout != "plain":
        rows = gguf.rows_of(tensor.source, tensor.first_row, tensor.rows)
        return pack(rows.reshape(-1), tensor.format, tensor.layout, tensor.rows, tensor.cols)
    if tensor.rope is not None:
        factors = tensor.rope.factors_tensor(program.context)
        values = tensor.rope.table(program.context, None if factors is None else gguf.array(factors))
    else:
        first = tensor.first_row * (1 if tensor.rows == 1 else tensor.cols)
        values = gguf.array(tensor.source).reshape(-1)[first : first + tensor.rows * tensor.cols]
    return (np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint8),)


def write_weights(
    path: Path, gguf: GGUFFile, program: Program, progress: Callable[[int, int], None] | None = None
) -> WeightsDigest:
    """Write weights.bin at ``path`` and digest it; ``progress`` hears (bytes written, bytes in all)."""
    total = program.buffer("weights").bytes
    writer = _DigestingWriter(path)
    with writer, ThreadPoolExecutor(LOOKAHEAD) as pool:
        for tensor, planes in _packed_ahead(pool, gguf, program):
            for (offset, _), data in zip(tensor.planes, planes, strict=True):
                writer.pad_to(offset)
                writer.write(data)
            if progress is not None:
                progress(writer.at, total)
        writer.pad_to(total)
    return WeightsDigest(total, writer.digests())


def _packed_ahead(
    pool: ThreadPoolExecutor, gguf: GGUFFile, program: Program
) -> Iterator[tuple[PackedTensor, tuple[Bytes, ...]]]:
    """Tensors with their planes, in file order, packed ``LOOKAHEAD`` tensors ahead."""
    queue: deque[tuple[PackedTensor, Future[tuple[Bytes, ...]]]] = deque()
    for tensor in program.tensors:
        queue.append((tensor, pool.submit(tensor_planes, tensor, gguf, program)))
        if len(queue) > LOOKAHEAD:
            done, future = queue.popleft()
            yield done, future.result()
    while queue:
        done, future = queue.popleft()
        yield done, future.result()


class _DigestingWriter:
    """A sequential file that hashes what passes in pieces of ``CHUNK_BYTES``."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._hash = hashlib.sha256()
        self._digests: list[str] = []
        self.at = 0

    def __enter__(self) -> _DigestingWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def pad_to(self, offset: int) -> None:
        """Zero bytes up to ``offset``."""
        if offset > self.at:
            self.write(np.zeros(offset - self.at, np.uint8))

    def write(self, data: Bytes) -> None:
        view = memoryview(data.data).cast("B")
        while view:
            room = CHUNK_BYTES - self.at % CHUNK_BYTES
            piece = view[:room]
            self._hash.update(piece)
            self._write_all(piece)
            self.at += len(piece)
            view = view[room:]
            if self.at % CHUNK_BYTES == 0:
                self._close_chunk()

    def _write_all(self, piece: memoryview) -> None:
        while piece:
            piece = piece[self._file.write(piece) :]

    def _close_chunk(self) -> None:
        self._digests.append(self._hash.hexdigest())
        self._hash = hashlib.sha256()

    def digests(self) -> tuple[str, ...]:
        """One digest per piece, the last piece possibly shorter."""
        if self.at % CHUNK_BYTES:
            self._close_chunk()
            self.at = -(-self.at // CHUNK_BYTES) * CHUNK_BYTES
        return tuple(self._digests)
