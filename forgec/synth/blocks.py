"""Random weights straight in quantised form: blocks whose bytes are random and whose scales are chosen.

A type, a shape and the wanted standard deviation go in, the bytes of a GGUF tensor come out. Every block is
valid and decodes to finite values of mean near zero. Needs NumPy only, because it also runs on GPU machines;
it never quantises anything and knows no files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from forgec.errors import UnsupportedModelError

__all__ = ["RANDOM_BLOCKS", "RandomBlock", "random_rows"]

Bytes = npt.NDArray[np.uint8]

#: Scales of a tensor vary by this factor around their mean, as those of real weights do.
SPREAD = (0.75, 1.25)
#: Different scales of a tensor: a table of this size is drawn from, which is quicker than one draw a block.
SCALES = 4096


@dataclass(frozen=True)
class RandomBlock:
    """How a block of ``block`` elements and ``block_bytes`` bytes is made random.

    All bytes are random but the float16 scale d at byte ``d_at`` and, with ``min_at``, the float16 minimum
    there, which is ``min_ratio`` times d. ``deviation`` is the standard deviation of the decoded elements
    when d is 1: it follows from the format's own integers. ``scale`` says how d is stored: "f16", "e8m0" (a
    power of two in a byte), "ue4m3" (four unsigned 8-bit floats, of 16 elements each) or "nibbles" (a half
    spread over four words).
    Source of the layouts: ggml/src/ggml-common.h.
    """

    block: int
    block_bytes: int
    deviation: float
    d_at: int
    min_at: int | None = None
    min_ratio: float = 0.0
    scale: str = "f16"


def _uniform(levels: int) -> float:
    """Standard deviation of whole numbers drawn evenly from ``levels`` neighbouring ones."""
    return float(np.sqrt((levels**2 - 1) / 12))


#: By GGML type name. Deviations of formats with random sub-scales or grids were measured by decoding 2^20
#: random elements with gguf-py; a test repeats that.
RANDOM_BLOCKS: dict[str, RandomBlock] = {
    "Q4_0": RandomBlock(32, 18, _uniform(16), 0),
    "Q4_1": RandomBlock(32, 20, _uniform(16), 0, 2, -7.5),
    "Q5_0": RandomBlock(32, 22, _uniform(32), 0),
    "Q5_1": RandomBlock(32, 24, _uniform(32), 0, 2, -15.5),
    "Q8_0": RandomBlock(32, 34, _uniform(256), 0),
    "Q2_K": RandomBlock(256, 84, 13.86, 80, 82, 1.5),
    "Q3_K": RandomBlock(256, 110, 43.39, 108),
    "Q4_K": RandomBlock(256, 144, 257.3, 0, 2, 7.5),
    "Q5_K": RandomBlock(256, 176, 526.0, 0, 2, 15.5),
    "Q6_K": RandomBlock(256, 210, 1364.0, 208),
    "IQ2_XXS": RandomBlock(256, 66, 53.3, 0),
    "IQ2_XS": RandomBlock(256, 74, 56.0, 0),
    "IQ2_S": RandomBlock(256, 82, 56.4, 0),
    "IQ3_XXS": RandomBlock(256, 98, 142.0, 0),
    "IQ3_S": RandomBlock(256, 110, 140.6, 0),
    "IQ1_S": RandomBlock(256, 50, 7.22, 0),
    "IQ4_NL": RandomBlock(32, 18, 67.2, 0),
    "IQ4_XS": RandomBlock(256, 136, 1249.0, 0),
    "TQ1_0": RandomBlock(256, 54, 0.817, 52),
    "TQ2_0": RandomBlock(256, 66, 1.118, 64),
    "Q1_0": RandomBlock(128, 18, 1.0, 0),
    "Q2_0": RandomBlock(64, 18, 1.118, 0),
    "MXFP4": RandomBlock(32, 17, 2.926, 0, scale="e8m0"),
    "NVFP4": RandomBlock(64, 36, 2.926, 0, scale="ue4m3"),
    "IQ1_M": RandomBlock(256, 56, 7.22, 48, scale="nibbles"),
}
#: Formats whose elements are numbers of their own.
PLAIN = {"F32": 4, "F16": 2, "BF16": 2}


def random_rows(kind: str, rows: int, cols: int, deviation: float, rng: np.random.Generator) -> Bytes:
    """uint8 [rows, bytes of a row]: random weights of GGML type ``kind`` as a GGUF file holds them.

    ``deviation`` is the standard deviation of the decoded elements; 1/sqrt(cols) keeps the size of a vector
    of activations. Raises UnsupportedModelError for a type that has no random form, or that cannot hold rows
    of ``cols`` elements.
    """
    if kind in PLAIN:
        return _plain(kind, rows, cols, deviation, rng)
    form = RANDOM_BLOCKS.get(kind)
    if form is None:
        raise UnsupportedModelError(
            f"there is no random form of type '{kind}'", f"Known: {', '.join((*PLAIN, *RANDOM_BLOCKS))}."
        )
    if cols % form.block:
        raise UnsupportedModelError(f"{cols} columns are no whole {kind} blocks of {form.block}")
    count = rows * (cols // form.block)
    blocks = _random_bytes(count * form.block_bytes, rng).reshape(count, form.block_bytes)
    scales = deviation / form.deviation * rng.uniform(*SPREAD, SCALES)
    choice = rng.integers(0, SCALES, count, dtype=np.uint16)
    _set_scales(blocks, form, scales, choice)
    return blocks.reshape(rows, -1)


def _random_bytes(size: int, rng: np.random.Generator) -> Bytes:
    """``size`` random bytes, made eight at a time: the quickest that NumPy has."""
    words = rng.integers(0, np.iinfo(np.uint64).max, -(-size // 8), dtype=np.uint64, endpoint=True)
    return words.view(np.uint8)[:size]


def _set_scales(
    blocks: Bytes, form: RandomBlock, scales: npt.NDArray[np.float64], choice: npt.NDArray[np.uint16]
) -> None:
    if form.scale == "e8m0":
        exponents = np.clip(np.rint(np.log2(scales)) + 127, 1, 254).astype(np.uint8)
        blocks[:, form.d_at] = exponents[choice]
        return
    if form.scale == "ue4m3":
        codes = _nearest_e4m3(scales)
        for part in range(4):
            blocks[:, form.d_at + part] = np.roll(codes, part)[choice]
        return
    d = scales.astype("<f2")
    if form.scale == "nibbles":
        # The four nibbles of d are the upper ones of four 16-bit words, the lowest nibble first.
        bits = d.view("<u2")
        for word in range(4):
            nibble = ((bits >> (4 * word)) & 15).astype(np.uint8) << 4
            at = form.d_at + 2 * word + 1
            blocks[:, at] = (blocks[:, at] & 15) | nibble[choice]
        return
    # A strided 16-bit store a block: blocks are an even number of bytes where d is a half.
    halves = blocks.view("<u2")
    halves[:, form.d_at // 2] = d.view("<u2")[choice]
    if form.min_at is not None:
        minima = (scales * form.min_ratio).astype("<f2")
        halves[:, form.min_at // 2] = minima.view("<u2")[choice]


def _nearest_e4m3(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Codes of the unsigned E4M3 numbers next to positive values: 2^-9 steps up to 2^-6, then 8 an octave."""
    codes = np.arange(1, 127)
    known = np.where(codes < 8, codes * 2.0**-9, (1 + codes % 8 / 8) * 2.0 ** (codes // 8 - 7))
    nearest: npt.NDArray[np.uint8] = codes[np.abs(values[:, None] - known).argmin(axis=1)].astype(np.uint8)
    return nearest


def _plain(kind: str, rows: int, cols: int, deviation: float, rng: np.random.Generator) -> Bytes:
    """Evenly distributed numbers of the wanted deviation, from a table that is drawn from."""
    table = (rng.uniform(-1, 1, 1 << 16) * (deviation * np.sqrt(3.0))).astype("<f4")
    choice = _random_bytes(2 * rows * cols, rng).view(np.uint16)
    if kind == "BF16":
        halves: npt.NDArray[np.generic] = (table.view("<u4") >> 16).astype("<u2")
    elif kind == "F16":
        halves = table.astype("<f2")
    else:
        halves = table
    return halves[choice].view(np.uint8).reshape(rows, cols * PLAIN[kind])
