"""The scalar float instructions of RDNA3.5 and RDNA4 against NumPy: random and special operands."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from forgec.emulator import Device
from forgec.emulator.isa.salu import SALU
from tests.emulator.build import build
from tests.emulator.valu_cases import f32_to_int, fma16, fma32, number_max, number_min, rtz16

N = 160
LITERAL = np.float32(-1.3046875e3)
F, H, I32, U32 = np.float32, np.float16, np.int32, np.uint32
UNIFORM = """
DEVICE u32 uniform(u32 x) { return __builtin_amdgcn_readfirstlane(x); }
"""
SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan, 65504.0, 65520.0, -7e4, 3e38,
     2147483647.0, 2147483648.0, -2147483649.0, 4294967296.0, 1e-40, -1e-40, 6e-8, 5.9e-8, 1e-45, 1e10]
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """``result`` None: only SCC. ``text`` holds the operands after the mnemonic: {d}, {a}, {b}."""

    name: str
    result: Any
    sources: tuple[Any, ...]
    function: Callable[..., Any]
    text: str = ""
    old: bool = False


def _arithmetic(size: str, t: Any, fma: Callable[..., Any]) -> Iterator[Case]:
    two = (t, t)
    yield Case(f"s_add_{size}", t, two, lambda a, b: a + b)
    yield Case(f"s_sub_{size}", t, two, lambda a, b: a - b)
    yield Case(f"s_mul_{size}", t, two, lambda a, b: a * b)
    yield Case(f"s_min_{size}", t, two, number_min)
    yield Case(f"s_max_{size}", t, two, number_max)
    yield Case(f"s_fmac_{size}", t, two, fma, old=True)
    for name, function in (("ceil", np.ceil), ("floor", np.floor), ("trunc", np.trunc), ("rndne", np.rint)):
        yield Case(f"s_{name}_{size}", t, (t,), function)
    compares: dict[str, Callable[[Any, Any], Any]] = {
        "lt": lambda a, b: a < b,
        "eq": lambda a, b: a == b,
        "le": lambda a, b: a <= b,
        "gt": lambda a, b: a > b,
        "lg": lambda a, b: (a < b) | (a > b),
        "ge": lambda a, b: a >= b,
        "o": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    }
    opposite = {"lt": "nlt", "eq": "neq", "le": "nle", "gt": "ngt", "lg": "nlg", "ge": "nge", "o": "u"}
    for name, compare in compares.items():
        yield Case(f"s_cmp_{name}_{size}", None, two, compare)
        yield Case(f"s_cmp_{opposite[name]}_{size}", None, two, lambda a, b, f=compare: ~f(a, b))


def _conversions() -> Iterator[Case]:
    literal = f"0x{LITERAL.view(np.uint32):x}"
    yield Case("s_fmamk_f32", F, (F, F), lambda a, b: fma32(a, np.full_like(a, LITERAL), b),
               f"{{d}}, {{a}}, {literal}, {{b}}")  # fmt: skip
    yield Case("s_fmaak_f32", F, (F, F), lambda a, b: fma32(a, b, np.full_like(a, LITERAL)),
               f"{{d}}, {{a}}, {{b}}, {literal}")  # fmt: skip
    yield Case("s_cvt_f32_i32", F, (I32,), lambda a: a.astype(F))
    yield Case("s_cvt_f32_u32", F, (U32,), lambda a: a.astype(F))
    yield Case("s_cvt_i32_f32", I32, (F,), lambda a: f32_to_int(a, -(1 << 31), (1 << 31) - 1, I32))
    yield Case("s_cvt_u32_f32", U32, (F,), lambda a: f32_to_int(a, 0, (1 << 32) - 1, U32))
    yield Case("s_cvt_f16_f32", H, (F,), lambda a: a.astype(H))
    yield Case("s_cvt_f32_f16", F, (H,), lambda a: a.astype(F))
    yield Case("s_cvt_hi_f32_f16", F, (U32,), lambda a: (a >> 16).astype(np.uint16).view(H).astype(F))
    yield Case("s_cvt_pk_rtz_f16_f32", U32, (F, F), _packed_rtz)


def _packed_rtz(a: Any, b: Any) -> Any:
    low, high = (rtz16(x).view(np.uint16).astype(np.uint32) for x in (a, b))
    return low | high << 16


def cases(arch: str) -> list[Case]:
    """What ``arch`` has; RDNA4 renamed minimum and maximum."""
    rows = [*_arithmetic("f32", F, fma32), *_arithmetic("f16", H, fma16), *_conversions()]
    if not arch.startswith("gfx12"):
        return rows
    return [
        Case(c.name.replace("s_min_f", "s_min_num_f").replace("s_max_f", "s_max_num_f"), *_rest(c))
        for c in rows
    ]


def _rest(c: Case) -> tuple[Any, ...]:
    return c.result, c.sources, c.function, c.text, c.old


def statement(i: int, case: Case) -> str:
    """Load uniform operands, run the instruction, store its result and SCC."""
    at = f"in[({i} * {N} + b) * 3"
    loads = "".join(f"u32 {x}{i} = uniform({at} + {j}]);" for j, x in enumerate("abd"))
    names = {"d": "%0", "a": "%2", "b": "%3"}
    if case.text:
        operands = case.text.format(**names)
    else:
        used = [names["d"]] if case.result is not None else []
        operands = ", ".join([*used, *["%2", "%3"][: len(case.sources)]])
    text = (
        f'asm volatile("s_cmp_eq_u32 0, 1\\n\\t{case.name} {operands}\\n\\ts_cselect_b32 %1, 1, 0"'
        f' : "+s"(d{i}), "=&s"(f{i}) : "s"(a{i}), "s"(b{i}) : "scc");'
    )
    store = f"if (lane_id() == 0) {{ out[({i} * {N} + b) * 2] = d{i}; out[({i} * {N} + b) * 2 + 1] = f{i}; }}"
    return f"{{ {loads} u32 f{i}; {text} {store} }}"


def operands(rng: np.random.Generator, kind: Any) -> np.ndarray:
    """uint32 [N]: bits of random and special values of a type."""
    if kind in (I32, U32):
        edges = np.array([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x01000001, 0x7C00_3C00], np.uint32)
        random = rng.integers(0, 1 << 32, N, dtype=np.uint64).astype(np.uint32)
        return np.where(rng.random(N) < 0.3, rng.choice(edges, N), random)
    spread = 30 if kind is F else 9
    values = rng.standard_normal(N) * 2.0 ** rng.integers(-spread, spread, N)
    with np.errstate(over="ignore"):
        values = np.where(rng.random(N) < 0.4, rng.choice(SPECIAL, N), values).astype(kind)
    return values.view(np.uint16).astype(np.uint32) if kind is H else values.view(np.uint32)


def typed(bits: np.ndarray, kind: Any) -> np.ndarray:
    return bits.astype(np.uint16).view(H) if kind is H else bits.view(kind)


@pytest.mark.parametrize("arch", ["gfx1151", "gfx1201"])
def test_every_scalar_float_instruction(arch: str) -> None:
    rng = np.random.default_rng()
    rows = cases(arch)
    body = "\n".join(statement(i, case) for i, case in enumerate(rows))
    kernel = f"KERNEL BLOCK(32) void cases(const u32* in, u32* out) {{ u32 b = block_id();\n{body}\n}}"
    code, listing = build(UNIFORM + kernel, arch)
    inputs = np.zeros((len(rows), N, 3), np.uint32)
    for i, case in enumerate(rows):
        for j, kind in enumerate((*case.sources, *([case.result] if case.old else []))):
            inputs[i, :, 2 if j == len(case.sources) else j] = operands(rng, kind)
    device = Device(arch, threads=2)
    source, out = device.upload(inputs), device.malloc(len(rows) * N * 8)
    device.launch(device.load(code, listing), "cases", N, 1, struct.pack("<QQ", source, out))
    got = device.read(out, np.uint32, len(rows) * N * 2).reshape(len(rows), N, 2)
    failures = [f for i, case in enumerate(rows) if (f := _compare(case, inputs[i], got[i]))]
    assert not failures, "\n".join(failures)


def _compare(case: Case, given: np.ndarray, got: np.ndarray) -> str:
    values = [typed(given[:, j].copy(), kind) for j, kind in enumerate(case.sources)]
    if case.old:
        values.append(typed(given[:, 2].copy(), case.result))
    with np.errstate(all="ignore"):
        expected = np.asarray(case.function(*values))
    if case.result is None:
        wrong = got[:, 1] != expected
        shown: Any = got[:, 1]
    else:
        shown = typed(got[:, 0].copy(), case.result)
        expected = expected.astype(case.result)
        same = shown.view(np.uint16 if case.result is H else np.uint32) == expected.view(
            np.uint16 if case.result is H else np.uint32
        )
        both_nan = np.isnan(shown) & np.isnan(expected) if case.result in (F, H) else np.zeros(N, bool)
        packed_nan = _packed_nan(case, shown, expected)
        wrong = ~(same | both_nan | packed_nan) | (got[:, 1] != 0)
    if not wrong.any():
        return ""
    at = int(np.argmax(wrong))
    return f"{case.name}({', '.join(str(v[at]) for v in values)}) = {shown[at]}, expected {expected[at]}"


def _packed_nan(case: Case, shown: Any, expected: Any) -> Any:
    """Two halves, each equal or a NaN on both sides."""
    if case.name != "s_cvt_pk_rtz_f16_f32":
        return np.zeros(N, bool)
    a, b = (x.view(np.uint16).reshape(N, 2) for x in (shown, expected))
    equal = (a == b) | (np.isnan(a.view(H)) & np.isnan(b.view(H)))
    return equal.all(axis=1)


def test_every_row_of_the_table_is_covered() -> None:
    tested = {case.name for arch in ("gfx1151", "gfx1201") for case in cases(arch)}
    rows = {name for name in SALU if name.endswith(("_f32", "_f16")) or "_f32_" in name or "f16" in name}
    assert rows == tested
