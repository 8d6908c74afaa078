"""The CPU's layout "rows8": eight rows of a matrix interleaved, so that a vector lane is a row.

A group of eight rows is one record: its planes one after another, each with block after block and padded to
64 bytes. In a plane, the eight rows' bytes of a block are cut into words, the words of one index from all
eight rows side by side ([group][plane][block][word][row]): quants in words of four bytes, so that a 32-byte
load gives every row its own; scales and minima in halves, so that all eight d lie together. Packing is pure
NumPy; nothing here knows a target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["GROUP", "PLANES", "Plane", "group_offsets", "pack_groups"]

Bytes = npt.NDArray[np.uint8]

#: Rows of a group: one per lane of a 256-bit vector of floats.
GROUP = 8
#: Planes of a group start on multiples of this many bytes, a cache line, and so does the next group.
ALIGNMENT = 64
#: Element types by their size in bytes: what a transposition moves.
WORDS = {2: np.uint16, 4: np.uint32}
#: Bytes that are packed at a time: they stay in the cache between gathering and transposing.
BAND_BYTES = 256 << 10


@dataclass(frozen=True)
class Plane:
    """What a block of a row contributes to one plane: ``size`` bytes in words of ``word`` bytes.

    ``gather`` takes GGUF blocks uint8 [..., block_bytes] and returns uint8 [..., size].
    """

    size: int
    word: int
    gather: Callable[[Bytes], Bytes]


def cut(at: int, size: int, word: int) -> Plane:
    """A plane of neighbouring bytes, as the GGUF block has them."""
    return Plane(size, word, lambda blocks: blocks[..., at : at + size])


#: Planes by format, the quants first; ``templates/lib/cpu/formats/<name>`` reads them.
PLANES: dict[str, tuple[Plane, ...]] = {
    "f32": (cut(0, 4, 4),),
    "f16": (cut(0, 2, 2),),
    "bf16": (cut(0, 2, 2),),
    "q4_0": (cut(2, 16, 4), cut(0, 2, 2)),
    "q4_1": (cut(4, 16, 4), cut(0, 4, 2)),
    "q8_0": (cut(2, 32, 4), cut(0, 2, 2)),
}


def group_offsets(format: str, blocks: int) -> tuple[int, ...]:
    """Byte offset of each plane of a group whose rows have ``blocks`` blocks, and last the group's pitch."""
    offsets = [0]
    for plane in PLANES[format]:
        size = GROUP * blocks * plane.size
        offsets.append(offsets[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
    return tuple(offsets)


def pack_groups(format: str, blocks: Bytes) -> Bytes:
    """GGUF blocks uint8 [rows, blocks, block_bytes] -> flat groups; rows are padded to eight with zeros."""
    rows, columns, _ = blocks.shape
    *offsets, pitch = group_offsets(format, columns)
    groups = -(-rows // GROUP)
    out = np.zeros((groups, pitch), np.uint8)
    band = max(1, BAND_BYTES // max(pitch, 1))
    for first in range(0, groups, band):
        part = blocks[first * GROUP : (first + band) * GROUP]
        for at, plane in zip(offsets, PLANES[format], strict=True):
            _interleave(np.ascontiguousarray(plane.gather(part)), plane.word, out[first : first + band, at:])
    return out.reshape(-1)


def _interleave(data: Bytes, word: int, to: Bytes) -> None:
    """uint8 [rows, blocks, size] -> first bytes of uint8 [groups, ...]: [blocks, size / word, 8, word]."""
    dtype = WORDS[word]
    words = data.reshape(len(data), -1).view(dtype)
    whole = len(words) // GROUP
    count = words.shape[1]
    target = to[:, : count * GROUP * word].view(dtype).reshape(len(to), count, GROUP)
    target[:whole] = words[: whole * GROUP].reshape(whole, GROUP, count).transpose(0, 2, 1)
    if whole < len(to):
        rest = words[whole * GROUP :]
        target[whole, :, : len(rest)] = rest.T
