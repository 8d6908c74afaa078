"""Files whose matrices have different types, also within a fused product: the CPU against llama.cpp.

Three tiny models hold every weight type between them. llama.cpp runs them with the same weights in F32, where
it computes in float32, and as they are, where it rounds activations to 8 bits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from forgec.compiler import compile_model
from forgec.config import load_config
from forgec.golden import quality
from forgec.golden.llama_cpp import LlamaCpp
from forgec.golden.rewrite import write_f32
from forgec.ir.shapes import EXECUTABLE_TYPES
from forgec.package.loader import import_package
from forgec.plan.program import CompileOptions
from forgec.toolchain import open_cache
from tests.gguf_files import Encoded, TinyModel
from tests.kernels.harness import random_weights

TINY = TinyModel(block_count=1, embedding_length=256, feed_forward_length=256, key_length=64)
#: Matrices of the models in turn: neighbours, such as q, k and v, get types far apart in the list.
MATRICES = [name for name, shape in TINY.shapes().items() if len(shape) == 2]
COUNT = -(-len(EXECUTABLE_TYPES) // len(MATRICES))
POSITIONS = 40


def types_of(model: int) -> dict[str, str]:
    """Matrix name -> type: every ``COUNT``-th of the list, from the start again at its end."""
    names = EXECUTABLE_TYPES[model::COUNT]
    return {matrix: names[i % len(names)] for i, matrix in enumerate(MATRICES)}


def test_every_type_is_in_a_model() -> None:
    assert {t for model in range(COUNT) for t in types_of(model).values()} == set(EXECUTABLE_TYPES)


@pytest.mark.parametrize("number", range(COUNT))
def test_the_logits_and_the_perplexity_are_llama_cpps(tmp_path: Path, number: int) -> None:
    rng = np.random.default_rng()
    tensors = {}
    for name, kind in types_of(number).items():
        rows, cols = TINY.shapes()[name]
        raw, _ = random_weights(rng, kind, rows, cols)
        tensors[name] = Encoded(np.ascontiguousarray(raw).reshape(rows, -1), kind.upper())
    model = TinyModel(**{**vars(TINY), "tensors": tensors}).write(tmp_path / "mixed.gguf", rng)
    tokens = [int(t) for t in rng.integers(3, 280, POSITIONS)]
    options = CompileOptions(math="exact", context=64, kv_dtype="f32", chunk=16)
    compile_model(model, "x86-64-v3", tmp_path / "out", options, cache=open_cache(load_config())[0])
    with import_package(tmp_path / "out").load(threads=2) as package:
        own = quality.Scores.of(package.logits(tokens), tokens)
    write_f32(model, tmp_path / "f32.gguf")
    exact = llama_cpp_scores(tmp_path / "f32.gguf", tokens)
    given = llama_cpp_scores(model, tokens)
    assert np.abs(own.logprobs - exact.logprobs).max() < 2e-4
    assert own.perplexity == pytest.approx(exact.perplexity, rel=1e-5)
    # A text of 40 tokens; on 512 of them it stays within 0.5 % (docs/benchmarks.md).
    assert own.perplexity == pytest.approx(given.perplexity, rel=2e-2)


def llama_cpp_scores(model: Path, tokens: list[int]) -> quality.Scores:
    with LlamaCpp(model, context=64, kv="f32") as oracle:
        return quality.Scores.of(oracle.decode(tokens, every=True), tokens)
