"""Memory instructions to C: lane addresses computed inline, the access itself in the engine."""

from __future__ import annotations

from forgec.emulator.emit_base import Context, uncovered
from forgec.emulator.isa.memory import DS, FENCES, SMEM, SMEM_SMALL, VECTOR, Access
from forgec.emulator.operands import Instruction, Operand

__all__ = ["emit_memory", "is_memory"]

_COHERENT = frozenset({"glc", "sc0", "sc1"})
# What is in flight, as machine/wave.h numbers it.
_VECTOR_LOAD, _SCALAR_LOAD, _EVENT, _WRITE, _ATOMIC = range(5)
_WRITE_BACK, _INVALIDATE_OUTER, _INVALIDATE_INNER = 1, 2, 4
_F_DEVICE = 32


def is_memory(ins: Instruction) -> bool:
    return ins.mnemonic.startswith(("global_", "flat_", "scratch_", "ds_", "s_load", "s_buffer", "buffer_"))


def emit_memory(ctx: Context, ins: Instruction) -> list[str] | None:
    """C of a memory instruction, or None when no table has it."""
    name = ins.mnemonic
    if name in FENCES:
        return _fence(ctx, ins)
    if name in SMEM or name in SMEM_SMALL:
        return _scalar_load(ctx, ins)
    if name in DS:
        return _lds(ctx, ins, DS[name])
    if name in ("ds_bpermute_b32", "ds_permute_b32", "ds_bpermute_fi_b32"):
        dst, addr, data = (ctx.register(o) for o in ins.operands)
        call = "emu_permute" if name == "ds_permute_b32" else "emu_bpermute"
        return [
            f"{call}(w, {dst}, {addr}, {data}, {_offset(ins)});",
            *_issue(ctx, "CNT_LGKM", _VECTOR_LOAD, dst, 1),
        ]
    if name == "ds_swizzle_b32":
        dst, src = (ctx.register(o) for o in ins.operands)
        return [
            f"emu_swizzle(w, {dst}, {src}, {_swizzle(ins)});",
            *_issue(ctx, "CNT_LGKM", _VECTOR_LOAD, dst, 1),
        ]
    if name in ("ds_nop",):
        return []
    if name in VECTOR:
        return (
            _buffer(ctx, ins, VECTOR[name]) if name.startswith("buffer_") else _vector(ctx, ins, VECTOR[name])
        )
    return None


def _fence(ctx: Context, ins: Instruction) -> list[str]:
    """Cache maintenance at device scope (LLVM AMDGPU guide, "Memory Model"); the rest has no effect here."""
    both = _INVALIDATE_OUTER | _INVALIDATE_INNER
    wide = ins.modifiers.get("scope", "") in ("SCOPE_DEV", "SCOPE_SYS")
    effects = {
        "buffer_gl1_inv": _INVALIDATE_OUTER,
        "buffer_gl0_inv": _INVALIDATE_INNER,
        "buffer_wbinvl1": both,
        "buffer_wbinvl1_vol": both,
        "buffer_inv": both if "sc1" in ins.flags else _INVALIDATE_INNER,
        "buffer_wbl2": _WRITE_BACK if "sc1" in ins.flags else 0,
        "global_inv": both if wide else _INVALIDATE_INNER if "scope" in ins.modifiers else 0,
        "global_wbinv": both if wide else 0,
    }
    effect = effects.get(ins.mnemonic, 0)
    if not ctx.checks or not effect:
        return []
    lines = [f"emu_fence(w, {effect});"]
    return lines + (_issue(ctx, "CNT_VM", _WRITE, 0, 0) if effect == _WRITE_BACK else [])


def _is_device_wide(ctx: Context, ins: Instruction) -> bool:
    """Whether an access passes the caches that compute units do not share."""
    if ctx.gfx12:
        return ins.modifiers.get("scope", "") in ("SCOPE_DEV", "SCOPE_SYS")
    return bool({"glc", "sc1"} & ins.flags)


def _offset(ins: Instruction) -> int:
    return int(ins.modifiers.get("offset", "0"), 0)


