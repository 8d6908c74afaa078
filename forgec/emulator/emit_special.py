# ruff: noqa: E501 (C text is not broken)
"""Vector instructions that move data between lanes or registers of different kinds, and the matrix
instructions."""

from __future__ import annotations

import re
from collections.abc import Callable

from forgec.emulator.emit_base import Context, constant_bits, uncovered, vector_source
from forgec.emulator.operands import Instruction, Operand
from forgec.errors import DeviceError

__all__ = ["SPECIAL", "emit_matrix"]

Emit = Callable[[Context, Instruction], list[str]]


def _scalar(ctx: Context, op: Operand) -> tuple[str, str]:
    """(C u32 expression, definedness u64) of a 32-bit scalar or constant operand."""
    if op.kind == "s":
        n = ctx.scalar(op)
        return f"w->s[{n}]", f"DALL({n})"
    if op.kind in ("int", "float"):
        return f"{constant_bits(op, 'u32'):#x}u", "~0UL"
    return "0u", "~0UL"


def _set_scalar(ctx: Context, op: Operand, value: str, defined: str) -> list[str]:
    if op.kind != "s":
        return []
    n = ctx.scalar(op)
    lines = [f"w->s[{n}] = {value};"]
    if ctx.checks:
        lines.append(f"w->ds[{n}] = ({defined}) ? 0xffffffffu : 0u;")
    if n in (126, 127):
        lines.append("exec_changed(w);")
    return lines


def _readfirstlane(ctx: Context, ins: Instruction) -> list[str]:
    """RDNA3 16.8 V_READFIRSTLANE_B32: the lowest active lane, or lane 0 when EXEC is zero."""
    dst, src = ins.operands
    if src.kind == "s":
        value, defined = _scalar(ctx, src)
        return _set_scalar(ctx, dst, value, defined)
    n = ctx.register(src)
    return [
        "u32 l = EXEC ? (u32)__builtin_ctzl((u64)EXEC) : 0;",
        *_set_scalar(ctx, dst, f"w->v[{n}][l]", f"DV({n}) >> l & 1"),
    ]


def _readlane(ctx: Context, ins: Instruction) -> list[str]:
    """RDNA3 16.12 V_READLANE_B32: ignores EXEC."""
    dst, src, lane = ins.operands
    n = ctx.register(src)
    value, _ = _scalar(ctx, lane)
    return [
        f"u32 l = {value} & {ctx.wave - 1}u;",
        *_set_scalar(ctx, dst, f"w->v[{n}][l]", f"DV({n}) >> l & 1"),
    ]


def _writelane(ctx: Context, ins: Instruction) -> list[str]:
    """RDNA3 16.12 V_WRITELANE_B32: ignores EXEC."""
    dst, src, lane = ins.operands
    n = ctx.register(dst)
    value, defined = _scalar(ctx, src)
    at, _ = _scalar(ctx, lane)
    lines = [f"u32 l = {at} & {ctx.wave - 1}u;", f"w->v[{n}][l] = {value};"]
    if ctx.checks:
        lines.append(f"DSET({n}, {defined}, 1UL << l);")
    return lines


def _permlane16(exchange: bool) -> Emit:
    """RDNA3 16.12 V_PERMLANE16_B32 and V_PERMLANEX16_B32: each row picks lanes of its own (other) row."""

    def emit(ctx: Context, ins: Instruction) -> list[str]:
        dst, src, low, high = ins.operands
        d, n = ctx.register(dst), ctx.register(src)
        lo, lo_defined = _scalar(ctx, low)
        hi, hi_defined = _scalar(ctx, high)
        fi, bc = ins.bits("op_sel", (0, 0))[:2]
        lines = [
            f"u64 sel = (u64){lo} | (u64){hi} << 32; U32 r = w->v[{d}]; mask ok = 0; u64 dd = 0;",
            f"for (u32 i = 0; i < {ctx.wave}; ++i) {{",
            f"u32 from = (i & ~15u) + (u32)(sel >> 4 * (i & 15) & 15); from ^= {16 if exchange else 0}u;",
            f"int on = {'1' if fi else '(int)(EXEC >> from & 1)'};",
            f"if (on) {{ r[i] = w->v[{n}][from]; ok |= (mask)1 << i; dd |= ({f'DV({n})' if ctx.checks else '0'} >> from & 1) << i; }}",
            f"else if ({1 if bc else 0}) {{ r[i] = 0; ok |= (mask)1 << i; dd |= 1UL << i; }}",
            "}",
            "mask x = EXEC & ok;",
        ]
        if ctx.checks:
            lines.append(f"DSET({d}, dd & {lo_defined} & {hi_defined}, x);")
        return [*lines, f"WRITE32({d}, r, lanes32(x));"]

    return emit


