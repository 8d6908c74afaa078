# ruff: noqa: E501 (C text is not broken)
"""Scalar ALU and program-control instructions to C, with the definedness of scalar registers in checked
mode."""

from __future__ import annotations

import re

from forgec.emulator.emit_base import Context, constant_bits, uncovered
from forgec.emulator.isa.salu import SALU, SAVEEXEC
from forgec.emulator.operands import EXEC, Instruction, Operand
from forgec.emulator.table import Row

__all__ = ["IGNORED", "emit_salu", "emit_wait", "write_scalar"]

_LETTERS = "abc"
_C_TYPE = {
    "u32": "u32",
    "i32": "i32",
    "u64": "u64",
    "i64": "i64",
    "f32": "f32",
    "f16": "f16",
    "k": "i32",
    "ku": "u32",
}
# Scheduling hints and events without effect on a functional machine.
IGNORED = frozenset(
    {
        "s_nop",
        "s_delay_alu",
        "s_clause",
        "s_setprio",
        "s_inst_prefetch",
        "s_set_inst_prefetch_distance",
        "s_waitcnt_depctr",
        "s_wait_alu",
        "s_wait_idle",
        "s_wait_event",
        "s_sendmsg",
        "s_ttracedata",
        "s_ttracedata_imm",
        "s_version",
        "s_prefetch_inst",
        "s_prefetch_inst_pc_rel",
        "s_prefetch_data",
        "s_prefetch_data_pc_rel",
        "s_buffer_prefetch_data",
        "s_setkill",
        "s_sethalt",
        "s_wakeup",
        "s_set_vgpr_msb",
    }
)
_PRECISE = {
    "and": "a, b",
    "or": "a, b",
    "xor": "a, b",
    "and_not1": "a, ~b",
    "andn2": "a, ~b",
    "or_not1": "a, ~b",
    "orn2": "a, ~b",
}


def scalar_source(ctx: Context, op: Operand, type_: str) -> tuple[str, str]:
    """(C expression of ``type_``, C u64 of its defined bits)."""
    wide = type_ in ("u64", "i64")
    if op.kind == "s":
        n = ctx.scalar(Operand("s", op.reg, 2 if wide else 1))
        if wide:
            return f"({type_})s64(w, {n})", f"((u64)w->ds[{n}] | (u64)w->ds[{n + 1}] << 32)"
        if type_ == "f32":
            text = f"BC(f32, w->s[{n}])"
        elif type_ == "f16":
            text = f"BC(f16, (u16)w->s[{n}])"
        else:
            text = f"({type_})w->s[{n}]"
        if op.absolute:
            text = f"__builtin_fabsf({text})" if type_ == "f32" else text
        if op.neg:
            text = f"-{text}"
        return text, f"((u64)w->ds[{n}] | 0xffffffff00000000UL)"
    if op.kind in ("int", "float"):
        if type_ in ("k", "ku"):
            value = int(op.value) & 0xFFFF
            if type_ == "k" and value & 0x8000:
                value -= 0x10000
            return str(value), "~0UL"
        bits = constant_bits(op, type_)
        if type_ == "f32":
            return f"BC(f32, {bits:#x}u)", "~0UL"
        if type_ == "f16":
            return f"BC(f16, (u16){bits:#x}u)", "~0UL"
        return f"({type_}){bits:#x}{'UL' if wide else 'u'}", "~0UL"
    named = {
        "scc": ("w->scc", "(w->dscc ? ~0UL : 0UL)"),
        "src_vccz": ("(u32)(smask(w, R_VCC) == 0)", "~0UL"),
        "src_execz": ("(u32)(EXEC == 0)", "~0UL"),
        "src_shared_base": ("0x1000000000000UL" if wide else "0x10000u", "~0UL"),
        "src_private_base": ("0x2000000000000UL" if wide else "0x20000u", "~0UL"),
        "src_shared_limit": ("0x10000ffffffffUL" if wide else "0xffffffffu", "~0UL"),
        "src_private_limit": ("0x20000ffffffffUL" if wide else "0xffffffffu", "~0UL"),
        "null": ("0", "~0UL"),
    }
    if op.name in named:
        text, defined = named[op.name]
        return f"({_C_TYPE[type_]}){text}", defined
    raise KeyError(op.name)