def _swizzle(ins: Instruction) -> int:
    """The offset field of ds_swizzle, from a number or LLVM's swizzle(...) notation."""
    text = ins.modifiers.get("offset", "0")
    if not text.startswith("swizzle"):
        return int(text, 0)
    inner = ins.text[ins.text.index("swizzle(") + 8 : ins.text.rindex(")")]
    kind, *rest = [p.strip().strip('"') for p in inner.split(",")]
    if kind == "QUAD_PERM":
        return 0x8000 | sum(int(v) << 2 * i for i, v in enumerate(rest))
    if kind == "BITMASK_PERM":
        both = rest[0]
        and_ = or_ = xor = 0
        for i, ch in enumerate(both):
            bit = 1 << (4 - i)
            and_ |= bit if ch in "pi" else 0
            or_ |= bit if ch == "1" else 0
            xor |= bit if ch == "i" else 0
        return and_ | or_ << 5 | xor << 10
    if kind == "BROADCAST":
        size, lane = int(rest[0]), int(rest[1])
        return (31 & ~(size - 1)) | lane << 5
    if kind == "SWAP":
        return 31 | int(rest[0]) << 10
    if kind == "REVERSE":
        return 31 | (int(rest[0]) - 1) << 10
    raise ValueError(f"unknown swizzle '{text}'")


def _issue(ctx: Context, counter: str, kind: int, lo: int, n: int) -> list[str]:
    return [f"emu_issue(w, {counter}, {kind}, {lo}, {n});"] if ctx.checks else []


def _counters(ctx: Context, space: str) -> tuple[str, str]:
    """(counter of loads, counter of stores) of a space."""
    if space == "ds":
        return "CNT_LGKM", "CNT_LGKM"
    return "CNT_VM", "CNT_VM" if ctx.gfx9 else "CNT_VS"


def _pending_destination(ctx: Context, reg: int, n: int, counter: str) -> None:
    """Loads of one counter return in order, so a second load may overwrite the first without a wait."""
    ctx.load_destination = (reg, n, counter)


