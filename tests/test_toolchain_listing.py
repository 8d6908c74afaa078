"""Static counts of AMD listings: a hand-written one with known numbers, and loops that clang really emits."""

from __future__ import annotations

import pytest

from forgec.targets import get_target
from forgec.toolchain import Unit, analyse_listing, compile_units
from forgec.toolchain.disassembly import categorise

LISTING = """\
\t.text
\t.type\tfirst,@function
first:                                  ; @first
; %bb.0:
\ts_load_b128 s[4:7], s[0:1], 0x0         ; kernarg
\tv_mov_b32_e32 v0, 0
\ts_mov_b32 s8, 0
.LBB0_1:                                ; outer
\ts_add_i32 s8, s8, 1
.LBB0_2:                                ; inner
\tglobal_load_b128 v[4:7], v8, s[4:5]
\tglobal_load_u16 v9, v8, s[4:5]
\tds_load_b32 v10, v8
\ts_waitcnt vmcnt(0)
\tv_dot4_i32_iu8 v0, v4, v5, v0 neg_lo:[1,1,0]
\tv_dual_fmac_f32 v1, v2, v3 :: v_dual_mul_f32 v4, v5, v6
\ts_cmp_lt_i32 s8, 10
\ts_cbranch_scc1 .LBB0_2
\tv_exp_f32_e32 v1, v1
\ts_cbranch_scc0 .LBB0_4
\ts_cmp_lt_i32 s8, 20
\ts_cbranch_scc1 .LBB0_1
.LBB0_4:
\tv_wmma_f32_16x16x16_f16 v[0:7], v[8:15], v[16:23], v[0:7]
\tscratch_store_b32 off, v0, s0
\tglobal_store_b32 v8, v0, s[6:7]
\ts_endpgm
.Lfunc_end0:
\t.size\tfirst, .Lfunc_end0-first
\t.type\tsecond,@function
second:
\tbuffer_load_dwordx4 v[0:3], off, s[0:3], 0
\tglobal_load_dword v4, v8, s[4:5]
\tglobal_load_ubyte v4, v8, s[4:5]
\tv_mfma_f32_32x32x8f16 a[0:15], v[0:1], v[2:3], a[0:15]
\ts_setpc_b64 s[30:31]
.Lfunc_end1:
\t.section\t.rodata
\tv_mov_b32_e32 v0, 0
"""


def test_a_listing_with_known_numbers() -> None:
    first, second = analyse_listing(LISTING)
    mix = first.mix
    assert (first.name, second.name) == ("first", "second")
    assert (mix.valu, mix.salu, mix.smem, mix.vmem, mix.lds) == (5, 4, 1, 4, 1)
    assert (mix.branch, mix.wait, mix.other, mix.total) == (4, 1, 0, 20)
    assert (mix.dot, mix.matrix, mix.transcendental, mix.scratch, mix.load_bytes) == (1, 1, 1, 1, 18)
    assert dict(first.mnemonics)["s_cbranch_scc1"] == 2
    assert sum(count for _, count in first.mnemonics) == mix.total
    assert (second.mix.load_bytes, second.mix.matrix, second.mix.vmem, second.loops) == (16 + 4 + 1, 1, 3, ())


def test_loops_are_backward_branches() -> None:
    outer, inner = analyse_listing(LISTING)[0].loops
    assert (outer.label, outer.inner, outer.first_line, outer.last_line) == (".LBB0_1", False, 9, 22)
    assert (inner.label, inner.inner, inner.first_line, inner.last_line) == (".LBB0_2", True, 11, 18)
    assert (inner.mix.valu, inner.mix.vmem, inner.mix.load_bytes, inner.mix.total) == (2, 2, 18, 8)
    assert outer.mix.total == 13


@pytest.mark.parametrize(
    ("mnemonic", "category"),
    [
        ("v_permlanex16_b32", "valu"),
        ("s_load_dwordx2", "smem"),
        ("s_buffer_load_b64", "smem"),
        ("global_load_lds_dwordx4", "vmem"),
        ("global_atomic_add_u32", "vmem"),
        ("ds_bpermute_b32", "lds"),
        ("s_wait_loadcnt", "wait"),
        ("s_waitcnt_vscnt", "wait"),
        ("s_delay_alu", "wait"),
        ("s_barrier_wait", "wait"),
        ("s_cbranch_execz", "branch"),
        ("s_and_saveexec_b32", "salu"),
        ("exp", "other"),
    ],
)
def test_categories(mnemonic: str, category: str) -> None:
    assert categorise(mnemonic) == category


@pytest.mark.parametrize(
    ("name", "dot"), [("gfx1100", "sudot4"), ("gfx1201", "sudot4"), ("gfx1030", "sdot4"), ("gfx942", "sdot4")]
)
def test_the_inner_loop_of_a_compiled_kernel(name: str, dot: str) -> None:
    target = get_target(name)
    assert target.dot == dot
    call = "sudot4(true, a, true, b, sum, false)" if dot == "sudot4" else "sdot4(a, b, sum, false)"
    source = f"""\
typedef int V __attribute__((ext_vector_type(4)));
extern "C" __attribute__((global)) void k(const V* __restrict x, const V* __restrict y, int* out, int n) {{
  int lane = __builtin_amdgcn_workitem_id_x(), sum = 0;
  #pragma clang loop unroll(disable)
  for (int i = 0; i < n; ++i) {{
    V p = x[i * 64 + lane], q = y[i * 64 + lane];
    #pragma unroll
    for (int j = 0; j < 4; ++j) {{ int a = p[j], b = q[j]; sum = __builtin_amdgcn_{call}; }}
  }}
  out[lane] = sum;
}}
"""
    (code,) = compile_units([Unit("k", source, ("k",))], target, toolchain="zig")
    (listing,) = analyse_listing(code.assembly)
    (loop,) = listing.loops
    assert loop.inner
    assert (loop.mix.dot, loop.mix.load_bytes) == (4, 32)
    assert listing.mix.dot == 4
    assert loop.mix.valu >= 4
    lines = code.assembly.splitlines()
    assert loop.label in lines[loop.last_line - 1]


def test_a_loop_with_two_backward_branches_is_one_loop() -> None:
    lines = ("\ts_nop 0", ".LBB0_1:", "\tv_nop", "\ts_cbranch_vccz .LBB0_1", "\tv_nop")
    body = "\n".join((*lines, "\ts_cbranch_scc1 .LBB0_1", "\ts_endpgm", ""))
    (listing,) = analyse_listing("\t.type\tf,@function\nf:\n" + body + ".Lfunc_end0:\n")
    (loop,) = listing.loops
    assert (loop.label, loop.inner, loop.mix.total, loop.mix.branch) == (".LBB0_1", True, 4, 2)


def test_no_listing_has_no_functions() -> None:
    assert analyse_listing("") == ()
