"""Assembly text of one instruction in, a mnemonic with parsed operands and modifiers out.

Understands the operand syntax of LLVM's AMDGPU assembler, which its listings and its disassembler share. It
never judges whether an operand is legal: the bytes came from an assembler.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

from forgec.errors import DeviceError

__all__ = ["Instruction", "Operand", "parse_instruction", "parse_operand"]

VCC, TTMP, M0, NULL, EXEC = 106, 108, 124, 125, 126

_NAMED = {
    "vcc": (VCC, 2),
    "vcc_lo": (VCC, 1),
    "vcc_hi": (VCC + 1, 1),
    "exec": (EXEC, 2),
    "exec_lo": (EXEC, 1),
    "exec_hi": (EXEC + 1, 1),
    "m0": (M0, 1),
    "flat_scratch": (102, 2),
    "flat_scratch_lo": (102, 1),
    "flat_scratch_hi": (103, 1),
    "xnack_mask": (104, 2),
    "xnack_mask_lo": (104, 1),
    "xnack_mask_hi": (105, 1),
}
_SPECIAL = {
    "null",
    "off",
    "scc",
    "src_scc",
    "src_vccz",
    "src_execz",
    "src_shared_base",
    "src_shared_limit",
    "src_private_base",
    "src_private_limit",
    "src_shared_base_lo",
    "src_private_base_lo",
    "src_flat_scratch_base_lo",
    "src_flat_scratch_base_hi",
}
_FLAGS = {
    "clamp",
    "glc",
    "slc",
    "dlc",
    "scc",
    "nt",
    "sc0",
    "sc1",
    "nv",
    "gds",
    "lds",
    "offen",
    "idxen",
    "addr64",
    "tfe",
    "scale_offset",
    "row_mirror",
    "row_half_mirror",
}
_REGISTER = re.compile(r"^(v|a|s|ttmp)(?:(\d+)|\[(\d+)(?::(\d+))?\])(?:\.([lh]))?$")
_MODIFIER = re.compile(r"(?<![\w\[])([a-z]\w*):(\[[^\]]*\]|swizzle\([^)]*\)|[^\s,]+)")
_INTEGER = re.compile(r"^-?(0x[0-9a-fA-F]+|\d+)$")
_SUFFIX = re.compile(r"_(e32|e64|dpp|sdwa|e64_dpp|dpp8)$")


@dataclass(frozen=True)
class Operand:
    """A register range, a constant or a named source, with its input modifiers.

    ``kind``: ``v`` VGPR, ``a`` AGPR, ``s`` SGPR (106 vcc, 124 m0, 126 exec), ``int``, ``float``, ``name``.
    """

    kind: str
    reg: int = -1
    count: int = 1
    value: int | float = 0
    name: str = ""
    neg: bool = False
    absolute: bool = False
    sext: bool = False
    half: int | None = None


@dataclass(frozen=True)
class Instruction:
    """One decoded instruction at ``address`` (virtual, bytes), with the bytes it was decoded from."""

    address: int
    data: bytes
    text: str
    mnemonic: str
    encoding: str
    operands: tuple[Operand, ...]
    modifiers: dict[str, str] = field(default_factory=dict)
    flags: frozenset[str] = frozenset()
    raw: str = ""

    @property
    def next_address(self) -> int:
        return self.address + len(self.data)

    @property
    def branch_target(self) -> int:
        """Target of a SOPP/SOPK branch: its 16-bit word offset counts from the next instruction."""
        offset: int = struct.unpack_from("<h", self.data)[0]
        return self.address + 4 + 4 * offset

    def bits(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """The list modifier ``name`` (``op_sel:[0,1]``), or ``default``; shorter lists are completed."""
        if name not in self.modifiers:
            return default
        found = tuple(int(x, 0) for x in self.modifiers[name].strip("[]").split(","))
        return found + default[len(found) :]


def parse_operand(text: str) -> Operand:
    """Parse one operand such as ``-|v3|``, ``s[4:5]``, ``0x3f800000``, ``neg(1.0)``, ``v2.h``.

    Raises:
        DeviceError: unknown syntax.
    """
    text = text.strip()
    neg = absolute = sext = False
    while True:
        if text.startswith("-") and not _INTEGER.match(text) and not _is_float(text):
            neg, text = not neg, text[1:]
        elif text.startswith("neg(") and text.endswith(")"):
            neg, text = not neg, text[4:-1]
        elif text.startswith("abs(") and text.endswith(")"):
            absolute, text = True, text[4:-1]
        elif text.startswith("sext(") and text.endswith(")"):
            sext, text = True, text[5:-1]
        elif len(text) > 2 and text[0] == "|" and text[-1] == "|":
            absolute, text = True, text[1:-1]
        else:
            break
    found = _REGISTER.match(text)
    if found:
        kind, single, first, last, half = found.groups()
        reg = int(single if single is not None else first)
        count = int(last) - reg + 1 if last is not None else 1
        if kind == "ttmp":
            kind, reg = "s", reg + TTMP
        part = None if half is None else "lh".index(half)
        return Operand(kind, reg, count, neg=neg, absolute=absolute, sext=sext, half=part)
    if text in _NAMED:
        reg, count = _NAMED[text]
        return Operand("s", reg, count, neg=neg, absolute=absolute)
    if text in _SPECIAL:
        return Operand("name", name=text.removeprefix("src_") if text.endswith("scc") else text)
    if _INTEGER.match(text):
        return Operand("int", value=int(text, 0), neg=neg, absolute=absolute)
    if _is_float(text):
        return Operand("float", value=float(text), neg=neg, absolute=absolute)
    return Operand("name", name=text)


def _is_float(text: str) -> bool:
    return bool(re.match(r"^-?\d+\.\d*(e[-+]?\d+)?$", text))


def _split(text: str) -> list[str]:
    """Split at commas outside brackets and parentheses."""
    parts, depth, start = [], 0, 0
    for i, ch in enumerate(text):
        if ch in "[(":
            depth += 1
        elif ch in "])":
            depth -= 1
        elif ch == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [p.strip() for p in parts if p.strip()]


_OPAQUE = ("s_waitcnt", "s_delay_alu", "s_sendmsg", "s_wait", "s_getreg", "s_setreg", "s_clause", "s_sethalt")


def parse_instruction(address: int, data: bytes, text: str) -> Instruction:
    """Parse the text of one instruction (one half of a dual-issue pair at a time).

    Raises:
        DeviceError: an operand that cannot be parsed.
    """
    full = text.strip()
    head, _, rest = full.partition(" ")
    encoding = ""
    while True:
        found = _SUFFIX.search(head)
        if not found:
            break
        encoding = found.group(1) if not encoding else f"{found.group(1)}_{encoding}"
        head = head[: found.start()]
    rest = rest.strip()
    if head.startswith(_OPAQUE):
        return Instruction(address, data, full, head, encoding, (), raw=rest)
    modifiers = dict(_MODIFIER.findall(rest))
    body = _MODIFIER.sub(" ", rest)
    pieces = _split(body)
    flags: set[str] = set()
    operands: list[Operand] = []
    for i, piece in enumerate(pieces):
        words = piece.split()
        while len(words) > 1 and words[-1] in _FLAGS:
            flags.add(words.pop())
        if len(words) == 1 and words[0] in _FLAGS and i == len(pieces) - 1 and words[0] != "scc":
            flags.add(words[0])
            continue
        if len(words) > 1 and words[0] not in ("sext",):
            raise DeviceError(f"cannot parse operand '{piece}' of '{full}' at {address:#x}")
        operands.append(parse_operand(words[0]))
        if "@" in words[0] and len(data) >= 8:  # a symbol of the listing: the linker's value is the literal
            operands[-1] = Operand("int", value=struct.unpack("<I", data[-4:])[0])
    return Instruction(
        address, data, full, head, encoding, tuple(operands), modifiers, frozenset(flags), rest
    )