def _permlane_var(exchange: bool) -> Emit:
    """RDNA4 16.12 V_PERMLANE16_VAR_B32: the selector comes from a VGPR."""

    def emit(ctx: Context, ins: Instruction) -> list[str]:
        d, n, s = (ctx.register(o) for o in ins.operands)
        fi, bc = ins.bits("op_sel", (0, 0))[:2]
        lines = [f"U32 r = w->v[{d}]; mask ok = 0; u64 dd = 0;", f"for (u32 i = 0; i < {ctx.wave}; ++i) {{"]
        lines.append(f"u32 from = (i & ~15u) + (w->v[{s}][i] & 15u); from ^= {16 if exchange else 0}u;")
        lines.append(f"int on = {'1' if fi else '(int)(EXEC >> from & 1)'};")
        taken = f"{f'DV({n})' if ctx.checks else '0'} >> from & 1"
        lines.append(f"if (on) {{ r[i] = w->v[{n}][from]; ok |= (mask)1 << i; dd |= ({taken}) << i; }}")
        lines.append(f"else if ({1 if bc else 0}) {{ r[i] = 0; ok |= (mask)1 << i; dd |= 1UL << i; }} }}")
        lines.append("mask x = EXEC & ok;")
        if ctx.checks:
            lines.append(f"DSET({d}, dd & DV({s}), x);")
        return [*lines, f"WRITE32({d}, r, lanes32(x));"]

    return emit


def _permlane64(ctx: Context, ins: Instruction) -> list[str]:
    """RDNA3 16.8 V_PERMLANE64_B32: swaps the halves of a wave64, a no-op on wave32."""
    d, n = (ctx.register(o) for o in ins.operands)
    if ctx.wave == 32:
        return []
    order = ", ".join(str((i + 32) % 64) for i in range(64))
    lines = [f"U32 r = __builtin_shufflevector(w->v[{n}], w->v[{n}], {order});"]
    if ctx.checks:
        lines.append(f"u64 D = DV({n}); DSET({d}, D >> 32 | D << 32, EXEC);")
    return [*lines, f"WRITE32({d}, r, w->em);"]


def _permlane_swap(step: int) -> Emit:
    """CDNA4 V_PERMLANE16_SWAP_B32, V_PERMLANE32_SWAP_B32: odd rows of the first trade with even rows of the
    second."""

    def emit(ctx: Context, ins: Instruction) -> list[str]:
        a, b = (ctx.register(o) for o in ins.operands)
        first = ", ".join(str(i if not i & step else 64 + i - step) for i in range(64))
        second = ", ".join(str(64 + i if i & step else i + step) for i in range(64))
        lines = [
            f"U32 x = w->v[{a}], y = w->v[{b}];",
            f"w->v[{a}] = __builtin_shufflevector(x, y, {first});",
            f"w->v[{b}] = __builtin_shufflevector(x, y, {second});",
        ]
        if ctx.checks:
            lines.append(f"u64 D = DV({a}) & DV({b}); DSET({a}, D, ~0UL); DSET({b}, D, ~0UL);")
        return lines

    return emit


