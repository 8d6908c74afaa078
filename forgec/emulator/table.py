"""The notation of the instruction tables: one line of text per instruction in, one frozen Row out.

A line reads ``names | results = sources | C expression``. Names are LLVM mnemonics without the encoding
suffix; several names (families rename instructions) are separated by blanks. Types are u16 i16 f16 u32 i32
f32 u64 i64 f64, packed halves ``pu16 pi16 pf16``, packed singles ``pf32``, lane masks ``m``; ``@t`` is the
old value of the result, ``vcc`` the implicit mask, ``k`` a constant. Sources are bound to a, b, c, e; the
expression gives the result, or assigns ``d`` (and ``d2`` for a second result) itself.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Row", "table"]


@dataclass(frozen=True)
class Row:
    """The meaning of one instruction: result types, source types, C text, and the ISA section it is read
    beside."""

    name: str
    results: tuple[str, ...]
    sources: tuple[str, ...]
    text: str
    section: str

    @property
    def statement(self) -> bool:
        """Whether ``text`` assigns ``d`` itself instead of being its value."""
        return "d = " in self.text

    @property
    def citation(self) -> str:
        return f"{self.section}, {self.name.upper()}"


def table(section: str, text: str) -> dict[str, Row]:
    """Parse table text; a line that ends in a backslash continues on the next.

    Raises:
        ValueError: a line with the wrong number of columns, or a mnemonic given twice.
    """
    rows: dict[str, Row] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        columns = [c.strip() for c in line.split(" | ", 2)]
        if len(columns) != 3:
            raise ValueError(f"a table line needs three columns: {line!r}")
        results, _, sources = columns[1].partition("=")
        for name in columns[0].split():
            if name in rows:
                raise ValueError(f"'{name}' is in the table twice")
            rows[name] = Row(name, tuple(results.split()), tuple(sources.split()), columns[2], section)
    return rows