def _scalar_load(ctx: Context, ins: Instruction) -> list[str]:
    dst, base, *rest = ins.operands
    size, flags = SMEM_SMALL.get(ins.mnemonic, (SMEM.get(ins.mnemonic, 0), 0))
    b = ctx.scalar(Operand("s", base.reg, 2))
    offset = f"{_offset(ins)}L"
    defined = f"DALL({b}) & DALL({b + 1})"
    if rest:
        op = rest[0]
        if op.kind == "s":
            n = ctx.scalar(op)
            offset += f" + (i64)(u64)w->s[{n}]"
            defined += f" & DALL({n})"
        elif op.kind == "int":
            offset += f" + {int(op.value)}L"
    if _COHERENT & ins.flags:
        flags |= 16
    if _is_device_wide(ctx, ins):
        flags |= _F_DEVICE
    d = ctx.scalar(Operand("s", dst.reg, (size + 3) // 4))
    lines = []
    if ctx.checks:
        lines.append(
            f"if (UNLIKELY(!({defined}))) return emu_trap(w, TRAP_UNINIT_ADDRESS, {ctx.site}, 0, 0, 0);"
        )
    lines.append(
        f"if (emu_sload(w, {ctx.site}, s64(w, {b}) + (u64)({offset}), {d}, {size}, {flags})) return RUN_TRAP;"
    )
    return lines + _issue(ctx, "CNT_KM" if ctx.gfx12 else "CNT_LGKM", _SCALAR_LOAD, d, (size + 3) // 4)


def _check_address(ctx: Context, defined: str) -> list[str]:
    if not ctx.checks:
        return []
    return [
        f"{{ u64 bad = ~({defined}) & (u64)EXEC; if (UNLIKELY(bad)) "
        f"return emu_trap(w, TRAP_UNINIT_ADDRESS, {ctx.site}, (u32)__builtin_ctzl(bad), 0, 0); }}"
    ]


def _flags(ctx: Context, ins: Instruction, access: Access) -> int:
    coherent = bool(_COHERENT & ins.flags) or ins.modifiers.get("scope", "SCOPE_CU") not in ("SCOPE_CU",)
    if access.kind != "load":
        return access.flags
    return access.flags | (16 if coherent else 0) | (_F_DEVICE if _is_device_wide(ctx, ins) else 0)


_SPACES = {"global": "SPACE_GLOBAL", "flat": "SPACE_FLAT", "scratch": "SPACE_SCRATCH", "ds": "SPACE_LDS"}


def _access(
    ctx: Context, ins: Instruction, access: Access, space: str, data: list[Operand], dst: Operand | None
) -> list[str]:
    """The engine call on the lane addresses ``at``, and the bookkeeping of what is now in flight."""
    if access.kind == "atomic":
        return _atomic(ctx, ins, access, space, data, dst)
    loads, stores = _counters(ctx, space)
    flags = _flags(ctx, ins, access)
    words = (access.size + 3) // 4
    if access.kind == "load":
        assert dst is not None
        if "lds" in ins.flags:
            raise uncovered(ctx, ins, "loads into LDS")
        r = ctx.register(Operand(dst.kind, dst.reg, words))
        if dst.half == 1:
            flags = flags & ~2 | 4
        _pending_destination(ctx, r, words, loads)
        ctx.written_vgprs.update(range(r, r + words))
        issued = _issue(ctx, loads, _VECTOR_LOAD, r, words)
    else:
        r = ctx.register(Operand(data[0].kind, data[0].reg, words))
        if data[0].half == 1:
            flags |= 4
        issued = _issue(ctx, stores, _EVENT if space in ("ds", "scratch") else _WRITE, 0, 0)
    arguments = f"w, {ctx.site}, {_SPACES[space]}, &at, {r}, {access.size}, {flags}"
    lines = [f"if (emu_{access.kind}({arguments})) return RUN_TRAP;", *issued]
    if space == "flat" and not ctx.gfx12:
        lines += _issue(ctx, "CNT_LGKM", _EVENT, 0, 0)
    return lines


def _atomic(
    ctx: Context, ins: Instruction, access: Access, space: str, data: list[Operand], dst: Operand | None
) -> list[str]:
    loads, stores = _counters(ctx, space)
    words = access.size // 4
    compare = 0
    if len(data) == 2:
        first, second = data
        if ins.mnemonic.startswith("ds_cmpst_"):  # gfx9 and gfx10 name the comparand first
            first, second = second, first
        value = ctx.register(Operand(first.kind, first.reg, words))
        compare = ctx.register(Operand(second.kind, second.reg, words))
    elif access.operation == "A_CMPSWAP":
        value = ctx.register(Operand(data[0].kind, data[0].reg, 2 * words))
        compare = value + words
    else:
        value = ctx.register(Operand(data[0].kind, data[0].reg, words))
    d, flags = 0, 256 if access.size == 8 else 0
    issued = _issue(ctx, stores, _EVENT if space == "ds" else _WRITE, 0, 0)
    if dst is not None:
        d = ctx.register(Operand(dst.kind, dst.reg, words))
        ctx.written_vgprs.update(range(d, d + words))
        flags, issued = flags | 8, _issue(ctx, loads, _VECTOR_LOAD if space == "ds" else _ATOMIC, d, words)
    operation = _OPERATIONS.index(access.operation)
    arguments = f"w, {ctx.site}, {_SPACES[space]}, &at, {d}, {value}, {compare}, {operation}, {flags}"
    return [f"if (emu_atomic({arguments})) return RUN_TRAP;", *issued]


_OPERATIONS = (
    "A_SWAP",
    "A_CMPSWAP",
    "A_ADD",
    "A_SUB",
    "A_RSUB",
    "A_SMIN",
    "A_UMIN",
    "A_SMAX",
    "A_UMAX",
    "A_AND",
    "A_OR",
    "A_XOR",
    "A_INC",
    "A_DEC",
    "A_FADD",
    "A_FMIN",
    "A_FMAX",
    "A_PK_ADD_F16",
    "A_PK_ADD_BF16",
    "A_SUB_CLAMP",
    "A_COND_SUB",
)


def _lds(ctx: Context, ins: Instruction, access: Access) -> list[str]:
    operands = list(ins.operands)
    if "gds" in ins.flags:
        raise uncovered(ctx, ins, "GDS")
    pair = access.kind.endswith("2")
    loading = access.kind.startswith("load")
    dst = operands.pop(0) if loading or access.returns else None
    addr = operands.pop(0)
    a = ctx.register(addr)
    lines = _check_address(ctx, f"DV({a})")
    if not pair:
        lines.append(f"U64 at = CV(w->v[{a}], U64) + {_offset(ins)}UL;")
        return lines + _access(ctx, ins, access, "ds", operands, dst)
    words = access.size // 4
    offsets = [int(ins.modifiers.get(f"offset{i}", "0"), 0) * access.stride for i in (0, 1)]
    lines.append(f"U64 base = CV(w->v[{a}], U64);")
    single = Access(access.kind[:-1], access.size, section=access.section)
    for i in (0, 1):
        part_dst = Operand(dst.kind, dst.reg + i * words, words) if dst is not None else None
        part_data = [operands[i]] if dst is None else []
        body = [f"U64 at = base + {offsets[i]}UL;", *_access(ctx, ins, single, "ds", part_data, part_dst)]
        if ctx.checks and i == 0:
            body = [b for b in body if not b.startswith("emu_issue")]
        lines.append("{ " + " ".join(body) + " }")
    if dst is not None:
        d = ctx.register(Operand(dst.kind, dst.reg, 2 * words))
        _pending_destination(ctx, d, 2 * words, "CNT_LGKM")
        if ctx.checks:
            lines[-1] = lines[-1].replace(
                f"emu_issue(w, CNT_LGKM, 0, {d + words}, {words});",
                f"emu_issue(w, CNT_LGKM, 0, {d}, {2 * words});",
            )
    return lines


def _vector(ctx: Context, ins: Instruction, access: Access) -> list[str]:
    """GLOBAL, FLAT and SCRATCH addressing (RDNA3 16.20, CDNA3 9.3)."""
    space = ins.mnemonic.split("_")[0]
    operands = list(ins.operands)
    dst: Operand | None = None
    if access.kind == "load":
        dst = operands.pop(0)
    elif access.kind == "atomic":
        returns = (
            bool({"glc", "sc0"} & ins.flags)
            or ins.modifiers.get("th", "") == "TH_ATOMIC_RETURN"
            or "RETURN" in ins.modifiers.get("th", "")
        )
        if returns:
            dst = operands.pop(0)
    addr = operands.pop(0)
    data: list[Operand] = []
    if access.kind != "load":
        data.append(operands.pop(0))
    saddr = operands.pop(0) if operands else None
    offset = _offset(ins)
    defined: list[str] = []
    if space == "scratch":
        text = f"SPLAT(U64, (u64){offset}L)"
        if addr.kind == "v":
            a = ctx.register(addr)
            text += f" + CV(w->v[{a}], U64)"
            defined.append(f"DV({a})")
        if saddr is not None and saddr.kind == "s":
            n = ctx.scalar(saddr)
            text += f" + (u64)w->s[{n}]"
            defined.append(f"DALL({n})")
        text = f"({text}) & 0xffffffffUL"
    elif saddr is not None and saddr.kind == "s":
        n = ctx.scalar(Operand("s", saddr.reg, 2))
        a = ctx.register(Operand(addr.kind, addr.reg, 1))
        text = f"CV(w->v[{a}], U64) + (s64(w, {n}) + (u64){offset}L)"
        defined += [f"DV({a})", f"DALL({n})", f"DALL({n + 1})"]
    else:
        a = ctx.register(Operand(addr.kind, addr.reg, 2))
        text = f"READ64({a}) + (u64){offset}L"
        defined += [f"DV({a})", f"DV({a + 1})"]
    lines = _check_address(ctx, " & ".join(defined) or "~0UL")
    lines.append(f"U64 at = {text};")
    return lines + _access(ctx, ins, access, space, data, dst)


def _buffer(ctx: Context, ins: Instruction, access: Access) -> list[str]:
    """Buffer accesses of the stack (MUBUF with the private-segment descriptor) and raw buffers.

    The private segment's descriptor swizzles (bit 63 and the index stride): such an access addresses scratch
    at ``soffset / wave + voffset + offset`` bytes of each lane. Any other descriptor is a raw buffer with
    bounds.
    """
    operands = list(ins.operands)
    dst: Operand | None = None
    data: list[Operand] = []
    if access.kind == "load":
        dst = operands.pop(0)
    else:
        value = operands.pop(0)
        data.append(value)
        if access.kind == "atomic" and {"glc", "sc0"} & ins.flags:
            dst = value
    if "idxen" in ins.flags:
        raise uncovered(ctx, ins, "structured buffers")
    vaddr, rsrc, soffset = operands
    r = ctx.scalar(Operand("s", rsrc.reg, 4))
    text, defined = f"SPLAT(U64, {_offset(ins)}UL)", [f"DALL({r})", f"DALL({r + 1})"]
    if vaddr.kind == "v":
        a = ctx.register(vaddr)
        text += f" + CV(w->v[{a}], U64)"
        defined.append(f"DV({a})")
    if soffset.kind == "s":
        n = ctx.scalar(soffset)
        scalar = f"(u64)w->s[{n}]"
        defined.append(f"DALL({n})")
    else:
        scalar = f"{int(soffset.value) if soffset.kind == 'int' else 0}UL"
    lines = _check_address(ctx, " & ".join(defined))
    lines.append(f"U64 at = {text}; int swizzled = (int)(w->s[{r + 1}] >> 31);")
    lines.append(f"at += swizzled ? {scalar} / {ctx.wave}UL : {scalar} + (s64(w, {r}) & 0xffffffffffffUL);")
    lines.append("if (swizzled) at &= 0xffffffffUL;")
    body = _access(ctx, ins, access, "global", data, dst)
    body[0] = body[0].replace("SPACE_GLOBAL", "swizzled ? SPACE_SCRATCH : SPACE_GLOBAL")
    return lines + body