def _swap(ctx: Context, ins: Instruction) -> list[str]:
    a, b = (ctx.register(o) for o in ins.operands)
    if ins.mnemonic == "v_swap_b16":
        ha, hb = ins.operands[0].half or 0, ins.operands[1].half or 0
        set_a, set_b = ("SET_HIGH16" if ha else "SET_LOW16"), ("SET_HIGH16" if hb else "SET_LOW16")
        get_a, get_b = ("HIGH16" if ha else "LOW16"), ("HIGH16" if hb else "LOW16")
        lines = [
            f"U16 x = {get_a}(w->v[{a}]), y = {get_b}(w->v[{b}]); {set_a}({a}, y, w->em); {set_b}({b}, x, w->em);"
        ]
    else:
        lines = [f"U32 x = w->v[{a}], y = w->v[{b}]; WRITE32({a}, y, w->em); WRITE32({b}, x, w->em);"]
    if ctx.checks:
        lines.append(f"u64 da = DV({a}), db = DV({b}); DSET({a}, db, EXEC); DSET({b}, da, EXEC);")
    return lines


def _pk_mov(ctx: Context, ins: Instruction) -> list[str]:
    """CDNA3 12.10 V_PK_MOV_B32: D.lo = S0[op_sel[0]], D.hi = S1[op_sel[1]]."""
    dst, a, b = ins.operands
    n = ctx.register(Operand(dst.kind, dst.reg, 2))
    sel = ins.bits("op_sel", (0, 0))
    parts = []
    for op, half in ((a, sel[0]), (b, sel[1])):
        one = Operand(op.kind, op.reg + half, 1) if op.kind in ("v", "a", "s") else op
        parts.append(vector_source(ctx, one, "u32"))
    lines = [f"U32 x = {parts[0].text}, y = {parts[1].text};"]
    if ctx.checks:
        lines.append(
            f"u64 dx = {parts[0].defined}, dy = {parts[1].defined}; DSET({n}, dx, EXEC); DSET({n + 1}, dy, EXEC);"
        )
    return [*lines, f"WRITE32({n}, x, w->em); WRITE32({n + 1}, y, w->em);"]


def _nothing(ctx: Context, ins: Instruction) -> list[str]:
    del ctx, ins
    return []


SPECIAL: dict[str, Emit] = {
    "v_nop": _nothing,
    "v_readfirstlane_b32": _readfirstlane,
    "v_readlane_b32": _readlane,
    "v_writelane_b32": _writelane,
    "v_permlane16_b32": _permlane16(False),
    "v_permlanex16_b32": _permlane16(True),
    "v_permlane16_var_b32": _permlane_var(False),
    "v_permlanex16_var_b32": _permlane_var(True),
    "v_permlane64_b32": _permlane64,
    "v_permlane16_swap_b32": _permlane_swap(16),
    "v_permlane32_swap_b32": _permlane_swap(32),
    "v_swap_b32": _swap,
    "v_swap_b16": _swap,
    "v_pk_mov_b32": _pk_mov,
}

_ELEMENTS = {
    "f32": 0,
    "f16": 1,
    "bf16": 2,
    "iu8": 3,
    "i8": 3,
    "iu4": 4,
    "f64": 5,
    "fp8": 6,
    "bf8": 7,
    "i32": 3,
}
_BITS = {"f32": 32, "f16": 16, "bf16": 16, "i8": 8, "f64": 64, "fp8": 8, "bf8": 8}
_WMMA = re.compile(r"^v_wmma_(f32|f16|bf16|i32)_16x16x(\d+)_(f16|bf16|iu8|iu4|fp8|bf8)(?:_(fp8|bf8))?$")
_MFMA = re.compile(
    r"^v_mfma_(f32|i32|f64)_(\d+)x(\d+)x(\d+)_?((?:\d+b_)?)(f32|f16|bf16|i8|f64|fp8|bf8)(?:_(1k|fp8|bf8))?$"
)


