"""From GGUF tensors to the graph of unfused ops: what is built, and what is refused in which words."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from forgec.errors import ForgeError, GGUFError, UnsupportedModelError
from forgec.frontend.architectures import ARCHITECTURES, build_graph
from forgec.frontend.gguf import open_gguf
from forgec.frontend.spec import read_spec
from forgec.ir import ops
from forgec.ir.printer import format_graph
from forgec.ir.repeats import sections
from forgec.ir.shapes import EXECUTABLE_TYPES
from forgec.ir.verify import verify
from tests.gguf_files import TinyModel, encode
from tests.ir_models import imported
from tests.smollm2 import require_smollm2


def refused(tmp_path, error: type[ForgeError], model: TinyModel, **spec: Any) -> ForgeError:
    with open_gguf(model.write(tmp_path / "model.gguf")) as gguf, pytest.raises(error) as caught:
        build_graph(gguf, dataclasses.replace(read_spec(gguf), **spec))
    return caught.value


def matrix(rows: int, cols: int, kind: str = "F32") -> Any:
    return encode(np.zeros((rows, cols), np.float32), kind)


def test_listing_of_a_tiny_llama(golden) -> None:
    golden(
        "import-llama.txt", format_graph(imported(TinyModel(block_count=1, quant="Q8_0", tied=True)).graph)
    )


def test_smollm2() -> None:
    with open_gguf(require_smollm2()) as gguf:
        graph = build_graph(gguf, read_spec(gguf))
        stored = sum(info.nbytes for info in gguf.tensors.values())
    assert len(graph.nodes) == 1 + 30 * 21 + 4
    assert [section.layers for section in sections(graph)] == [None, tuple(range(30)), None]
    assert sum(value.nbytes() for value in graph.of_kind("weight")) == stored
    types = {value.dtype for value in graph.of_kind("weight")}
    assert types == {"q4_1", "q8_0", "f32"}
    assert {node.name for node in graph.users("token_embd.weight")} == {"embedding", "output"}


def test_every_tensor_is_used_once_declared() -> None:
    model = TinyModel(block_count=3)
    graph = imported(model).graph
    weights = {value.tensor: value for value in graph.of_kind("weight")}
    assert {name: value.shape for name, value in weights.items()} == model.shapes()
    assert all(graph.users(value.name) for value in weights.values())
    assert weights["blk.2.ffn_up.weight"].layer == 2 and weights["output.weight"].layer is None


def test_scale_and_rope_follow_the_spec() -> None:
    model = TinyModel(key_length=10, metadata={"llama.rope.dimension_count": 6})
    graph = imported(model).graph
    assert graph.nodes["layer1.attn_scale"].op == ops.Scale(10**-0.5)
    assert graph.nodes["layer1.attn_k_rope"].op == ops.Rope(2, 10, 6, interleaved=True)
    assert graph.values["rope_table"].shape == ("context", 3, 2)


def test_rope_factors_belong_to_the_table() -> None:
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    graph = imported(TinyModel(tensors={"rope_freqs.weight": factors})).graph
    assert graph.values["rope_table"].tensor == "rope_freqs.weight"
    assert "constant rope_table: f32[context, 8, 2] from rope_freqs.weight" in format_graph(graph)


def test_biases_are_taken_where_they_are() -> None:
    bias = {"blk.1.ffn_down.bias": np.ones(64, np.float32), "output.bias": np.ones(288, np.float32)}
    graph = verify(imported(TinyModel(tensors=bias)).graph)
    assert graph.nodes["layer1.ffn_down"].inputs[2] == "blk.1.ffn_down.bias"
    assert graph.nodes["output"].inputs[2] == "output.bias"
    assert len(graph.nodes["layer0.ffn_down"].inputs) == 2


@pytest.mark.parametrize("kind", [name.upper() for name in EXECUTABLE_TYPES])
def test_executable_types(kind: str) -> None:
    graph = imported(
        TinyModel(block_count=1, embedding_length=256, quants={"blk.0.ffn_up.weight": kind})
    ).graph
    assert graph.values["blk.0.ffn_up.weight"].dtype == kind.lower()


def test_unknown_architecture(tmp_path) -> None:
    error = refused(tmp_path, UnsupportedModelError, TinyModel(), architecture="gptj")
    assert error.message == "architecture 'gptj' is not supported"
    assert error.hint == f"Supported: {', '.join(ARCHITECTURES)}."


def test_type_without_kernels(tmp_path) -> None:
    model = TinyModel(embedding_length=128, quants={"blk.0.ffn_up.weight": "Q1_0"}, block_count=1)
    error = refused(tmp_path, UnsupportedModelError, model)
    assert error.message.startswith("tensor 'blk.0.ffn_up.weight' has type Q1_0; expected F32, F16, Q4_0")
    assert "llama-quantize" in error.hint


def test_norm_in_another_type(tmp_path) -> None:
    model = TinyModel(tensors={"output_norm.weight": np.ones(64, np.float16)})
    error = refused(tmp_path, UnsupportedModelError, model)
    assert error.message == "tensor 'output_norm.weight' has type F16; expected F32"


def test_missing_tensor(tmp_path) -> None:
    error = refused(tmp_path, GGUFError, TinyModel(tensors={"blk.1.attn_k.weight": None}))
    assert error.message == "tensor 'blk.1.attn_k.weight' of shape [32, 64] is missing"
    assert "'llama'" in error.hint


@pytest.mark.parametrize("shape", [(96, 32), (64, 96), (95, 64)])
def test_odd_shape(tmp_path, shape: tuple[int, int]) -> None:
    model = TinyModel(tensors={"blk.0.ffn_gate.weight": matrix(*shape)})
    error = refused(tmp_path, GGUFError, model)
    assert error.message == (
        f"tensor 'blk.0.ffn_gate.weight' has shape {list(shape)}; expected [96, 64] from the metadata"
    )


def test_tensors_without_a_place(tmp_path) -> None:
    model = TinyModel(tensors={"blk.0.attn_q_norm.weight": np.ones(16, np.float32)})
    error = refused(tmp_path, UnsupportedModelError, model)
    assert error.message == "tensor 'blk.0.attn_q_norm.weight' has no place in architecture 'llama'"
    more = TinyModel(tensors={"a": np.ones(16, np.float32), "b": np.ones(16, np.float32)})
    error = refused(tmp_path, UnsupportedModelError, more)
    assert error.message == "tensor 'a' (and 1 more) has no place in architecture 'llama'"


def test_values_of_another_length(tmp_path) -> None:
    error = refused(tmp_path, UnsupportedModelError, TinyModel(), value_length=8)
    assert error.message == (
        "keys of 16 and values of 8 elements per head are not supported; both lengths must be equal"
    )
