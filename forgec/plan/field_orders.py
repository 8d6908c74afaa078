"""The order of bits in the fields of formats that are permuted when a matrix is packed.

GGUF blocks come in and a field's bytes go out, of the same number and with the same information: a slice of
32 weights has its bits together, in the order in which few instructions unpack four weights at a time. In a
word of four weights, byte b belongs to element 4 * w + b of the slice, where w is the word's number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "header_k4",
    "high_bits_q5",
    "high_bits_q5_k",
    "high_bits_q6_k",
    "low_nibbles_q6_k",
    "nibbles_k4",
    "one_bits",
    "tail_q6_k",
    "two_bits",
]

#: uint8, and uint32 or uint64: NumPy's types do not follow shifts by Python integers.
Bytes = npt.NDArray[Any]
Words = npt.NDArray[Any]

LOW_NIBBLES = np.uint64(0x0F0F0F0F0F0F0F0F)
FOUR = np.uint64(4)


def words_of(blocks: Bytes, at: int, size: int) -> Words:
    """Bytes ``at`` to ``at + size`` of every block as uint32 [..., size / 4]."""
    return np.ascontiguousarray(blocks[..., at : at + size]).view(np.uint32)


def bytes_of(words: Words) -> Bytes:
    """Words [..., n, m] -> uint8 [..., bytes]: the last two axes lie one after another."""
    words = np.ascontiguousarray(words)
    return words.reshape(*words.shape[:-2], -1).view(np.uint8)


def two_bits(words: Words) -> Words:
    """Codes of two bits, one in each byte of uint32 [..., 8], -> uint32 [..., 2].

    Bits 2 * i of the first word belong to word i of the slice, those of the second to word 4 + i.
    """
    pairs = words.reshape(*words.shape[:-1], 2, 4)
    return pairs[..., 0] | pairs[..., 1] << 2 | pairs[..., 2] << 4 | pairs[..., 3] << 6


def one_bits(words: Words) -> Words:
    """Codes of one bit, one in each byte of uint32 [..., 8], -> uint32 [...]: bit i belongs to word i."""
    packed = words[..., 0]
    for i in range(1, 8):
        packed = packed | words[..., i] << i
    return packed


def split_nibbles(runs: Words) -> tuple[Words, Words]:
    """Runs of 32 bytes, uint64 [..., 4], whose low nibbles are one slice and whose high nibbles another.

    Both come out as uint64 [..., 2], with element j in the low nibble of byte j and j + 16 in the high one.
    """
    first, second = runs[..., :2], runs[..., 2:]
    low = (first & LOW_NIBBLES) | (second & LOW_NIBBLES) << FOUR
    high = (first >> FOUR & LOW_NIBBLES) | (second & ~LOW_NIBBLES)
    return low, high


# ---- Q5_0 and Q5_1 ----


def high_bits_q5(blocks: Bytes, at: int) -> Bytes:
    """The fifth bits, 4 bytes at ``at`` of a block of 32: bit i of byte b belongs to element 4 * i + b."""
    bits = np.unpackbits(np.ascontiguousarray(blocks[..., at : at + 4]), axis=-1, bitorder="little")
    return one_bits(bits.view(np.uint32))[..., None].view(np.uint8)


# ---- Q4_K and Q5_K: 256 weights d * scale * q - dmin * minimum, scales and minima of 6 bits per 32 ----


def nibbles_k4(blocks: Bytes, at: int) -> Bytes:
    """128 bytes from ``at``: the low nibbles of 32 bytes are one slice, their high nibbles the next."""
    runs = np.ascontiguousarray(blocks[..., at : at + 128]).view(np.uint64)
    runs = runs.reshape(*runs.shape[:-1], 4, 4)
    return bytes_of(np.stack(split_nibbles(runs), -2).reshape(*blocks.shape[:-1], 16, 1))


def header_k4(blocks: Bytes) -> Bytes:
    """16 bytes: low nibbles of the 8 scales, of the 8 minima, the high 2 + 2 bits of each, and d and dmin.

    Slice s has bits 4 * s to 4 * s + 3 of each of the first three words. Source of the packed scales:
    ggml-quants.c, get_scale_min_k4.
    """
    packed = blocks[..., 4:16]
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], -1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], -1)
    high = scales >> 4 | minima >> 4 << 2
    return np.concatenate([_pairs(scales & 15), _pairs(minima & 15), _pairs(high), blocks[..., :4]], -1)


def _pairs(nibbles: Bytes) -> Bytes:
    """Values below 16, uint8 [..., n] -> [..., n / 2]: value i in bits 4 * i of the whole."""
    return nibbles[..., ::2] | nibbles[..., 1::2] << 4


def high_bits_q5_k(blocks: Bytes) -> Bytes:
    """The fifth bits: 4 bytes a slice; in the block bit s of byte j belongs to element j of slice s."""
    words = words_of(blocks, 16, 32)
    slices = [one_bits(words >> s & 0x01010101) for s in range(8)]
    return bytes_of(np.stack(slices, -1)[..., None])


# ---- Q6_K: 256 weights d * scale * (q - 32), scales of 8 bits per 16 ----


def low_nibbles_q6_k(blocks: Bytes) -> Bytes:
    """128 bytes: each half of the block has two runs of 32 bytes, low nibbles first, then the high ones."""
    runs = np.ascontiguousarray(blocks[..., :128]).view(np.uint64)
    runs = runs.reshape(*runs.shape[:-1], 2, 2, 4)
    return bytes_of(np.stack(split_nibbles(runs), -3).reshape(*blocks.shape[:-1], 16, 1))


def high_bits_q6_k(blocks: Bytes) -> Bytes:
    """8 bytes a slice, as ``two_bits``, the top bit inverted: then it is the sign of q - 32."""
    words = words_of(blocks, 128, 64)
    words = words.reshape(*words.shape[:-1], 2, 8)
    slices = [two_bits(words >> shift & 0x03030303) for shift in (0, 2, 4, 6)]
    return bytes_of(np.stack(slices, -2).reshape(*blocks.shape[:-1], 8, 2) ^ 0xAAAAAAAA)


def tail_q6_k(blocks: Bytes) -> Bytes:
    """The 16 scales and d, 18 bytes as they are."""
    return blocks[..., 192:210]
