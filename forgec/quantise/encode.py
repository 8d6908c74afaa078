"""float32 matrices in, the blocks of a GGUF type out: what ``--quantize`` and LoRA merging write.

Pure NumPy over bands that stay in the cache; rows are independent, so a caller may quantise a matrix in
pieces. It reads no files and decides nothing about models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from forgec.errors import GGUFError, UnsupportedModelError
from forgec.frontend.quant import QUANT_BY_NAME
from forgec.quantise import blocks32, blocks256

__all__ = ["QUANTISABLE", "quantise"]

Bytes = npt.NDArray[np.uint8]

#: Elements quantised at a time: the temporaries of the search stay in a second-level cache.
BAND_ELEMENTS = 1 << 16


@dataclass(frozen=True)
class _Encoder:
    """``encode`` takes f32 [part, parts of the band] and returns the bytes of the blocks."""

    part: int
    encode: Callable[[npt.NDArray[np.float32]], Bytes]


def _bf16(x: npt.NDArray[np.float32]) -> Bytes:
    """The upper half of a float32, rounded to the nearest even."""
    bits = x.view(np.uint32)
    return (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1) >> 16).astype("<u2").view(np.uint8)


def _f16(x: npt.NDArray[np.float32]) -> Bytes:
    return np.clip(x, -65504, 65504).astype("<f2").view(np.uint8)


_PLAIN: dict[str, Callable[[npt.NDArray[np.float32]], Bytes]] = {
    "F32": lambda x: x.astype("<f4").view(np.uint8),
    "F16": _f16,
    "BF16": _bf16,
}
_ENCODERS = {
    "Q8_0": _Encoder(32, blocks32.encode_q8_0),
    "Q4_0": _Encoder(32, blocks32.encode_q4_0),
    "Q4_1": _Encoder(32, blocks32.encode_q4_1),
    "Q5_0": _Encoder(32, blocks32.encode_q5_0),
    "Q5_1": _Encoder(32, blocks32.encode_q5_1),
    "IQ4_NL": _Encoder(32, blocks32.encode_iq4_nl),
    "MXFP4": _Encoder(32, blocks32.encode_mxfp4),
    "Q4_K": _Encoder(32, blocks256.encode_q4_k),
    "Q5_K": _Encoder(32, blocks256.encode_q5_k),
    "Q6_K": _Encoder(16, blocks256.encode_q6_k),
    "Q3_K": _Encoder(16, blocks256.encode_q3_k),
    "Q2_K": _Encoder(16, blocks256.encode_q2_k),
}

#: The types that ``quantise`` can write.
QUANTISABLE = (*_ENCODERS, *_PLAIN)


def quantise(array: npt.NDArray[np.float32], type_name: str) -> Bytes:
    """Encode f32 [rows, cols] as a GGUF type: uint8 [rows, cols / block * bytes of a block].

    Raises UnsupportedModelError for a type without an encoder, GGUFError when a row is no whole number of
    blocks or holds values that are not finite.
    """
    if type_name not in QUANTISABLE:
        known = ", ".join(QUANTISABLE)
        raise UnsupportedModelError(f"nothing is quantised to '{type_name}'", f"Choose one of: {known}.")
    kind = QUANT_BY_NAME[type_name]
    rows, cols = array.shape
    if cols % kind.block:
        raise GGUFError(f"rows of {cols} elements are not whole {type_name} blocks of {kind.block} elements")
    flat = np.ascontiguousarray(array, np.float32).reshape(-1)
    out = np.empty(kind.nbytes(rows * cols), np.uint8)
    for first in range(0, flat.size, BAND_ELEMENTS):
        band = flat[first : first + BAND_ELEMENTS]
        if not np.isfinite(band.sum()) and not np.isfinite(band).all():
            raise GGUFError("a matrix to quantise holds values that are not finite")
        at = kind.nbytes(first)
        data = _encode(band, type_name).reshape(-1)
        out[at : at + data.size] = data
    return out.reshape(rows, -1)


def _encode(band: npt.NDArray[np.float32], type_name: str) -> Bytes:
    if type_name in _PLAIN:
        return _PLAIN[type_name](band)
    encoder = _ENCODERS[type_name]
    return encoder.encode(np.ascontiguousarray(band.reshape(-1, encoder.part).T))
