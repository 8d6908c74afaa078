"""The order of bits in the fields of formats that are permuted when a matrix is packed.

GGUF blocks uint8 [..., block_bytes] come in and the bytes of a field [..., n] go out, with the same
information in as many bytes: a slice of 32 weights has its bits together, in the order in which few
instructions unpack four weights at a time. In a word of four weights, byte b belongs to element 4 * w + b of
the slice, where w is the word's number. What the bits mean in a GGUF block: ggml-common.h and ggml-quants.c.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Bytes",
    "bit_planes",
    "bits_of_block",
    "header_k4",
    "nibbles_of_runs",
    "one_bits",
    "pair_slices",
    "scales_q3_k",
    "side_by_side",
    "sixteens_nvfp4",
    "trits",
    "two_bits",
]

#: uint8, and uint32 or uint64: NumPy's types do not follow shifts by Python integers.
Bytes = npt.NDArray[Any]
Words = npt.NDArray[Any]

LOW_NIBBLES = np.uint64(0x0F0F0F0F0F0F0F0F)
FOUR = np.uint64(4)


def words_of(blocks: Bytes, at: int, size: int, dtype: npt.DTypeLike = np.uint32) -> Words:
    """Bytes ``at`` to ``at + size`` of every block as words of a type."""
    return np.ascontiguousarray(blocks[..., at : at + size]).view(dtype)


def bytes_of(words: Words, blocks: Bytes) -> Bytes:
    """Words of as many leading axes as ``blocks`` -> uint8 [..., bytes]."""
    return np.ascontiguousarray(words).reshape(*blocks.shape[:-1], -1).view(np.uint8)


def two_bits(words: Words) -> Words:
    """Codes of two bits, one in each byte of uint32 [..., 8], -> uint32 [..., 2].

    Bits 2 * i of the first word belong to word i of the slice, those of the second to word 4 + i.
    """
    pairs = words.reshape(*words.shape[:-1], 2, 4)
    packed: Words = pairs[..., 0] | pairs[..., 1] << 2 | pairs[..., 2] << 4 | pairs[..., 3] << 6
    return packed


def one_bits(words: Words) -> Words:
    """Codes of one bit, one in each byte of uint32 [..., 8], -> uint32 [...]: bit i belongs to word i."""
    packed = words[..., 0]
    for i in range(1, 8):
        packed = packed | words[..., i] << i
    return packed


def bits_of_block(blocks: Bytes, at: int) -> Bytes:
    """32 bits of a block of 32, element by element, as ``one_bits``: the fifth bits of Q5_0 and Q5_1."""
    bits = np.unpackbits(np.ascontiguousarray(blocks[..., at : at + 4]), axis=-1, bitorder="little")
    return bytes_of(one_bits(bits.view(np.uint32)), blocks)


def bit_planes(blocks: Bytes, at: int, flip: int = 0) -> Bytes:
    """32 bytes of which bit s of byte j belongs to element j of slice s -> ``one_bits`` of each slice.

    ``flip`` is 1 where the bits are to be inverted.
    """
    words = words_of(blocks, at, 32)
    slices = [one_bits((words >> s & 0x01010101) ^ 0x01010101 * flip) for s in range(8)]
    return bytes_of(np.stack(slices, -1), blocks)


def pair_slices(blocks: Bytes, at: int, flip: int = 0) -> Bytes:
    """64 bytes, two runs of 32 that hold four slices in pairs of bits, -> ``two_bits`` of each slice.

    ``flip`` is a mask for each pair: 2 inverts the upper bits, which makes 6-bit codes around 32 signed.
    """
    words = words_of(blocks, at, 64)
    words = words.reshape(*words.shape[:-1], 2, 8)
    slices = [two_bits(words >> shift & 0x03030303) for shift in (0, 2, 4, 6)]
    return bytes_of(np.stack(slices, -2) ^ np.uint32(0x55555555 * flip), blocks)


def nibbles_of_runs(blocks: Bytes, at: int, runs: int) -> Bytes:
    """128 bytes of runs of 32 bytes: their low nibbles are one slice and their high nibbles another.

    The slices of ``runs`` neighbouring runs lie low nibbles first: 1 for Q4_K, 2 for Q6_K. Element j of a
    slice goes to the low nibble of its byte j, element j + 16 to the high one.
    """
    words = words_of(blocks, at, 128, np.uint64).reshape(-1, runs, 2, 2)
    out = np.empty((len(words), 2, runs, 2), np.uint64)
    # One axis at a time: NumPy's inner loops would be two elements long.
    for run in range(runs):
        for half in range(2):
            first, second = words[:, run, 0, half], words[:, run, 1, half]
            out[:, 0, run, half] = (first & LOW_NIBBLES) | (second & LOW_NIBBLES) << FOUR
            out[:, 1, run, half] = (first >> FOUR & LOW_NIBBLES) | (second & ~LOW_NIBBLES)
    return bytes_of(out, blocks)


def nibble_pairs(nibbles: Bytes) -> Bytes:
    """Values below 16, uint8 [..., n] -> [..., n / 2]: value i in bits 4 * i of the whole."""
    packed: Bytes = nibbles[..., ::2] | nibbles[..., 1::2] << 4
    return packed


def header_k4(blocks: Bytes) -> Bytes:
    """Q4_K, Q5_K: low nibbles of the 8 scales, of the 8 minima, the high 2 + 2 bits of each, and d and dmin.

    Slice s has bits 4 * s to 4 * s + 3 of each of the first three of four words.
    """
    words = words_of(blocks, 0, 16).reshape(-1, 4)
    first, second, third = words[:, 1], words[:, 2], words[:, 3]
    # Four slices a word: bits 0 to 5 are those of slices 0 to 3, bits 6 and 7 the top of slices 4 to 7.
    out = np.empty_like(words)
    out[:, 0] = _eight_nibbles(first, third)
    out[:, 1] = _eight_nibbles(second, third >> 4)
    tops = [(first >> at & 0x03030303) | (second >> at & 0x03030303) << 2 for at in (4, 6)]
    out[:, 2] = _eight_nibbles(*tops)
    out[:, 3] = words[:, 0]
    return bytes_of(out, blocks)


def _eight_nibbles(first: Words, second: Words) -> Words:
    """The low nibbles of the bytes of two uint32, one behind the other in one uint32."""
    packed: Words = np.zeros_like(first)
    for shift, words in ((0, first), (16, second)):
        nibbles = words & 0x0F0F0F0F
        nibbles = (nibbles | nibbles >> 4) & 0x00FF00FF
        packed |= ((nibbles | nibbles >> 8) & 0xFFFF) << shift
    return packed


def scales_q3_k(blocks: Bytes) -> Bytes:
    """Q3_K: the inverted high bits of the weights, 4 bytes a slice, then its 16 scales of 6 bits in 12 bytes.

    Byte s of the first 8 has the low nibbles of the two scales of slice s, bits 4 * s of the last word their
    high pairs of bits.
    """
    low, high = blocks[..., 96:104], blocks[..., 104:108]
    lows = np.concatenate([low & 15, low >> 4], -1)
    highs = np.concatenate([high >> shift & 3 for shift in (0, 2, 4, 6)], -1)
    pairs = nibble_pairs(highs[..., ::2] | highs[..., 1::2] << 2)
    return np.concatenate([bit_planes(blocks, 0, flip=1), nibble_pairs(lows), pairs], -1)


def sixteens_nvfp4(blocks: Bytes) -> Bytes:
    """NVFP4: runs of 16 weights in 8 bytes -> slices with element j low and j + 16 high in byte j."""
    runs = words_of(blocks, 4, 32, np.uint64).reshape(*blocks.shape[:-1], 2, 2)
    first, second = runs[..., 0], runs[..., 1]
    low = (first & LOW_NIBBLES) | (second & LOW_NIBBLES) << FOUR
    high = (first >> FOUR & LOW_NIBBLES) | (second & ~LOW_NIBBLES)
    return bytes_of(np.stack([low, high], -1), blocks)


def side_by_side(blocks: Bytes, *fields: tuple[int, int]) -> Bytes:
    """Fields (offset, bytes of a slice) of a block of eight slices, slice after slice."""
    parts = [blocks[..., at : at + 8 * size].reshape(*blocks.shape[:-1], 8, size) for at, size in fields]
    return np.concatenate(parts, -1).reshape(*blocks.shape[:-1], -1)


# ---- TQ1_0: 256 weights d * (q - 1), five q of 0 to 2 in a byte ----

#: Powers of three that bring trit i of a byte to its top.
POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


def trits(blocks: Bytes) -> Bytes:
    """TQ1_0: 52 bytes, written again so that a slice has 6 bytes of its own and a nibble: 32 + 16 + 4 bytes.

    Element 4 * i + b for i < 5 is trit i of byte b of the slice's first four; the other 12 are words 5 to 7
    over the two further bytes: trits 0 and 1, 2 and 3, then trit 4 and the two trits of the nibble.
    """
    codes = _codes_tq1(blocks).reshape(*blocks.shape[:-1], 8, 8, 4)
    first = _pack_trits([codes[..., i, :] for i in range(5)])
    pairs = [codes[..., 5 + i // 2, i % 2 * 2 : i % 2 * 2 + 2] for i in range(5)]
    second = _pack_trits(pairs)
    nibbles = codes[..., 7, 2] * 3 + codes[..., 7, 3]
    return np.concatenate([bytes_of(first, blocks), bytes_of(second, blocks), nibble_pairs(nibbles)], -1)


def _codes_tq1(blocks: Bytes) -> Bytes:
    """uint8 [..., 54] -> [..., 256] of 0 to 2."""
    runs = [(0, 32, 5), (32, 16, 5), (48, 4, 4)]
    parts = []
    for at, size, count in runs:
        tops = blocks[..., None, at : at + size] * POWERS[:count, None]
        parts.append((tops.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(*blocks.shape[:-1], -1))
    return np.concatenate(parts, -1)


def _pack_trits(trits: list[Bytes]) -> Bytes:
    """Five arrays of trits -> bytes: the base-3 number as a fraction of 243, rounded up to 256ths."""
    number = np.zeros(trits[0].shape, np.uint16)
    for trit in trits:
        number = number * 3 + trit
    packed: Bytes = ((number * 256 + 242) // 243).astype(np.uint8)
    return packed
