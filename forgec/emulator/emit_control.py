# ruff: noqa: E501 (C text is not broken)
"""Branches, barriers, calls, mode changes and program end to C."""

from __future__ import annotations

import re

from forgec.emulator.emit_base import Context, uncovered
from forgec.emulator.emit_scalar import scalar_source, write_scalar
from forgec.emulator.operands import Instruction

__all__ = ["emit_control", "is_branch", "label"]

_CONDITIONS = {
    "s_cbranch_scc0": "!w->scc",
    "s_cbranch_scc1": "w->scc",
    "s_cbranch_vccz": "smask(w, R_VCC) == 0",
    "s_cbranch_vccnz": "smask(w, R_VCC) != 0",
    "s_cbranch_execz": "EXEC == 0",
    "s_cbranch_execnz": "EXEC != 0",
}
_HWREG = re.compile(r"hwreg\(\s*([A-Za-z_0-9]+)\s*(?:,\s*(\d+)\s*,\s*(\d+))?\s*\)")


def is_branch(ins: Instruction) -> bool:
    return ins.mnemonic in _CONDITIONS or ins.mnemonic == "s_branch"


def label(address: int) -> str:
    return f"L_{address:x}"


def _jump(ctx: Context, ins: Instruction, resume: dict[int, int]) -> str:
    target = ins.branch_target
    if target > ins.address:
        return f"goto {label(target)};"
    point = resume.setdefault(target, ctx.resume_points)
    if point == ctx.resume_points:
        ctx.resume_points += 1
    return f"if (UNLIKELY(--w->budget < 0)) {{ w->pc = {point}; return RUN_YIELD; }} goto {label(target)};"


def _branch(ctx: Context, ins: Instruction, resume: dict[int, int]) -> list[str]:
    if ins.mnemonic == "s_branch":
        return [_jump(ctx, ins, resume)]
    lines = []
    if ctx.checks and "scc" in ins.mnemonic:
        lines.append(f"if (UNLIKELY(!w->dscc)) return emu_trap(w, TRAP_UNINIT_BRANCH, {ctx.site}, 0, 0, 0);")
    if "vcc" in ins.mnemonic:
        ctx.sgprs.update((106, 107) if ctx.wave == 64 else (106,))
        if ctx.checks:
            lines.append("u64 known = dmask(w, R_VCC);")
            lines.append(
                f"if (UNLIKELY(~known && !((u64)smask(w, R_VCC) & known))) return emu_trap(w, TRAP_UNINIT_BRANCH, {ctx.site}, 0, 0, 0);"
            )
    return [*lines, f"if ({_CONDITIONS[ins.mnemonic]}) {{ {_jump(ctx, ins, resume)} }}"]


def _hwreg(ctx: Context, ins: Instruction) -> tuple[str, int, int]:
    found = _HWREG.search(ins.raw)
    if not found:
        raise uncovered(ctx, ins, "hardware register")
    name, offset, size = found.groups()
    return name, int(offset or 0), int(size or 32)


def _mode(ctx: Context, ins: Instruction) -> list[str]:
    """s_setreg, s_round_mode, s_denorm_mode: the MODE register and, with it, the host's rounding and
    denormals."""
    if ins.mnemonic == "s_round_mode":
        update = f"w->mode = (w->mode & ~15u) | ({int(ins.raw or _first(ins), 0)}u & 15u);"
    elif ins.mnemonic == "s_denorm_mode":
        update = f"w->mode = (w->mode & ~0xf0u) | ({int(ins.raw or _first(ins), 0)}u & 15u) << 4;"
    else:
        name, offset, size = _hwreg(ctx, ins)
        if name in ("HW_REG_FLAT_SCR_LO", "HW_REG_FLAT_SCR_HI"):
            return []  # flat accesses reach scratch through the aperture, which needs no base
        if name not in ("HW_REG_MODE", "HW_REG_WAVE_MODE"):
            raise uncovered(ctx, ins, f"writing {name}")
        mask = ((1 << size) - 1) << offset
        operand = ins.raw.split(",")[-1] if ins.mnemonic == "s_setreg_imm32_b32" else None
        if operand is not None:
            value = f"{int(operand, 0)}u"
        else:
            register = re.search(r"\b(s\d+|vcc_lo|m0|ttmp\d+)\s*$", ins.raw)
            if register is None or not register.group(1)[1:].isdigit():
                raise uncovered(ctx, ins)
            n = int(register.group(1)[1:])
            ctx.sgprs.add(n)
            value = f"w->s[{n}]"
        update = f"w->mode = (w->mode & ~{mask:#x}u) | (({value} << {offset}) & {mask:#x}u);"
    return [update, "set_mxcsr(mxcsr_of_mode(w->mode));"]


