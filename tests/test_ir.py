"""The graph itself: building, order, rewriting, and what the verifier refuses, word for word."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from forgec.errors import VerifyError
from forgec.ir import ops
from forgec.ir.graph import Graph, Node, Rewrite, Value
from forgec.ir.shapes import EXECUTABLE_TYPES, infer
from forgec.ir.verify import verify
from tests.ir_models import edited, one_layer, with_inputs, with_node, with_op

# -- building and reading


def chain() -> Graph:
    """a -> SiLU -> b -> SiLU -> c, and d = b * c."""
    graph = Graph(one_layer().spec, outputs=("d",))
    graph.declare(Value("a", ("rows", 4), "f32", "input"))
    temps = {name: Value(name, ("rows", 4), "f32") for name in "bcd"}
    graph.add(Node("n1", ops.SiLU(), ("a",), ("b",)), temps["b"])
    graph.add(Node("n2", ops.SiLU(), ("b",), ("c",)), temps["c"])
    graph.add(Node("n3", ops.Mul(), ("b", "c"), ("d",)), temps["d"])
    return graph


def test_producers_and_users() -> None:
    graph = chain()
    assert graph.producer("a") is None
    assert graph.producer("c") == graph.nodes["n2"]
    assert [node.name for node in graph.users("b")] == ["n2", "n3"]
    assert graph.users("d") == ()
    assert [value.name for value in graph.inputs] == ["a"]
    assert [node.name for node in graph] == ["n1", "n2", "n3"]


def test_a_value_used_twice_by_one_node_has_one_user() -> None:
    graph = edited(chain(), Node("n3", ops.Mul(), ("b", "b"), ("d",)))
    assert [node.name for node in graph.users("b")] == ["n2", "n3"]


def test_topological_order_follows_addition_wherever_it_can() -> None:
    graph = one_layer()
    assert [node.name for node in graph.topo()] == list(graph.nodes)
    # A node that was added too early moves only as far back as it must.
    moved = graph.restrict(set(graph.nodes) - {"layer0.ffn_up"}, graph.values)
    late = Graph(graph.spec, graph.outputs)
    for value in graph.values.values():
        late.declare(value)
    late.add(graph.nodes["layer0.ffn_up"])
    for node in moved.nodes.values():
        late.add(node)
    order = [node.name for node in late.topo()]
    assert order.index("layer0.ffn_up") == order.index("layer0.ffn_norm") + 1


def test_replace_puts_nodes_where_the_last_was_and_drops_lost_values() -> None:
    graph = chain()
    fused = Node("n23", ops.Mul(), ("b", "b"), ("d",))
    new = graph.replace([Rewrite(("n2", "n3"), (fused,))])
    assert list(new.nodes) == ["n1", "n23"]
    assert "c" not in new.values and "c" in graph.values
    assert new.users("b") == (fused,)


def test_reaches() -> None:
    graph = chain()
    assert graph.reaches(["b"], {"d"})
    assert graph.reaches(["c"], {"c"})
    assert not graph.reaches(["c"], {"b"})
    assert not graph.reaches(["b"], {"c"}, without={"n2"})


def test_versions_of_a_state() -> None:
    state = Value("kv.k.3", (2, "context", 8), "f32", "state")
    assert (state.root, state.version) == ("kv.k.3", 0)
    second = state.next_version().next_version()
    assert (second.name, second.root, second.version) == ("kv.k.3@2", "kv.k.3", 2)
    assert Value("a@b", (1,), "f32").root == "a@b"


def test_bytes() -> None:
    assert Value("w", (576, 64), "q4_1", "weight", "w").nbytes() == 576 * 64 // 32 * 20
    assert Value("t", (3, "rows", "context"), "f32").nbytes(rows=5, context=7) == 3 * 5 * 7 * 4


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda g: g.declare(Value("a", (1,), "f32")), "value 'a' is declared twice"),
        (lambda g: g.add(Node("n1", ops.SiLU(), ("a",), ())), "node 'n1' is added twice"),
        (
            lambda g: g.add(Node("n4", ops.SiLU(), ("z",), ("a",))),
            "node 'n4' refers to the unknown value 'z'",
        ),
        (
            lambda g: g.add(Node("n4", ops.SiLU(), ("a",), ("b",))),
            "value 'b' is produced by node 'n1' and again by 'n4'",
        ),
        (lambda g: g.replace([Rewrite(("n9",))]), "a rewrite removes the unknown node 'n9'"),
        (lambda g: g.replace([Rewrite(("n3",)), Rewrite(("n3",))]), "two rewrites remove node 'n3'"),
        (lambda g: g.replace([Rewrite(("n1",))]), "node 'n2' refers to the unknown value 'b'"),
    ],
)
def test_graph_refuses(build: Callable[[Graph], object], message: str) -> None:
    with pytest.raises(VerifyError) as caught:
        build(chain())
    assert caught.value.message == message


def test_a_cycle_is_named() -> None:
    graph = Graph(one_layer().spec)
    for name in "ab":
        graph.declare(Value(name, ("rows", 4), "f32"))
    graph.add(Node("forth", ops.SiLU(), ("a",), ("b",)))
    graph.add(Node("back", ops.SiLU(), ("b",), ("a",)))
    with pytest.raises(VerifyError, match=r"^nodes 'forth', 'back' form a cycle$"):
        verify(graph)


# -- the verifier


def changed(graph: Graph, name: str, **fields: object) -> Graph:
    """The graph with other fields in one value."""
    return graph.replace(values=[dataclasses.replace(graph.values[name], **fields)])


def as_output(graph: Graph, *names: str) -> Graph:
    graph.outputs = names
    return graph


def skipping(graph: Graph) -> Graph:
    """kv_append makes version 2 of V from version 0."""
    later = dataclasses.replace(graph.values["kv.v.0@1"], name="kv.v.0@2")
    append = graph.nodes["layer0.kv_append"]
    mixed = graph.nodes["layer0.attn_weighted_v"]
    return graph.replace(
        [
            Rewrite(
                (append.name,), (dataclasses.replace(append, outputs=("kv.k.0@1", later.name)),), (later,)
            ),
            Rewrite((mixed.name,), (dataclasses.replace(mixed, inputs=(mixed.inputs[0], later.name)),)),
        ]
    )


Q = "blk.0.attn_q.weight"

REJECTIONS: dict[str, tuple[Callable[[Graph], Graph], str]] = {
    "kind": (
        lambda g: changed(g, "embedding", kind="buffer"),
        "value 'embedding': expected a kind of input/weight/constant/state/temp, found 'buffer'",
    ),
    "dtype": (lambda g: changed(g, "embedding", dtype="f8"), "value 'embedding': unknown dtype 'f8'"),
    "no dimension": (
        lambda g: changed(g, "embedding", shape=()),
        "value 'embedding': expected at least one dimension, found none",
    ),
    "extent": (
        lambda g: changed(g, "embedding", shape=("rows", 0)),
        "value 'embedding': expected extents above 0 or rows/context, found '0'",
    ),
    "symbol": (
        lambda g: changed(g, "embedding", shape=("batch", 64)),
        "value 'embedding': expected extents above 0 or rows/context, found 'batch'",
    ),
    "weight without tensor": (
        lambda g: changed(g, Q, tensor=None),
        f"value '{Q}': a weight must name its GGUF tensor",
    ),
    "layout": (
        lambda g: changed(g, Q, layout="tiles"),
        f"value '{Q}': layout 'tiles' is not one for a value of kind 'weight'",
    ),
    "layout of a temp": (
        lambda g: changed(g, "embedding", layout="rows"),
        "value 'embedding': layout 'rows' is not one for a value of kind 'temp'",
    ),
    "layer": (
        lambda g: changed(g, "embedding", layer=1),
        "value 'embedding': expected a layer from 0 to 0, found 1",
    ),
    "temp without producer": (
        lambda g: changed(g, "tokens", kind="temp"),
        "value 'tokens': no node produces it",
    ),
    "produced weight": (
        lambda g: changed(g, "embedding", kind="weight", tensor="x"),
        "value 'embedding': node 'embedding' produces a value of kind 'weight'",
    ),
    "few inputs": (
        lambda g: edited(g, dataclasses.replace(g.nodes["layer0.attn_qk"], inputs=("embedding",))),
        "node 'layer0.attn_qk': QK takes 2 inputs (q, k_cache), found 1",
    ),
    "many inputs": (
        lambda g: edited(g, dataclasses.replace(g.nodes["layer0.attn_q"], inputs=("embedding",) * 4)),
        "node 'layer0.attn_q': Linear takes 2 or 3 inputs (x, weight, bias?), found 4",
    ),
    "outputs": (
        lambda g: edited(
            g, dataclasses.replace(g.nodes["sample"], outputs=("token", "two")), Value("two", (1,), "i32")
        ),
        "node 'sample': Sample makes 1 outputs (token), found 2",
    ),
    "input shape": (
        lambda g: with_inputs(g, "layer0.ffn_down", x="embedding"),
        "node 'layer0.ffn_down': expected x 'embedding' of shape [rows, 96], found [rows, 64]",
    ),
    "input type": (
        lambda g: with_inputs(g, "layer0.ffn_silu", x="tokens"),
        "node 'layer0.ffn_silu': expected x 'tokens' of type f32, found i32",
    ),
    "output shape": (
        lambda g: changed(g, "token", shape=(2,)),
        "node 'sample': expected output 'token' of i32[1], found i32[2]",
    ),
    "output type": (
        lambda g: changed(g, "logits", dtype="f16"),
        "node 'output': expected output 'logits' of f32[1, 288], found f16[1, 288]",
    ),
    "weight type": (
        lambda g: changed(g, Q, dtype="q8_k"),
        f"node 'layer0.attn_q': expected weight '{Q}' of type {'/'.join(EXECUTABLE_TYPES)}, found q8_k",
    ),
    "blocks": (
        lambda g: changed(g, Q, dtype="q8_0", shape=(64, 40)),
        f"node 'layer0.attn_q': expected weight '{Q}' with rows of whole blocks of 32, found 40",
    ),
    "temp as weight": (
        lambda g: with_inputs(g, "layer0.attn_q", weight="embedding"),
        "node 'layer0.attn_q': expected weight 'embedding' of kind weight, found temp",
    ),
    "heads": (
        lambda g: with_op(g, "layer0.attn_qk", ops.QK(3, 2, 16)),
        "node 'layer0.attn_qk': expected heads that are a multiple of the 2 KV heads, found 3",
    ),
    "rope": (
        lambda g: with_op(g, "layer0.attn_q_rope", ops.Rope(4, 16, 18, True)),
        "node 'layer0.attn_q_rope': expected RoPE dims that are even and from 2 to 16, found 18",
    ),
    "rope table": (
        lambda g: with_op(g, "layer0.attn_q_rope", ops.Rope(4, 16, 8, True)),
        "node 'layer0.attn_q_rope': expected rope_table 'rope_table' of shape [context, 4, 2], "
        "found [context, 8, 2]",
    ),
    "window": (
        lambda g: with_op(g, "layer0.attn_mask", ops.Mask(True, -1)),
        "node 'layer0.attn_mask': expected a window of at least 1, or 0 for none, found -1",
    ),
    "sinks": (
        lambda g: with_op(g, "layer0.attn_softmax", ops.Softmax(sinks=True)),
        "node 'layer0.attn_softmax': Softmax takes 2 inputs (x, sinks), found 1",
    ),
    "value prefix": (
        lambda g: with_op(g, "layer0.attn_weighted_v", ops.WeightedV(4, 2, 16, 12)),
        "node 'layer0.attn_weighted_v': expected cache rows of at least 16 elements, found 12",
    ),
    "cache that is no state": (
        lambda g: with_inputs(g, "layer0.attn_qk", k_cache="embedding"),
        "node 'layer0.attn_qk': expected k_cache 'embedding' of kind state, found temp",
    ),
    "old version": (
        lambda g: with_inputs(g, "layer0.attn_qk", k_cache="kv.k.0"),
        "node 'layer0.attn_qk': reads state 'kv.k.0', which node 'layer0.kv_append' overwrites; "
        "expected 'kv.k.0@1' or later",
    ),
    "state from another": (
        lambda g: with_inputs(g, "layer0.kv_append", v_cache="kv.k.0"),
        "node 'layer0.kv_append': makes state 'kv.v.0@1' without reading the version before it",
    ),
    "skipped version": (
        skipping,
        "node 'layer0.kv_append': makes state 'kv.v.0@2' without reading the version before it",
    ),
    "unknown output": (
        lambda g: as_output(g, "logit"),
        "output 'logit' is not a value of the graph",
    ),
    "repeated output": (
        lambda g: as_output(g, "logits", "token", "logits"),
        "output 'logits' is listed twice",
    ),
}


@pytest.mark.parametrize("case", REJECTIONS, ids=[name.replace(" ", "-") for name in REJECTIONS])
def test_verifier_rejects(case: str) -> None:
    edit, message = REJECTIONS[case]
    graph = edit(verify(one_layer()))
    with pytest.raises(VerifyError) as caught:
        verify(graph)
    assert caught.value.message == message


FUSED = ops.FusedLinear(ops.NoPrologue(), ops.Store(), 1, False)
X = Value("x", ("rows", 64), "f32")
W = Value("w", (48, 64), "q4_0", "weight", "w")
NORM = Value("norm", (64,), "f32", "weight", "norm")


@pytest.mark.parametrize(
    ("op", "inputs", "message"),
    [
        (
            ops.FusedLinear(ops.NoPrologue(), ops.Gated(ops.SiLU()), 3, False),
            (X, W, W, W),
            "expected Gated with 2 segments, found 3",
        ),
        (
            ops.FusedLinear(ops.NoPrologue(), ops.Gated(ops.SiLU()), 2, False),
            (X, W, dataclasses.replace(W, shape=(40, 64))),
            "expected gate and up of equal length, found 48 and 40",
        ),
        (
            ops.FusedLinear(ops.RMSNormPrologue(1e-5), ops.Store(), 1, False),
            (X, dataclasses.replace(NORM, shape=(48,)), W),
            "expected norm_weight 'norm' of shape [64], found [48]",
        ),
        (
            ops.FusedLinear(ops.NoPrologue(), ops.Residual(), 1, False),
            (X, W, X),
            "expected residual 'x' of shape [rows, 48], found [rows, 64]",
        ),
        (
            ops.FusedLinear(ops.NoPrologue(), ops.Store(), 1, True),
            (X, W, NORM),
            "expected bias0 'norm' of shape [48], found [64]",
        ),
        (
            FUSED,
            (X, dataclasses.replace(W, shape=(48, 32))),
            "expected x 'x' of shape [rows, 32], found [rows, 64]",
        ),
        (FUSED, (X, W, W), "FusedLinear takes 2 inputs (x, weight0), found 3"),
    ],
)
def test_fused_linear_rejects(op: ops.FusedLinear, inputs: tuple[Value, ...], message: str) -> None:
    with pytest.raises(VerifyError) as caught:
        infer("n", op, inputs)
    assert caught.value.message == f"node 'n': {message}"


def test_rope_kv_checks_its_segments() -> None:
    cache = Value("kv.k.0", (2, "context", 16), "f32", "state")
    table = Value("rope_table", ("context", 8, 2), "f32", "constant")
    op = ops.FusedLinear(ops.NoPrologue(), ops.RopeKV(4, 2, 16, 16, True), 3, False)
    q, k = (dataclasses.replace(W, shape=(rows, 64)) for rows in (64, 32))
    types = infer("n", op, (X, q, k, k, table, cache, cache))
    assert types == ((("rows", 64), "f32"), (cache.shape, "f32"), (cache.shape, "f32"))
    with pytest.raises(
        VerifyError, match=r"expected q, k and v of length \[64, 32, 32\], found \[64, 32, 64\]"
    ):
        infer("n", op, (X, q, k, q, table, cache, cache))


def test_several_segments_lie_side_by_side() -> None:
    op = dataclasses.replace(FUSED, segments=2)
    assert infer("n", op, (X, W, dataclasses.replace(W, shape=(5, 64)))) == ((("rows", 53), "f32"),)


def test_an_op_without_rule_is_refused() -> None:
    class Mystery(ops.Op):
        pass

    with pytest.raises(VerifyError, match=r"^node 'n': op 'Mystery' has no shape rule$"):
        with_node(one_layer(), "n", Mystery(), "embedding")


def test_every_op_has_a_docstring_with_its_equation() -> None:
    for name in ops.__all__:
        text = getattr(ops, name).__doc__
        assert text and not text.startswith(f"{name}("), f"{name} needs a docstring of its own"
