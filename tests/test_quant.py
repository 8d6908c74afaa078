"""The GGML type table and dequantisation, against gguf-py's table and libgguf's C decoder."""

from __future__ import annotations

import gguf
import libgguf
import numpy as np
import pytest

from forgec.errors import GGUFError, UnsupportedModelError
from forgec.frontend.quant import QUANT_BY_NAME, QUANT_TYPES, REMOVED_TYPES, dequantize

PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
# Intermediate types of ggml's matrix products: no file stores weights in them and nothing decodes them.
UNDECODABLE = ("Q8_1", "Q8_K")
DECODED_BY_LIBGGUF = [
    name
    for name in QUANT_BY_NAME
    if name not in PLAIN and name not in UNDECODABLE and name not in ("BF16", "Q2_0")
]


def test_the_table_agrees_with_gguf_py() -> None:
    theirs = {
        (kind.name, kind.value, *gguf.GGML_QUANT_SIZES[kind])
        for kind in gguf.GGMLQuantizationType
        if kind.name != "Q8_1"  # gguf-py has 40 bytes, from when the two scales were float32
    }
    ours = {(q.name, q.ggml_id, q.block, q.block_bytes) for q in QUANT_TYPES.values()}
    assert theirs <= ours
    assert {entry[0] for entry in ours - theirs} == {"Q8_1", "Q2_0"}


def test_both_views_of_the_table_hold_the_same_types() -> None:
    assert list(QUANT_BY_NAME.values()) == list(QUANT_TYPES.values())
    assert all(QUANT_TYPES[q.ggml_id] is q and QUANT_BY_NAME[q.name] is q for q in QUANT_TYPES.values())
    assert not REMOVED_TYPES.keys() & QUANT_TYPES.keys()


@pytest.mark.parametrize("name", DECODED_BY_LIBGGUF)
def test_random_blocks_decode_as_in_c(name: str) -> None:
    rng = np.random.default_rng()
    quant = QUANT_BY_NAME[name]
    rows, cols = int(rng.integers(1, 6)), quant.block * int(rng.integers(1, 4))
    raw = rng.integers(0, 256, (rows, quant.nbytes(cols)), dtype=np.uint8)
    expected = libgguf.dequantize_rows(raw, quant.ggml_id, cols)
    found = dequantize(raw, name, rows, cols)
    assert found.dtype == np.float32
    # A product of at most three float32 factors and one sum: a few roundings, relative to the value.
    np.testing.assert_allclose(found, expected, rtol=4e-7, atol=0)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_numbers_decode_to_their_value(name: str) -> None:
    rng = np.random.default_rng()
    rows, cols = int(rng.integers(1, 7)), int(rng.integers(1, 40))
    values = rng.integers(-100, 100, (rows, cols)).astype(PLAIN[name])
    found = dequantize(values.view(np.uint8), name, rows, cols)
    assert found.dtype == np.float32 and found.shape == (rows, cols)
    np.testing.assert_array_equal(found, values.astype(np.float32))


def test_bf16_is_the_upper_half_of_a_float32() -> None:
    values = np.random.default_rng().standard_normal((3, 7), np.float32)
    halves = (values.view(np.uint32) >> 16).astype("<u2")
    expected = (halves.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(dequantize(halves.view(np.uint8), "BF16", 3, 7), expected)


def test_q2_0_codes_are_steps_of_the_scale_from_minus_one() -> None:
    codes = np.random.default_rng().integers(0, 4, 64)
    packed = [sum(int(code) << (2 * i) for i, code in enumerate(codes[j : j + 4])) for j in range(0, 64, 4)]
    block = np.concatenate([np.array([0.375], "<f2").view(np.uint8), np.array(packed, np.uint8)])
    np.testing.assert_array_equal(dequantize(block, "Q2_0", 1, 64)[0], (codes - 1) * np.float32(0.375))


def test_the_result_is_a_copy() -> None:
    raw = np.zeros(8, np.uint8)
    found = dequantize(raw, "F32", 1, 2)
    found += 1
    assert not raw.any()


@pytest.mark.parametrize("name", UNDECODABLE)
def test_types_without_a_decoder_are_refused(name: str) -> None:
    quant = QUANT_BY_NAME[name]
    with pytest.raises(UnsupportedModelError) as caught:
        dequantize(np.zeros(quant.block_bytes, np.uint8), name, 1, quant.block)
    assert caught.value.message == f"tensors of type {name} cannot be decoded"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        dequantize(np.zeros(4, np.uint8), "Q9_Z", 1, 1)
    assert caught.value.message == "quantisation type 'Q9_Z' is not known"
    assert caught.value.hint.startswith("Known types: F32, F16, Q4_0, ")


@pytest.mark.parametrize(
    ("nbytes", "cols", "message"),
    [
        (34, 33, "rows of 33 elements are not whole Q8_0 blocks of 32 elements"),
        (35, 32, "1 x 32 Q8_0 elements take 34 bytes, found 35"),
        (0, 64, "1 x 64 Q8_0 elements take 68 bytes, found 0"),
    ],
)
def test_bytes_that_do_not_fit_the_shape_are_refused(nbytes: int, cols: int, message: str) -> None:
    with pytest.raises(GGUFError) as caught:
        dequantize(np.zeros(nbytes, np.uint8), "Q8_0", 1, cols)
    assert caught.value.message == message