def _first(ins: Instruction) -> str:
    return str(ins.operands[0].value)


def _getreg(ctx: Context, ins: Instruction) -> list[str]:
    name, offset, size = _hwreg(ctx, ins)
    values = {
        "HW_REG_MODE": "w->mode",
        "HW_REG_WAVE_MODE": "w->mode",
        "HW_REG_SHADER_CYCLES": "(u32)__builtin_ia32_rdtsc()",
        "HW_REG_SHADER_CYCLES_LO": "(u32)__builtin_ia32_rdtsc()",
        "HW_REG_SHADER_CYCLES_HI": "(u32)(__builtin_ia32_rdtsc() >> 32)",
        "HW_REG_HW_ID": "w->id",
        "HW_REG_HW_ID1": "w->id",
        "HW_REG_HW_ID2": "0u",
        "HW_REG_XCC_ID": "0u",
        "HW_REG_SH_MEM_BASES": "0x00020001u",
    }
    if name not in values:
        raise uncovered(ctx, ins, f"reading {name}")
    register = re.match(r"(s(\d+)|vcc_lo|m0)", ins.raw)
    if register is None or register.group(2) is None:
        raise uncovered(ctx, ins)
    n = int(register.group(2))
    ctx.sgprs.add(n)
    mask = (1 << size) - 1
    lines = [f"w->s[{n}] = ({values[name]} >> {offset}) & {mask:#x}u;"]
    return [*lines, f"w->ds[{n}] = 0xffffffffu;"] if ctx.checks else lines


def _barrier(ctx: Context, ins: Instruction) -> list[str]:
    point = ctx.resume_points
    wait = f"w->pc = {point}; return RUN_BARRIER; R{point}:;"
    if ins.mnemonic == "s_barrier":
        ctx.resume_points += 1
        return ["emu_barrier_signal(w);", wait]
    if ins.mnemonic == "s_barrier_signal":
        if int(ins.operands[0].value) != -1:
            raise uncovered(ctx, ins, "named barriers")
        return ["emu_barrier_signal(w);"]
    ctx.resume_points += 1
    return [f"if (emu_barrier_wait(w)) {{ w->pc = {point}; return RUN_BARRIER; }} R{point}:;"]


def emit_control(ctx: Context, ins: Instruction, resume: dict[int, int]) -> list[str] | None:
    """C of a program-control instruction, or None when ``ins`` is none."""
    name = ins.mnemonic
    if is_branch(ins):
        return _branch(ctx, ins, resume)
    if name in ("s_endpgm", "s_endpgm_saved"):
        return ["return RUN_END;"]
    if name in ("s_barrier", "s_barrier_signal", "s_barrier_wait"):
        return _barrier(ctx, ins)
    if name in ("s_sleep", "s_sleep_var", "s_monitor_sleep"):
        point = ctx.resume_points
        ctx.resume_points += 1
        return [f"w->pc = {point}; return RUN_SLEEP; R{point}:;"]
    if name in ("s_trap", "s_code_end"):
        return [
            f"return emu_trap(w, TRAP_S_TRAP, {ctx.site}, 0, {int(_first(ins)) if ins.operands else 0}, 0);"
        ]
    if name in ("s_setreg_b32", "s_setreg_imm32_b32", "s_round_mode", "s_denorm_mode"):
        return _mode(ctx, ins)
    if name == "s_getreg_b32":
        return _getreg(ctx, ins)
    if name == "s_getpc_b64":
        return write_scalar(
            ctx, ins.operands[0], f"(w->L->code_base + {ins.next_address:#x}UL)", "u64", "~0UL"
        )
    if name in ("s_setpc_b64", "s_swappc_b64"):
        text, _ = scalar_source(ctx, ins.operands[-1], "u64")
        lines = [f"target = {text} - w->L->code_base;"]
        if name == "s_swappc_b64":
            lines += write_scalar(
                ctx, ins.operands[0], f"(w->L->code_base + {ins.next_address:#x}UL)", "u64", "~0UL"
            )
        return [*lines, f"target_site = {ctx.site}; goto dispatch;"]
    if name == "s_call_b64":
        lines = write_scalar(
            ctx, ins.operands[0], f"(w->L->code_base + {ins.next_address:#x}UL)", "u64", "~0UL"
        )
        return [*lines, f"goto {label(ins.branch_target)};"]
    if name in ("s_memtime", "s_memrealtime", "s_sendmsg_rtn_b64"):
        return (
            write_scalar(ctx, ins.operands[0], "__builtin_ia32_rdtsc()", "u64", "~0UL")
            if ins.operands
            else None
        )
    return None
