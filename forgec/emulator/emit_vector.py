# ruff: noqa: E501 (C text is not broken)
"""Vector ALU instructions to C: a table row, its operands and modifiers (DPP, SDWA, clamp, omod, op_sel)
combined."""

from __future__ import annotations

from forgec.emulator.emit_base import (
    VECTOR_TYPE,
    Context,
    Source,
    constant_bits,
    uncovered,
    vector_source,
    width,
)
from forgec.emulator.isa.vop1 import VOP1
from forgec.emulator.isa.vop2 import VOP2
from forgec.emulator.isa.vop3 import VOP3
from forgec.emulator.isa.vop3p import VOP3P
from forgec.emulator.isa.vopc import VOPC
from forgec.emulator.lanes import dpp_lanes, is_dpp, sdwa_select
from forgec.emulator.operands import VCC, Instruction, Operand
from forgec.emulator.table import Row

__all__ = ["ROWS", "emit_packed", "emit_vector", "vector_row"]

ROWS: dict[str, Row] = {**VOP1, **VOP2, **VOP3, **VOP3P, **VOPC}
_LETTERS = "abcef"
# gfx9 writes zeros above a 16-bit result, except for the ternary and mixed-precision ones; gfx10 on keeps
# them.
_GFX9_PRESERVES = ("v_mad_", "v_fma_", "v_div_fixup", "v_mad_mix", "v_fma_mix", "v_min3", "v_max3", "v_med3")


def vector_row(ins: Instruction) -> Row | None:
    """The row of a vector instruction; an integer clamp selects the saturating row."""
    if "clamp" in ins.flags and f"{ins.mnemonic}:clamp" in ROWS:
        return ROWS[f"{ins.mnemonic}:clamp"]
    return ROWS.get(ins.mnemonic)


def _split_operands(ctx: Context, ins: Instruction, row: Row) -> tuple[list[Operand | None], list[Operand]]:
    """Result operands (None: implicit) and explicit sources, in row order."""
    operands = list(ins.operands)
    explicit = [t for t in row.sources if not t.startswith("@") and t != "vcc"]
    results: list[Operand | None] = []
    if row.results == ("exec",):
        results.append(operands.pop(0) if len(operands) > len(explicit) else None)
    else:
        for _ in row.results:
            if not operands:
                raise uncovered(ctx, ins, "missing operands")
            results.append(operands.pop(0))
    if len(operands) == len(explicit) - 1 and explicit[-1] == "m":
        operands.append(Operand("s", VCC, 2))
    if len(operands) != len(explicit):
        raise uncovered(ctx, ins, f"{len(operands)} sources, the table has {len(explicit)}")
    return results, operands


def _dpp(ctx: Context, ins: Instruction, op: Operand) -> tuple[list[str], Source]:
    """Statements that permute source 0 and narrow the write mask, and the permuted register."""
    lanes, enabled = dpp_lanes(ins, ctx.wave)
    n = ctx.register(op)
    order = ", ".join(str(s if s is not None else i) for i, s in enumerate(lanes))
    valid = sum(1 << i for i, s in enumerate(lanes) if s is not None)
    on = sum(1 << i for i, e in enumerate(enabled) if e)
    bound = "bound_ctrl" in ins.modifiers or "dpp8" in ins.modifiers
    fi = ins.modifiers.get("fi", "0") not in ("0", "")
    suffix = "UL" if ctx.wave == 64 else "u"
    lines = [f"U32 dpp = __builtin_shufflevector(w->v[{n}], w->v[{n}], {order});"]
    active = f"{valid:#x}{suffix}"
    if not fi:
        lines.append(f"U32 dpp_em = __builtin_shufflevector(w->em, w->em, {order});")
        active = f"(BITS(dpp_em) & {valid:#x}{suffix})"
    lines.append(f"mask dpp_ok = {active}; mask wx = EXEC & {on:#x}{suffix};")
    defined = "~0UL"
    if ctx.checks:
        table = ", ".join(str(s if s is not None else i) for i, s in enumerate(lanes))
        lines.append(f"static const u8 dpp_from[] = {{{table}}}; u64 dpp_d = gather_bits(DV({n}), dpp_from);")
        defined = "(dpp_d | ~(u64)dpp_ok)"
    if bound:
        lines.append("dpp = SEL32(lanes32(dpp_ok), dpp, SPLAT(U32, 0));")
    else:
        lines.append("wx &= dpp_ok;")
    lines.append("U32 wm = lanes32(wx);")
    return lines, Source("dpp", defined)