def write_scalar(ctx: Context, op: Operand, value: str, type_: str, defined: str) -> list[str]:
    """Statements that store ``value``; writing EXEC refreshes the lane mask and refuses undefined bits."""
    if op.kind != "s":
        return []
    wide = type_ in ("u64", "i64")
    n = ctx.scalar(Operand("s", op.reg, 2 if wide else 1))
    if wide:
        lines = [f"set64(w, {n}, (u64){value});"]
    elif type_ == "f32":
        lines = [f"w->s[{n}] = BC(u32, {value});"]
    elif type_ == "f16":
        lines = [f"w->s[{n}] = BC(u16, {value});"]
    else:
        lines = [f"w->s[{n}] = (u32){value};"]
    if ctx.checks:
        lines.append(f"w->ds[{n}] = (u32)({defined});")
        if wide:
            lines.append(f"w->ds[{n + 1}] = (u32)(({defined}) >> 32);")
    if n in (EXEC, EXEC + 1):
        lines.append("exec_changed(w);")
        if ctx.checks:
            lines.append(
                f"if (UNLIKELY(~w->ds[R_EXEC]{' | ~w->ds[R_EXEC + 1]' if ctx.wave == 64 else ''})) "
                f"{{ w->ds[R_EXEC] = w->ds[R_EXEC + 1] = 0xffffffffu; return emu_trap(w, TRAP_UNINIT_BRANCH, {ctx.site}, 0, 0, 0); }}"
            )
    return lines


def _defined(ins: Instruction, row: Row, defined: list[str], wide: bool) -> str:
    """Bits of the result that are defined: exact for bitwise logic and moves, all or nothing otherwise."""
    del wide
    stem = ins.mnemonic.removeprefix("s_").rsplit("_", 1)[0]
    if ins.mnemonic in ("s_mov_b32", "s_mov_b64", "s_not_b32", "s_not_b64"):
        return "da"
    if stem == "xor":
        return "da & db"
    if stem == "and":
        return "(da & db) | (da & ~(u64)a) | (db & ~(u64)b)"
    if stem == "or":
        return "(da & db) | (da & (u64)a) | (db & (u64)b)"
    if stem in ("and_not1", "andn2"):
        return "(da & db) | (da & ~(u64)a) | (db & (u64)b)"
    if stem in ("or_not1", "orn2"):
        return "(da & db) | (da & (u64)a) | (db & ~(u64)b)"
    if stem == "cselect":
        return "w->dscc ? (w->scc ? da : db) : 0UL"
    if stem in ("lshl", "lshr") and len(defined) == 2:
        return f"~db ? 0UL : da {'<<' if stem == 'lshl' else '>>'} (b & 63) | {'((1UL << (b & 63)) - 1)' if stem == 'lshl' else '~(~0UL >> (b & 63))'}"
    needs = " & ".join(f"d{letter}" for letter in _LETTERS[: len(defined)]) or "~0UL"
    carry = " && w->dscc" if "+ scc" in row.text or "- scc" in row.text or "scc ?" in row.text else ""
    return f"(({needs}) == ~0UL{carry}) ? ~0UL : 0UL"


def emit_salu(ctx: Context, ins: Instruction) -> list[str] | None:
    """C of a SOP1, SOP2, SOPC or SOPK instruction, or None when the table has no row."""
    saving = SAVEEXEC.get(ins.mnemonic)
    if saving is not None:
        return _saveexec(ctx, ins, saving)
    row = SALU.get(ins.mnemonic)
    if row is None:
        return None
    operands = list(ins.operands)
    destination = operands.pop(0) if row.results else None
    lines: list[str] = []
    defined: list[str] = []
    explicit = iter(operands)
    for letter, type_ in zip(_LETTERS, row.sources, strict=False):
        old = type_.startswith("@")
        op = destination if old else next(explicit, None)
        if op is None:
            raise uncovered(ctx, ins, "missing operand")
        try:
            text, bits = scalar_source(ctx, op, type_.lstrip("@"))
        except KeyError as error:
            raise uncovered(ctx, ins, f"source {error}") from None
        lines.append(f"{_C_TYPE[type_.lstrip('@')]} {letter} = {text};")
        defined.append(bits)
    type_ = row.results[0] if row.results else "u32"
    if ctx.checks:
        lines += [f"u64 d{letter} = {bits};" for letter, bits in zip(_LETTERS, defined, strict=False)]
        lines.append(f"u64 dd = {_defined(ins, row, defined, type_ in ('u64', 'i64'))};")
    text = re.sub(r"\bscc\b", "w->scc", row.text)
    if row.results:
        lines.append(f"{text};" if row.statement else f"{_C_TYPE[type_]} d = {text};")
    else:
        lines.append(f"{text};")
    if ctx.checks and "w->scc =" in text:
        known = " || (d & dd) != 0" if row.results and "scc = d != 0" in row.text else ""
        lines.append(f"w->dscc = {'dd == ~0UL' if row.results else 'dd != 0'}{known};")
    if destination is not None:
        lines += write_scalar(ctx, destination, "d", type_, "dd" if ctx.checks else "~0UL")
    return lines


