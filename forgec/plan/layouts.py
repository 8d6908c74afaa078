"""How a weight matrix lies in memory: what each kernel reads, and how it is packed from GGUF bytes.

A layout is described per format as planes of so many bytes per slice of a row. Packing is pure NumPy on
the raw GGUF blocks; nothing here reads files or knows a target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from forgec.errors import VerifyError

__all__ = ["FORMATS", "Format", "pack", "plane_bytes", "plane_count", "slice_elements"]

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Field:
    """A run of bytes of a GGUF block: ``at`` its offset, ``size`` its length, both in bytes.

    ``word`` is the piece, in bytes, that one row contributes at a time where a layout interleaves rows.
    """

    at: int
    size: int
    word: int


@dataclass(frozen=True)
class Format:
    """A quantisation format: GGUF block of ``block`` elements and ``block_bytes`` bytes, split in planes.

    ``planes[0]`` are the quants, the others the scales of a block; plane p holds, block after block of the
    row-major matrix, the bytes of its field.
    """

    name: str
    block: int
    block_bytes: int
    planes: tuple[Field, ...]

    @property
    def bits_per_weight(self) -> float:
        return 8.0 * self.block_bytes / self.block


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("f32", 1, 4, (Field(0, 4, 4),)),
        Format("f16", 1, 2, (Field(0, 2, 2),)),
        Format("bf16", 1, 2, (Field(0, 2, 2),)),
        Format("q4_0", 32, 18, (Field(2, 16, 4), Field(0, 2, 2))),
        Format("q4_1", 32, 20, (Field(4, 16, 4), Field(0, 4, 2))),
        Format("q8_0", 32, 34, (Field(2, 32, 4), Field(0, 2, 2))),
    )
}

#: Rows that the "rows8" layout interleaves: one per lane of a 256-bit vector of floats.
ROWS8 = 8
#: Element types by their size in bytes: what a transposition moves.
WORDS = {2: np.uint16, 4: np.uint32}
#: Bytes of a plane that are transposed at a time.
BAND_BYTES = 256 << 10


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise VerifyError(f"format '{name}' has no layout; known: {', '.join(FORMATS)}")
    return FORMATS[name]


def slice_elements(format: str) -> int:
    """Elements that a lane takes at a time: the GGUF block, and 8 for the float formats."""
    return max(_format(format).block, 8)


def plane_count(format: str, layout: str) -> int:
    """Number of plane pointers a kernel takes for one matrix."""
    if layout not in ("planes", "rows8"):
        raise VerifyError(f"unknown layout '{layout}'; known: planes, rows8")
    return len(_format(format).planes)


def padded_rows(rows: int, layout: str) -> int:
    """Rows as stored: "rows8" pads to whole groups of eight with zero bytes."""
    return -(-rows // ROWS8) * ROWS8 if layout == "rows8" else rows


def plane_bytes(format: str, layout: str, rows: int, cols: int) -> tuple[int, ...]:
    """Size in bytes of each plane of a [rows, cols] matrix."""
    spec = _format(format)
    blocks = padded_rows(rows, layout) * (cols // spec.block)
    return tuple(blocks * field.size for field in spec.planes)


def pack(raw: Bytes, format: str, layout: str, rows: int, cols: int) -> tuple[Bytes, ...]:
    """Split the GGUF bytes of a [rows, cols] matrix into the planes of a layout.

    ``raw`` is uint8 [rows * row_bytes]. "planes" keeps the row-major order of blocks. "rows8" stores, for
    each group of eight rows and each block column, the eight rows' fields cut into words, the words of one
    index from all eight rows side by side ([group][block][word][row]): quants in words of four bytes, so that
    a 32-byte load gives every row its own; scales and minima in halves, so that all eight d lie together;
    float formats per element.
    """
    spec = _format(format)
    if cols % spec.block:
        raise VerifyError(f"{cols} columns are no multiple of the {spec.block}-element blocks of {format}")
    blocks = raw.reshape(rows, cols // spec.block, spec.block_bytes)
    planes = [blocks[:, :, f.at : f.at + f.size] for f in spec.planes]
    if layout == "planes":
        return tuple(np.ascontiguousarray(p).reshape(-1) for p in planes)
    return tuple(_interleave(p, f.word) for p, f in zip(planes, spec.planes, strict=True))


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
