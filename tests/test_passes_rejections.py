"""Where passes must not fire: every row of every fusion table, with the one thing that forbids it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from forgec.ir import ops
from forgec.ir.graph import Graph, Node, Rewrite, Value
from forgec.ir.printer import format_graph
from forgec.ir.verify import verify
from forgec.passes.fuse_attention import FuseAttention
from forgec.passes.fuse_gated import FuseGated
from forgec.passes.fuse_norm import FuseNorm
from forgec.passes.fuse_qkv import FuseQKV
from forgec.passes.fuse_residual import FuseResidual
from forgec.passes.match import FusionPass
from forgec.targets import get_target
from tests.ir_models import edited, one_layer, with_inputs, with_node, with_op

TARGET = get_target("gfx1100")
ROPE = ops.Rope(heads=4, head_length=16, dims=16, interleaved=True)


def check_rejected(step: FusionPass, graph: Graph, fused_otherwise: str) -> None:
    """``step`` fuses the unedited layer under this name, and leaves the valid ``graph`` as it is there."""
    assert fused_otherwise in step.run(one_layer(), TARGET).nodes
    assert fused_otherwise not in verify(step.run(verify(graph), TARGET)).nodes
    assert format_graph(step.run(graph, TARGET)) == format_graph(graph)


def as_output(graph: Graph, value: str) -> Graph:
    new = graph.replace()
    new.outputs = (*graph.outputs, value)
    return new


def with_bias(graph: Graph, *nodes: str) -> Graph:
    """Give linear nodes of the layer a bias."""
    for name in nodes:
        length = graph.values[graph.nodes[name].outputs[0]].shape[-1]
        bias = Value(f"{name}.bias", (length,), "f32", "weight", tensor=f"{name}.bias", layer=0)
        node = graph.nodes[name]
        graph = edited(graph, dataclasses.replace(node, inputs=(*node.inputs, bias.name)), bias)
    return graph


# -- attention

INSIDE_ATTENTION = ("attn_qk", "attn_scale", "attn_mask", "attn_softmax")


@pytest.mark.parametrize("value", INSIDE_ATTENTION)
def test_attention_needs_its_scores_for_itself(value: str) -> None:
    graph = with_node(one_layer(), "layer0.extra", ops.Softmax(), f"layer0.{value}")
    check_rejected(FuseAttention(), graph, "layer0.attention")
    check_rejected(FuseAttention(), as_output(one_layer(), f"layer0.{value}"), "layer0.attention")


def test_attention_keeps_window_slopes_and_cap() -> None:
    graph = with_op(one_layer(), "layer0.attn_mask", ops.Mask(causal=True, window=32, alibi=8.0))
    graph = with_node(graph, "layer0.attn_cap", ops.SoftCap(30.0), "layer0.attn_scale")
    graph = with_inputs(graph, "layer0.attn_mask", x="layer0.attn_cap")
    fused = FuseAttention().run(graph, TARGET).nodes["layer0.attention"].op
    assert fused == ops.Attention(4, 2, 16, 0.25, True, window=32, softcap=30.0, alibi=8.0)


def test_attention_without_scale_is_another_pattern() -> None:
    graph = with_inputs(one_layer(), "layer0.attn_mask", x="layer0.attn_qk")
    check_rejected(FuseAttention(), graph, "layer0.attention")


def test_attention_with_the_mask_before_the_scale_is_another_pattern() -> None:
    graph = one_layer()
    graph = with_inputs(graph, "layer0.attn_mask", x="layer0.attn_qk")
    graph = with_inputs(graph, "layer0.attn_scale", x="layer0.attn_mask")
    graph = with_inputs(graph, "layer0.attn_softmax", x="layer0.attn_scale")
    check_rejected(FuseAttention(), graph, "layer0.attention")


@pytest.mark.parametrize("changed", [{"heads": 2}, {"kv_heads": 4}, {"row_length": 32}])
def test_attention_needs_the_same_heads_on_both_sides(changed: dict[str, int]) -> None:
    # No valid graph gets here, because both caches have one shape; the guard does not rely on that.
    out = ops.WeightedV(**{"heads": 4, "kv_heads": 2, "value_length": 16} | changed)
    graph = with_op(one_layer(), "layer0.attn_weighted_v", out)
    assert "layer0.attention" not in FuseAttention().run(graph, TARGET).nodes


def test_attention_that_is_not_causal_stays_so() -> None:
    graph = with_op(one_layer(), "layer0.attn_mask", ops.Mask(causal=False))
    fused = FuseAttention().run(graph, TARGET).nodes["layer0.attention"].op
    assert fused == ops.Attention(4, 2, 16, scale=0.25, causal=False)


# -- q, k, v


@pytest.mark.parametrize("value", ["attn_q", "attn_k", "attn_v", "attn_k_rope"])
def test_qkv_needs_the_projections_for_itself(value: str) -> None:
    graph = with_node(one_layer(), "layer0.extra", ops.SiLU(), f"layer0.{value}")
    check_rejected(FuseQKV(), graph, "layer0.attn_qkv")


def test_qkv_rotates_q_and_k_alike() -> None:
    graph = with_op(one_layer(), "layer0.attn_q_rope", dataclasses.replace(ROPE, interleaved=False))
    check_rejected(FuseQKV(), graph, "layer0.attn_qkv")


def test_qkv_rotates_by_one_table() -> None:
    graph = one_layer()
    graph.declare(Value("other_table", ("context", 8, 2), "f32", "constant"))
    graph = with_inputs(graph, "layer0.attn_q_rope", rope_table="other_table")
    check_rejected(FuseQKV(), graph, "layer0.attn_qkv")


def test_qkv_rotates_as_many_dimensions() -> None:
    graph = one_layer()
    graph.declare(Value("short_table", ("context", 4, 2), "f32", "constant"))
    for name, heads in (("layer0.attn_q_rope", 4), ("layer0.attn_k_rope", 2)):
        node = graph.nodes[name]
        op = ops.Rope(heads, 16, 8 if heads == 4 else 16, True)
        table = "short_table" if heads == 4 else "rope_table"
        graph = edited(graph, dataclasses.replace(node, op=op, inputs=(node.inputs[0], table)))
    check_rejected(FuseQKV(), graph, "layer0.attn_qkv")


@pytest.mark.parametrize("biased", [("attn_q",), ("attn_k", "attn_v"), ("attn_q", "attn_v")])
def test_qkv_has_all_biases_or_none(biased: tuple[str, ...]) -> None:
    graph = with_bias(one_layer(), *(f"layer0.{name}" for name in biased))
    check_rejected(FuseQKV(), graph, "layer0.attn_qkv")


def test_qkv_rotates_the_heads_of_the_cache() -> None:
    """As many values, but rotated as heads twice as long as those of the cache."""
    graph = with_op(one_layer(), "layer0.attn_q_rope", ops.Rope(2, 32, 16, True))
    graph = with_op(graph, "layer0.attn_k_rope", ops.Rope(1, 32, 16, True))
    check_rejected(FuseQKV(), graph, "layer0.attn_qkv")


def test_qkv_without_rotation_is_another_pattern() -> None:
    graph = with_inputs(one_layer(), "layer0.attn_qk", q="layer0.attn_q")
    check_rejected(FuseQKV(), graph, "layer0.attn_qkv")
    graph = with_inputs(one_layer(), "layer0.kv_append", k="layer0.attn_k")
    check_rejected(FuseQKV(), graph, "layer0.attn_qkv")


@pytest.mark.parametrize("node", ["attn_q", "attn_k", "attn_v"])
def test_qkv_reads_one_value(node: str) -> None:
    graph = with_inputs(one_layer(), f"layer0.{node}", x="embedding")
    check_rejected(FuseQKV(), graph, "layer0.attn_qkv")


def test_qkv_would_depend_on_itself() -> None:
    """The cache that is appended to depends on the very q: one fused node would be a cycle."""
    graph = one_layer()
    append = graph.nodes["layer0.kv_append"]
    later = [graph.values[name].next_version() for name in append.outputs]
    graph = with_node(graph, "layer0.half", ops.Linear(), "layer0.attn_q_rope", "blk.0.attn_k.weight")
    first = dataclasses.replace(
        append, name="layer0.first", inputs=("layer0.half", "layer0.half", "kv.k.0", "kv.v.0")
    )
    second = Node(
        append.name, append.op, (*append.inputs[:2], *append.outputs), tuple(v.name for v in later), layer=0
    )
    graph = graph.replace([Rewrite((append.name,), (first, second), tuple(later))])
    graph = with_inputs(graph, "layer0.attn_qk", k_cache=later[0].name)
    graph = with_inputs(graph, "layer0.attn_weighted_v", v_cache=later[1].name)
    check_rejected(FuseQKV(), graph, "layer0.attn_qkv")


# -- gate and up


@pytest.mark.parametrize("value", ["ffn_gate", "ffn_up", "ffn_silu"])
def test_swiglu_needs_gate_and_up_for_itself(value: str) -> None:
    graph = with_node(one_layer(), "layer0.extra", ops.SiLU(), f"layer0.{value}")
    check_rejected(FuseGated(), graph, "layer0.ffn_gate_up")
    check_rejected(FuseGated(), as_output(one_layer(), f"layer0.{value}"), "layer0.ffn_gate_up")


def test_swiglu_reads_one_value() -> None:
    graph = with_inputs(one_layer(), "layer0.ffn_up", x="layer0.attn_residual")
    check_rejected(FuseGated(), graph, "layer0.ffn_gate_up")


@pytest.mark.parametrize("biased", ["layer0.ffn_gate", "layer0.ffn_up"])
def test_swiglu_has_both_biases_or_none(biased: str) -> None:
    check_rejected(FuseGated(), with_bias(one_layer(), biased), "layer0.ffn_gate_up")
    both = with_bias(one_layer(), "layer0.ffn_gate", "layer0.ffn_up")
    assert verify(FuseGated().run(both, TARGET)).nodes["layer0.ffn_gate_up"].inputs[3:] == (
        "layer0.ffn_gate.bias",
        "layer0.ffn_up.bias",
    )


def test_swiglu_multiplies_two_projections() -> None:
    graph = with_inputs(one_layer(), "layer0.ffn_mul", b="layer0.ffn_gate")
    check_rejected(FuseGated(), graph, "layer0.ffn_gate_up")


def test_swiglu_takes_the_product_in_either_order() -> None:
    graph = with_inputs(one_layer(), "layer0.ffn_mul", a="layer0.ffn_up", b="layer0.ffn_silu")
    fused = FuseGated().run(graph, TARGET).nodes["layer0.ffn_gate_up"]
    assert fused.inputs[1:] == ("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight")


# -- residual


def residual_ops(graph: Graph) -> dict[str, ops.Op]:
    return {name: node.op for name, node in FuseResidual().run(graph, TARGET).nodes.items()}


def test_residual_needs_the_product_for_itself() -> None:
    graph = with_node(one_layer(), "layer0.extra", ops.SiLU(), "layer0.ffn_down")
    assert residual_ops(graph)["layer0.ffn_down"] == ops.Linear()
    assert residual_ops(as_output(one_layer(), "layer0.ffn_down"))["layer0.ffn_down"] == ops.Linear()
    assert isinstance(residual_ops(one_layer())["layer0.ffn_down"], ops.FusedLinear)


def test_residual_is_not_the_product_itself() -> None:
    graph = with_inputs(one_layer(), "layer0.ffn_residual", a="layer0.ffn_down")
    assert residual_ops(verify(graph))["layer0.ffn_down"] == ops.Linear()


def test_of_two_products_one_takes_the_sum() -> None:
    """Add(Linear, Linear): one fuses with the other as its residual; neither is lost."""
    graph = with_inputs(one_layer(), "layer0.ffn_residual", a="layer0.attn_output")
    graph = with_inputs(graph, "layer0.ffn_norm", x="embedding")
    graph = with_inputs(graph, "layer0.attn_residual", a="embedding", b="embedding")
    found = residual_ops(verify(graph))
    assert sorted(type(found[name]).__name__ for name in ("layer0.attn_output", "layer0.ffn_down")) == [
        "FusedLinear",
        "Linear",
    ]


# -- norm


def norm_op(graph: Graph, node: str) -> ops.Op:
    return verify(FuseNorm().run(verify(graph), TARGET)).nodes[node].op


def test_norm_fuses_with_its_single_user() -> None:
    assert norm_op(one_layer(), "output") == ops.FusedLinear(
        ops.RMSNormPrologue(one_layer().spec.norm_epsilon), ops.Store(), 1, False
    )


@pytest.mark.parametrize("name", ["layer0.attn_norm", "layer0.ffn_norm"])
def test_norm_with_several_users_stays(name: str) -> None:
    assert isinstance(norm_op(one_layer(), name), ops.RMSNorm)


def test_norm_that_is_an_output_stays() -> None:
    assert norm_op(as_output(one_layer(), "output_norm"), "output") == ops.Linear()


def test_norm_that_is_the_residual_too_stays() -> None:
    graph = with_node(one_layer(), "layer0.sum", ops.Linear(), "layer0.ffn_norm", "blk.0.attn_output.weight")
    fused = ops.FusedLinear(ops.NoPrologue(), ops.Residual(), 1, False)
    inputs = ("output_norm", "blk.0.attn_output.weight", "output_norm")
    graph = edited(graph, dataclasses.replace(graph.nodes["layer0.sum"], op=fused, inputs=inputs))
    graph = graph.replace(values=[dataclasses.replace(graph.values["layer0.sum"], shape=(1, 64))])
    graph = with_inputs(graph, "output", x="layer0.sum")
    assert norm_op(graph, "layer0.sum") == fused


def test_norm_is_not_fused_twice() -> None:
    graph = with_node(
        one_layer(), "second", ops.RMSNorm(1e-5), "output_norm", "output_norm.weight", layer=None
    )
    graph = with_inputs(graph, "output", x="second")
    once = FuseNorm().run(verify(graph), TARGET)
    assert isinstance(once.nodes["output_norm"].op, ops.RMSNorm)
    assert "second" not in once.nodes
    assert format_graph(FuseNorm().run(once, TARGET)) == format_graph(once)


def test_norm_of_the_residual_but_not_of_x_stays() -> None:
    """The normed value feeds the residual and not the product."""
    graph = one_layer()
    fused = ops.FusedLinear(ops.NoPrologue(), ops.Residual(), 1, False)
    graph = with_node(
        graph, "tail", fused, "select_row", "blk.0.attn_output.weight", "output_norm", layer=None
    )
    graph = with_inputs(graph, "output", x="tail")
    assert norm_op(graph, "tail") == fused


def test_rejections_are_about_real_graphs() -> None:
    """The unedited layer is what the numbers above assume: 4 heads of 16, 2 KV heads, embedding 64."""
    spec = one_layer().spec
    assert (spec.head_count, spec.head_count_kv, spec.key_length, spec.embedding_length) == (4, 2, 16, 64)
    assert np.isclose(one_layer().nodes["layer0.attn_scale"].op.factor, 0.25)
