"""The GGML tensor types: what each is called, how many elements and bytes one block holds.

Raw tensor bytes come in and float32 arrays go out of ``dequantize``; the table itself is plain data that
the GGUF reader uses to check sizes. Nothing here ever quantises, reads a file or depends on a target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from forgec.errors import GGUFError, UnsupportedModelError

__all__ = ["QUANT_BY_NAME", "QUANT_TYPES", "REMOVED_TYPES", "QuantType", "dequantize"]


@dataclass(frozen=True)
class QuantType:
    """One GGML tensor type. A row is a whole number of blocks; blocks are contiguous.

    ``block`` counts elements per block, ``block_bytes`` bytes per block; ``weights`` says that kernels read
    matrices of this type.
    Source: ggml/include/ggml.h (ids), ggml/src/ggml-common.h (block structs).
    """

    name: str
    ggml_id: int
    block: int
    block_bytes: int
    weights: bool = True

    def nbytes(self, elements: int) -> int:
        """Bytes taken by ``elements`` elements, a multiple of ``block``."""
        return elements // self.block * self.block_bytes


# ggml's ids are never reused, so newer ones are appended; the last one known here is 42.
_TABLE = (
    QuantType("F32", 0, 1, 4),
    QuantType("F16", 1, 1, 2),
    QuantType("Q4_0", 2, 32, 18),
    QuantType("Q4_1", 3, 32, 20),
    QuantType("Q5_0", 6, 32, 22),
    QuantType("Q5_1", 7, 32, 24),
    QuantType("Q8_0", 8, 32, 34),
    # Two halves and 32 bytes. gguf-py still says 40, the size when both scales were float32.
    QuantType("Q8_1", 9, 32, 36, weights=False),
    QuantType("Q2_K", 10, 256, 84),
    QuantType("Q3_K", 11, 256, 110),
    QuantType("Q4_K", 12, 256, 144),
    QuantType("Q5_K", 13, 256, 176),
    QuantType("Q6_K", 14, 256, 210),
    QuantType("Q8_K", 15, 256, 292, weights=False),
    QuantType("IQ2_XXS", 16, 256, 66),
    QuantType("IQ2_XS", 17, 256, 74),
    QuantType("IQ3_XXS", 18, 256, 98),
    QuantType("IQ1_S", 19, 256, 50),
    QuantType("IQ4_NL", 20, 32, 18),
    QuantType("IQ3_S", 21, 256, 110),
    QuantType("IQ2_S", 22, 256, 82),
    QuantType("IQ4_XS", 23, 256, 136),
    QuantType("I8", 24, 1, 1, weights=False),
    QuantType("I16", 25, 1, 2, weights=False),
    QuantType("I32", 26, 1, 4, weights=False),
    QuantType("I64", 27, 1, 8, weights=False),
    QuantType("F64", 28, 1, 8, weights=False),
    QuantType("IQ1_M", 29, 256, 56),
    QuantType("BF16", 30, 1, 2),
    QuantType("TQ1_0", 34, 256, 54),
    QuantType("TQ2_0", 35, 256, 66),
    QuantType("MXFP4", 39, 32, 17),
    QuantType("NVFP4", 40, 64, 36),
    QuantType("Q1_0", 41, 128, 18, weights=False),
    QuantType("Q2_0", 42, 64, 18, weights=False),
)

QUANT_TYPES: Mapping[int, QuantType] = MappingProxyType({entry.ggml_id: entry for entry in _TABLE})
QUANT_BY_NAME: Mapping[str, QuantType] = MappingProxyType({entry.name: entry for entry in _TABLE})

# Ids that old files may still carry; ggml dropped their code, so their layouts are not in the table.
REMOVED_TYPES: Mapping[int, str] = MappingProxyType(
    {
        4: "Q4_2",
        5: "Q4_3",
        31: "Q4_0_4_4",
        32: "Q4_0_4_8",
        33: "Q4_0_8_8",
        36: "IQ4_NL_4_4",
        37: "IQ4_NL_4_8",
        38: "IQ4_NL_8_8",
    }
)

_PLAIN_DTYPES = MappingProxyType(
    {
        "F32": "<f4",
        "F16": "<f2",
        "F64": "<f8",
        "I8": "i1",
        "I16": "<i2",
        "I32": "<i4",
        "I64": "<i8",
    }
)


def dequantize(data: npt.NDArray[np.uint8], type_name: str, rows: int, cols: int) -> npt.NDArray[np.float32]:
    """Decode the raw bytes of one tensor.

    ``data`` is uint8 with ``rows * cols / block * block_bytes`` bytes in file order. Returns a new float32
    array of shape (rows, cols).
    Raises GGUFError when the byte count does not fit the shape, UnsupportedModelError for a type without a
    decoder. Source: ggml-quants.c, through gguf-py's NumPy port for every type that it has.
    """
    quant = QUANT_BY_NAME.get(type_name)
    if quant is None:
        raise UnsupportedModelError(
            f"quantisation type '{type_name}' is not known",
            f"Known types: {', '.join(QUANT_BY_NAME)}.",
        )
    if cols % quant.block != 0:
        raise GGUFError(f"rows of {cols} elements are not whole {type_name} blocks of {quant.block} elements")
    expected = quant.nbytes(rows * cols)
    raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    if raw.size != expected:
        raise GGUFError(f"{rows} x {cols} {type_name} elements take {expected} bytes, found {raw.size}")
    # Damaged scales decode to infinities and NaNs as they do in C; they are the caller's to judge.
    with np.errstate(all="ignore"):
        return _decode(raw, quant).reshape(rows, cols)


def _decode(raw: npt.NDArray[np.uint8], quant: QuantType) -> npt.NDArray[np.float32]:
    """Whole blocks as flat bytes -> float32 elements, in any shape."""
    if quant.name in _PLAIN_DTYPES:
        return raw.view(_PLAIN_DTYPES[quant.name]).astype(np.float32)
    if quant.name == "BF16":  # the upper half of a float32
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    blocks = raw.reshape(-1, quant.block_bytes)
    if quant.name == "Q1_0":
        return _dequantize_q1_0(blocks)
    if quant.name == "Q2_0":
        return _dequantize_q2_0(blocks)
    return _dequantize_with_gguf(blocks, quant)


def _dequantize_q1_0(blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(n, 18) bytes -> (n, 128): x[i] = bit i ? d : -d; float16 d, then 128 bits, least significant first."""
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").astype(np.float32)
    return scale * (2.0 * bits - 1.0)


def _dequantize_q2_0(blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(n, 18) bytes -> (n, 64): x[i] = d * (q[i] - 1); float16 d, then four 2-bit q a byte, lowest first."""
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)
    codes = (blocks[:, 2:, None] >> shifts) & 3
    return scale * (codes.reshape(len(blocks), 64).astype(np.float32) - 1.0)


def _dequantize_with_gguf(blocks: npt.NDArray[np.uint8], quant: QuantType) -> npt.NDArray[np.float32]:
    # Imported here: gguf takes 0.2 s to import and most callers only need the table.
    from gguf import GGMLQuantizationType, quants

    try:
        decoded = quants.dequantize(blocks, GGMLQuantizationType(quant.ggml_id))
    except (ValueError, NotImplementedError) as error:
        raise UnsupportedModelError(
            f"tensors of type {quant.name} cannot be decoded",
            "Requantise the model to a common type such as Q4_K, Q6_K or Q8_0.",
        ) from error
    return np.asarray(decoded, dtype=np.float32)
