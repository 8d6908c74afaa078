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
from forgec.plan.rows8 import GROUP, PLANES, group_offsets, pack_groups

__all__ = [
    "FORMATS",
    "Field",
    "Format",
    "block_elements",
    "has_layout",
    "matrix_bytes",
    "pack",
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
class Format:
    """A quantisation format: GGUF block of ``block`` elements and ``block_bytes`` bytes, and its layouts.

    ``fields``, at most three, are the layout "rows", the quants first; ``rows8`` has the other layout.
    """

    name: str
    block: int
    block_bytes: int
    fields: tuple[Field, ...]

    @property
    def bits_per_weight(self) -> float:
        return 8.0 * self.block_bytes / self.block


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("f32", 1, 4, (field(0, 4),)),
        Format("f16", 1, 2, (field(0, 2),)),
        Format("bf16", 1, 2, (field(0, 2),)),
        Format("q4_0", 32, 18, (field(2, 16), field(0, 2))),
        Format("q4_1", 32, 20, (field(4, 16), field(0, 4))),
        Format("q8_0", 32, 34, (field(2, 32), field(0, 2))),
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
    if layout not in ("rows", "rows8"):
        raise VerifyError(f"unknown layout '{layout}'; known: rows, rows8")
    return layout == "rows" or _format(format).name in PLANES


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


def matrix_bytes(format: str, layout: str, rows: int, cols: int) -> int:
    """Size in bytes of a [rows, cols] matrix; "rows8" pads to whole groups of eight rows."""
    _check_layout(format, layout)
    if layout == "rows":
        return rows * row_pitch(format, cols)
    return -(-rows // GROUP) * group_offsets(format, cols // _format(format).block)[-1]


def pack(raw: Bytes, format: str, layout: str, rows: int, cols: int) -> Bytes:
    """The GGUF bytes of a [rows, cols] matrix in a layout: flat uint8.

    ``raw`` is uint8 [rows * row_bytes]. "rows" makes every row one record: its fields one after another, each
    with block after block of the row and padded to 16 bytes. "rows8" does that with groups of eight rows. A
    matrix packed in bands of a multiple of eight rows gives the same bytes one after another.
    """
    spec = _format(format)
    if cols % spec.block:
        raise VerifyError(f"{cols} columns are no multiple of the {spec.block}-element blocks of {format}")
    _check_layout(format, layout)
    blocks = raw.reshape(rows, cols // spec.block, spec.block_bytes)
    return _records(spec, blocks, cols) if layout == "rows" else pack_groups(format, blocks)


def _check_layout(format: str, layout: str) -> None:
    if not has_layout(format, layout):
        raise VerifyError(f"format '{format}' has no layout '{layout}'")


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
