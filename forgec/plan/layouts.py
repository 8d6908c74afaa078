"""How a weight matrix lies in memory: what each kernel reads, and how it is packed from GGUF bytes.

A format is described once, as the fields that a row is split into; ``templates/lib/formats/<name>`` reads
them. Packing is pure NumPy on the raw GGUF blocks; nothing here reads files or knows a target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from forgec.errors import VerifyError
from forgec.plan import field_orders as orders

__all__ = [
    "FORMATS",
    "Field",
    "Format",
    "Plane",
    "block_elements",
    "has_layout",
    "pack",
    "plane_bytes",
    "plane_count",
    "row_pitch",
    "slice_elements",
]

Bytes = npt.NDArray[np.uint8]
#: GGUF blocks uint8 [n, block_bytes] -> the bytes of a field uint8 [n, bytes].
Gather = Callable[[Bytes], Bytes]


@dataclass(frozen=True)
class Cut:
    """A run of bytes of a GGUF block as it is: ``at`` its offset, ``size`` its length, both in bytes."""

    at: int
    size: int

    def __call__(self, blocks: Bytes) -> Bytes:
        return blocks[..., self.at : self.at + self.size]


@dataclass(frozen=True)
class Field:
    """What a block contributes to one field of a row: ``size`` bytes, gathered from the GGUF block."""

    size: int
    gather: Gather


def field(at: int, size: int) -> Field:
    """A field of neighbouring bytes, as the GGUF block has them."""
    return Field(size, Cut(at, size))


@dataclass(frozen=True)
class Plane:
    """A plane of the layout "rows8": bytes ``at`` to ``at + size`` of a block, in words of ``word`` bytes."""

    at: int
    size: int
    word: int


@dataclass(frozen=True)
class Format:
    """A quantisation format: GGUF block of ``block`` elements and ``block_bytes`` bytes, and its layouts.

    ``fields``, at most three, are the layout "rows"; ``planes`` the layout "rows8", empty for formats without
    kernels for it. The quants come first.
    """

    name: str
    block: int
    block_bytes: int
    fields: tuple[Field, ...]
    planes: tuple[Plane, ...] = ()

    @property
    def bits_per_weight(self) -> float:
        return 8.0 * self.block_bytes / self.block


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("f32", 1, 4, (field(0, 4),), (Plane(0, 4, 4),)),
        Format("f16", 1, 2, (field(0, 2),), (Plane(0, 2, 2),)),
        Format("bf16", 1, 2, (field(0, 2),), (Plane(0, 2, 2),)),
        Format("q4_0", 32, 18, (field(2, 16), field(0, 2)), (Plane(2, 16, 4), Plane(0, 2, 2))),
        Format("q4_1", 32, 20, (field(4, 16), field(0, 4)), (Plane(4, 16, 4), Plane(0, 4, 2))),
        Format("q8_0", 32, 34, (field(2, 32), field(0, 2)), (Plane(2, 32, 4), Plane(0, 2, 2))),
        Format(
            "q4_k", 256, 144, (Field(128, partial(orders.nibbles_k4, at=16)), Field(16, orders.header_k4))
        ),
        Format(
            "q6_k",
            256,
            210,
            (
                Field(128, orders.low_nibbles_q6_k),
                Field(64, orders.high_bits_q6_k),
                Field(18, orders.tail_q6_k),
            ),
        ),
    )
}

#: Fields of a row start on multiples of this many bytes, and so does the next row.
ROW_ALIGNMENT = 16
#: Rows that the "rows8" layout interleaves: one per lane of a 256-bit vector of floats.
ROWS8 = 8
#: Element types by their size in bytes: what a transposition moves.
WORDS = {2: np.uint16, 4: np.uint32}
#: Bytes that are packed at a time.
BAND_BYTES = 256 << 10


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise VerifyError(f"format '{name}' has no layout; known: {', '.join(FORMATS)}")
    return FORMATS[name]


def block_elements(format: str) -> int:
    """What the columns of a matrix must be a multiple of: the GGUF block, and 8 for the float formats."""
    return max(_format(format).block, 8)


def slice_elements(format: str) -> int:
    """Elements that a lane takes at a time: 32, and 8 for the float formats."""
    return min(block_elements(format), 32)


def has_layout(format: str, layout: str) -> bool:
    """Whether there are kernels that read the format in this layout."""
    return layout == "rows" or (layout == "rows8" and bool(_format(format).planes))


def plane_count(format: str, layout: str) -> int:
    """Number of pointers a kernel takes for one matrix."""
    if layout not in ("rows", "rows8"):
        raise VerifyError(f"unknown layout '{layout}'; known: rows, rows8")
    if not has_layout(format, layout):
        raise VerifyError(f"format '{format}' has no layout '{layout}'")
    return 1 if layout == "rows" else len(_format(format).planes)


def padded_rows(rows: int, layout: str) -> int:
    """Rows as stored: "rows8" pads to whole groups of eight with zero bytes."""
    return -(-rows // ROWS8) * ROWS8 if layout == "rows8" else rows


def field_offsets(format: str, cols: int) -> tuple[int, ...]:
    """Byte offset of each field of a row of the layout "rows", and last the row's pitch."""
    offsets = [0]
    for part in _format(format).fields:
        size = cols // _format(format).block * part.size
        offsets.append(offsets[-1] + -(-size // ROW_ALIGNMENT) * ROW_ALIGNMENT)
    return tuple(offsets)


def row_pitch(format: str, cols: int) -> int:
    """Bytes from a row to the next in the layout "rows", a multiple of 16."""
    return field_offsets(format, cols)[-1]


def plane_bytes(format: str, layout: str, rows: int, cols: int) -> tuple[int, ...]:
    """Size in bytes of what each pointer of a [rows, cols] matrix leads to."""
    if layout == "rows":
        return (rows * row_pitch(format, cols),)
    spec = _format(format)
    blocks = padded_rows(rows, layout) * (cols // spec.block)
    return tuple(blocks * plane.size for plane in spec.planes)


def pack(raw: Bytes, format: str, layout: str, rows: int, cols: int) -> tuple[Bytes, ...]:
    """The GGUF bytes of a [rows, cols] matrix in a layout, one array per pointer.

    ``raw`` is uint8 [rows * row_bytes]. "rows" makes every row one record: its fields one after another, each
    with block after block of the row and padded to 16 bytes. "rows8" stores, for each group of eight rows and
    each block column, the eight rows' bytes of a plane cut into words, the words of one index from all eight
    rows side by side ([group][block][word][row]): quants in words of four bytes, so that a 32-byte load
    gives every row its own; scales and minima in halves, so that all eight d lie together; float formats per
    element.
    """
    spec = _format(format)
    if cols % spec.block:
        raise VerifyError(f"{cols} columns are no multiple of the {spec.block}-element blocks of {format}")
    plane_count(format, layout)
    blocks = raw.reshape(rows, cols // spec.block, spec.block_bytes)
    if layout == "rows":
        return (_records(spec, blocks, cols),)
    planes = [(blocks[:, :, p.at : p.at + p.size], p.word) for p in spec.planes]
    return tuple(_interleave(plane, word) for plane, word in planes)


def _records(spec: Format, blocks: Bytes, cols: int) -> Bytes:
    """uint8 [rows, blocks, block_bytes] -> flat [rows, pitch], a band of rows at a time."""
    rows = len(blocks)
    *offsets, pitch = field_offsets(spec.name, cols)
    if spec.fields == (field(0, spec.block_bytes),) and pitch == cols // spec.block * spec.block_bytes:
        return blocks.reshape(-1)
    out = np.zeros((rows, pitch), np.uint8)
    band = max(1, BAND_BYTES // max(pitch, 1))
    for first in range(0, rows, band):
        part = blocks[first : first + band]
        for at, entry in zip(offsets, spec.fields, strict=True):
            to = out[first : first + band, at : at + part.shape[1] * entry.size]
            # Whole fields are moved as one element each.
            record = np.dtype((np.void, entry.size))
            to.view(record)[...] = entry.gather(part).view(record)[..., 0]
    return out.reshape(-1)


def _interleave(plane: Bytes, word: int) -> Bytes:
    """[rows, blocks, size] -> flat [groups, blocks, size / word, 8, word], a band of rows at a time.

    Bands stay in the cache between the two passes: one gathers a plane's bytes, one transposes whole words.
    """
    rows, blocks, size = plane.shape
    words = blocks * size // word
    dtype = WORDS[word]
    groups = -(-rows // ROWS8)
    out = np.zeros((groups, words, ROWS8), dtype)
    band = max(1, BAND_BYTES // (ROWS8 * blocks * size))
    whole = rows // ROWS8
    for first in range(0, whole, band):
        last = min(first + band, whole)
        cut = np.ascontiguousarray(plane[first * ROWS8 : last * ROWS8]).view(dtype)
        out[first:last] = cut.reshape(last - first, ROWS8, words).transpose(0, 2, 1)
    if whole < groups:
        rest = np.ascontiguousarray(plane[whole * ROWS8 :]).view(dtype).reshape(-1, words)
        out[whole, :, : len(rest)] = rest.T
    return out.reshape(-1).view(np.uint8)
