"""Vector compares (VOPC): every (operator, type) pair, and the class tests; the result is a lane mask."""

from __future__ import annotations

from forgec.emulator.table import Row

__all__ = ["VOPC"]

SECTION = "RDNA3 16.9, CDNA3 12.9, RDNA4 16.9"

_INTEGER = {"lt": "a < b", "eq": "a == b", "le": "a <= b", "gt": "a > b", "ne": "a != b", "ge": "a >= b"}
_FLOAT = {
    "lt": "a < b",
    "eq": "a == b",
    "le": "a <= b",
    "gt": "a > b",
    "lg": "(a < b) | (a > b)",
    "ge": "a >= b",
    "o": "(a == a) & (b == b)",
    "u": "(a != a) | (b != b)",
    "nge": "~(a >= b)",
    "nlg": "~((a < b) | (a > b))",
    "ngt": "~(a > b)",
    "nle": "~(a <= b)",
    "neq": "~(a == b)",
    "nlt": "~(a < b)",
}


def _rows() -> dict[str, Row]:
    rows: dict[str, Row] = {}

    def add(operator: str, type_: str, sources: tuple[str, ...], text: str) -> None:
        for stem, result in (("v_cmp", "m"), ("v_cmpx", "exec")):
            name = f"{stem}_{operator}_{type_}"
            rows[name] = Row(name, (result,), sources, text, SECTION)

    for type_ in ("i16", "u16", "i32", "u32", "i64", "u64"):
        for operator, text in _INTEGER.items():
            add(operator, type_, (type_, type_), f"BITS({text})")
    for type_ in ("f16", "f32", "f64"):
        for operator, text in _FLOAT.items():
            if type_ == "f16":
                text = text.replace("a", "x").replace("b", "y")
                text = f"F32 x = to_f32(a), y = to_f32(b); mask d = BITS({text})"
            else:
                text = f"BITS({text})"
            add(operator, type_, (type_, type_), text)
        wide = type_.upper()
        add("class", type_, (type_, "u32"), f"BITS(class_{type_}(a, b))" if wide else "")
    for type_ in ("i16", "u16", "i32", "u32", "i64", "u64", "f16", "f32", "f64"):
        for operator in ("t", "tru"):
            add(operator, type_, (type_, type_), "(mask)~(mask)0")
        add("f", type_, (type_, type_), "(mask)0")
    return rows


VOPC = _rows()
