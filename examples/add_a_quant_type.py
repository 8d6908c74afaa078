"""Adds a quantisation type: one row of data, one struct of device code. Then multiplies with it on the CPU.

The toy type stores 32 weights d * (q - 1.5) in ten bytes: a float16 d and 32 codes of two bits, four in a
byte. In the tree the row goes into ``forgec/plan/formats.py``, the struct into
``templates/lib/formats/toy.hip.j2`` and the GGUF type into ``forgec/frontend/quant.py``; then every stage of
every target has it. Run it without arguments.
"""

from __future__ import annotations

import ctypes
import tempfile
from unittest.mock import patch

import jinja2
import numpy as np

from forgec.codegen import render
from forgec.plan.field_orders import two_bits
from forgec.plan.formats import FORMATS, Field, Format, cut
from forgec.plan.layouts import pack
from forgec.plan.stages import MatvecParams, Segment
from forgec.targets import get_target
from forgec.toolchain import Unit, compile_units


def lane_order(blocks: np.ndarray) -> np.ndarray:
    """The codes of each block, bytes [..., 10] -> [..., 8], in the order that ``pair_of_word`` unpacks."""
    codes = (blocks[..., 2:, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
    words = codes.reshape(*blocks.shape[:-1], 32).view(np.uint32)
    return two_bits(words).view(np.uint8)


ROW = Format("toy", 32, 10, (Field(8, lane_order), cut(0, 2)))

STRUCT = """
// toy: 32 weights d * (q - 1.5); field 0 has 8 bytes of pairs of bits, field 1 an f16 d.
struct Format_toy : BlockFormat {
  static constexpr int kBytes0 = 8, kBytes1 = 2;
  static constexpr bool kOffset = true;
  struct Raw {
    u32x2 q;
    u32 d;
  };
  template <class P> DEVICE Raw load(P f0, P f1, P, int slice) {
    return {load8(f0 + slice * 8), load2(f1 + slice * 2)};
  }
  DEVICE float scale(const Raw& raw, int) { return low_f16(raw.d); }
  DEVICE float offset(const Raw& raw, int) { return -1.5f * low_f16(raw.d); }
  DEVICE void words(const Raw& raw, i32 (&out)[8]) {
    UNROLL for (int w = 0; w < 8; ++w) out[w] = (i32)pair_of_word<0>(raw.q[w / 4], w % 4);
  }
};
"""


def product(raw: np.ndarray, rows: int, cols: int, x: np.ndarray) -> np.ndarray:
    """y[rows] = W x on the CPU, W of the toy type as its bytes would lie in a GGUF file."""
    target = get_target("x86-64-v3")
    params = MatvecParams(
        *(target.family, target.wave, target.block_size),
        cols=cols,
        segments=(Segment("toy", rows),),
        layout="rows",
        act="f32",
        epilogue="store",
        bias=False,
        prologue="none",
        eps=0.0,
        row_select=False,
        lanes_per_row=1,
        rows_per_group=4,
    )
    sources = jinja2.ChoiceLoader(
        [
            jinja2.DictLoader({"lib/formats/toy.hip.j2": STRUCT}),
            render.environment().loader or jinja2.DictLoader({}),
        ]
    )
    environment = render.environment().overlay(loader=sources)
    text = environment.get_template(render.stage_template("matvec", target.family)).render(k=params)
    code = compile_units([Unit(params.symbol, text, (params.symbol,))], target)[0]
    packed = pack(raw, "toy", "rows", rows, cols)
    y, state = np.zeros(rows, np.float32), np.zeros(64, np.uint8)
    arrays = {"state": state, "x": x, "w0": packed, "out": y}
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(code.data)
        file.flush()
        arguments = (ctypes.c_void_p * len(params.args))(*(arrays[a.name].ctypes.data for a in params.args))
        ctypes.CDLL(file.name)[params.symbol](arguments, 0, 1)
    return y


def main() -> float:
    """Largest difference from NumPy's product with the decoded weights, relative to the largest result."""
    rng = np.random.default_rng()
    rows, cols = 37, 256
    d = rng.uniform(-1, 1, (rows, cols // 32, 1)).astype(np.float16)
    codes = rng.integers(0, 4, (rows, cols // 32, 8, 4)).astype(np.uint8)
    packed = codes[..., 0] | codes[..., 1] << 2 | codes[..., 2] << 4 | codes[..., 3] << 6
    raw = np.concatenate([d.view(np.uint8), packed], -1).reshape(-1)
    weights = (d.astype(np.float64) * (codes.reshape(rows, -1, 32) - 1.5)).reshape(rows, cols)
    x = rng.standard_normal(cols).astype(np.float32)
    with patch.dict(FORMATS, {"toy": ROW}):
        found = product(raw, rows, cols, x)
    expected = weights @ x
    return float(np.abs(found - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    print(f"largest relative difference from NumPy: {main():.1e}")
