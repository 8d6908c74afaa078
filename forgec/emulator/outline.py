"""C text of instructions in, shared out-of-line functions out.

Instructions of the same shape differ only in register numbers and constants. Turning those into parameters
leaves a few hundred small functions instead of thousands of inlined bodies, and clang's time falls tenfold.
It never changes what the text computes.
"""

from __future__ import annotations

import hashlib
import re

__all__ = ["Outliner"]

_VECTOR = "READ64|WRITE32|WRITE64|DV|DLO|DHI|DSET|DSET_LO|DSET_HI|SET_LOW16|SET_HIGH16|ZERO_HIGH16|busy_v"
_SCALAR = "s64|smask|set64|set_mask|dmask|set_dmask"
# v: vector registers, s: scalar registers, t: sites, the rest: constants
_NUMBER = re.compile(
    r"(?P<va>w->(?:v|pv)\[)(?P<v1>\d+)(?=\])"
    rf"|(?P<vb>\b(?:{_VECTOR})\()(?P<v2>\d+)\b"
    r"|(?P<sa>w->(?:s|ds|ps)\[)(?P<s1>\d+)(?=\])"
    rf"|(?P<sb>\b(?:{_SCALAR})\(w, )(?P<s2>\d+)\b"
    r"|(?P<sc>\b(?:DALL|busy_s)\()(?P<s3>\d+)\b"
    r"|(?P<ta>\b(?:TRAP_\w+|emu_load\(w|emu_store\(w|emu_atomic\(w|emu_sload\(w|emu_wait_trap\(w), )"
    r"(?P<t1>\d+)\b"
    r"|(?P<ca>SPLAT\(U32, )(?P<c1>0x[0-9a-f]+u)"
    r"|(?P<cb>(?:&at|\bCNT_\w+|\bemu_sload\([^,]*, [^,]*, [^,]*"
    r"|\bemu_(?!load|store|atomic|sload|trap|wait_trap)\w+\(w)"
    r"(?:, \$\d+)*, )(?P<c2>-?\d+)\b"
)
_CONTROL = re.compile(r"\bgoto\b|\bR\d+:|return RUN_(?!TRAP)")


class Outliner:
    """Collects the functions of one kernel."""

    def __init__(self) -> None:
        self.functions: dict[str, str] = {}
        self._prototypes: dict[str, str] = {}

    @property
    def prototypes(self) -> str:
        """Declarations of all functions, for the kernel that calls them."""
        return "\n".join(self._prototypes.values())

    def call(self, text: str) -> str:
        """A statement with the effect of ``text``: a call where that is possible, else ``text`` in braces."""
        if len(text) < 60 or _CONTROL.search(text):
            return f"{{ {text} }}"
        arguments: list[str] = []
        known: dict[tuple[str, str], int] = {}

        def parameter(match: re.Match[str]) -> str:
            group = match.lastgroup or ""
            value = match.group(group)
            prefix = match.group()[: len(match.group()) - len(value)]
            key = (group[0], value) if group[0] in "vst" else (group, str(len(arguments)))
            if key not in known:
                known[key] = len(arguments)
                arguments.append(value)
            return f"{prefix}${known[key]}"

        shape = text
        while True:
            replaced = _NUMBER.sub(parameter, shape)
            if replaced == shape:
                break
            shape = replaced
        if len(arguments) > 24:
            return f"{{ {text} }}"
        name = f"o_{hashlib.sha256(shape.encode()).hexdigest()[:20]}"
        if name not in self.functions:
            body = re.sub(r"\$(\d+)", r"p\1", shape)
            parameters = "".join(f", u32 p{i}" for i in range(len(arguments)))
            kind = "int" if "return" in text else "void"
            end = " return 0;" if kind == "int" else ""
            head = f"{kind} {name}(Wave *restrict w{parameters})"
            self._prototypes[name] = f"{head};"
            self.functions[name] = f"{head} {{ {body}{end} }}"
        call = f"{name}(w{''.join(', ' + (a if not a.startswith('-') else f'(u32){a}') for a in arguments)})"
        return f"if (UNLIKELY({call})) return RUN_TRAP;" if "return" in text else f"{call};"
