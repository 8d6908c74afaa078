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
from functools import partial

import numpy as np
import numpy.typing as npt

from forgec.plan import field_orders as orders

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


def tail_q3_k(blocks: Bytes) -> Bytes:
    """Q3_K: the low nibbles of two scales, a byte a slice, their high bits, a nibble a slice, and d."""
    return np.concatenate([orders.scales_q3_k(blocks)[..., 32:], blocks[..., 108:110]], -1)


#: Planes by format, the quants first; ``templates/lib/cpu/formats/<name>`` reads them.
PLANES: dict[str, tuple[Plane, ...]] = {
    "f32": (cut(0, 4, 4),),
    "f16": (cut(0, 2, 2),),
    "bf16": (cut(0, 2, 2),),
    "q4_0": (cut(2, 16, 4), cut(0, 2, 2)),
    "q4_1": (cut(4, 16, 4), cut(0, 4, 2)),
    "q5_0": (cut(6, 16, 4), Plane(4, 4, partial(orders.bits_of_block, at=2)), cut(0, 2, 2)),
    "q5_1": (cut(8, 16, 4), Plane(4, 4, partial(orders.bits_of_block, at=4)), cut(0, 4, 2)),
    "q8_0": (cut(2, 32, 4), cut(0, 2, 2)),
    "q2_k": (Plane(64, 4, partial(orders.pair_slices, at=16)), cut(0, 16, 2), cut(80, 4, 2)),
    "q3_k": (
        Plane(64, 4, partial(orders.pair_slices, at=32)),
        Plane(32, 4, partial(orders.bit_planes, at=0)),
        Plane(14, 2, tail_q3_k),
    ),
    "q4_k": (Plane(128, 4, partial(orders.nibbles_of_runs, at=16, runs=1)), cut(0, 16, 2)),
    "q5_k": (
        Plane(128, 4, partial(orders.nibbles_of_runs, at=48, runs=1)),
        Plane(32, 4, partial(orders.bit_planes, at=16)),
        cut(0, 16, 2),
    ),
    "q6_k": (
        Plane(128, 4, partial(orders.nibbles_of_runs, at=0, runs=2)),
        Plane(64, 4, partial(orders.pair_slices, at=128)),
        cut(192, 18, 2),
    ),
    "iq4_nl": (cut(2, 16, 4), cut(0, 2, 2)),
    "iq4_xs": (cut(8, 128, 4), cut(0, 8, 2)),
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
