"""Every template renders and compiles for every family; what the compiler made of it is inspected."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import jinja2.meta
import pytest

from forgec.codegen import render
from forgec.passes.choose_layout import ROWS8_TYPES
from forgec.plan import stages
from forgec.plan.layouts import FORMATS
from forgec.plan.stages import EmbeddingParams, MatvecParams, Segment, StageParams
from forgec.targets import get_target
from forgec.toolchain import CodeObject, ExpectedKernel, Unit, check_inspection, compile_units
from tests.format_examples import format_examples
from tests.kernels.harness import source_of
from tests.stage_examples import examples, linear_examples

TARGETS = ["gfx1100", "gfx1151", "gfx1201", "gfx1030", "gfx90a", "gfx942", "sm_90", "x86-64-v3"]
GPUS = TARGETS[:-1]
TEMPLATES = sorted(render.templates_dir().rglob("*.j2"))
LDS_LIMIT = 64 << 10


#: Targets whose family has another one here: one example of each stage is enough.
SECOND = {"gfx1151", "gfx90a"}


@cache
def compiled(target_name: str) -> tuple[tuple[StageParams, CodeObject], ...]:
    """The example stages, compiled: the common text of each."""
    params = examples(target_name)
    if target_name in SECOND:
        params = list({p.stage: p for p in params}.values())
    units = [Unit(p.symbol, source_of(p), (p.symbol,)) for p in params]
    return tuple(zip(params, compile_units(units, get_target(target_name)), strict=True))


def of_stage(target_name: str, *names: str) -> list[CodeObject]:
    found = [code for params, code in compiled(target_name) if params.stage in names]
    assert found
    return found


def check_planned(params: StageParams, code: CodeObject, target_name: str) -> None:
    """What the compiler made is what the plan asks for, without a warning."""
    expected = ExpectedKernel(
        params.symbol,
        params.wave,
        tuple((a.name, offset, a.size, a.is_pointer) for a, offset in params.unpack),
        threads=params.threads if params.wave > 1 else None,
        lds_limit=LDS_LIMIT,
    )
    check_inspection(code.kernel(params.symbol), expected)
    assert not code.log, f"{params.symbol} for {target_name} compiles with warnings:\n{code.log}"


@pytest.mark.parametrize("target_name", TARGETS)
def test_compiles_as_planned(target_name: str) -> None:
    for params, code in compiled(target_name):
        check_planned(params, code, target_name)


@pytest.mark.parametrize("target_name", ["gfx1201", "gfx1030", "sm_90"])
def test_every_weight_format_compiles(target_name: str) -> None:
    """On targets that are run there is more: tests/kernels/test_formats.py."""
    params = format_examples(target_name)
    units = [Unit(p.symbol, source_of(p), (p.symbol,)) for p in params]
    for p, code in zip(params, compile_units(units, get_target(target_name)), strict=True):
        check_planned(p, code, target_name)


def cpu_format_examples() -> list[StageParams]:
    """A product of every type that the CPU's own text reads, with every kind of activations.

    They are compiled and run in tests/kernels/test_cpu_formats.py.
    """
    plain = ("store", False, "none", 0.0, False, 1, 8)
    blocked = [name for name in ROWS8_TYPES if FORMATS[name].block > 1]
    return [
        MatvecParams("cpu", 1, 1, 512, (Segment(name, 64),), "rows8", act, *plain)
        for name in blocked
        for act in ("f32", "q8", "q16")
    ]


def interleaved(params: list[StageParams]) -> list[StageParams]:
    """The same with weights of eight interleaved rows."""
    return [replace(p, layout="rows8") if hasattr(p, "layout") else p for p in params]


def test_the_cpu_overrides_compile() -> None:
    """The CPU's own texts read weights of eight interleaved rows."""
    target = get_target("x86-64-v3")
    params = interleaved(examples(target.name))
    params = [replace(p, tile_queries=32, tile_keys=32) if hasattr(p, "tile_keys") else p for p in params]
    own = [p for p in params if render.stage_template(p.stage, "cpu").endswith(".cpu.hip.j2")]
    assert {p.stage for p in own} >= {"matvec", "matmul"}
    units = [Unit(p.symbol, render.render_stage(p), (p.symbol,)) for p in own]
    for unit, code in zip(units, compile_units(units, target), strict=True):
        assert not code.log, f"{unit.name} compiles with warnings:\n{code.log}"


def test_there_is_an_example_of_every_stage() -> None:
    named = {getattr(stages, name) for name in stages.__all__ if name.endswith("Params")}
    # Tests derive parameters of their own; what is derived in the product is no stage itself.
    bases = {c for c in named if any(s.__module__.startswith("forgec.") for s in c.__subclasses__())}
    concrete = {c for c in named if issubclass(c, StageParams)} - bases
    assert {type(p) for p in examples("gfx1100")} == concrete


@pytest.mark.parametrize("target_name", TARGETS)
def test_the_family_override_is_found_by_name(target_name: str) -> None:
    folder = render.templates_dir() / "stages"
    for params in examples(target_name):
        own = folder / f"{params.stage}.{params.family}.hip.j2"
        expected = own if own.is_file() else folder / f"{params.stage}.hip.j2"
        assert render.stage_template(params.stage, params.family) == f"stages/{expected.name}"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.name)