def _accumulator(ctx: Context, op: Operand, wide: bool) -> tuple[int, str]:
    if op.kind in ("v", "a"):
        return ctx.register(op), "0UL"
    if op.kind in ("int", "float"):
        return -1, f"{constant_bits(op, 'f64' if wide else 'u32'):#x}UL"
    raise DeviceError(
        f"a matrix accumulator is a register or a constant, found '{op.name}' in kernel '{ctx.kernel}'"
    )


def _wmma(ctx: Context, ins: Instruction, found: re.Match[str]) -> list[str]:
    result, k, ta, tb = found.groups()
    dst, a, b, c = ins.operands
    d, ra, rb = ctx.register(dst), ctx.register(a), ctx.register(b)
    rc, constant = _accumulator(ctx, c, False)
    lo, hi = ins.bits("neg_lo", (0, 0, 0)), ins.bits("neg_hi", (0, 0, 0))
    flags = 0
    if ta.startswith("iu"):
        flags |= lo[0] | lo[1] << 1
    else:
        flags |= lo[0] << 4 | lo[1] << 5 | hi[0] << 6 | hi[1] << 7 | lo[2] << 8 | hi[2] << 9
    flags |= 4 if "clamp" in ins.flags else 0
    flags |= 8 if ins.bits("op_sel", (0, 0, 0))[2] else 0
    op = (
        _ELEMENTS[ta]
        | _ELEMENTS[tb or ta] << 4
        | _ELEMENTS[result] << 8
        | int(k) << 12
        | (1 << 20 if ctx.gfx12 else 0)
    )
    if ctx.wave != 32:
        raise uncovered(ctx, ins, "WMMA in wave64")
    return [f"emu_wmma(w, {op:#x}, {d}, {ra}, {rb}, {rc}, {constant}, {flags});"]


def _mfma(ctx: Context, ins: Instruction, found: re.Match[str]) -> list[str]:
    result, m, n, k, blocks, ta, tb = found.groups()
    if any(ins.modifiers.get(x, "0") not in ("0",) for x in ("cbsz", "abid", "blgp")):
        raise uncovered(ctx, ins, "cbsz, abid and blgp broadcasts")
    size = int(m)
    lanes_per_block = {32: 32, 16: 16, 4: 4}[size]
    if m != n:
        raise uncovered(ctx, ins)
    count = int(blocks.rstrip("b_")) if blocks else _implied_blocks(size, int(k), ta, tb == "1k")
    groups = 64 // (lanes_per_block * count)
    if ta == "f64" and size == 4:
        count, groups = 4, 4
    per_lane = int(k) // groups
    dst, a, b, c = ins.operands
    d, ra, rb = ctx.register(dst), ctx.register(a), ctx.register(b)
    rc, constant = _accumulator(ctx, c, ta == "f64")
    second = tb if tb in ("fp8", "bf8") else ta
    op = _ELEMENTS[ta] | _ELEMENTS[second] << 4 | size << 8 | count << 16 | per_lane << 24
    del result
    return [f"emu_mfma(w, {op:#x}, {d}, {ra}, {rb}, {rc}, {constant}, {1 if ctx.arch == 'gfx950' else 0});"]


def _implied_blocks(size: int, k: int, type_: str, one_k: bool) -> int:
    """Blocks of the old mnemonics without ``_Nb`` (CDNA3 7.1.1): K decides whether one or several matrices
    multiply."""
    if size == 4:
        return 4 if type_ == "f64" else 16
    single = {"f32": 4, "f16": 16, "bf16": 16 if one_k else 8, "i8": 16, "f64": 4, "fp8": 32, "bf8": 32}[
        type_
    ]
    if size == 32:
        return 1 if k >= single // 2 else 2
    return 1 if k >= single else 4


def emit_matrix(ctx: Context, ins: Instruction) -> list[str] | None:
    """C of a WMMA or MFMA instruction, or None when ``ins`` is neither."""
    found = _WMMA.match(ins.mnemonic)
    if found:
        return _wmma(ctx, ins, found)
    found = _MFMA.match(ins.mnemonic)
    return _mfma(ctx, ins, found) if found else None
