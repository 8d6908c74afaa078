"""The metadata and tensors that only some architectures have: what is read, and what is refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgec.commands.inspect import _positions
from forgec.errors import ForgeError, GGUFError, UnsupportedModelError
from forgec.frontend.architectures import build_graph
from forgec.frontend.gguf import open_gguf
from forgec.frontend.spec import ModelSpec, read_spec
from forgec.inspection import inspect_file
from forgec.ir import ops
from forgec.ir.graph import Graph
from tests.models.tiny import TINY, Tiny


def imported(tiny: Tiny, folder: Path) -> tuple[ModelSpec, Graph]:
    with open_gguf(tiny.write(folder / "tiny.gguf", "tiny")) as gguf:
        spec = read_spec(gguf)
        return spec, build_graph(gguf, spec)


def with_metadata(name: str, **changes: Any) -> Tiny:
    """A model with other metadata; None takes a key away."""
    metadata = {**TINY[name].metadata, **{key.replace("__", "."): value for key, value in changes.items()}}
    return dataclasses.replace(TINY[name], metadata=metadata)


def windows(graph: Graph) -> list[int]:
    """The window of every layer in order."""
    return [node.op.window for node in graph.topo() if isinstance(node.op, ops.Mask)]


def test_optional_numbers_are_none_where_the_file_is_silent(tmp_path: Path) -> None:
    spec, _ = imported(TINY["llama"], tmp_path)
    assert (spec.sliding_window, spec.window_pattern, spec.logit_scale) == (0, None, None)
    assert (spec.attention_softcap, spec.parallel_residual, spec.rope_finetuned) == (None, None, None)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [6, 6, 6, 6, 6, 0]),
        ({"attention__sliding_window_pattern": 2}, [6, 0, 6, 0, 6, 0]),
        ({"attention__sliding_window_pattern": 0}, [6] * 6),
        ({"attention__sliding_window_pattern": [True, False, False, True, True, False]}, [6, 0, 0, 6, 6, 0]),
        ({"attention__sliding_window": 0}, [0] * 6),
        ({"attention__sliding_window": None}, [0] * 6),
    ],
)
def test_which_layers_have_a_window(tmp_path: Path, changes: dict[str, Any], expected: list[int]) -> None:
    _, graph = imported(with_metadata("gemma3", **changes), tmp_path)
    assert windows(graph) == expected


def test_windowed_layers_of_gemma_3_rotate_otherwise(tmp_path: Path) -> None:
    _, graph = imported(TINY["gemma3"], tmp_path)
    bases = {
        node.layer: (rope.freq_base, rope.scaling)
        for node in graph.topo()
        if isinstance(node.op, ops.Rope) and (rope := graph.values[node.inputs[1]].rope) is not None
    }
    assert bases == {**dict.fromkeys(range(5), (10000.0, "none")), 5: (1e6, "linear")}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("granite", {"logit_scale": None}, "the metadata key 'granite.logit_scale' is missing"),
        ("command-r", {"logit_scale": None}, "the metadata key 'command-r.logit_scale' is missing"),
        (
            "gptneox",
            {"use_parallel_residual": None},
            "the metadata key 'gptneox.use_parallel_residual' is missing",
        ),
        (
            "cohere2",
            {"attention__sliding_window": None},
            "the metadata key 'cohere2.attention.sliding_window' is missing",
        ),
        (
            "gptneox",
            {"use_parallel_residual": 1},
            "metadata key 'gptneox.use_parallel_residual' must be a bool, found 1",
        ),
        (
            "gemma3",
            {"attention__sliding_window_pattern": [True, False]},
            "metadata key 'gemma3.attention.sliding_window_pattern' has 2 values for 6 layers",
        ),
        (
            "gemma3",
            {"attention__sliding_window_pattern": 7},
            "metadata key 'gemma3.attention.sliding_window_pattern' must be an array of bools "
            "or an integer from 0 to 6",
        ),
        (
            "gemma2",
            {"attn_logit_softcapping": "50"},
            "metadata key 'gemma2.attn_logit_softcapping' must be a number, found '50'",
        ),
        (
            "mpt",
            {"attention__max_alibi_bias": -1.0},
            "metadata key 'mpt.attention.max_alibi_bias' must be from 0 to 1000, found -1",
        ),
    ],
)
def test_refused_metadata(tmp_path: Path, name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GGUFError) as caught:
        imported(with_metadata(name, **changes), tmp_path)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("name", "changes", "kind", "message"),
    [
        (
            "phi3",
            {"attn_qkv.weight": (64, 64)},
            GGUFError,
            "tensor 'blk.0.attn_qkv.weight' has shape [64, 64]; expected [128, 64] from the metadata",
        ),
        (
            "glm4",
            {"post_ffw_norm.weight": None},
            GGUFError,
            "tensor 'blk.0.post_ffw_norm.weight' of shape [64] is missing",
        ),
        (
            "qwen3",
            {"attn_q_norm.weight": None},
            GGUFError,
            "tensor 'blk.0.attn_q_norm.weight' of shape [16] is missing",
        ),
        (
            "gpt2",
            {"attn_norm.weight": None},
            GGUFError,
            "tensor 'blk.0.attn_norm.weight' of shape [64] is missing",
        ),
        (
            "mpt",
            {"ffn.act.scales": (96,)},
            UnsupportedModelError,
            "tensor 'blk.0.ffn.act.scales' (and 1 more) has no place in architecture 'mpt'",
        ),
    ],
)
def test_refused_tensors(
    tmp_path: Path,
    name: str,
    changes: dict[str, tuple[int, ...] | None],
    kind: type[ForgeError],
    message: str,
) -> None:
    shapes = {**TINY[name].layer, **changes}
    layer = {tensor: shape for tensor, shape in shapes.items() if shape is not None}
    with pytest.raises(kind) as caught:
        imported(dataclasses.replace(TINY[name], layer=layer), tmp_path)
    assert caught.value.message == message


def test_views_of_one_matrix_are_its_rows_in_order(tmp_path: Path) -> None:
    with open_gguf(TINY["phi3"].write(tmp_path / "tiny.gguf", "phi3")) as gguf:
        graph = build_graph(gguf, read_spec(gguf))
        whole = gguf.array("blk.1.attn_qkv.weight")
    views = [graph.values[graph.nodes[f"layer1.attn_{which}"].inputs[1]] for which in "qkv"]
    assert [(view.first_row, view.shape[0]) for view in views] == [(0, 64), (64, 32), (96, 32)]
    assert {view.tensor for view in views} == {"blk.1.attn_qkv.weight"} and len(whole) == 128
    assert len({view.name for view in views}) == 3 and np.isfinite(whole).all()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("gemma3", "RoPE              base 10000, scaling none; base 1e+06, scaling linear"),
        ("gpt2", "positions         learned"),
        ("bloom", "positions         ALiBi"),
    ],
)
def test_inspect_says_how_positions_are_known(tmp_path: Path, name: str, line: str) -> None:
    path = TINY[name].write(tmp_path / "tiny.gguf", name)
    found = inspect_file(path)
    assert found.spec is not None and _positions(found.graph, found.spec).strip() == line
