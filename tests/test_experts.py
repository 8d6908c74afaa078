"""Mixture of experts above the kernels: routing by hand, types, fusion, traffic, fast against exact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from forgec.cli import cli
from forgec.compiler import compile_model
from forgec.config import load_config
from forgec.errors import GGUFError, UnsupportedModelError, VerifyError
from forgec.frontend.architectures import build_graph
from forgec.frontend.gguf import open_gguf
from forgec.frontend.spec import read_spec
from forgec.ir.expert_ops import Experts, Routing
from forgec.ir.graph import Graph, Value
from forgec.ir.shapes import infer
from forgec.package.loader import import_package
from forgec.passes.pipeline import optimise
from forgec.plan.lower import lower
from forgec.plan.program import CompileOptions, Program
from forgec.plan.traffic import weight_bytes_per_token
from forgec.reference.experts import activate, route
from forgec.targets import get_target
from forgec.toolchain import open_cache
from tests.models.record import PROMPT, tokens_of
from tests.models.test_architectures import check, log_softmax, run
from tests.models.tiny import CONTEXT, EXPERTS, TINY, USED, E, Tiny


def test_routing_by_hand() -> None:
    logits = np.log(np.array([[1.0, 4.0, 2.0, 3.0]]))
    chosen, weights = route(Routing(4, 2), logits)
    assert chosen.tolist() == [[1, 3]] and np.allclose(weights, [[0.4, 0.3]])
    assert np.allclose(route(Routing(4, 2, normalise=True, scale=2.0), logits)[1], [[8 / 7, 6 / 7]])
    assert np.allclose(route(Routing(4, 2, "softmax_chosen"), logits)[1], [[4 / 7, 3 / 7]])
    # sigmoid(log x) = x / (1 + x); the bias changes who is chosen and not what it weighs.
    chosen, weights = route(Routing(4, 2, "sigmoid"), logits, np.array([1.0, 0, 0, 0]))
    assert chosen.tolist() == [[0, 1]] and np.allclose(weights, [[1 / 2, 4 / 5]])
    # Groups {0, 1} and {2, 3} sum to 5 and 5: the first wins; without it expert 3 would have been second.
    assert route(Routing(4, 2, groups=2, groups_used=1), logits)[0].tolist() == [[1, 0]]


def test_clamped_activation_by_hand() -> None:
    g, u = np.array([9.0, -1.0]), np.array([-8.0, 3.0])
    expected = [7 / (1 + np.exp(-1.702 * 7)) * -6, -1 / (1 + np.exp(1.702)) * 4]
    assert np.allclose(activate("clamped", g, u), expected)


def values(**changes: tuple[int, ...]) -> list[Value]:
    """The inputs of an Experts op without options, some with other shapes."""
    shapes: dict[str, tuple[int | str, ...]] = {
        "x": ("rows", 64),
        "logits": ("rows", 4),
        "gate": (4, 32, 64),
        "up": (4, 32, 64),
        "down": (4, 64, 32),
        **changes,
    }
    kinds = {"x": "temp", "logits": "temp"}
    return [
        Value(name, shape, "f32", kinds.get(name, "weight"), tensor=name) for name, shape in shapes.items()
    ]


@pytest.mark.parametrize(
    ("routing", "changes", "message"),
    [
        (Routing(4, 5), {}, "expected experts used from 1 to 4, found 5"),
        (Routing(4, 2, groups=3), {}, "expected groups that divide the experts 4, found 3"),
        (Routing(4, 2), {"logits": ("rows", 5)}, r"expected logits 'logits' of shape \[rows, 4\]"),
        (Routing(4, 2), {"up": (4, 16, 64)}, r"expected up 'up' of shape \[4, 32, 64\]"),
        (Routing(4, 2), {"down": (4, 32, 64)}, r"expected down 'down' of shape \[4, 64, 32\]"),
    ],
)
def test_shapes_that_do_not_fit(routing: Routing, changes: dict[str, tuple[int, ...]], message: str) -> None:
    assert infer("n", Experts(Routing(4, 2)), values()) == ((("rows", 64), "f32"),)
    with pytest.raises(VerifyError, match=message):
        infer("n", Experts(routing), values(**changes))


def graph_of(tiny: Tiny, folder: Path) -> Graph:
    with open_gguf(tiny.write(folder / "tiny.gguf", "experts")) as gguf:
        return build_graph(gguf, read_spec(gguf))


def program_of(tiny: Tiny, folder: Path, target: str = "gfx1100", math: str = "exact") -> Program:
    chip = get_target(target)
    return lower(optimise(graph_of(tiny, folder), chip), chip, CompileOptions(math=math, context=CONTEXT))


@pytest.mark.parametrize("name", ["mixtral", "qwen2moe", "granitemoe"])
def test_a_token_takes_three_launches_for_any_mixture(name: str, tmp_path: Path) -> None:
    program = program_of(TINY[name], tmp_path)
    stages = [launch.kernel.stage for launch in program.sequences["decode"] if "layer0.ffn" in launch.note]
    assert stages == ["matvec", "expert_up", "expert_down"]


def test_a_token_reads_the_chosen_experts(tmp_path: Path) -> None:
    """Traffic counts the share of the stacks that takes part; tables and norms add less than 3 kB."""
    program = program_of(TINY["mixtral"], tmp_path)
    matrices = [t for t in program.tensors if t.layout != "plain" and t.name != "token_embd.weight"]
    share = {True: USED / EXPERTS, False: 1}
    expected = sum(t.bytes * share["_exps" in t.name] for t in matrices)
    assert 0 < weight_bytes_per_token(program) - expected < 3000


def test_norm_and_residual_are_fused(tmp_path: Path) -> None:
    graph = optimise(graph_of(TINY["granitemoe"], tmp_path), get_target("gfx1100"))
    (op, *_) = [node.op for node in graph if isinstance(node.op, Experts)]
    assert op.residual and op.scale == pytest.approx(0.3) and type(op.prologue).__name__ == "RMSNormPrologue"
    assert not [node for node in graph if type(node.op).__name__ in ("Add", "Scale", "RMSNorm")]


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"expert_used_count": 7}, GGUFError, "must be from 1 to 6, found 7"),
        ({"expert_group_count": 4}, GGUFError, "is 4, which does not divide"),
        ({"expert_gating_func": 4}, UnsupportedModelError, "is 4; supported are 1"),
        ({"expert_count": None}, GGUFError, "'qwen3moe.expert_count' is missing"),
    ],
)
def test_metadata_that_contradict(
    metadata: dict[str, int | None], error: type[Exception], message: str, tmp_path: Path
) -> None:
    tiny = TINY["qwen3moe"]
    with pytest.raises(error, match=message):
        graph_of(replace(tiny, metadata={**tiny.metadata, **metadata}), tmp_path)


#: A mixture with everything that int8 activations meet: two types of experts, a shared expert.
QUANTISED = replace(
    TINY["qwen2moe"],
    types={
        "up_exps.weight": "Q8_0",
        "_exps.weight": "Q4_1",
        "gate_shexp.weight": "Q5_1",
        "up_shexp.weight": "Q8_0",
        "down_shexp.weight": "Q4_0",
    },
)


def test_fast_stays_close_to_exact(tmp_path: Path) -> None:
    """int8 activations in prompt and token, experts and shared expert: the distribution stays."""
    found = {}
    for math in ("exact", "fast"):
        model = QUANTISED.write(tmp_path / "tiny.gguf", "experts")
        options = CompileOptions(math=math, context=CONTEXT, kv_dtype="f32", chunk=8)
        output = tmp_path / math
        program = compile_model(
            model, "x86-64-v3", output, options, cache=open_cache(load_config())[0]
        ).program
        acts = {k.act for k in program.kernels if k.stage in ("expert_up", "expert_down", "expert_matmul")}
        assert acts == ({"q8"} if math == "fast" else {"f32"})
        with import_package(output).load(threads=2) as package:
            found[math] = log_softmax(run(package.engine, tokens_of("qwen2moe")))
    p, q = found["exact"], found["fast"]
    assert ((np.exp(p) * (p - q)).sum(-1) < 0.01).all()
    assert np.abs(p - q).max() > 0, "fast is exact: nothing was quantised"


def test_without_fusion(tmp_path: Path) -> None:
    model = TINY["qwen2moe"].write(tmp_path / "tiny.gguf", "qwen2moe")
    options = CompileOptions(math="exact", context=CONTEXT, kv_dtype="f32", chunk=8, fuse=False)
    compile_model(model, "x86-64-v3", tmp_path / "package", options, cache=open_cache(load_config())[0])
    with import_package(tmp_path / "package").load(threads=1) as package:
        check("qwen2moe", run(package.engine, tokens_of("qwen2moe")))
    assert PROMPT > 8, "the prompt takes two chunks"


@pytest.mark.parametrize(
    ("name", "target", "layout"),
    [
        ("qwen3moe", "x86-64-v3", "rows8"),
        ("gpt-oss", "x86-64-v3", "rows"),
        ("qwen3moe", "gfx1100", "rows"),
    ],
)
def test_layout_of_stacks(name: str, target: str, layout: str, tmp_path: Path) -> None:
    """Groups of eight rows on the CPU, where there are kernels for the type; kernels know what they read."""
    program = program_of(TINY[name], tmp_path, target)
    stacks = [t for t in program.tensors if t.name.startswith("blk.0.") and "_exps.weight" in t.name]
    assert [t.layout for t in stacks] == [layout] * 3
    kernels = [k for k in program.kernels if k.stage in ("expert_up", "expert_down", "expert_matmul")]
    assert {k.layout for k in kernels} == {layout}


def test_int8_activations_that_do_not_fit_stay_floats(tmp_path: Path) -> None:
    """Experts of 20 480 elements, as two of Mixtral's are 28 672 long, leave no room in LDS."""
    wide = {**TINY["mixtral"].layer}
    for name in ("gate", "up"):
        wide[f"ffn_{name}_exps.weight"] = (EXPERTS, 20480, E)
    wide["ffn_down_exps.weight"] = (EXPERTS, E, 20480)
    tiny = replace(
        TINY["mixtral"],
        layer=wide,
        layers=1,
        metadata={**TINY["mixtral"].metadata, "feed_forward_length": 20480},
        types={"_exps.weight": "Q4_0"},
    )
    kernels = program_of(tiny, tmp_path, math="fast").kernels
    assert {k.act for k in kernels if k.stage == "expert_up"} == {"q8"}
    assert {(k.act, k.activations) for k in kernels if k.stage == "expert_down"} == {("f32", "global")}


def test_inspect_names_the_experts(tmp_path: Path) -> None:
    model = TINY["qwen2moe"].write(tmp_path / "tiny.gguf", "qwen2moe")
    shown = CliRunner().invoke(cli, ["inspect", str(model)])
    assert shown.exit_code == 0
    assert "  experts           2 of 6 a token, feed-forward 96, and a shared one\n" in shown.output