def test_the_only_free_name_is_k(path: Path) -> None:
    tree = render.environment().parse(path.read_text(encoding="utf-8"))
    assert jinja2.meta.find_undeclared_variables(tree) <= {"k"}


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.name)
def test_no_literal_widths(path: Path) -> None:
    """Only a prelude knows how wide its waves are; nobody asks for warpSize."""
    text = path.read_text(encoding="utf-8")
    assert "warpSize" not in text
    if "prelude" in path.parts:
        return
    code = re.sub(r"//.*|\{#.*?#\}", "", text)
    for name in ("__shfl", "ds_bpermute", "ds_swizzle", "update_dpp", "permlanex16", "__ballot"):
        assert name not in code, f"{name} belongs in a prelude"
    assert not re.search(r"\b(lane|thread)\(\)\s*[%/&]\s*(31|32|63|64)\b", code)
    assert not re.search(r"group_(sum|max|reduce)<\s*(\w+,\s*)?(32|64)\s*>", code)
    assert not re.search(r"if .*k\.(family|wave)\b", text) or path.name == "entry.hip.j2"


def test_every_template_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that no stage of any family includes is dead."""
    used: set[str] = {"program/pool.cpu.c.j2"}
    environment = render.environment()
    loader = environment.loader
    assert loader is not None
    original = loader.get_source

    def spy(env: jinja2.Environment, name: str) -> object:
        used.add(name)
        return original(env, name)

    monkeypatch.setattr(loader, "get_source", spy)
    assert environment.cache is not None
    environment.cache.clear()
    for target_name in TARGETS:
        for params in examples(target_name):
            source_of(params)
            render.render_stage(params)
    for params in interleaved([*examples("x86-64-v3"), *cpu_format_examples()]):
        render.render_stage(params)
    for name in FORMATS:
        render.render_stage(EmbeddingParams("gfx11", 32, 256, name, "rows", 256, 9, decode=True))
    there = {path.relative_to(render.templates_dir()).as_posix() for path in TEMPLATES}
    assert there - used == set()


def test_equal_parameters_render_equal_text() -> None:
    for one, two in zip(examples("gfx1100"), examples("gfx1100"), strict=True):
        assert one.symbol == two.symbol and render.render_stage(one) == render.render_stage(two)


def test_symbols_are_unique() -> None:
    # A token's kernel knows how many compute units there are, so chips of a family do not share it.
    symbols = [p.symbol for name in TARGETS for p in examples(name) if p.stage != "token"]
    # gfx1100 and gfx1151 share parameters, as do gfx90a and gfx942: their kernels have the same names.
    assert len(set(symbols)) == sum(
        sum(p.stage != "token" for p in examples(n))
        for n in ("gfx1100", "gfx1201", "gfx1030", "gfx942", "sm_90", "x86-64-v3")
    )


@pytest.mark.parametrize("target_name", ["gfx1100", "gfx942"])
def test_memory_is_addressed_as_global_or_lds(target_name: str) -> None:
    """Pointer arguments are known to be global: flat accesses would also wait for LDS."""
    for params, code in compiled(target_name):
        found = re.findall(r"\b(?:flat_(?:load|store|atomic)\w*|scratch_\w+|buffer_load\w*)", code.assembly)
        assert not found, f"{params.symbol}: {sorted(set(found))}"


@pytest.mark.parametrize("target_name", ["gfx1100", "gfx942"])
def test_weights_arrive_in_16_byte_loads(target_name: str) -> None:
    wide = "global_load_b128" if target_name == "gfx1100" else "global_load_dwordx4"
    for code in of_stage(target_name, "matvec", "matmul", "embedding"):
        assert wide in code.assembly


@pytest.mark.parametrize("target_name", GPUS)
def test_reductions_do_not_go_through_lds_permutes(target_name: str) -> None:
    for code in of_stage(target_name, "matvec", "norm", "quantise"):
        assert "ds_bpermute" not in code.assembly


@pytest.mark.parametrize("target_name", ["gfx1100", "gfx1201", "gfx942", "gfx1030", "sm_90"])
def test_int8_products_use_dot4(target_name: str) -> None:
    name = "dp4a" if target_name == "sm_90" else "v_dot4"
    for params, code in compiled(target_name):
        if params.stage in ("matvec", "matmul"):
            assert (name in code.assembly) == (getattr(params, "act", "") == "q8"), params.symbol


def test_without_dot4_builtins_the_text_still_compiles() -> None:
    """Compilers that crash on the builtins (clang 15) get plain C by a define."""
    target = get_target("gfx1100")
    params = next(p for p in linear_examples("gfx1100") if p.stage == "matvec")
    builtins = "#define __builtin_amdgcn_sudot4 there_is_none\n#define FORGEC_NO_DOT4\n"
    unit = Unit(params.symbol, builtins + source_of(params), (params.symbol,))
    info = compile_units([unit], target)[0].kernel(params.symbol)
    assert info.scratch_bytes == 0
