"""Counts what a kernel's AMD listing consists of: instructions by category, loops, bytes loaded per lane.

The text of an assembly listing goes in, frozen counts come out. This is a static count: it says what one pass
through the code issues and never how often a loop runs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["FunctionListing", "InstructionMix", "Loop", "analyse_listing", "categorise"]

_LABEL = re.compile(r"^([.$\w]+):")
_FUNCTION_TYPE = re.compile(r"^\s*\.type\s+([.$\w]+),@function")
_FUNCTION_END = re.compile(r"^\.Lfunc_end\d+:")
_INSTRUCTION = re.compile(r"^\s+([a-z][a-z0-9_]*)(?:\s+(.*))?$")
_MATRIX = ("v_wmma", "v_swmmac", "v_mfma", "v_smfmac")
_TRANSCENDENTAL = re.compile(r"^v_(exp|log|rcp|rsq|sqrt|sin|cos|s_exp|s_log|s_rcp|s_rsq|s_sqrt)_")


@dataclass(frozen=True)
class InstructionMix:
    """Instructions by category. ``dot``, ``matrix`` and ``transcendental`` are also counted in ``valu``.

    ``load_bytes`` is what one lane reads from global memory, ``scratch`` counts accesses to private memory,
    which are in ``vmem`` too. A dual-issue pair counts once: it takes one issue slot.
    """

    valu: int
    salu: int
    smem: int
    vmem: int
    lds: int
    branch: int
    wait: int
    other: int
    dot: int
    matrix: int
    transcendental: int
    scratch: int
    load_bytes: int

    @property
    def total(self) -> int:
        """All instructions."""
        return self.valu + self.salu + self.smem + self.vmem + self.lds + self.branch + self.wait + self.other


@dataclass(frozen=True)
class Loop:
    """The instructions from the target of a backward branch to that branch, in listing order.

    ``first_line`` and ``last_line`` count from 1 in the listing; ``inner`` is true when no other loop lies
    within.
    """

    label: str
    first_line: int
    last_line: int
    inner: bool
    mix: InstructionMix


@dataclass(frozen=True)
class FunctionListing:
    """One function of the listing: its instructions, the commonest mnemonics, its loops in listing order."""

    name: str
    mix: InstructionMix
    mnemonics: tuple[tuple[str, int], ...]
    loops: tuple[Loop, ...]


@dataclass(frozen=True)
class _Instruction:
    line: int
    mnemonic: str
    operands: str


def analyse_listing(assembly: str) -> tuple[FunctionListing, ...]:
    """Every function of an AMD assembly listing as clang ``-S`` writes it, in listing order."""
    functions: list[FunctionListing] = []
    lines = assembly.splitlines()
    names = {match[1] for line in lines if (match := _FUNCTION_TYPE.match(line))}
    name = ""
    instructions: list[_Instruction] = []
    labels: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if name and _FUNCTION_END.match(line):
            functions.append(_function(name, instructions, labels))
            name = ""
            continue
        label = _LABEL.match(line)
        if label and label[1] in names:
            name, instructions, labels = label[1], [], {}
        elif label and name:
            labels[label[1]] = len(instructions)
        elif name and (match := _INSTRUCTION.match(line.partition(";")[0].rstrip())):
            instructions.append(_Instruction(number, match[1], match[2] or ""))
    return tuple(functions)


def categorise(mnemonic: str) -> str:
    """The category of one mnemonic, a field name of ``InstructionMix``."""
    if mnemonic.startswith("v_"):
        return "valu"
    if mnemonic.startswith(("global_", "buffer_", "flat_", "scratch_", "tbuffer_", "image_")):
        return "vmem"
    if mnemonic.startswith("ds_"):
        return "lds"
    if mnemonic.startswith(("s_load_", "s_buffer_", "s_dcache_", "s_icache_", "s_prefetch_", "s_gl1_")):
        return "smem"
    if mnemonic.startswith(("s_branch", "s_cbranch", "s_setpc", "s_swappc", "s_call", "s_endpgm")):
        return "branch"
    if mnemonic.startswith(
        ("s_wait", "s_delay_alu", "s_nop", "s_barrier", "s_sleep", "s_clause", "s_sendmsg")
    ):
        return "wait"
    return "salu" if mnemonic.startswith("s_") else "other"


def _function(name: str, instructions: Sequence[_Instruction], labels: dict[str, int]) -> FunctionListing:
    counts = Counter(instruction.mnemonic for instruction in instructions)
    ordered = tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return FunctionListing(name, _mix(instructions), ordered, tuple(_loops(instructions, labels)))


def _loops(instructions: Sequence[_Instruction], labels: dict[str, int]) -> Iterator[Loop]:
    # Two backward branches to one label are one loop with a "continue": the longer range counts.
    spans: dict[str, tuple[int, int]] = {}
    for index, instruction in enumerate(instructions):
        target = labels.get(instruction.operands.strip())
        if target is not None and target <= index and categorise(instruction.mnemonic) == "branch":
            spans[instruction.operands.strip()] = (target, index)
    for label, (first, last) in sorted(spans.items(), key=lambda item: item[1]):
        inner = not any(
            first <= start and end <= last and (start, end) != (first, last) for start, end in spans.values()
        )
        body = instructions[first : last + 1]
        yield Loop(label, body[0].line, body[-1].line, inner, _mix(body))


def _mix(instructions: Sequence[_Instruction]) -> InstructionMix:
    counts: Counter[str] = Counter()
    for instruction in instructions:
        mnemonic = instruction.mnemonic
        counts[categorise(mnemonic)] += 1
        counts["dot"] += mnemonic.startswith(("v_dot", "v_dual_dot"))
        counts["matrix"] += mnemonic.startswith(_MATRIX)
        counts["transcendental"] += _TRANSCENDENTAL.match(mnemonic) is not None
        counts["scratch"] += mnemonic.startswith("scratch_")
        counts["load_bytes"] += _load_bytes(mnemonic)
    return InstructionMix(**{name: counts[name] for name in InstructionMix.__dataclass_fields__})


_LOAD = re.compile(r"^(?:global|buffer|flat)_load_(?:lds_)?(?:d16_)?(?:hi_)?([a-z]+)(\d*)")
_LOAD_NAMES = {"ubyte": 1, "sbyte": 1, "ushort": 2, "sshort": 2, "short": 2, "dword": 4}


def _load_bytes(mnemonic: str) -> int:
    """Bytes that one lane gets: ``global_load_b128`` is 16, ``buffer_load_dwordx4`` too."""
    match = _LOAD.match(mnemonic)
    if match is None:
        return 0
    kind, number = match[1], match[2]
    if kind in {"b", "u", "i"}:
        return int(number) // 8
    if kind == "dwordx":
        return 4 * int(number)
    return _LOAD_NAMES.get(kind, 0)
