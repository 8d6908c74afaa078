"""What the toolchain reads out of compiled code, and how it compares that with what the plan expected."""

from __future__ import annotations

import dataclasses
import random

import pytest

from forgec.errors import ToolchainError
from forgec.targets import Target, get_target
from forgec.toolchain import (
    Compiled,
    ExpectedKernel,
    Runner,
    Unit,
    check_inspection,
    compile_units,
    inspect_code,
)
from tests.test_toolchain import ARGS, GFX1100, SOURCE, kernel


def test_code_for_another_chip_is_refused() -> None:
    unit = kernel("x[0] = 1;")
    (code,) = compile_units([unit], GFX1100, toolchain="zig")
    with pytest.raises(ToolchainError, match="the code object of 'k' is for gfx1100, expected gfx1101"):
        inspect_code(unit, get_target("gfx1101"), code.data)
    (ptx,) = compile_units([unit], get_target("sm_80"), toolchain="zig")
    with pytest.raises(ToolchainError, match="the PTX of 'k' is not for sm_90"):
        inspect_code(unit, get_target("sm_90"), ptx.data)
    with pytest.raises(ToolchainError, match="the code object of 'k' is not an ELF file"):
        inspect_code(unit, GFX1100, ptx.data)


def test_a_compiler_with_wrong_output_is_caught() -> None:
    unit = kernel("x[0] = 1;")

    class Wrong:
        name, version = "zig", "wrong 1.0"

        def recipe(self, unit: Unit, target: Target) -> tuple[str, ...]:
            return ()

        def compile(self, unit: Unit, target: Target, runner: Runner) -> Compiled:
            return Compiled(b"no code", "", "")

    with pytest.raises(ToolchainError, match="the code object of 'k' is not an ELF file"):
        compile_units([unit], GFX1100, toolchain=Wrong())


def test_registers_of_both_kinds_and_spills_are_read() -> None:
    source = (
        'extern "C" __attribute__((global)) void k(float* x) {\n'
        'asm volatile("v_mov_b32 v9, 0\\nv_accvgpr_write_b32 a10, v9" ::: "v9", "a10"); x[0] = 1; }\n'
    )
    (code,) = compile_units([Unit("k", source, ("k",))], get_target("gfx90a"), toolchain="zig")
    # 10 VGPRs rounded up to 12, then 11 AGPRs.
    assert (code.inspection[0].vgprs, code.inspection[0].agprs) == (23, 11)
    body = (
        "float v[200]; for (int i = 0; i < 200; ++i) v[i] = x[i * 64 + __builtin_amdgcn_workitem_id_x()];\n"
    )
    body += '#pragma unroll\nfor (int i = 0; i < 200; ++i) asm volatile("" : "+v"(v[i]));\n'
    body += "for (int i = 0; i < 200; ++i) x[i] = v[i];"
    unit = Unit(
        "k",
        f'extern "C" __attribute__((global, amdgpu_num_vgpr(64))) void k(float* x) {{ {body} }}\n',
        ("k",),
    )
    (code,) = compile_units([unit], GFX1100, toolchain="zig")
    info = code.kernel("k")
    assert info.vgpr_spills > 0
    assert info.scratch_bytes > 0
    with pytest.raises(ToolchainError) as caught:
        check_inspection(info, ExpectedKernel("k", 32, (("x", 0, 8, True),)))
    assert caught.value.message == (
        f"kernel 'k' was compiled with {info.scratch_bytes} bytes of scratch per lane, expected at most 0; "
        f"{info.vgpr_spills} spilled VGPRs, expected at most 0"
    )
    limits = ExpectedKernel(
        "k", 32, (("x", 0, 8, True),), scratch_limit=info.scratch_bytes, spill_limit=info.vgpr_spills
    )
    check_inspection(info, limits)


