"""A file whose matrices have different types, also within a fused product: the CPU against the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from forgec import reference
from forgec.compiler import compile_model
from forgec.config import load_config
from forgec.frontend import open_gguf
from forgec.frontend.architectures import build_graph
from forgec.frontend.spec import read_spec
from forgec.package.loader import import_package
from forgec.plan.program import CompileOptions
from forgec.toolchain import open_cache
from tests.gguf_files import TinyModel

#: q, k and v in three types, two of them without kernels for interleaved rows; gate and up in two.
MIXED = TinyModel(
    block_count=1,
    embedding_length=256,
    feed_forward_length=256,
    key_length=64,
    quant="Q4_K",
    quants={
        "token_embd.weight": "Q6_K",
        "blk.0.attn_k.weight": "Q4_0",
        "blk.0.attn_v.weight": "Q6_K",
        "blk.0.ffn_up.weight": "Q8_0",
        "output.weight": "Q4_1",
    },
)


def test_mixed_types_give_the_references_logits(tmp_path: Path) -> None:
    path = MIXED.write(tmp_path / "mixed.gguf", np.random.default_rng())
    tokens = [5, 7, 200, 31, 5]
    with open_gguf(path) as gguf:
        graph = build_graph(gguf, read_spec(gguf))
        expected = [
            reference.run(graph, gguf.array, tokens, row=row)[0]["logits"][0] for row in range(len(tokens))
        ]
    options = CompileOptions(math="exact", context=64, kv_dtype="f32", chunk=16)
    compile_model(path, "x86-64-v3", tmp_path / "out", options, cache=open_cache(load_config())[0])
    with import_package(tmp_path / "out").load(threads=2) as model:
        found = model.logits(tokens)
    np.testing.assert_allclose(found, np.stack(expected), rtol=0, atol=2e-5 * np.abs(expected).max())