def _bits_of(ins: Instruction, name: str, count: int, default: int) -> tuple[int, ...]:
    return ins.bits(name, (default,) * count)


def _sources(
    ctx: Context, ins: Instruction, row: Row, operands: list[Operand], results: list[Operand | None]
) -> tuple[list[str], list[Source]]:
    """Statements that bind the sources to their letters, and the sources themselves."""
    lines: list[str] = []
    found: list[Source] = []
    raw0: Source | None = None
    if is_dpp(ins):
        extra, raw0 = _dpp(ctx, ins, operands[0])
        lines += extra
    op_sel = _bits_of(ins, "op_sel", 4, 0)
    explicit = iter(operands)
    index = 0
    for letter, type_ in zip(_LETTERS, row.sources, strict=False):
        if type_ == "vcc":
            source = vector_source(ctx, Operand("s", VCC, 2), "m")
            lines.append(f"mask {letter} = {source.text};")
            found.append(source)
            continue
        if type_.startswith("@"):
            destination = results[0]
            assert destination is not None
            source = vector_source(
                ctx,
                Operand(destination.kind, destination.reg, destination.count, half=destination.half),
                type_[1:],
                half=op_sel[3] if type_ == "@f16" else 0,
            )
            lines.append(f"{VECTOR_TYPE[type_[1:]]} {letter} = {source.text};")
            found.append(source)
            continue
        source, vector = _explicit_source(ctx, ins, row, next(explicit), type_, index, raw0)
        lines.append(f"{vector} {letter} = {source.text};")
        found.append(source)
        index += 1
    return lines, found


def _explicit_source(
    ctx: Context, ins: Instruction, row: Row, op: Operand, type_: str, index: int, raw0: Source | None
) -> tuple[Source, str]:
    """Source ``index`` of the instruction and the C type it is bound with."""
    op_sel = _bits_of(ins, "op_sel", 4, 0)
    op_sel_hi = _bits_of(ins, "op_sel_hi", 3, 0 if "mix" in row.sources else 1)
    neg_lo, neg_hi = _bits_of(ins, "neg_lo", 3, 0), _bits_of(ins, "neg_hi", 3, 0)
    if type_ == "mix":
        half_wanted = op_sel_hi[index]
        bare = Operand(op.kind, op.reg, op.count, op.value, op.name, False, False, False, op.half)
        source = vector_source(ctx, bare, "f16" if half_wanted else "f32", half=op_sel[index])
        text = f"to_f32({source.text})" if half_wanted else source.text
        if neg_hi[index] or op.absolute:
            text = f"ABSF32({text})"
        if neg_lo[index] or op.neg:
            text = f"NEGF32({text})"
        return Source(text, source.defined), "F32"
    if type_ in ("pf16raw", "pi16raw"):
        halves = (op_sel[index], op_sel_hi[index], neg_lo[index], neg_hi[index])
        return _packed_raw(ctx, op, type_, *halves), "U32"
    raw = raw0 if index == 0 else None
    selection = ins.modifiers.get(f"src{index}_sel", "DWORD")
    if ins.encoding == "sdwa" and op.kind in ("v", "a") and (selection != "DWORD" or op.sext):
        n = ctx.register(op)
        raw = Source(sdwa_select(f"w->v[{n}]", selection, op.sext), f"DV({n})")
        if selection.startswith("WORD"):
            raw = Source(raw.text, f"{'DHI' if selection.endswith('1') else 'DLO'}({n})")
    half = op_sel[index] if width_or_zero(type_) == 16 else 0
    return vector_source(ctx, op, type_, half=half, raw=raw), VECTOR_TYPE[type_]


def width_or_zero(type_: str) -> int:
    return 0 if type_ == "m" else width(type_)


def _packed_raw(ctx: Context, op: Operand, type_: str, lo: int, hi: int, neg_lo: int, neg_hi: int) -> Source:
    if op.kind in ("int", "float"):
        bits = constant_bits(op, "u32" if op.kind == "int" else "f16")
        if lo == 0 and hi == 0:
            bits = (bits & 0xFFFF) * 0x10001
        source = Source(f"SPLAT(U32, {bits:#x}u)")
    else:
        source = vector_source(ctx, op, "u32")
        if (lo, hi) != (0, 1):
            halves = [f"{'HIGH16' if h else 'LOW16'}({source.text})" for h in (lo, hi)]
            source = Source(f"PACK16({halves[0]}, {halves[1]})", source.defined)
    flip = (0x8000 if neg_lo else 0) | (0x80000000 if neg_hi else 0)
    return Source(f"({source.text} ^ {flip:#x}u)", source.defined) if flip and type_ == "pf16raw" else source


