"""The passes: listings before and after each, the same numbers on both sides, and the pipeline's result."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from forgec import reference
from forgec.errors import VerifyError
from forgec.ir import ops
from forgec.ir.graph import Graph
from forgec.ir.printer import format_graph
from forgec.passes.choose_layout import ROWS8_TYPES
from forgec.passes.dead_code import DeadCode
from forgec.passes.manager import Pass, PassResult, run_passes
from forgec.passes.pipeline import PIPELINE, optimise
from forgec.plan.rows8 import PLANES
from forgec.targets import get_target
from forgec.targets.base import Target
from tests.gguf_files import TinyModel
from tests.ir_models import imported, one_layer, random_model, with_node

GFX1100 = get_target("gfx1100")
CPU = get_target("x86-64-v3")
TINY = TinyModel(block_count=2, quant="Q4_1", quants={"token_embd.weight": "Q8_0"}, feed_forward_length=128)
BIASES = {
    f"blk.0.{name}.bias": np.linspace(-1, 1, length, dtype=np.float32)
    for name, length in (("attn_q", 64), ("attn_k", 32), ("attn_v", 32), ("attn_output", 64))
}


def results_of(graph: Graph, target: Target = GFX1100) -> list[PassResult]:
    results: list[PassResult] = []
    optimise(graph, target, results.append)
    return results


@pytest.mark.parametrize("index", range(1, len(PIPELINE) + 1), ids=[step.name for step in PIPELINE])
def test_listing_before_and_after(index: int, golden) -> None:
    results = results_of(imported(TINY).graph)
    before, after = (format_graph(results[i].graph, collapse=True) for i in (index - 1, index))
    golden(f"passes/{index:02}-{results[index].name}.txt", f"-- before\n{before}\n-- after\n{after}")


def test_the_pipeline_leaves_five_nodes_per_layer() -> None:
    graph = results_of(imported(TINY).graph)[-1].graph
    forms = [
        (
            type(node.op).__name__,
            type(getattr(node.op, "prologue", None)),
            type(getattr(node.op, "epilogue", None)),
        )
        for node in graph.topo()
        if node.layer == 1
    ]
    none = type(None)
    assert forms == [
        ("FusedLinear", ops.RMSNormPrologue, ops.RopeKV),
        ("Attention", none, none),
        ("FusedLinear", ops.NoPrologue, ops.Residual),
        ("FusedLinear", ops.RMSNormPrologue, ops.Gated),
        ("FusedLinear", ops.NoPrologue, ops.Residual),
    ]
    head = [node for node in graph.topo() if node.layer is None]
    assert [type(node.op).__name__ for node in head] == ["Embedding", "SelectRow", "FusedLinear", "Sample"]
    assert head[2].op == ops.FusedLinear(ops.RMSNormPrologue(graph.spec.norm_epsilon), ops.Store(), 1, False)


def test_biases_reach_the_fused_ops() -> None:
    graph = results_of(imported(TinyModel(block_count=1, tensors=BIASES)).graph)[-1].graph
    qkv, output = graph.nodes["layer0.attn_qkv"], graph.nodes["layer0.attn_output"]
    assert isinstance(qkv.op, ops.FusedLinear) and isinstance(output.op, ops.FusedLinear)
    assert qkv.op.by_role(qkv.inputs) == ops.LinearInputs(
        x="embedding",
        norm_weight="blk.0.attn_norm.weight",
        norm_bias=None,
        weights=tuple(f"blk.0.attn_{s}.weight" for s in "qkv"),
        biases=tuple(f"blk.0.attn_{s}.bias" for s in "qkv"),
        residual=None,
        post_norm=None,
        q_norm=None,
        k_norm=None,
        rope_table="rope_table",
        k_cache="kv.k.0",
        v_cache="kv.v.0",
    )
    assert output.op.by_role(output.inputs).biases == ("blk.0.attn_output.bias",)
    assert output.op.by_role(output.inputs).residual == "embedding"


def check_every_pass(model: TinyModel, rng: np.random.Generator) -> None:
    """Two steps through every graph of the pipeline: all give what the import gives."""
    case = imported(model, seed=int(rng.integers(1 << 30)))
    prompt, then = (rng.integers(0, model.vocab_size, size=int(n)) for n in rng.integers(1, 7, size=2))
    row = int(rng.integers(len(prompt)))
    expected: list[dict[str, np.ndarray]] = []
    for result in results_of(case.graph):
        first, state = reference.run(result.graph, case.weights, prompt, row=row)
        second, state = reference.run(result.graph, case.weights, then, len(prompt), state)
        found = [first, second, state]
        expected = expected or found
        for old, new in zip(expected, found, strict=True):
            assert old.keys() == new.keys()
            for name in old:
                # Sums in another order: a few units in the last place of numbers around 1.
                np.testing.assert_allclose(new[name], old[name], rtol=1e-11, atol=1e-11, err_msg=result.name)


@pytest.mark.parametrize("seed", range(8))
def test_every_pass_keeps_the_numbers(seed: int) -> None:
    rng = np.random.default_rng([seed, 1])
    check_every_pass(random_model(rng), rng)


def test_every_pass_keeps_the_numbers_with_biases_and_quantised_weights() -> None:
    check_every_pass(TinyModel(block_count=1, quant="Q4_0", tensors=BIASES), np.random.default_rng(2))


def test_passes_do_not_change_their_argument() -> None:
    graph = imported(TINY).graph
    before = format_graph(graph)
    for step in PIPELINE:
        step.run(graph, GFX1100)
    assert format_graph(graph) == before


def test_a_second_run_changes_nothing() -> None:
    once = optimise(imported(TINY).graph, CPU)
    assert format_graph(optimise(once, CPU)) == format_graph(once)


@pytest.mark.parametrize("tied", [True, False])
def test_layouts(tied: bool) -> None:
    graph = one_layer(tied=tied)
    on_gpu = {v.name: v.layout for v in optimise(graph, GFX1100).of_kind("weight")}
    on_cpu = {v.name: v.layout for v in optimise(graph, CPU).of_kind("weight")}
    assert set(on_gpu.values()) == {"plain", "rows"}
    assert on_gpu["blk.0.ffn_norm.weight"] == on_cpu["blk.0.ffn_norm.weight"] == "plain"
    assert on_cpu["blk.0.ffn_down.weight"] == "rows8"
    # An embedding is read by row; only as the output matrix too is it multiplied.
    assert on_cpu["token_embd.weight"] == ("rows8" if tied else "rows")


def test_the_layouts_of_the_cpu_are_those_with_kernels() -> None:
    assert set(ROWS8_TYPES) == set(PLANES)


def test_dead_code_goes_and_cache_updates_stay() -> None:
    graph = one_layer()
    dead = with_node(graph, "layer0.unused", ops.SiLU(), "layer0.ffn_gate")
    dead = with_node(dead, "layer0.unused_too", ops.SiLU(), "layer0.unused")
    cleaned = DeadCode().run(dead, GFX1100)
    assert format_graph(cleaned) == format_graph(graph)

    blind = graph.replace()
    blind.outputs = ("embedding",)
    kept = DeadCode().run(blind, GFX1100)
    assert [node.name for node in kept.topo()] == [
        "embedding",
        "layer0.attn_norm",
        "layer0.attn_k",
        "layer0.attn_v",
        "layer0.attn_k_rope",
        "layer0.kv_append",
    ]
    assert "blk.0.ffn_up.weight" not in kept.values


def test_the_callback_sees_the_import_and_every_pass() -> None:
    results = results_of(one_layer())
    assert [(r.index, r.name) for r in results] == [
        (0, "import"),
        (1, "fuse-attention"),
        (2, "fuse-qkv"),
        (3, "fuse-gated"),
        (4, "fuse-logits"),
        (5, "fuse-pointwise"),
        (6, "fuse-residual"),
        (7, "fuse-norm-add"),
        (8, "split-norm"),
        (9, "fuse-norm"),
        (10, "dead-code"),
        (11, "choose-layout"),
    ]
    assert all(r.seconds >= 0 for r in results)


def test_a_pass_that_breaks_the_graph_is_named() -> None:
    @dataclass(frozen=True)
    class Broken(Pass):
        name: str = "broken"

        def run(self, graph: Graph, target: Target) -> Graph:
            broken = graph.replace()
            broken.outputs = ("nothing",)
            return broken

    with pytest.raises(
        VerifyError, match=r"^after pass 'broken': output 'nothing' is not a value of the graph$"
    ):
        run_passes(one_layer(), GFX1100, [Broken()])
