# ruff: noqa: E501 (C text and rows of cases are not broken)
"""Every covered scalar instruction against Python integers: result and SCC, random and special operands."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from forgec.emulator import Device
from forgec.emulator.isa.salu import SALU, SAVEEXEC
from tests.emulator.build import build

N = 96
UNIFORM = """
DEVICE u64 uniform(u64 x) {
  u32 lo = __builtin_amdgcn_readfirstlane((u32)x), hi = __builtin_amdgcn_readfirstlane((u32)(x >> 32));
  return lo | (u64)hi << 32;
}
"""
M32, M64 = (1 << 32) - 1, (1 << 64) - 1
_SPECIAL = [
    0,
    1,
    2,
    31,
    32,
    63,
    0x80000000,
    0x7FFFFFFF,
    0xFFFFFFFF,
    0xFFFFFFFE,
    0x8000,
    0xFFFF,
    1 << 63,
    M64,
    0x00100008,
    0x00200000,
    0x001F0001,
]


@dataclass(frozen=True)
class Case:
    """``function(a, b, scc, old)`` takes unsigned integers and returns (result, scc); None leaves SCC alone."""

    name: str
    bits: int
    sources: tuple[int, ...]
    function: Callable[[int, int, int, int], tuple[int, int | None]]
    old: bool = False
    families: str = "all"


def signed(x: int, bits: int = 32) -> int:
    return x - (1 << bits) if x >> (bits - 1) & 1 else x


def nonzero(x: int, bits: int) -> tuple[int, int]:
    x &= (1 << bits) - 1
    return x, int(x != 0)


def overflow(x: int) -> int:
    return int(not -(1 << 31) <= x < 1 << 31)


def bfe(a: int, b: int, bits: int, sign: bool) -> tuple[int, int]:
    start, size = b & (bits - 1), b >> 16 & 127
    size = min(size, bits)
    x = (signed(a, bits) if sign else a) >> start
    x &= (1 << size) - 1
    if sign and size and x >> (size - 1):
        x -= 1 << size
    return nonzero(x, bits)


def clz(x: int, bits: int) -> int:
    return bits - x.bit_length() if x else M32


def cls(x: int, bits: int) -> int:
    folded = (x ^ M64) & ((1 << bits) - 1) if x >> (bits - 1) else x
    return bits - folded.bit_length() if folded else M32


def ctz(x: int) -> int:
    return (x & -x).bit_length() - 1 if x else M32


def _logic() -> list[Case]:
    rows = []
    table: dict[str, Callable[[int, int], int]] = {
        "and": lambda a, b: a & b,
        "or": lambda a, b: a | b,
        "xor": lambda a, b: a ^ b,
        "and_not1": lambda a, b: a & ~b,
        "or_not1": lambda a, b: a | ~b,
        "nand": lambda a, b: ~(a & b),
        "nor": lambda a, b: ~(a | b),
        "xnor": lambda a, b: ~(a ^ b),
    }
    for bits in (32, 64):
        for name, g in table.items():
            rows.append(
                Case(
                    f"s_{name}_b{bits}",
                    bits,
                    (bits, bits),
                    lambda a, b, s, o, g=g, n=bits: nonzero(g(a, b), n),
                )
            )
        rows += [
            Case(f"s_not_b{bits}", bits, (bits,), lambda a, b, s, o, n=bits: nonzero(~a, n)),
            Case(f"s_mov_b{bits}", bits, (bits,), lambda a, b, s, o: (a, None)),
            Case(f"s_cselect_b{bits}", bits, (bits, bits), lambda a, b, s, o: (a if s else b, None)),
            Case(f"s_cmov_b{bits}", bits, (bits,), lambda a, b, s, o: (a if s else o, None), True),
            Case(
                f"s_lshl_b{bits}", bits, (bits, 32), lambda a, b, s, o, n=bits: nonzero(a << (b & (n - 1)), n)
            ),
            Case(
                f"s_lshr_b{bits}", bits, (bits, 32), lambda a, b, s, o, n=bits: nonzero(a >> (b & (n - 1)), n)
            ),
            Case(
                f"s_ashr_i{bits}",
                bits,
                (bits, 32),
                lambda a, b, s, o, n=bits: nonzero(signed(a, n) >> (b & (n - 1)), n),
            ),
            Case(
                f"s_bfm_b{bits}",
                bits,
                (32, 32),
                lambda a, b, s, o, n=bits: (
                    (((1 << (a & (n - 1))) - 1) << (b & (n - 1))) & ((1 << n) - 1),
                    None,
                ),
            ),
            Case(f"s_bfe_u{bits}", bits, (bits, 32), lambda a, b, s, o, n=bits: bfe(a, b, n, False)),
            Case(f"s_bfe_i{bits}", bits, (bits, 32), lambda a, b, s, o, n=bits: bfe(a, b, n, True)),
            Case(
                f"s_brev_b{bits}",
                bits,
                (bits,),
                lambda a, b, s, o, n=bits: (int(f"{a:0{n}b}"[::-1], 2), None),
            ),
            Case(
                f"s_bcnt0_i32_b{bits}", 32, (bits,), lambda a, b, s, o, n=bits: nonzero(n - a.bit_count(), 32)
            ),
            Case(f"s_bcnt1_i32_b{bits}", 32, (bits,), lambda a, b, s, o: nonzero(a.bit_count(), 32)),
            Case(f"s_ctz_i32_b{bits}", 32, (bits,), lambda a, b, s, o: (ctz(a), None)),
            Case(
                f"s_bitset0_b{bits}",
                bits,
                (32,),
                lambda a, b, s, o, n=bits: (o & ~(1 << (a & (n - 1))), None),
                True,
            ),
            Case(
                f"s_bitset1_b{bits}",
                bits,
                (32,),
                lambda a, b, s, o, n=bits: (o | 1 << (a & (n - 1)), None),
                True,
            ),
            Case(
                f"s_bitcmp0_b{bits}",
                0,
                (bits, 32),
                lambda a, b, s, o, n=bits: (0, 1 - (a >> (b & (n - 1)) & 1)),
            ),
            Case(f"s_bitcmp1_b{bits}", 0, (bits, 32), lambda a, b, s, o, n=bits: (0, a >> (b & (n - 1)) & 1)),
            Case(
                f"s_quadmask_b{bits}",
                bits,
                (bits,),
                lambda a, b, s, o, n=bits: nonzero(sum(bool(a >> 4 * i & 15) << i for i in range(n // 4)), n),
            ),
            Case(
                f"s_wqm_b{bits}",
                bits,
                (bits,),
                lambda a, b, s, o, n=bits: nonzero(
                    sum((15 if a >> i & 15 else 0) << i for i in range(0, n, 4)), n
                ),
            ),
        ]
    rows += [
        Case("s_clz_i32_u32", 32, (32,), lambda a, b, s, o: (clz(a, 32), None)),
        Case("s_clz_i32_u64", 32, (64,), lambda a, b, s, o: (clz(a, 64), None)),
        Case("s_cls_i32", 32, (32,), lambda a, b, s, o: (cls(a, 32), None)),
        Case("s_cls_i32_i64", 32, (64,), lambda a, b, s, o: (cls(a, 64), None)),
    ]
    return rows


def _arithmetic() -> list[Case]:
    def compare(
        g: Callable[[int, int], bool], sign: bool, bits: int = 32
    ) -> Callable[[int, int, int, int], tuple[int, int]]:
        return lambda a, b, s, o: (0, int(g(signed(a, bits), signed(b, bits)) if sign else g(a, b)))

    two = (32, 32)
    operators: dict[str, Callable[[int, int], bool]] = {
        "eq": lambda a, b: a == b,
        "lg": lambda a, b: a != b,
        "gt": lambda a, b: a > b,
        "ge": lambda a, b: a >= b,
        "lt": lambda a, b: a < b,
        "le": lambda a, b: a <= b,
    }
    rows = [
        Case(f"s_cmp_{n}_{t}", 0, two, compare(g, t == "i32"))
        for n, g in operators.items()
        for t in ("i32", "u32")
    ]
    rows += [Case(f"s_cmp_{n}_u64", 0, (64, 64), compare(operators[n], False)) for n in ("eq", "lg")]
    rows += [
        Case(
            f"s_lshl{n}_add_u32",
            32,
            two,
            lambda a, b, s, o, n=n: (((a << n) + b) & M32, int((a << n) + b > M32)),
        )
        for n in (1, 2, 3, 4)
    ]
    rows += [
        Case("s_add_u32", 32, two, lambda a, b, s, o: ((a + b) & M32, int(a + b > M32))),
        Case("s_sub_u32", 32, two, lambda a, b, s, o: ((a - b) & M32, int(a < b))),
        Case("s_add_i32", 32, two, lambda a, b, s, o: ((a + b) & M32, overflow(signed(a) + signed(b)))),
        Case("s_sub_i32", 32, two, lambda a, b, s, o: ((a - b) & M32, overflow(signed(a) - signed(b)))),
        Case("s_addc_u32", 32, two, lambda a, b, s, o: ((a + b + s) & M32, int(a + b + s > M32))),
        Case("s_subb_u32", 32, two, lambda a, b, s, o: ((a - b - s) & M32, int(a < b + s))),
        Case("s_absdiff_i32", 32, two, lambda a, b, s, o: nonzero(abs(signed((a - b) & M32)), 32)),
        Case(
            "s_min_i32",
            32,
            two,
            lambda a, b, s, o: (a if signed(a) < signed(b) else b, int(signed(a) < signed(b))),
        ),
        Case(
            "s_max_i32",
            32,
            two,
            lambda a, b, s, o: (a if signed(a) > signed(b) else b, int(signed(a) > signed(b))),
        ),
        Case("s_min_u32", 32, two, lambda a, b, s, o: (min(a, b), int(a < b))),
        Case("s_max_u32", 32, two, lambda a, b, s, o: (max(a, b), int(a > b))),
        Case("s_mul_i32", 32, two, lambda a, b, s, o: (a * b & M32, None)),
        Case("s_mul_hi_u32", 32, two, lambda a, b, s, o: (a * b >> 32, None)),
        Case("s_mul_hi_i32", 32, two, lambda a, b, s, o: (signed(a) * signed(b) >> 32 & M32, None)),
        Case("s_abs_i32", 32, (32,), lambda a, b, s, o: nonzero(abs(signed(a)), 32)),
        Case("s_sext_i32_i8", 32, (32,), lambda a, b, s, o: (signed(a & 255, 8) & M32, None)),
        Case("s_sext_i32_i16", 32, (32,), lambda a, b, s, o: (signed(a & 65535, 16) & M32, None)),
        Case(
            "s_bitreplicate_b64_b32",
            64,
            (32,),
            lambda a, b, s, o: (sum((a >> i & 1) * (3 << 2 * i) for i in range(32)), None),
        ),
        Case("s_pack_ll_b32_b16", 32, two, lambda a, b, s, o: ((a & 65535) | (b & 65535) << 16, None)),
        Case("s_pack_lh_b32_b16", 32, two, lambda a, b, s, o: ((a & 65535) | (b >> 16) << 16, None)),
        Case("s_pack_hh_b32_b16", 32, two, lambda a, b, s, o: (a >> 16 | (b >> 16) << 16, None)),
        Case(
            "s_pack_hl_b32_b16",
            32,
            two,
            lambda a, b, s, o: (a >> 16 | (b & 65535) << 16, None),
            families="gfx11",
        ),
    ]
    return rows


CASES = [*_logic(), *_arithmetic()]
OLD = {
    "s_and_not1_b32": "s_andn2_b32",
    "s_and_not1_b64": "s_andn2_b64",
    "s_or_not1_b32": "s_orn2_b32",
    "s_or_not1_b64": "s_orn2_b64",
    "s_ctz_i32_b32": "s_ff1_i32_b32",
    "s_ctz_i32_b64": "s_ff1_i32_b64",
    "s_clz_i32_u32": "s_flbit_i32_b32",
    "s_clz_i32_u64": "s_flbit_i32_b64",
    "s_cls_i32": "s_flbit_i32",
    "s_cls_i32_i64": "s_flbit_i32_i64",
}


def statement(arch: str, i: int, case: Case) -> str:
    name = OLD.get(case.name, case.name) if arch.startswith("gfx9") else case.name
    c = {0: "u32", 32: "u32", 64: "u64"}
    loads = "".join(
        f"{c[bits]} s{i}_{j} = ({c[bits]})uniform(in[({i} * {N} + b) * 4 + {j}]);"
        for j, bits in enumerate(case.sources)
    )
    loads += f"u32 k{i} = (u32)uniform(in[({i} * {N} + b) * 4 + 2]); {c[case.bits]} d{i} = ({c[case.bits]})uniform(in[({i} * {N} + b) * 4 + 3]); u32 f{i};"
    first = 2
    operands = [f"%{first + j}" for j in range(len(case.sources))]
    if case.bits:
        operands.insert(0, "%0")
    flag = f"%{first + len(case.sources)}"
    inputs = ", ".join([*(f'"s"(s{i}_{j})' for j in range(len(case.sources))), f'"s"(k{i})'])
    text = f'asm volatile("s_cmp_lg_u32 {flag}, 0\\n\\t{name} {", ".join(operands)}\\n\\ts_cselect_b32 %1, 1, 0" : "+s"(d{i}), "=&s"(f{i}) : {inputs} : "scc");'
    return f"{{ {loads} {text} if (lane_id() == 0) {{ out[({i} * {N} + b) * 2] = {'0' if not case.bits else f'd{i}'}; out[({i} * {N} + b) * 2 + 1] = f{i}; }} }}"


@pytest.mark.parametrize("arch", ["gfx1100", "gfx942"])
def test_every_scalar_instruction(arch: str) -> None:
    rng = np.random.default_rng()
    cases = [c for c in CASES if c.families == "all" or arch.startswith(c.families)]
    body = "\n".join(statement(arch, i, c) for i, c in enumerate(cases))
    code, listing = build(
        UNIFORM + f"KERNEL BLOCK(64) void cases(const u64* in, u64* out) {{ u32 b = block_id();\n{body}\n}}",
        arch,
    )
    values = rng.integers(0, 1 << 63, (len(cases), N, 4), dtype=np.uint64) * np.uint64(2) + rng.integers(
        0, 2, (len(cases), N, 4), dtype=np.uint64
    )
    special = rng.choice(np.array(_SPECIAL, np.uint64), values.shape)
    values = np.where(rng.random(values.shape) < 0.5, special, values)
    values[..., 2] &= np.uint64(1)
    device = Device(arch, threads=2)
    source, out = device.upload(values), device.malloc(len(cases) * N * 16)
    device.launch(device.load(code, listing), "cases", N, 1, struct.pack("<QQ", source, out))
    got: Any = device.read(out, np.uint64, len(cases) * N * 2).reshape(len(cases), N, 2)
    failures = []
    for case, rows, results in zip(cases, values.tolist(), got.tolist(), strict=True):
        for row, result in zip(rows, results, strict=True):
            a, b = (
                x & ((1 << bits) - 1) for x, bits in zip([*row[:2]], [*case.sources, 64][:2], strict=True)
            )
            old = row[3] & ((1 << max(case.bits, 1)) - 1)
            value, flag = case.function(a, b, row[2], old)
            expected = [value, row[2] if flag is None else flag]
            if result != expected:
                failures.append(
                    f"{case.name}({a:#x}, {b:#x}) scc={row[2]}: {result[0]:#x} scc {result[1]}, expected {value:#x} scc {expected[1]}"
                )
                break
    assert not failures, "\n".join(failures)


def test_every_row_cites_a_section() -> None:
    for name, row in {**SALU, **SAVEEXEC}.items():
        assert row.citation.startswith("RDNA3 16."), name
        assert name.upper() in row.citation
