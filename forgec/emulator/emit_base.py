"""Operands to C: how each kind of source is read, typed, negated, and which registers it touches.

Everything the instruction emitters share lives here: the Context of one kernel, and Source, a C expression
together with the expression of its defined lanes. It never decides what an instruction means.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from forgec.emulator.operands import Instruction, Operand
from forgec.errors import DeviceError

__all__ = ["VECTOR_TYPE", "Context", "Source", "constant_bits", "uncovered", "vector_source", "width"]

VECTOR_TYPE = {
    "u16": "U16",
    "i16": "I16",
    "f16": "F16",
    "f16hi": "F16",
    "u32": "U32",
    "i32": "I32",
    "f32": "F32",
    "u64": "U64",
    "i64": "I64",
    "f64": "F64",
    "m": "mask",
    "pf16raw": "U32",
    "pi16raw": "U32",
}
_APERTURES = {
    "src_shared_base": 0x00010000 << 32,
    "src_shared_limit": (0x00010000 << 32) | 0xFFFFFFFF,
    "src_private_base": 0x00020000 << 32,
    "src_private_limit": (0x00020000 << 32) | 0xFFFFFFFF,
}


@dataclass
class Context:
    """What the emitters know about the kernel being translated, and what they collect."""

    kernel: str
    arch: str
    wave: int
    checks: bool
    agpr_base: int
    mixed_mode: bool = False
    site: int = 0
    resume_points: int = 1
    segments: int = 0
    vgprs: set[int] = field(default_factory=set)
    sgprs: set[int] = field(default_factory=set)
    written_vgprs: set[int] = field(default_factory=set)
    load_destination: tuple[int, int, str] | None = None

    @property
    def gfx9(self) -> bool:
        return self.arch.startswith("gfx9")

    @property
    def gfx12(self) -> bool:
        return self.arch.startswith("gfx12")

    @property
    def full(self) -> str:
        return "0xffffffffffffffffUL" if self.wave == 64 else "0xffffffffu"

    def register(self, op: Operand) -> int:
        """Index into ``w->v`` of a VGPR or AGPR operand; notes its use for the wait checks."""
        base = op.reg + (self.agpr_base if op.kind == "a" else 0)
        self.vgprs.update(range(base, base + op.count))
        return base

    def scalar(self, op: Operand) -> int:
        self.sgprs.update(range(op.reg, op.reg + op.count))
        return op.reg


@dataclass(frozen=True)
class Source:
    """A typed C expression and the C expression (u64, one bit a lane) of the lanes on which it is defined."""

    text: str
    defined: str = "~0UL"


def uncovered(ctx: Context, ins: Instruction, why: str = "") -> DeviceError:
    detail = f" ({why})" if why else ""
    return DeviceError(
        f"the emulator does not cover '{ins.mnemonic}' at {ins.address:#x} of kernel '{ctx.kernel}'"
        f" on {ctx.arch}: '{ins.text}'{detail}",
        "add a row to the table of its encoding family in forgec/emulator/isa",
    )


def width(type_: str) -> int:
    """Bits of an element type."""
    if type_ in ("pf16raw", "pi16raw", "mix"):
        return 32
    return int("".join(c for c in type_.removesuffix("hi") if c.isdigit()))


def constant_bits(op: Operand, type_: str) -> int:
    """The bits a constant operand has when read as ``type_`` (inline constants and literals).

    Source: RDNA3 ISA 3.4.5 "Inline constants" and 3.4.6 "Literal constants".
    """
    bits = width(type_)
    mask = (1 << bits) - 1
    if op.kind == "float":
        if bits == 64:
            found = int(struct.unpack("<Q", struct.pack("<d", float(op.value)))[0])
        elif bits == 16 or type_ in ("pf16raw",):
            found = int(np.float16(op.value).view(np.uint16))
        else:
            found = int(np.float32(op.value).view(np.uint32))
    else:
        value = int(op.value)
        if type_ == "f64" and not -16 <= value <= 64:
            value <<= 32
        found = value & mask
    if op.absolute:
        found &= mask >> 1
    if op.neg:
        found ^= 1 << (bits - 1)
    return found


def _signs(text: str, type_: str, op: Operand, neg: bool, absolute: bool) -> str:
    kind = type_.removesuffix("hi").upper()
    if absolute:
        text = f"ABS{kind}({text})"
    if neg:
        text = f"NEG{kind}({text})"
    return text


def _scalar_word(ctx: Context, op: Operand) -> tuple[str, str]:
    """A 32-bit scalar source as (C u32 expression, defined expression)."""
    if op.kind == "s":
        n = ctx.scalar(op)
        return f"w->s[{n}]", f"DALL({n})"
    if op.name in ("null", "off"):
        return "0u", "~0UL"
    if op.name == "scc":
        return "w->scc", "(w->dscc ? ~0UL : 0UL)"
    if op.name == "src_vccz":
        return "(u32)(smask(w, R_VCC) == 0)", "~0UL"
    if op.name == "src_execz":
        return "(u32)(EXEC == 0)", "~0UL"
    if op.name in _APERTURES:
        return f"{_APERTURES[op.name] >> 32:#x}u", "~0UL"
    raise DeviceError(f"the emulator does not know the source '{op.name}' in kernel '{ctx.kernel}'")


def vector_source(
    ctx: Context,
    op: Operand,
    type_: str,
    half: int = 0,
    neg: bool = False,
    absolute: bool = False,
    raw: Source | None = None,
) -> Source:
    """Read ``op`` as lanes of ``type_``.

    ``half`` selects the upper 16 bits for 16-bit types; ``raw`` replaces the 32-bit register contents (DPP,
    SDWA).
    """
    vector = VECTOR_TYPE[type_]
    neg, absolute = neg ^ op.neg, absolute or op.absolute
    if op.half is not None:
        half = op.half
    floating = type_.startswith("f")
    if type_ == "m":
        if op.kind == "s":
            n = op.reg
            ctx.sgprs.update(range(n, n + (2 if ctx.wave == 64 else 1)))
            return Source(f"smask(w, {n})", f"dmask(w, {n})")
        if op.kind == "int":
            return Source(f"(mask){int(op.value)}L")
        return Source(_scalar_word(ctx, op)[0])
    if op.kind in ("int", "float"):
        bits = constant_bits(op, type_)
        if type_.startswith("f") and (neg != op.neg or absolute != op.absolute):
            if absolute and not op.absolute:
                bits &= (1 << (width(type_) - 1)) - 1
            if neg != op.neg:
                bits ^= 1 << (width(type_) - 1)
        size = width(type_)
        suffix = {64: "UL", 32: "u", 16: "u"}[size]
        splat = f"SPLAT(U{size}, {bits:#x}{suffix})" if size != 16 else f"SPLAT(U16, (u16){bits:#x}u)"
        return Source(f"(({vector}){splat})" if size != 16 else f"BC({vector}, {splat})")
    if width(type_) == 64:
        if op.kind in ("v", "a"):
            n = ctx.register(Operand(op.kind, op.reg, 2))
            text, defined = f"(({vector})READ64({n}))", f"(DV({n}) & DV({n + 1}))"
        elif op.kind == "s":
            n = ctx.scalar(Operand("s", op.reg, 2))
            text, defined = f"(({vector})SPLAT(U64, s64(w, {n})))", f"(DALL({n}) & DALL({n + 1}))"
        elif op.name in _APERTURES:
            text, defined = f"(({vector})SPLAT(U64, {_APERTURES[op.name]:#x}UL))", "~0UL"
        else:
            text, defined = f"(({vector})SPLAT(U64, (u64){_scalar_word(ctx, op)[0]}))", "~0UL"
        return Source(_signs(text, type_, op, neg, absolute) if floating else text, defined)
    if raw is not None:
        word, low, high = raw.text, raw.defined, raw.defined
    elif op.kind in ("v", "a"):
        n = ctx.register(op)
        word, low, high = f"w->v[{n}]", f"DLO({n})", f"DHI({n})"
    else:
        scalar, low = _scalar_word(ctx, op)
        word, high = f"SPLAT(U32, {scalar})", low
    if width(type_) == 16:
        text = f"BC({vector}, {'HIGH16' if half else 'LOW16'}({word}))"
        defined = high if half else low
    else:
        text = f"(({vector}){word})"
        defined = low if low == high else f"({low} & {high})"
        if type_ == "u32":
            # v_cndmask_b32 moves bits, but its operands take the sign modifiers of floats.
            text = f"({text} & 0x7fffffffu)" if absolute else text
            text = f"({text} ^ 0x80000000u)" if neg else text
    return Source(_signs(text, type_, op, neg, absolute) if floating else text, defined)
