"""How a weight matrix lies in memory: what each kernel reads, and how it is packed from GGUF bytes.

Raw GGUF blocks come in and the bytes behind a kernel's pointers go out, by the table of ``plan.formats``.
Packing is pure NumPy; nothing here reads files or knows a target.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from forgec.errors import VerifyError
from forgec.plan.formats import FORMATS, Format, cut
from forgec.plan.rows8 import GROUP, PLANES, group_offsets, pack_groups

__all__ = [
    "FORMATS",
    "block_elements",
    "has_layout",
    "matrix_bytes",
    "pack",
    "row_pitch",
    "slice_elements",
]

Bytes = npt.NDArray[np.uint8]

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
    if spec.fields == (cut(0, spec.block_bytes),) and pitch == cols // spec.block * spec.block_bytes:
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
