"""What the passes make of every family's layer, and where the rows for norms and functions must not fire."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path

import pytest

from forgec.frontend.architectures import build_graph
from forgec.frontend.gguf import open_gguf
from forgec.frontend.spec import read_spec
from forgec.ir import ops
from forgec.ir.graph import Graph
from forgec.ir.printer import op_text
from forgec.ir.verify import verify
from forgec.passes.fuse_norm_add import FuseNormAdd
from forgec.passes.fuse_pointwise import FuseLogits, FusePointwise
from forgec.passes.fuse_qkv import FuseQKV
from forgec.passes.manager import Pass
from forgec.passes.pipeline import optimise
from forgec.passes.split_norm import SplitNorm
from forgec.targets import get_target
from tests.ir_models import edited, with_inputs, with_node, with_op
from tests.models.tiny import TINY

TARGET = get_target("gfx1100")


@functools.cache
def _graph(name: str) -> Graph:
    with tempfile.TemporaryDirectory() as folder:
        path = TINY[name].write(Path(folder) / "tiny.gguf", name)
        with open_gguf(path) as gguf:
            return build_graph(gguf, read_spec(gguf))


def graph_of(name: str) -> Graph:
    """The imported graph of a tiny model; one of its own for every call."""
    return _graph(name).replace()


def test_forms_of_every_family(golden) -> None:
    """The nodes of each kind of layer after all passes: one launch each, two where QKV norms q and k."""
    lines = []
    for name in TINY:
        graph = optimise(graph_of(name), TARGET)
        lines.append(f"{name}")
        seen: list[list[str]] = []
        for layer in range(graph.spec.block_count):
            form = [op_text(node.op) for node in graph.topo() if node.layer == layer]
            if form not in seen:
                seen.append(form)
                lines += [f"  layer {layer}", *(f"    {text}" for text in form)]
        lines += ["  head", f"    {op_text(graph.nodes['output'].op)}"]
    golden("passes/families.txt", "\n".join(lines) + "\n")


def check_rejected(step: Pass, graph: Graph, edit: Graph, node: str) -> None:
    """``step`` removes or changes ``node`` of ``graph``, and leaves that of the valid ``edit`` alone."""
    assert step.run(graph, TARGET).nodes.get(node) != graph.nodes[node]
    assert verify(step.run(verify(edit), TARGET)).nodes[node] == edit.nodes[node]


def as_output(graph: Graph, value: str) -> Graph:
    new = graph.replace()
    new.outputs = (*graph.outputs, value)
    return new


# -- norm and residual


def test_norm_add_needs_the_normed_value_for_itself() -> None:
    graph, node = graph_of("gemma2"), "layer0.post_attention_norm"
    check_rejected(FuseNormAdd(), graph, with_node(graph, "layer0.extra", ops.SiLU(), node), node)
    check_rejected(FuseNormAdd(), graph, as_output(graph, node), node)


def test_norm_add_takes_the_residual_on_either_side() -> None:
    graph = graph_of("gemma2")
    add = graph.nodes["layer0.attn_residual"]
    turned = edited(graph, dataclasses.replace(add, inputs=add.inputs[::-1]))
    fused = FuseNormAdd().run(turned, TARGET).nodes["layer0.attn_output"]
    assert isinstance(fused.op, ops.FusedLinear) and fused.op.epilogue == ops.NormResidual(
        graph.spec.norm_epsilon
    )
    assert fused.op.by_role(fused.inputs).residual == "embedding"


def test_norm_add_without_the_projection() -> None:
    """A product that others read too stays, and the norm takes the addition alone."""
    graph = as_output(graph_of("gemma2"), "layer0.attn_output")
    fused = verify(FuseNormAdd().run(graph, TARGET))
    assert fused.nodes["layer0.attn_output"] == graph.nodes["layer0.attn_output"]
    assert fused.nodes["layer0.post_attention_norm"].op == ops.NormAdd(ops.RMSNorm(graph.spec.norm_epsilon))


# -- norms of several users


def fused_but_norms(name: str) -> Graph:
    """The graph just before SplitNorm would double its norms."""
    graph = graph_of(name)
    for step in (FuseQKV(), FusePointwise()):
        graph = step.run(graph, TARGET)
    return graph


def test_split_norm_gives_each_product_its_own() -> None:
    graph = verify(SplitNorm().run(fused_but_norms("phi2"), TARGET))
    users = {name: [user.name for user in graph.users(name)] for name in graph.values}
    assert len(users["layer0.attn_norm"]) == len(users["layer0.attn_norm.2"]) == 1
    assert graph.nodes["layer0.attn_norm.2"].op == graph.nodes["layer0.attn_norm"].op
    assert SplitNorm().run(graph, TARGET).nodes == graph.nodes


def test_split_norm_leaves_what_others_read() -> None:
    graph = fused_but_norms("phi2")
    for other in (
        with_node(graph, "layer0.extra", ops.SiLU(), "layer0.attn_norm"),
        as_output(graph, "layer0.attn_norm"),
        with_inputs(graph, "layer0.ffn_residual", b="layer0.attn_norm"),
    ):
        assert "layer0.attn_norm.2" not in verify(SplitNorm().run(verify(other), TARGET)).nodes


# -- functions of single elements


def test_a_function_needs_the_product_for_itself() -> None:
    graph, node = graph_of("gpt2"), "layer0.ffn_gelu"
    check_rejected(FusePointwise(), graph, with_node(graph, "extra", ops.SiLU(), "layer0.ffn_up"), node)
    check_rejected(FusePointwise(), graph, as_output(graph, "layer0.ffn_up"), node)


def test_only_a_scale_is_added_to_a_residual() -> None:
    graph, node = graph_of("granite"), "layer0.attn_residual"
    check_rejected(FusePointwise(), graph, with_op(graph, "layer0.attn_scaled", ops.SiLU()), node)
    fused = FusePointwise().run(graph, TARGET).nodes["layer0.attn_output"].op
    assert isinstance(fused, ops.FusedLinear) and fused.epilogue == ops.Residual(
        ops.Scale(graph.spec.residual_scale)
    )


def test_logits_are_capped_in_the_head_alone() -> None:
    graph = graph_of("gemma2")
    fused = FuseLogits().run(graph, TARGET)
    assert fused.producer("logits") is fused.nodes["output"]
    assert [name for name in graph.nodes if name not in fused.nodes] == ["logits"]
    check_rejected(FuseLogits(), graph, as_output(graph, "output"), "logits")


# -- q, k and v


@pytest.mark.parametrize(
    ("name", "node", "op"),
    [
        ("qwen3", "layer0.attn_k_norm", ops.HeadNorm(2, 1e-3, centred=False)),
        ("qwen3", "layer0.attn_k_norm", ops.HeadNorm(2, 1e-5, centred=True)),
        ("olmo2", "layer0.attn_q_norm", ops.RMSNorm(1e-3)),
        ("olmo", "layer0.attn_v_clamp", ops.Clamp(9.0)),
        ("qwen3", "layer0.attn_k_rope", ops.Rope(2, 16, 16, interleaved=True)),
    ],
)
def test_q_k_and_v_are_treated_alike(name: str, node: str, op: ops.Op) -> None:
    graph = graph_of(name)
    assert "layer0.attn_qkv" in FuseQKV().run(graph, TARGET).nodes
    other = verify(with_op(graph, node, op))
    assert "layer0.attn_qkv" not in FuseQKV().run(other, TARGET).nodes


def test_an_unrotated_query_is_the_one_that_attention_reads() -> None:
    graph = graph_of("gpt2")
    assert "layer0.attn_qkv" not in FuseQKV().run(graph, TARGET).nodes, "attention is not fused yet"
    fused = optimise(graph, TARGET)
    attention = fused.nodes["layer0.attention"]
    assert attention.inputs[0] == fused.nodes["layer0.attn_qkv"].outputs[0] == "layer0.attn_q"
