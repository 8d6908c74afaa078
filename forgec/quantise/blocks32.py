"""Types with blocks of 32 elements: float32 columns of blocks in, GGUF blocks out.

Each encoder takes x f32 [32, blocks] and returns uint8 [blocks, bytes of a block], scales rounded to what the
type stores before the codes are chosen. Source of the block layouts: ggml-common.h and ggml-quants.c.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from forgec.quantise.scales import Floats, fit_affine, fit_scale, importance, reciprocal, square

__all__ = [
    "encode_iq4_nl",
    "encode_mxfp4",
    "encode_q4_0",
    "encode_q4_1",
    "encode_q5_0",
    "encode_q5_1",
    "encode_q8_0",
]

Bytes = npt.NDArray[Any]  # uint8, which NumPy's annotations forget beside a Python integer

#: Where the element of largest magnitude is put, as steps beside the end of the range of codes.
SCALE_OFFSETS = (-1.0, -0.7, -0.4, -0.2, 0.0, 0.2, 0.4, 0.7)
#: Steps by which the range of a block is spread over more or fewer levels.
AFFINE_OFFSETS = (-0.9, -0.5, -0.2, 0.0, 0.2, 0.5)
#: The 16 values of IQ4_NL (kvalues_iq4nl of ggml-common.h).
IQ4_NL_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
#: The magnitudes of MXFP4's E2M1 codes, doubled so that they are whole (OCP Microscaling Formats v1.0).
MXFP4_MAGNITUDES = (0, 1, 2, 3, 4, 6, 8, 12)


def half(values: Floats) -> Floats:
    """Values as float16 stores them; what is too large becomes its largest number."""
    return np.clip(values, -65504, 65504).astype(np.float16).astype(np.float32)


def half_bytes(values: Floats) -> Bytes:
    """float16 bytes [blocks, 2] of values [blocks] that ``half`` has rounded."""
    return np.ascontiguousarray(values.astype("<f2")).view(np.uint8).reshape(-1, 2)


def codes(x: Floats, scale: Floats, low: int, high: int) -> Bytes:
    """round(x / scale) within low..high, less low: uint8 like x."""
    q = x * reciprocal(scale)
    np.rint(q, out=q)
    np.clip(q, low, high, out=q)
    q -= low
    return q.astype(np.uint8)


def nibbles(q: Bytes) -> Bytes:
    """[32, blocks] codes below 16 -> [blocks, 16]: byte j holds element j (low) and j + 16 (high)."""
    return np.ascontiguousarray((q[:16] | (q[16:] << 4)).T)


def fifth_bits(q: Bytes) -> Bytes:
    """[32, blocks] codes below 32 -> [blocks, 4]: bit i is bit 4 of element i."""
    return np.packbits(np.ascontiguousarray(q.T) >> 4, axis=1, bitorder="little")


def encode_q8_0(x: Floats) -> Bytes:
    """f16 d, 32 signed bytes: the largest magnitude at 127, as ggml does it."""
    scale = np.abs(x).max(0) / np.float32(127)
    q = codes(x, scale, -127, 127)
    # ggml divides by the scale before it is rounded to f16: half a step of f16 is far below half a code.
    return np.hstack([half_bytes(half(scale)), np.ascontiguousarray(q.T + np.uint8(129))])


def encode_q4_0(x: Floats) -> Bytes:
    """f16 d, 16 bytes of nibbles: d * (q - 8)."""
    scale = half(fit_scale(x, importance(x), -8, 7, SCALE_OFFSETS))
    return np.hstack([half_bytes(scale), nibbles(codes(x, scale, -8, 7))])


def encode_q5_0(x: Floats) -> Bytes:
    """f16 d, 4 bytes of fifth bits, 16 bytes of nibbles: d * (q - 16)."""
    scale = half(fit_scale(x, importance(x), -16, 15, SCALE_OFFSETS))
    q = codes(x, scale, -16, 15)
    return np.hstack([half_bytes(scale), fifth_bits(q), nibbles(q & 15)])


def encode_q4_1(x: Floats) -> Bytes:
    """f16 d, f16 m, 16 bytes of nibbles: d * q + m."""
    scale, minimum, q = _affine(x, 15)
    return np.hstack([half_bytes(scale), half_bytes(minimum), nibbles(q)])


def encode_q5_1(x: Floats) -> Bytes:
    """f16 d, f16 m, 4 bytes of fifth bits, 16 bytes of nibbles: d * q + m."""
    scale, minimum, q = _affine(x, 31)
    return np.hstack([half_bytes(scale), half_bytes(minimum), fifth_bits(q), nibbles(q & 15)])


def _affine(x: Floats, levels: int) -> tuple[Floats, Floats, Bytes]:
    scale, minimum = map(half, fit_affine(x, importance(x), levels, AFFINE_OFFSETS, below_zero=False))
    return scale, minimum, codes(x - minimum, scale, 0, levels)


def _nearest(values: tuple[int, ...], steps: int) -> Bytes:
    """Index of the value nearest to (i + 0.5) / 2 - steps / 2, for i of 0..2 * steps: a table by half steps.

    The points half-way between whole values are multiples of a half, so a table by floor(2 * t) is exact.
    """
    points = (np.arange(2 * steps) + 0.5) / 2 - steps / 2
    nearest: Bytes = np.abs(points[:, None] - np.array(values)).argmin(1).astype(np.uint8)
    return nearest


_IQ4_NL_STEPS = 256
_IQ4_NL_NEAREST = _nearest(IQ4_NL_VALUES, _IQ4_NL_STEPS)
_MXFP4_NEAREST = _nearest(MXFP4_MAGNITUDES, 32)[32:]


def _look_up(table: Bytes, doubled: Floats) -> Bytes:
    """table[floor(doubled)], the index kept inside the table; ``doubled`` is overwritten."""
    np.clip(doubled, 0, len(table) - 1, out=doubled)
    return table[doubled.astype(np.intp)]


def _iq4_nl_codes(x: Floats, inverse: Floats) -> Bytes:
    doubled = x * (2 * inverse)
    doubled += _IQ4_NL_STEPS
    return _look_up(_IQ4_NL_NEAREST, doubled)


def encode_iq4_nl(x: Floats) -> Bytes:
    """f16 d, 16 bytes of nibbles: d * table[q], elements weighted by their square."""
    values = np.array(IQ4_NL_VALUES, np.float32)
    weights = square(x)
    extreme = np.take_along_axis(x, np.abs(x).argmax(0)[None], 0)[0]
    inverse_extreme = reciprocal(extreme)
    best, scale = np.zeros_like(extreme), np.zeros_like(extreme)
    # The extreme element lies near one end of the table, at -127 or at 113.
    for place in (-133.0, -130.0, -127.0, -124.0, -121.0, -118.0, 110.0, 113.0, 116.0, 119.0, None):
        inverse = reciprocal(scale) if place is None else np.float32(place) * inverse_extreme
        value = values[_iq4_nl_codes(x, inverse)]
        weighted = weights * value
        xq = np.einsum("ij,ij->j", weighted, x)
        candidate = xq * reciprocal(np.einsum("ij,ij->j", weighted, value))
        gain = xq * candidate
        better = gain > best
        np.copyto(scale, candidate, where=better)
        np.copyto(best, gain, where=better)
    scale = half(scale)
    return np.hstack([half_bytes(scale), nibbles(_iq4_nl_codes(x, reciprocal(scale)))])


def encode_mxfp4(x: Floats) -> Bytes:
    """One E8M0 exponent, 16 bytes of E2M1 nibbles: the better of the two powers of two around the extreme."""
    magnitude = np.abs(x)
    _, exponent = np.frexp(magnitude.max(0))
    sign = np.signbit(x).astype(np.uint8) << 3
    values = np.array(MXFP4_MAGNITUDES, np.float32)
    best: tuple[Floats, npt.NDArray[np.int32], Bytes] | None = None
    # frexp's exponent is floor(log2) + 1; the largest code, 6, lies two powers of two above one.
    for shift in (-3, -2):
        power = np.clip(exponent + shift, -120, 127)  # the reciprocal of smaller steps is no float32
        step = np.ldexp(np.float32(0.5), power).astype(np.float32)
        index = _look_up(_MXFP4_NEAREST, magnitude * (2 * reciprocal(step)))
        error = np.square(magnitude - step * values[index]).sum(0)
        if best is None:
            best = error, power, index
            continue
        better = error < best[0]
        best = best[0], np.where(better, power, best[1]), np.where(better, index, best[2])
    assert best is not None
    scale = (best[1] + 127).astype(np.uint8)[:, None]
    return np.hstack([scale, nibbles(best[2] | sign)])
