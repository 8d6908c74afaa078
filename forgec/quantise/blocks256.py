"""The K types, blocks of 256 elements with quantised scales of their parts: float32 in, GGUF blocks out.

Each encoder takes x f32 [elements of a part, parts] (16 or 8 parts make a block) and returns uint8 [blocks,
bytes of a block]. Scales are rounded to what the type stores before the codes are chosen. Source of the block
layouts: ggml-common.h and ggml-quants.c.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from forgec.quantise.blocks32 import codes, half, half_bytes
from forgec.quantise.scales import Floats, Weighting, fit_affine, fit_scale, importance, square

__all__ = ["encode_q2_k", "encode_q3_k", "encode_q4_k", "encode_q5_k", "encode_q6_k"]

Bytes = npt.NDArray[Any]  # uint8, which NumPy's annotations forget beside a Python integer

SCALE_OFFSETS = (-0.8, -0.5, -0.3, -0.1, 0.1, 0.3, 0.5, 0.8)
AFFINE_OFFSETS = (-0.9, -0.6, -0.35, -0.1, 0.15, 0.4, 0.7)


def _rows(q: Bytes, parts: int) -> Bytes:
    """Codes [elements, parts] -> [blocks, 256] in the order of the row."""
    return np.ascontiguousarray(q.T).reshape(-1, parts * len(q))


def _affine(
    x: Floats, parts: int, levels: int, scale_levels: int, weighting: Weighting
) -> tuple[Floats, Floats, Bytes, Bytes, Bytes]:
    """(d [blocks], dmin [blocks], scales [blocks, parts], minima like scales, codes [blocks, 256]).

    A weight is d * scale * q - dmin * minimum.
    """
    scale, minimum = fit_affine(x, weighting(x), levels, AFFINE_OFFSETS, below_zero=True)
    d, scales = _shared(scale.reshape(-1, parts), scale_levels)
    dmin, minima = _shared(-minimum.reshape(-1, parts), scale_levels)
    offset = (dmin[:, None] * minima).reshape(-1).astype(np.float32)
    step = (d[:, None] * scales).reshape(-1).astype(np.float32)
    return d, dmin, scales, minima, _rows(codes(x + offset, step, 0, levels), parts)


def _shared(values: Floats, levels: int) -> tuple[Floats, Bytes]:
    """Non-negative values [blocks, parts] as d [blocks], which float16 holds, times integers 0..levels."""
    d = half(values.max(1) / np.float32(levels))
    return d, codes(values, d[:, None], 0, levels)


def _shared_signed(values: Floats, low: int, high: int) -> tuple[Floats, npt.NDArray[np.int8]]:
    """The same for signed values: the one of largest magnitude lies at ``low``."""
    extreme = np.take_along_axis(values, np.abs(values).argmax(1)[:, None], 1)[:, 0]
    d = half(extreme / np.float32(low))
    return d, (codes(values, d[:, None], low, high).astype(np.int16) + low).astype(np.int8)


def _symmetric(
    x: Floats, parts: int, code_range: tuple[int, int], scale_range: tuple[int, int]
) -> tuple[Floats, npt.NDArray[np.int8], Bytes]:
    """(d [blocks], scales [blocks, parts], codes less their lowest value [blocks, 256])."""
    scale = fit_scale(x, square(x), *code_range, SCALE_OFFSETS)
    d, scales = _shared_signed(scale.reshape(-1, parts), *scale_range)
    step = (d[:, None] * scales).reshape(-1).astype(np.float32)
    return d, scales, _rows(codes(x, step, *code_range), parts)


def _six_bit_pairs(scales: Bytes, minima: Bytes) -> Bytes:
    """Eight 6-bit scales and minima -> 12 bytes: six bits of four, then nibbles and high bits of four."""
    low, high = slice(0, 4), slice(4, 8)
    return np.hstack(
        [
            scales[:, low] | (scales[:, high] >> 4) << 6,
            minima[:, low] | (minima[:, high] >> 4) << 6,
            (scales[:, high] & 15) | (minima[:, high] & 15) << 4,
        ]
    )


def _paired_nibbles(q: Bytes) -> Bytes:
    """[blocks, 256] nibbles -> [blocks, 128]: of every 64 elements the second 32 above the first 32."""
    pairs = q.reshape(len(q), 4, 2, 32)
    packed: Bytes = pairs[:, :, 0] | pairs[:, :, 1] << 4
    return packed.reshape(len(q), 128)


def _four_crumbs(q: Bytes) -> Bytes:
    """[blocks, 256] two-bit codes -> [blocks, 64]: of every 128 elements, four runs of 32 in one byte."""
    runs = q.reshape(len(q), 2, 4, 32)
    packed: Bytes = runs[:, :, 0] | runs[:, :, 1] << 2 | runs[:, :, 2] << 4 | runs[:, :, 3] << 6
    return packed.reshape(len(q), 64)


def _bit_planes(bits: Bytes) -> Bytes:
    """[blocks, 256] bits -> [blocks, 32]: bit i of byte j is element 32 * i + j."""
    return np.packbits(bits.reshape(len(bits), 8, 32), axis=1, bitorder="little").reshape(len(bits), 32)


def encode_q4_k(x: Floats) -> Bytes:
    """Eight parts of 32; f16 d and dmin, 12 bytes of scales, 128 bytes of nibbles."""
    d, dmin, scales, minima, q = _affine(x, 8, 15, 63, importance)
    return np.hstack([half_bytes(d), half_bytes(dmin), _six_bit_pairs(scales, minima), _paired_nibbles(q)])


def encode_q5_k(x: Floats) -> Bytes:
    """As Q4_K with 32 bytes of fifth bits before the nibbles."""
    d, dmin, scales, minima, q = _affine(x, 8, 31, 63, importance)
    head = (half_bytes(d), half_bytes(dmin), _six_bit_pairs(scales, minima))
    return np.hstack([*head, _bit_planes(q >> 4), _paired_nibbles(q & 15)])


def encode_q2_k(x: Floats) -> Bytes:
    """Sixteen parts of 16; 16 bytes of 4-bit scales and minima, 64 bytes of codes, f16 d and dmin."""
    d, dmin, scales, minima, q = _affine(x, 16, 3, 15, importance)
    return np.hstack([scales | minima << 4, _four_crumbs(q), half_bytes(d), half_bytes(dmin)])


def encode_q3_k(x: Floats) -> Bytes:
    """Sixteen parts of 16; 32 bytes of high bits, 64 bytes of low bits, 12 bytes of 6-bit scales, f16 d."""
    d, scales, q = _symmetric(x, 16, (-4, 3), (-32, 31))
    six = (scales.astype(np.int16) + 32).astype(np.uint8)
    high = (six >> 4).reshape(-1, 4, 4)
    packed = np.hstack(
        [
            six[:, :8] & 15 | (six[:, 8:] & 15) << 4,
            high[:, 0] | high[:, 1] << 2 | high[:, 2] << 4 | high[:, 3] << 6,
        ]
    )
    return np.hstack([_bit_planes(q >> 2), _four_crumbs(q & 3), packed, half_bytes(d)])


def encode_q6_k(x: Floats) -> Bytes:
    """Sixteen parts of 16; 128 bytes of nibbles, 64 bytes of high bits, 16 signed scales, f16 d."""
    d, scales, q = _symmetric(x, 16, (-32, 31), (-128, 127))
    halves = (q & 15).reshape(len(q), 2, 2, 64)
    low = (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(len(q), 128)
    return np.hstack([low, _four_crumbs(q >> 4), scales.view(np.uint8), half_bytes(d)])