def _saveexec(ctx: Context, ins: Instruction, row: Row) -> list[str]:
    type_ = row.results[0]
    destination, source = ins.operands
    text, bits = scalar_source(ctx, source, type_)
    exec_text = "s64(w, R_EXEC)" if type_ == "u64" else "w->s[R_EXEC]"
    lines = [f"{type_} a = {text}, x = {exec_text}, d = {row.text};"]
    result = "d" if "wrexec" in ins.mnemonic else "x"
    if ctx.checks:
        lines.append(f"u64 da = {bits};")
        matters = {"and": "x", "andn2": "x", "and_not1": "x", "and_not0": "x", "andn1": "x"}
        stem = ins.mnemonic.removeprefix("s_").split("_saveexec")[0].split("_wrexec")[0]
        relevant = "(u64)x" if stem in matters and stem not in ("andn2", "and_not1") else "~(u64)0"
        lines.append(
            f"if (UNLIKELY(~da & {relevant})) return emu_trap(w, TRAP_UNINIT_BRANCH, {ctx.site}, 0, 0, 0);"
        )
        lines.append("w->dscc = 1;")
    lines += write_scalar(ctx, destination, result, type_, "~0UL")
    lines += [
        "set64(w, R_EXEC, d);" if type_ == "u64" else "w->s[R_EXEC] = d;",
        "w->scc = d != 0;",
        "exec_changed(w);",
    ]
    return lines


_COUNT = re.compile(r"(vmcnt|lgkmcnt|expcnt|vscnt|loadcnt|storecnt|dscnt|kmcnt)\((\d+)\)")
_NAMES = {
    "vmcnt": "CNT_VM",
    "lgkmcnt": "CNT_LGKM",
    "vscnt": "CNT_VS",
    "loadcnt": "CNT_VM",
    "storecnt": "CNT_VS",
}


def emit_wait(ctx: Context, ins: Instruction) -> list[str] | None:
    """s_waitcnt and its split forms: outstanding loads of a counter become usable (checked mode only)."""
    name, raw = ins.mnemonic, ins.raw
    waits: list[tuple[str, int]] = []
    if name == "s_waitcnt":
        if _COUNT.search(raw):
            waits = [(_NAMES[c], int(n)) for c, n in _COUNT.findall(raw) if c in _NAMES]
        else:
            value = int(raw, 0)
            if ctx.gfx9 or ctx.arch.startswith("gfx10"):
                waits = [
                    ("CNT_VM", (value & 15) | (value >> 14 & 3) << 4),
                    ("CNT_LGKM", value >> 8 & (15 if ctx.gfx9 else 63)),
                ]
            else:
                waits = [("CNT_VM", value >> 10 & 63), ("CNT_LGKM", value >> 4 & 63)]
    elif name.startswith("s_waitcnt_"):
        counter = {"vscnt": "CNT_VS", "vmcnt": "CNT_VM", "lgkmcnt": "CNT_LGKM", "expcnt": ""}.get(
            name.removeprefix("s_waitcnt_")
        )
        if counter is None:
            return None
        waits = [(counter, int(raw.split(",")[-1], 0))] if counter else []
    elif name.startswith("s_wait_"):
        value = int(raw, 0) if raw else 0
        table = {
            "loadcnt": [("CNT_VM", value)],
            "storecnt": [("CNT_VS", value)],
            "dscnt": [("CNT_LGKM", value)],
            "kmcnt": [("CNT_KM", value)],
            "loadcnt_dscnt": [("CNT_VM", value >> 8 & 63), ("CNT_LGKM", value & 63)],
            "storecnt_dscnt": [("CNT_VS", value >> 8 & 63), ("CNT_LGKM", value & 63)],
            "samplecnt": [],
            "bvhcnt": [],
            "expcnt": [],
        }
        found = table.get(name.removeprefix("s_wait_"))
        if found is None:
            return None
        waits = found
    else:
        return None
    return [f"emu_wait(w, {c}, {n});" for c, n in waits] if ctx.checks else []