def _defined(ins: Instruction, operands: list[Operand], sources: list[Source], row: Row) -> tuple[str, str]:
    """Definedness of the low and high half of the result."""
    if ins.mnemonic in ("v_cndmask_b32", "v_cndmask_b16", "v_dual_cndmask_b32"):
        both = (
            f"({sources[2].defined} & (((u64)c & {sources[1].defined}) | (~(u64)c & {sources[0].defined})))"
        )
        return both, both
    everything = " & ".join(dict.fromkeys(s.defined for s in sources)) or "~0UL"
    everything = f"({everything})"
    registers = [o for o in operands if o.kind in ("v", "a")]
    constants = [o for o in operands if o.kind == "int"]
    if (
        len(registers) == 1
        and len(constants) == 1
        and len(operands) == 2
        and not is_dpp(ins)
        and ins.encoding != "sdwa"
    ):
        value = int(constants[0].value) & 0xFFFFFFFF
        n = registers[0].reg
        if registers[0].kind == "v":
            if ins.mnemonic == "v_and_b32" and not value & 0xFFFF0000:
                return f"DLO({n})", "~0UL"
            if ins.mnemonic == "v_and_b32" and not value & 0xFFFF:
                return "~0UL", f"DHI({n})"
            if ins.mnemonic == "v_lshlrev_b32" and value == 16:
                return "~0UL", f"DLO({n})"
            if ins.mnemonic in ("v_lshrrev_b32", "v_ashrrev_i32") and value == 16:
                return f"DHI({n})", f"DHI({n})" if ins.mnemonic == "v_ashrrev_i32" else "~0UL"
    if ins.mnemonic in ("v_bfe_u32", "v_bfe_i32") and registers and len(constants) == 2:
        start, size = int(constants[0].value), int(constants[1].value)
        if registers[0].kind == "v" and start + size <= 16:
            return f"DLO({registers[0].reg})", f"DLO({registers[0].reg})"
    if ins.mnemonic == "v_pack_b32_f16":
        return sources[0].defined, sources[1].defined
    if ins.mnemonic in ("v_mad_u64_u32", "v_mad_co_u64_u32") and operands[2].kind in ("v", "s"):
        # clang leaves the high word of the addend open where it needs the low word of the sum alone.
        addend = f"{'DV' if operands[2].kind == 'v' else 'DALL'}({operands[2].reg})"
        return f"({sources[0].defined} & {sources[1].defined} & {addend})", everything
    if (
        ins.mnemonic == "v_mov_b32"
        and registers
        and not is_dpp(ins)
        and ins.encoding != "sdwa"
        and registers[0].kind == "v"
    ):
        return f"DLO({registers[0].reg})", f"DHI({registers[0].reg})"
    return everything, everything


def _output_modifiers(ctx: Context, ins: Instruction, type_: str) -> list[str]:
    lines = []
    base = type_.removesuffix("hi")
    if base in ("f32", "f64", "f16"):
        scale = {"mul": {"2": "2", "4": "4"}, "div": {"2": "0.5"}}
        for name, table in scale.items():
            if name in ins.modifiers:
                factor = table[ins.modifiers[name]]
                lines.append(
                    f"d = d * (f32){factor};"
                    if base == "f32"
                    else f"d = d * (f64){factor};"
                    if base == "f64"
                    else f"d = to_f16(to_f32(d) * (f32){factor});"
                )
        if "clamp" in ins.flags:
            lines.append(f"d = clamp_{base}(d);")
    elif "clamp" in ins.flags and f"{ins.mnemonic}:clamp" not in ROWS and type_ != "m":
        raise uncovered(ctx, ins, "integer clamp")
    return lines