def test_what_the_plan_expected_is_compared() -> None:
    unit = Unit("sum", SOURCE.replace("THREADS", "256"), ("scale",))
    (code,) = compile_units([unit], GFX1100, toolchain="zig")
    info = code.kernel("scale")
    args = tuple((arg.name, arg.offset, arg.size, arg.kind == "pointer") for arg in ARGS)
    right = ExpectedKernel("scale", 32, args, threads=256, lds_bytes=1024, lds_limit=1024)
    check_inspection(info, right)
    moved = (*args[:4], ("y", 40, 8, True))
    for change, problem in (
        ({"symbol": "other"}, "kernel 'other' was compiled with symbol 'scale', expected 'other'"),
        ({"wave": 64}, "kernel 'scale' was compiled with waves of 32 lanes, expected 64"),
        ({"threads": 128}, "kernel 'scale' was compiled with blocks of up to 256 threads, expected 128"),
        ({"lds_bytes": 0}, "kernel 'scale' was compiled with 1024 bytes of LDS, expected 0"),
        ({"lds_limit": 1000}, "kernel 'scale' was compiled with 1024 bytes of LDS, expected at most 1000"),
        ({"args": args[:4]}, "kernel 'scale' was compiled with 5 arguments, expected 4"),
        (
            {"args": moved},
            "kernel 'scale' was compiled with argument 4 'y' a pointer of 8 bytes at 32, "
            "expected a pointer of 8 bytes at 40",
        ),
        (
            {"args": (("x", 0, 8, False), *args[1:])},
            "kernel 'scale' was compiled with argument 0 'x' a pointer of 8 bytes at 0, "
            "expected a value of 8 bytes at 0",
        ),
    ):
        with pytest.raises(ToolchainError) as caught:
            check_inspection(info, dataclasses.replace(right, **change))  # type: ignore[arg-type]
        assert caught.value.message == problem


def test_ptx_memory_is_counted() -> None:
    source = """
#define KERNEL extern "C" __attribute__((global))
__attribute__((shared)) float shared_by_two[10][3];
KERNEL void one(float* x) { shared_by_two[1][2] = x[0]; __syncthreads(); x[1] = shared_by_two[2][1]; }
KERNEL void two(float* x, int n) {
  __attribute__((shared)) static double own[7];
  float local[9];
  for (int i = 0; i < 9; ++i) local[i] = x[i];
  own[n] = x[0]; shared_by_two[n][0] = x[1]; __syncthreads();
  x[2] = (float)own[n + 1] + local[n] + shared_by_two[0][n];
}
KERNEL void none(float* x) { x[0] = 1; }
"""
    unit = Unit("memory", source, ("none", "two", "one"))
    (code,) = compile_units([unit], get_target("sm_90"), toolchain="zig")
    none, two, one = code.inspection
    assert (one.lds_bytes, two.lds_bytes, none.lds_bytes) == (120, 120 + 56, 0)
    assert (one.scratch_bytes, two.scratch_bytes, none.scratch_bytes) == (0, 36, 0)
    assert none.max_threads == 1024


def test_drawn_arguments_have_the_offsets_of_their_alignment() -> None:
    rng = random.Random(seed := random.randrange(1 << 30))
    types = {"char": 1, "short": 2, "int": 4, "float*": 8, "double": 8}
    drawn = [rng.choice(list(types)) for _ in range(rng.randrange(3, 12))]
    wanted, offset = [], 0
    for name in drawn:
        size = types[name]
        offset = -(-offset // size) * size
        wanted.append((offset, size, "pointer" if "*" in name else "value"))
        offset += size
    parameters = ", ".join(f"{name} a{index}" for index, name in enumerate(drawn))
    uses = " + ".join(f"a{i}[0]" if "*" in name else f"(float)a{i}" for i, name in enumerate(drawn))
    source = f'extern "C" __attribute__((global)) void k(float* out, {parameters}) {{ out[0] = {uses}; }}\n'
    for name in ("gfx1100", "gfx90a", "sm_80"):
        (code,) = compile_units([Unit("k", source, ("k",))], get_target(name), toolchain="zig")
        found = [
            (arg.offset - 8, arg.size, arg.kind) for arg in code.kernel("k").args[1:] if arg.kind != "hidden"
        ]
        assert found == wanted, (seed, name)


def test_asking_for_a_kernel_that_is_not_there() -> None:
    (code,) = compile_units([kernel("x[0] = 1;")], GFX1100, toolchain="zig")
    with pytest.raises(ToolchainError, match="code object 'k' has no kernel 'other', only 'k'"):
        code.kernel("other")
