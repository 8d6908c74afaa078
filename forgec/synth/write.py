"""Writes a GGUF file of a real shape with random weights, piece by piece.

A shape, a mix and a seed go in, a file comes out that any GGUF reader takes. Pieces of a few megabytes are
made on all cores and written in order, so a file of any size needs little memory; the same seed gives the
same bytes whatever the number of cores.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from forgec.errors import UsageError
from forgec.frontend.quant import QUANT_BY_NAME
from forgec.synth.blocks import Bytes, random_rows
from forgec.synth.mixes import MIXES, TensorPlace, tensor_type
from forgec.synth.shapes import Shape, TensorShape
from forgec.synth.vocabulary import vocabulary

__all__ = ["PlannedTensor", "planned_tensors", "write_model"]

#: Bytes of tensor data made at a time.
PIECE_BYTES = 8 << 20
ALIGNMENT = 32


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the file with its type and its size in bytes."""

    tensor: TensorShape
    kind: str
    bytes: int


def planned_tensors(shape: Shape, mix: str) -> tuple[PlannedTensor, ...]:
    """Every tensor of a shape with the type that a mix gives it; vectors stay float32."""
    planned = []
    gqa = shape.heads // shape.kv_heads
    for tensor in shape.tensors():
        kind = "F32"
        if tensor.is_matrix:
            place = TensorPlace(tensor.role, tensor.layer, tensor.shape[-1])
            kind = tensor_type(mix, place, shape.layers, gqa, tied=shape.tied)
        size = QUANT_BY_NAME[kind].nbytes(int(np.prod(tensor.shape)))
        planned.append(PlannedTensor(tensor, kind, size))
    return tuple(planned)


def write_model(
    path: Path,
    shape: Shape,
    mix: str,
    *,
    layers: int | None = None,
    seed: int = 0,
    sparse: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write the model to ``path``, whole or not at all; returns the size of the file in bytes.

    ``layers`` shortens it, types included: they are those of a model of that many layers. ``sparse`` leaves a
    hole where matrices would be (they read as zeros) and writes the vectors only. ``progress`` hears (bytes
    of tensors written, bytes in all). Raises UsageError when the file cannot be written.
    """
    if layers is not None:
        shape = replace(shape, layers=layers)
    tensors = planned_tensors(shape, mix)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        _write_header(temporary, shape, mix, tensors)
        with temporary.open("r+b") as file:
            _write_tensors(file, shape, tensors, seed, sparse, progress)
            size = file.tell()
        temporary.replace(path)
    except OSError as error:
        raise UsageError(
            f"cannot write '{path}': {error.strerror}", "Choose another path with -o."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return size


def _write_header(path: Path, shape: Shape, mix: str, tensors: tuple[PlannedTensor, ...]) -> None:
    """Everything in front of the tensor data, padded."""
    import gguf  # a fifth of a second, and only needed here

    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_name(f"{shape.name} with random weights")
    writer.add_file_type(MIXES[mix].file_type)
    for key, value in {**shape.metadata(), **vocabulary(shape.vocab, shape.pre)}.items():
        _add(writer, key, value)
    for planned in tensors:
        writer.add_tensor_info(
            planned.tensor.name,
            _stored_shape(planned),
            np.dtype(np.uint8 if planned.tensor.is_matrix else np.float32),
            planned.bytes,
            gguf.GGMLQuantizationType[planned.kind],
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(bytes(-file.tell() % ALIGNMENT))


def _stored_shape(planned: PlannedTensor) -> tuple[int, ...]:
    """The shape as gguf-py wants it: of uint8 data, rows are counted in bytes."""
    shape = planned.tensor.shape
    if not planned.tensor.is_matrix:
        return shape
    return (*shape[:-1], QUANT_BY_NAME[planned.kind].nbytes(shape[-1]))


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _write_tensors(
    file: BinaryIO,
    shape: Shape,
    tensors: tuple[PlannedTensor, ...],
    seed: int,
    sparse: bool,
    progress: Callable[[int, int], None],
) -> None:
    start = file.seek(0, os.SEEK_END)
    total = sum(-(-t.bytes // ALIGNMENT) * ALIGNMENT for t in tensors)
    done = 0
    for index, planned in enumerate(tensors):
        file.seek(start + done)
        if not planned.tensor.is_matrix:
            file.write(_vector(planned.tensor, shape, seed + index).tobytes())
        elif not sparse:
            for piece in _pieces(planned, seed, index):
                file.write(piece.data)
        done += -(-planned.bytes // ALIGNMENT) * ALIGNMENT
        progress(done, total)
    file.truncate(start + total)
    file.seek(start + total)


def _vector(tensor: TensorShape, shape: Shape, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Norm weights close to one, small biases, the RoPE factors of the shape."""
    if shape.rope_factors is not None and tensor.role == "rope_freqs":
        return np.asarray(shape.rope_factors.values(shape.head_length, shape.rope_base), np.float32)
    values = 0.05 * np.random.default_rng(seed).standard_normal(tensor.shape)
    return (values + ("norm" in tensor.role)).astype(np.float32)


def _pieces(planned: PlannedTensor, seed: int, index: int) -> Iterator[Bytes]:
    """The rows of a matrix in order, made a few pieces ahead; a piece depends on its place alone."""
    rows, cols = int(np.prod(planned.tensor.shape[:-1])), planned.tensor.shape[-1]
    step = max(1, PIECE_BYTES * rows // planned.bytes)
    workers = len(os.sched_getaffinity(0))

    def make(first: int) -> Bytes:
        rng = np.random.Generator(np.random.SFC64([seed, index, first]))
        return random_rows(planned.kind, min(step, rows - first), cols, cols**-0.5, rng)

    with ThreadPoolExecutor(workers) as pool:
        queue: deque[Future[Bytes]] = deque()
        for first in range(0, rows, step):
            queue.append(pool.submit(make, first))
            if len(queue) > workers:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