def _write(
    ctx: Context, ins: Instruction, type_: str, op: Operand, narrowed: bool, defined: tuple[str, str]
) -> list[str]:
    """Statements that store ``d`` into a VGPR destination under EXEC (or the narrowed DPP mask)."""
    m, x = ("wm", "wx") if narrowed else ("w->em", "EXEC")
    n = ctx.register(op)
    size = width(type_)
    check: list[str] = []
    if size == 64:
        ctx.register(Operand(op.kind, op.reg, 2))
        ctx.written_vgprs.update((n, n + 1))
        if ctx.checks:
            check = [f"u64 Dl = {defined[0]}, Dh = {defined[1]}; DSET({n}, Dl, {x}); DSET({n + 1}, Dh, {x});"]
        return [*check, f"WRITE64({n}, d, {m});"]
    ctx.written_vgprs.add(n)
    if ins.encoding == "sdwa" and ins.modifiers.get("dst_sel", "DWORD") != "DWORD":
        return _write_sdwa(ctx, ins, type_, n, m, x, defined)
    if size == 32:
        if ctx.checks:
            check = [
                f"u64 Dl = {defined[0]}, Dh = {defined[1]}; DSET_LO({n}, Dl, {x}); DSET_HI({n}, Dh, {x});"
            ]
        return [*check, f"WRITE32({n}, (U32)d, {m});"]
    high = type_.endswith("hi") or op.half == 1 or (op.half is None and _bits_of(ins, "op_sel", 4, 0)[3] == 1)
    zero = ctx.gfx9 and not ins.mnemonic.startswith(_GFX9_PRESERVES) and not high
    macro = "SET_HIGH16" if high else "ZERO_HIGH16" if zero else "SET_LOW16"
    if ctx.checks:
        check = [
            f"u64 D = {defined[0]}; {'DSET_HI' if high else 'DSET' if zero else 'DSET_LO'}({n}, D, {x});"
        ]
    return [*check, f"{macro}({n}, BC(U16, d), {m});"]


def _write_sdwa(
    ctx: Context, ins: Instruction, type_: str, n: int, m: str, x: str, defined: tuple[str, str]
) -> list[str]:
    kind, _, index = ins.modifiers["dst_sel"].partition("_")
    bits = 8 if kind == "BYTE" else 16
    shift, field = bits * int(index), (1 << bits) - 1
    unused = ins.modifiers.get("dst_unused", "UNUSED_PAD")
    value = "CV(BC(U16, d), U32)" if width(type_) == 16 else "(U32)d"
    lines = [f"U32 y = ({value} & {field:#x}u) << {shift};"]
    if unused == "UNUSED_PRESERVE":
        lines.append(f"y |= w->v[{n}] & {0xFFFFFFFF ^ field << shift:#x}u;")
    elif unused == "UNUSED_SEXT":
        lines.append(f"y = (U32)((I32)(y << {32 - bits - shift}) >> {32 - bits - shift});")
    if ctx.checks:
        keep = f" & DV({n})" if unused == "UNUSED_PRESERVE" and bits == 8 else ""
        if unused == "UNUSED_PRESERVE" and bits == 16:
            lines.append(f"{'DSET_HI' if shift else 'DSET_LO'}({n}, {defined[0]}, {x});")
        else:
            lines.append(f"DSET({n}, {defined[0]}{keep}, {x});")
    return [*lines, f"WRITE32({n}, y, {m});"]


def _write_mask(ctx: Context, op: Operand, value: str, defined: str) -> list[str]:
    if op.kind != "s":
        return []
    ctx.sgprs.update(range(op.reg, op.reg + (2 if ctx.wave == 64 else 1)))
    lines = [f"set_mask(w, {op.reg}, {value} & EXEC);"]
    if ctx.checks:
        lines.append(f"set_dmask(w, {op.reg}, {defined} | ~(u64)EXEC);")
    return lines


