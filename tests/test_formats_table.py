"""The table of formats: agrees with the GGUF types and with its page in docs/, and loses no bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from forgec.errors import UnsupportedModelError
from forgec.frontend.codebooks import codebook
from forgec.frontend.quant import QUANT_BY_NAME
from forgec.ir.shapes import EXECUTABLE_TYPES
from forgec.plan.layouts import FORMATS, matrix_bytes, pack, row_pitch

#: Bytes of a block and their bits that become the sign of a code.
INVERTED = {"q3_k": (slice(0, 32), 0xFF), "q6_k": (slice(128, 192), 0xAA)}
PAGE = Path(__file__).parents[1] / "docs" / "formats.md"


def test_the_executable_types_are_those_with_a_format() -> None:
    assert set(EXECUTABLE_TYPES) == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_are_gguf_blocks_and_fields_keep_them_whole(name: str) -> None:
    spec, quant = FORMATS[name], QUANT_BY_NAME[name.upper()]
    assert (spec.block, spec.block_bytes) == (quant.block, quant.block_bytes)
    assert sum(field.size for field in spec.fields) == spec.block_bytes
    assert len(spec.fields) <= 3
    assert 0.4 < spec.bytes_per_loaded_byte <= 1


def test_the_page_has_every_format() -> None:
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text("utf-8").splitlines() if "|" in line]
    table = {row[0]: row[1:5] for row in rows if row[0] in QUANT_BY_NAME}
    expected = {
        name.upper(): [
            str(f.block),
            str(f.block_bytes),
            f"{f.bits_per_weight:g}",
            " + ".join(str(field.size) for field in f.fields),
        ]
        for name, f in FORMATS.items()
    }
    assert table == expected


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "tq1_0"])
def test_packing_permutes_bits(name: str) -> None:
    """As many bits are set after as before, once those are inverted that become a sign."""
    spec = FORMATS[name]
    rows, cols = 3, 512
    raw = np.random.default_rng().integers(0, 256, rows * cols // spec.block * spec.block_bytes, np.uint8)
    packed = pack(raw, name, "rows", rows, cols)
    assert packed.size == matrix_bytes(name, "rows", rows, cols) == rows * row_pitch(name, cols)
    before = raw.reshape(-1, spec.block_bytes).copy()
    if name in INVERTED:
        part, mask = INVERTED[name]
        before[:, part] ^= mask
    assert np.unpackbits(packed).sum(dtype=int) == np.unpackbits(before).sum(dtype=int)


def test_rows_of_a_matrix_of_real_size_hardly_grow() -> None:
    for name, spec in FORMATS.items():
        assert row_pitch(name, 2048) <= 1.03 * 2048 // spec.block * spec.block_bytes


def test_codebooks() -> None:
    assert codebook("iq4_nl").shape == (16, 1) and codebook("iq2_s").shape == (1024, 8)
    assert set(np.unique(codebook("iq1"))) == {0, 8, 16}
    with pytest.raises(UnsupportedModelError, match="codebook 'iq9' is not known"):
        codebook("iq9")
