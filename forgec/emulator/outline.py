"""C text of instructions in, shared out-of-line functions out.

Instructions of the same shape differ only in register numbers and constants. Turning those into parameters
leaves a few hundred small functions instead of thousands of inlined bodies, and clang's time falls tenfold.
It never changes what the text computes.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

__all__ = ["Outliner"]

_VECTOR = "READ64|WRITE32|WRITE64|DV|DLO|DHI|DSET|DSET_LO|DSET_HI|SET_LOW16|SET_HIGH16|ZERO_HIGH16"
_SCALAR = "s64|smask|set64|set_mask|dmask|set_dmask"
# v: vector registers, s: scalar registers, t: sites, the rest: constants
_NUMBER = re.compile(
    r"(?P<va>w->(?:v|pv)\[)(?P<v1>\d+)(?=\])"
    rf"|(?P<vb>\b(?:{_VECTOR})\()(?P<v2>\d+)\b"
    r"|(?P<sa>w->(?:s|ds|ps)\[)(?P<s1>\d+)(?=\])"
    rf"|(?P<sb>\b(?:{_SCALAR})\(w, )(?P<s2>\d+)\b"
    r"|(?P<sc>\bDALL\()(?P<s3>\d+)\b"
    r"|(?P<ta>\b(?:TRAP_\w+|emu_load\(w|emu_store\(w|emu_atomic\(w|emu_sload\(w), )"
    r"(?P<t1>\d+)\b"
    r"|(?P<ca>SPLAT\(U32, )(?P<c1>0x[0-9a-f]+u)"
    r"|(?P<cb>(?:&at|\bCNT_\w+|\bemu_sload\([^,]*, [^,]*, [^,]*"
    r"|\bemu_(?!load|store|atomic|sload|trap|busy)\w+\(w)"
    r"(?:, \$\d+)*, )(?P<c2>-?\d+)\b"
)
_CONTROL = re.compile(r"\bgoto\b|\bR\d+:|return RUN_(?!TRAP)")
# Every number that stands alone, in a group so that split() keeps it.
_ANY = re.compile(r"((?<![\w$])-?(?:0x[0-9a-f]+u|\d+)\b)")
_MARK = 1000000
_MOST_PARAMETERS = 24


@lru_cache(maxsize=4096)
def _kinds(pieces: tuple[str, ...], hexadecimal: tuple[bool, ...]) -> tuple[str, ...]:
    """What each number between ``pieces`` is: "v", "s", "t" or "c" for a parameter, "" for part of the text.

    That depends on what is around a number, never on its value: the text is read once with marks instead.
    """
    kinds = [""] * len(hexadecimal)

    def parameter(match: re.Match[str]) -> str:
        group = match.lastgroup or ""
        value = match.group(group)
        index = int(value.rstrip("u"), 0) - _MARK
        kinds[index] = group[0]
        return f"{match.group()[: len(match.group()) - len(value)]}${index}"

    marks = (f"{_MARK + i:#x}u" if is_hex else str(_MARK + i) for i, is_hex in enumerate(hexadecimal))
    text = pieces[0] + "".join(mark + piece for mark, piece in zip(marks, pieces[1:], strict=True))
    replaced = ""
    while replaced != text:
        text, replaced = replaced or text, _NUMBER.sub(parameter, replaced or text)
    return tuple(kinds)


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
        parts = _ANY.split(text)
        numbers = parts[1::2]
        kinds = _kinds(tuple(parts[::2]), tuple(n.startswith("0x") for n in numbers))
        arguments: list[str] = []
        known: dict[tuple[str, str], str] = {}  # equal registers are one parameter
        for at, (number, kind) in enumerate(zip(numbers, kinds, strict=True)):
            if not kind:
                continue
            name = known.get((kind, number)) if kind != "c" else None
            if name is None:
                name = known[kind, number] = f"p{len(arguments)}"
                arguments.append(f"(u32){number}" if number.startswith("-") else number)
            parts[2 * at + 1] = name
        if len(arguments) > _MOST_PARAMETERS:
            return f"{{ {text} }}"
        function = self._function("".join(parts), len(arguments))
        call = f"{function}({', '.join(['w', *arguments])})"
        return f"if (UNLIKELY({call})) return RUN_TRAP;" if "return" in text else f"{call};"

    def _function(self, body: str, parameters: int) -> str:
        """The name of the function with this body, which is named by its digest."""
        name = f"o_{hashlib.sha256(body.encode()).hexdigest()[:20]}"
        if name not in self.functions:
            kind, end = ("int", " return 0;") if "return" in body else ("void", "")
            head = f"{kind} {name}(Wave *restrict w{''.join(f', u32 p{i}' for i in range(parameters))})"
            self._prototypes[name] = f"{head};"
            self.functions[name] = f"{head} {{ {body}{end} }}"
        return name