def emit_vector(ctx: Context, ins: Instruction, row: Row) -> tuple[list[str], list[str]]:
    """(statements that read and compute, statements that write): a dual issue reads both before writing
    either."""
    if row.results and row.results[0].startswith("p"):
        return emit_packed(ctx, ins, row)
    results, operands = _split_operands(ctx, ins, row)
    read, sources = _sources(ctx, ins, row, operands, results)
    neg = _bits_of(ins, "neg_lo", 3, 0)
    text = (
        row.text.replace("$S0", str(neg[0]))
        .replace("$S1", str(neg[1]))
        .replace("$BITOP3", ins.modifiers.get("bitop3", "0"))
    )
    defined = _defined(ins, operands, sources, row) if ctx.checks else ("~0UL", "~0UL")
    type_ = row.results[0]
    vector = VECTOR_TYPE.get(type_, "mask")
    read.append(f"{text};" if row.statement else f"{vector} d = {text};")
    if type_ == "exec":
        write = ["mask x0 = EXEC;"]
        if results[0] is not None:
            write += _write_mask(ctx, results[0], "d", defined[0])
        if ctx.checks:
            write.append(
                f"if (UNLIKELY(~({defined[0]}) & x0)) return emu_trap(w, TRAP_UNINIT_BRANCH, {ctx.site}, 0, 0, 0);"
            )
        write += ["set_mask(w, R_EXEC, d & x0);", "exec_changed(w);"]
        return read, write
    first = results[0]
    assert first is not None
    narrowed = is_dpp(ins)
    if type_ == "m":
        return read, _write_mask(ctx, first, "d", defined[0])
    read += _output_modifiers(ctx, ins, type_)
    if ctx.mixed_mode and width(type_) != 32:
        read = [*read[:-1], "mode_f64(w);", read[-1], "mode_f32(w);"]
    if ctx.checks and len(results) > 1:
        read.append(f"u64 D2 = {defined[0]} & {defined[1]};")
    write = _write(ctx, ins, type_, first, narrowed, defined)
    if len(results) > 1 and results[1] is not None:
        write += _write_mask(ctx, results[1], "d2", "D2" if ctx.checks else "~0UL")
    return read, write


def emit_packed(ctx: Context, ins: Instruction, row: Row) -> tuple[list[str], list[str]]:
    """A packed instruction: the row's text once per half, with op_sel, neg and the constant rules of
    VOP3P."""
    results, operands = _split_operands(ctx, ins, row)
    destination = results[0]
    assert destination is not None
    element = row.results[0][1:]
    single = element == "f32"
    vector = VECTOR_TYPE[element]
    read: list[str] = []
    defined: list[str] = []
    n = ctx.register(Operand(destination.kind, destination.reg, 2 if single else 1))
    for part, (select, negate, default) in enumerate((("op_sel", "neg_lo", 0), ("op_sel_hi", "neg_hi", 1))):
        chosen, negs = _bits_of(ins, select, 3, default), _bits_of(ins, negate, 3, 0)
        bind: list[str] = []
        lanes: list[str] = []
        explicit = iter(operands)
        for i, type_ in enumerate(row.sources):
            if type_.startswith("@"):
                source = vector_source(ctx, destination, element, half=part)
            else:
                op = next(explicit)
                half = chosen[i]
                if single and op.kind in ("v", "a", "s"):
                    op = Operand(op.kind, op.reg + half, 1, neg=op.neg, absolute=op.absolute)
                if not single and op.kind in ("int", "float"):
                    bits = constant_bits(op, "u32" if op.kind == "int" else "f16")
                    op = Operand("int", value=bits >> 16 if half else bits & 0xFFFF)
                source = vector_source(ctx, op, element, half=half, neg=bool(negs[i]))
            bind.append(f"{vector} {_LETTERS[i]} = {source.text};")
            lanes.append(source.defined)
        body = f"{row.text};" if row.statement else f"{vector} d = {row.text};"
        clamp = f" d = clamp_{element}(d);" if "clamp" in ins.flags and element[0] == "f" else ""
        read.append(f"{vector} r{part}; {{ {' '.join(bind)} {body}{clamp} r{part} = d; }}")
        defined.append(" & ".join(dict.fromkeys(lanes)))
    if "clamp" in ins.flags and element[0] != "f" and f"{ins.mnemonic}:clamp" not in ROWS:
        raise uncovered(ctx, ins, "integer clamp")
    if ctx.checks:
        read.append(f"u64 Dl = {defined[0]}, Dh = {defined[1]};")
    ctx.written_vgprs.add(n)
    if single:
        ctx.written_vgprs.add(n + 1)
        write = [f"WRITE32({n}, (U32)r0, w->em);", f"WRITE32({n + 1}, (U32)r1, w->em);"]
        if ctx.checks:
            write.append(f"DSET({n}, Dl, EXEC); DSET({n + 1}, Dh, EXEC);")
        return read, write
    write = [f"WRITE32({n}, PACK16(BC(U16, r0), BC(U16, r1)), w->em);"]
    if ctx.checks:
        write.append(f"DSET_LO({n}, Dl, EXEC); DSET_HI({n}, Dh, EXEC);")
    return read, write
