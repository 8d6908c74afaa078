"""The instructions of one kernel in, one C function that runs a wave out.

Finds what is reachable from the kernel's entry, cuts it into blocks, and emits every instruction under its
label. Barriers, sleeps and backward branches are points at which the function returns and later resumes. An
instruction that no table covers raises: there is no silent no-op.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from forgec.emulator.codeobject import CodeObject, Kernel
from forgec.emulator.emit_base import Context, uncovered
from forgec.emulator.emit_control import emit_control, is_branch, label
from forgec.emulator.emit_memory import emit_memory, is_memory
from forgec.emulator.emit_scalar import IGNORED, emit_salu, emit_wait
from forgec.emulator.emit_special import SPECIAL, emit_matrix
from forgec.emulator.emit_vector import emit_vector, vector_row
from forgec.emulator.operands import EXEC, Instruction, parse_instruction
from forgec.emulator.outline import Outliner
from forgec.errors import DeviceError

__all__ = ["RawInstruction", "Segment", "Translation", "translate"]


@dataclass(frozen=True)
class RawInstruction:
    """An instruction before parsing: its virtual address, its bytes, its assembly text."""

    address: int
    data: bytes
    text: str


@dataclass(frozen=True)
class Segment:
    """Instructions (by site) that always execute together, under one EXEC."""

    sites: tuple[int, ...]


@dataclass(frozen=True)
class Translation:
    """C text of a kernel, the shared functions it calls (by name), and what its numbers refer to."""

    source: str
    functions: dict[str, str]
    sites: tuple[Instruction, ...]
    segments: tuple[Segment, ...]
    vgprs: int


_ENDS = ("s_endpgm", "s_endpgm_saved", "s_branch", "s_setpc_b64", "s_trap", "s_code_end")
_CALLS = ("s_swappc_b64", "s_call_b64")
_MODE_CHANGES = ("s_setreg_b32", "s_setreg_imm32_b32", "s_round_mode", "s_denorm_mode")


class _Program:
    """The reachable instructions, parsed, with block leaders and indirect targets."""

    def __init__(self, code: CodeObject, kernel: Kernel, raw: Mapping[int, RawInstruction]) -> None:
        self.instructions: dict[int, tuple[Instruction, ...]] = {}
        self.leaders: set[int] = {kernel.entry}
        self.targets: set[int] = set()
        work = [kernel.entry]
        indirect = False
        while work:
            address = work.pop()
            while address not in self.instructions:
                found = raw.get(address)
                if found is None:
                    raise DeviceError(
                        f"kernel '{kernel.name}' reaches {address:#x}, where nothing was disassembled"
                    )
                parsed = tuple(
                    parse_instruction(found.address, found.data, part.strip())
                    for part in found.text.split("::")
                )
                self.instructions[address] = parsed
                ins = parsed[0]
                following = address + len(found.data)
                if is_branch(ins) or ins.mnemonic == "s_call_b64":
                    self.leaders |= {ins.branch_target, following}
                    work.append(ins.branch_target)
                if ins.mnemonic in _CALLS:
                    self.leaders.add(following)
                    self.targets.add(following)
                if ins.mnemonic == "s_swappc_b64" and not indirect:
                    indirect = True
                    for name, (entry, _) in code.functions.items():
                        if name not in code.kernels:
                            self.leaders.add(entry)
                            self.targets.add(entry)
                            work.append(entry)
                if ins.mnemonic in _ENDS:
                    break
                address = following


def _vector_lines(ctx: Context, ins: Instruction) -> tuple[list[str], list[str]] | None:
    plain = ins
    if ins.mnemonic.startswith("v_dual_"):
        plain = Instruction(
            ins.address,
            ins.data,
            ins.text,
            "v_" + ins.mnemonic.removeprefix("v_dual_"),
            ins.encoding,
            ins.operands,
            ins.modifiers,
            ins.flags,
            ins.raw,
        )
    row = vector_row(plain)
    return emit_vector(ctx, plain, row) if row is not None else None


def _emit_one(ctx: Context, ins: Instruction, resume: dict[int, int]) -> list[str]:
    name = ins.mnemonic
    if name in IGNORED:
        return []
    emitters: tuple[Callable[[], list[str] | None], ...] = (
        lambda: emit_control(ctx, ins, resume),
        lambda: emit_wait(ctx, ins) if name.startswith("s_wait") else None,
        lambda: emit_memory(ctx, ins),
        lambda: SPECIAL[name](ctx, ins) if name in SPECIAL else None,
        lambda: emit_matrix(ctx, ins) if name.startswith(("v_wmma", "v_mfma")) else None,
        lambda: emit_salu(ctx, ins),
    )
    for emit in emitters:
        lines = emit()
        if lines is not None:
            return lines
    vector = _vector_lines(ctx, ins)
    if vector is None:
        raise uncovered(ctx, ins)
    return vector[0] + vector[1]


def _emit(ctx: Context, parts: tuple[Instruction, ...], resume: dict[int, int]) -> list[str]:
    if len(parts) == 1:
        return _emit_one(ctx, parts[0], resume)
    reads, writes = [], []
    for i, part in enumerate(parts):
        vector = _vector_lines(ctx, part)
        if vector is None:
            raise uncovered(ctx, part)
        names = sorted({"a", "b", "c", "d", "e", "D", "Dl", "Dh", "d2"})
        body = "\n".join([*vector[0], "\x00", *vector[1]])
        for name in names:
            body = _rename(body, name, f"{name}_{i}")
        read, write = body.split("\x00")
        reads.append(read)
        writes.append(write)
    # definedness is declared among the writes but reads registers: that comes before either half writes
    declared = [line for w in writes for line in w.splitlines() if line.startswith("u64 D")]
    plain = [line for w in writes for line in w.splitlines() if not line.startswith("u64 D")]
    early, late = [], []
    for line in declared:
        head, _, rest = line.partition(";")
        early.append(head + ";")
        late.append(rest)
    return [*reads, *early, *late, *plain]


def _rename(text: str, name: str, new: str) -> str:
    return re.sub(rf"(?<![\w.>]){name}(?![\w(])", new, text)


def _ranges(numbers: set[int]) -> list[tuple[int, int]]:
    """Runs of consecutive numbers as (first, count)."""
    found: list[tuple[int, int]] = []
    for n in sorted(numbers):
        if found and sum(found[-1]) == n:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((n, 1))
    return found


def _busy_ranges(ctx: Context) -> list[str]:
    """A register with a load in flight may not be touched; the destination of a load only by the same
    counter."""
    vgprs, sgprs = set(ctx.vgprs), {s for s in ctx.sgprs if s < 108}
    ranges = []
    if ctx.load_destination is not None:
        start, count, counter = ctx.load_destination
        vgprs -= set(range(start, start + count))
        ranges.append(f"BUSY_V({start}, {count}, {counter} + 1)")
    ranges += [f"BUSY_V({lo}, {n}, 0)" for lo, n in _ranges(vgprs)]
    return [*ranges, *(f"BUSY_S({lo}, {n})" for lo, n in _ranges(sgprs))]


def _writes_exec(parts: tuple[Instruction, ...]) -> bool:
    ins = parts[0]
    if ins.mnemonic.startswith("v_cmpx") or "saveexec" in ins.mnemonic or "wrexec" in ins.mnemonic:
        return True
    return bool(ins.operands) and ins.operands[0].kind == "s" and ins.operands[0].reg in (EXEC, EXEC + 1)


class _Emission:
    """The text of a kernel as it grows, instruction by instruction."""

    def __init__(self, ctx: Context, program: _Program) -> None:
        self.ctx = ctx
        self.leaders = program.leaders
        self.outliner = Outliner()
        self.body: list[str] = []
        self.sites: list[Instruction] = []
        self.segments: list[list[int]] = []
        self.resume: dict[int, int] = {}
        self.vgprs = 0
        self.busy: list[str] = []
        self.known_ranges: dict[tuple[str, ...], int] = {}
        self._end = -1
        self._fresh = True

    def add(self, parts: tuple[Instruction, ...], text: str) -> None:
        """Append one instruction (``parts`` are the halves of a dual issue); ``text`` is its whole text."""
        ctx, ins = self.ctx, parts[0]
        self._start(ins.address)
        ctx.site = len(self.sites)
        if len(parts) > 1:
            ins = Instruction(ins.address, ins.data, text, ins.mnemonic, ins.encoding, ins.operands)
        self.sites.append(ins)
        self.segments[-1].append(ctx.site)
        ctx.vgprs.clear()
        ctx.sgprs.clear()
        ctx.load_destination = None
        points = ctx.resume_points
        lines = _emit(ctx, parts, self.resume)
        self.vgprs = max([self.vgprs, *(r + 1 for r in ctx.vgprs)])
        ready = self._wait_check() if ctx.checks else ""
        yielding = ""
        if ctx.checks and is_memory(ins) and ins.mnemonic.startswith(("global", "flat", "ds_", "buffer")):
            point = ctx.resume_points
            ctx.resume_points += 1
            yielding = f"if (UNLIKELY(--w->budget < 0)) {{ w->pc = {point}; return RUN_YIELD; }} R{point}:;"
        code = "\n  ".join(lines)
        comment = text.replace("*/", "").replace("\\", "")
        statement = self.outliner.call(code) if code else ";"
        self.body.append(f"/* {ins.address:x}: {comment} */ {yielding}{ready}{statement}")
        returns = ctx.resume_points != points and f"R{points}:" in code
        leaves = is_branch(ins) or ins.mnemonic in _ENDS or ins.mnemonic in _CALLS
        self._fresh = _writes_exec(parts) or returns or leaves
        self._end = ins.next_address

    def _wait_check(self) -> str:
        """Stays out of the shared functions, which would multiply by the ways in which registers lie
        together."""
        ranges = _busy_ranges(self.ctx)
        if not ranges:
            return ""
        at = self.known_ranges.setdefault(tuple(ranges), len(self.busy))
        if at == len(self.busy):
            self.busy += ranges
        return f"READY({self.ctx.site}, {len(ranges)}, {at}); "

    def _start(self, address: int) -> None:
        """Labels and segment counters before an instruction."""
        if self._end not in (-1, address) and not self._fresh:
            self.body.append(f"return emu_trap(w, TRAP_BAD_PC, {self.ctx.site}, 0, {address:#x}, 0);")
        if address in self.leaders or self._fresh:
            self.body.append(f"{label(address)}:;")
            self.body.append(f"COUNT({len(self.segments)});")
            self.segments.append([])


def _context(code: CodeObject, kernel: Kernel, program: _Program, checks: bool) -> Context:
    mode = kernel.rsrc1 >> 12 & 0xFF
    f32_fields, f64_fields = (mode & 3) | (mode >> 4 & 3) << 2, (mode >> 2 & 3) | (mode >> 6 & 3) << 2
    changes_mode = any(p[0].mnemonic in _MODE_CHANGES for p in program.instructions.values())
    agpr_base = kernel.accum_offset if kernel.agprs else max(kernel.vgprs, 1)
    mixed_mode = changes_mode or f32_fields != f64_fields
    return Context(kernel.name, code.arch, kernel.wave, checks, agpr_base, mixed_mode=mixed_mode)


def translate(
    code: CodeObject, kernel: Kernel, raw: Mapping[int, RawInstruction], checks: bool
) -> Translation:
    """Translate ``kernel`` to C.

    Raises:
        DeviceError: an instruction that is not covered (named with its address and kernel), or unreadable
        text.
    """
    program = _Program(code, kernel, raw)
    ctx = _context(code, kernel, program, checks)
    emission = _Emission(ctx, program)
    for address in sorted(program.instructions):
        emission.add(program.instructions[address], raw[address].text)
    return Translation(
        _function(ctx, program, kernel, emission),
        emission.outliner.functions,
        tuple(emission.sites),
        tuple(Segment(tuple(s)) for s in emission.segments),
        max(emission.vgprs, kernel.vgprs, ctx.agpr_base + kernel.agprs, 3),
    )


def _function(ctx: Context, program: _Program, kernel: Kernel, emission: _Emission) -> str:
    by_point = {point: label(target) for target, point in emission.resume.items()}
    cases = "\n".join(f"    case {n}: goto {by_point.get(n, f'R{n}')};" for n in range(1, ctx.resume_points))
    targets = "\n".join(f"    case {t:#x}: goto {label(t)};" for t in sorted(program.targets))
    dispatch = ""
    if program.targets:
        dispatch = f"""
dispatch:
  switch (target) {{
{targets}
    default: return emu_trap(w, TRAP_BAD_PC, target_site, 0, target, 0);
  }}"""
    text = "\n".join(emission.body)
    return f"""#include "wave.h"
#include "division.h"
#define COUNT(k) do {{ w->cnt[2 * (k)]++; w->cnt[2 * (k) + 1] += popc64((u64)EXEC); }} while (0)
#define READY(site, n, at) if (UNLIKELY(w->n_pending) && emu_busy(w, site, n, busy + (at))) return RUN_TRAP
static const u32 busy[] = {{{", ".join([*emission.busy, "0"])}}};
{emission.outliner.prototypes}
/* {kernel.name} for {ctx.arch} */
int kernel_run(Wave *restrict w) {{
  u64 target = 0; u32 target_site = 0; (void)target; (void)target_site;
  switch (w->pc) {{
    case 0: goto {label(kernel.entry)};
{cases}
    default: return emu_trap(w, TRAP_BAD_PC, 0, 0, w->pc, 0);
  }}
{text}
  return emu_trap(w, TRAP_BAD_PC, {ctx.site}, 0, 0, 0);{dispatch}
}}
"""
