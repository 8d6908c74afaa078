"""Every quantisation format that kernels read, as data: what a row of it consists of, and where it is from.

A format is one row of the table below and one struct in ``templates/lib/formats/<name>.hip.j2``. Nothing here
packs, renders or knows a target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from forgec.plan import field_orders as orders

__all__ = ["FORMATS", "Cut", "Field", "Format", "cut"]

Bytes = npt.NDArray[np.uint8]
#: GGUF blocks uint8 [..., block_bytes] -> the bytes of a field uint8 [..., size].
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
    """What a block contributes to one field of a row: ``size`` bytes, gathered from the GGUF block.

    ``loads`` are the bytes that a slice loads of it: 0 where that is its own part of the block alone.
    """

    size: int
    gather: Gather
    loads: int = 0


def cut(at: int, size: int, loads: int = 0) -> Field:
    """A field of neighbouring bytes, as the GGUF block has them."""
    return Field(size, Cut(at, size), loads)


def shared(at: int, size: int) -> Field:
    """A field of neighbouring bytes that every slice of a block loads whole."""
    return cut(at, size, size)


@dataclass(frozen=True)
class Format:
    """A quantisation format: GGUF block of ``block`` elements and ``block_bytes`` bytes, and its layouts.

    ``fields``, at most three, are the layout "rows", the quants first; ``rows8`` has the other layout.
    ``codebook`` names the table of ``frontend.codebooks`` that the struct looks codes up in.
    """

    name: str
    block: int
    block_bytes: int
    fields: tuple[Field, ...]
    codebook: str = ""

    @property
    def bits_per_weight(self) -> float:
        return 8.0 * self.block_bytes / self.block

    @property
    def bytes_per_loaded_byte(self) -> float:
        """Bytes of weights per byte that lanes load: below 1 where the slices of a block share some."""
        slices = max(1, self.block // 32)
        return self.block_bytes / sum(f.loads * slices or f.size for f in self.fields)


def _superblock(name: str, block_bytes: int, *fields: Field, codebook: str = "") -> Format:
    return Format(name, 256, block_bytes, fields, codebook=codebook)


_HEADER_K4 = Field(16, orders.header_k4, loads=16)


def _nibbles(at: int, runs: int) -> Field:
    return Field(128, partial(orders.nibbles_of_runs, at=at, runs=runs))


def _pairs(at: int, flip: int = 0) -> Field:
    return Field(64, partial(orders.pair_slices, at=at, flip=flip))


def _sides(size: int, *fields: tuple[int, int]) -> Field:
    return Field(size, lambda blocks: orders.side_by_side(blocks, *fields))


def _joined(loads: int, *parts: tuple[int, int]) -> Field:
    """Runs of bytes (offset, size) of a block, one after another."""
    return Field(
        sum(size for _, size in parts),
        lambda blocks: np.concatenate([blocks[..., at : at + size] for at, size in parts], -1),
        loads,
    )


_TABLE = (
    Format("f32", 1, 4, (cut(0, 4),)),
    Format("f16", 1, 2, (cut(0, 2),)),
    Format("bf16", 1, 2, (cut(0, 2),)),
    Format("q4_0", 32, 18, (cut(2, 16), cut(0, 2))),
    Format("q4_1", 32, 20, (cut(4, 16), cut(0, 4))),
    Format("q5_0", 32, 22, (cut(6, 16), Field(4, partial(orders.bits_of_block, at=2)), cut(0, 2))),
    Format("q5_1", 32, 24, (cut(8, 16), Field(4, partial(orders.bits_of_block, at=4)), cut(0, 4))),
    Format("q8_0", 32, 34, (cut(2, 32), cut(0, 2))),
    _superblock("q2_k", 84, _pairs(16), cut(0, 16), shared(80, 4)),
    _superblock("q3_k", 110, _pairs(32), Field(44, orders.scales_q3_k, loads=12), shared(108, 2)),
    _superblock("q4_k", 144, _nibbles(16, 1), _HEADER_K4),
    _superblock("q5_k", 176, _nibbles(48, 1), Field(32, partial(orders.bit_planes, at=16)), _HEADER_K4),
    _superblock("q6_k", 210, _nibbles(0, 2), _pairs(128, flip=2), cut(192, 18, loads=4)),
    _superblock("iq1_s", 50, cut(2, 32), cut(34, 16), shared(0, 2), codebook="iq1"),
    _superblock("iq1_m", 56, cut(0, 32), cut(32, 16), shared(48, 8), codebook="iq1"),
    _superblock("iq2_xxs", 66, cut(2, 64), shared(0, 2), codebook="iq2_xxs"),
    _superblock("iq2_xs", 74, cut(2, 64), cut(66, 8), shared(0, 2), codebook="iq2_xs"),
    _superblock(
        "iq2_s", 82, _sides(64, (2, 4), (34, 4)), _sides(16, (66, 1), (74, 1)), shared(0, 2), codebook="iq2_s"
    ),
    _superblock("iq3_xxs", 98, cut(2, 64), cut(66, 32), shared(0, 2), codebook="iq3_xxs"),
    _superblock(
        "iq3_s", 110, cut(2, 64), _joined(9, (74, 32), (66, 8), (106, 4)), shared(0, 2), codebook="iq3_s"
    ),
    Format("iq4_nl", 32, 18, (cut(2, 16), cut(0, 2)), codebook="iq4_nl"),
    _superblock("iq4_xs", 136, cut(8, 128), shared(0, 8), codebook="iq4_nl"),
    _superblock("tq1_0", 54, Field(52, orders.trits, loads=10), shared(52, 2)),
    _superblock("tq2_0", 66, _pairs(0), shared(64, 2)),
    Format("mxfp4", 32, 17, (cut(1, 16), cut(0, 1)), codebook="fp4"),
    Format("nvfp4", 64, 36, (Field(32, orders.sixteens_nvfp4), cut(0, 4)), codebook="fp4"),
)

FORMATS: dict[str, Format] = {format.name: format for format in _TABLE}
