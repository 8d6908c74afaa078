# ruff: noqa: E501 (C text and rows of cases are not broken)
"""Every covered vector instruction against its meaning in NumPy: random operands and all special values."""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy as np
import pytest

from forgec.emulator import Device
from forgec.emulator.emit_vector import ROWS
from tests.emulator.build import build
from tests.emulator.valu_cases import CASES, COMPARES, OLD, TYPES, Array, Case
from tests.emulator.valu_cases_more import MORE

ARCHES = ["gfx1100", "gfx942"]
# Chips of which only the instructions are run that the two above lack.
LATER = ["gfx1201", "gfx950"]
_ACCUMULATORS = ("acc", "acc16", "accph", "acc64", "accu")
N = 256
_SPECIAL32 = [
    0,
    1,
    0x80000000,
    0x7FFFFFFF,
    0xFFFFFFFF,
    0x3F800000,
    0xBF800000,
    0x7F800000,
    0xFF800000,
    0x7FC00000,
    0x00800000,
    0x007FFFFF,
    0x80000001,
    0x7F7FFFFF,
    0x3F000000,
    0x4F000000,
    0xCF000000,
    0x4B800001,
]
_SPECIAL16 = [
    0,
    0x8000,
    1,
    0x8001,
    0x3C00,
    0xBC00,
    0x7BFF,
    0x7C00,
    0xFC00,
    0x7E00,
    0x0400,
    0x03FF,
    0x3555,
    0xFFFF,
]
_SPECIAL64 = [
    0,
    1 << 63,
    0x3FF0000000000000,
    0xBFF8000000000000,
    0x7FF0000000000000,
    0x7FF8000000000000,
    0x000FFFFFFFFFFFFF,
    0x7FEFFFFFFFFFFFFF,
    0x41DFFFFFFFC00000,
    0x41EFFFFFFFE00000,
]


def applies(case: Case, arch: str) -> bool:
    if arch in LATER:
        return case.families in ("gfx12", "gfx950") and arch.startswith(case.families)
    return case.families == "all" or arch.startswith(case.families)


def operand(rng: np.random.Generator, kind: str) -> Array:
    """N values of a source type: uniform bits, ordinary magnitudes, and special values, shuffled
    independently."""
    if kind == "turns":
        return rng.uniform(-8, 8, N).astype(np.float32)
    kind = {"acc": "f32", "acc16": "f16", "accph": "ph", "acc64": "f64", "accu": "i32", "carry": "u32"}.get(
        kind, kind
    )
    if kind == "half turns":
        return rng.uniform(-8, 8, N).astype(np.float16)
    if kind == "small16":
        return rng.integers(-30, 30, N).astype(np.int16)
    if kind in ("bf", "bf1"):
        values = (rng.standard_normal((N, 2)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return values[:, 0].copy() if kind == "bf1" else values.view(np.uint32).reshape(-1)
    if kind == "pf":
        return np.stack([operand(rng, "f32"), operand(rng, "f32")], 1).view(np.uint64).reshape(-1)
    if kind == "small":
        return rng.integers(-160, 160, N).astype(np.int32)
    if kind == "selector":
        return rng.integers(0, 14, (N, 4)).astype(np.uint8).reshape(-1).view(np.uint32)
    if kind == "ph":
        return (
            np.ascontiguousarray(np.stack([operand(rng, "f16"), operand(rng, "f16")], 1))
            .view(np.uint32)
            .reshape(-1)
        )
    dtype = np.dtype(TYPES[kind])
    special: list[int] = {2: _SPECIAL16, 4: _SPECIAL32, 8: _SPECIAL64}[dtype.itemsize]
    bits = (
        rng.integers(0, 256, (N, dtype.itemsize))
        .astype(np.uint8)
        .reshape(-1)
        .view(f"u{dtype.itemsize}")
        .copy()
    )
    chosen = rng.random(N)
    bits = np.where(chosen < 0.3, rng.choice(np.array(special, f"u{dtype.itemsize}"), N), bits)
    values = bits.view(dtype)
    if dtype.kind == "f":
        ordinary = (rng.standard_normal(N) * 10.0 ** rng.uniform(-2, 2, N)).astype(dtype)
        values = np.where((chosen > 0.3) & (chosen < 0.8), ordinary, values)
    elif dtype.itemsize > 2:
        values = np.where((chosen > 0.3) & (chosen < 0.5), rng.integers(0, 70, N).astype(dtype), values)
    return np.ascontiguousarray(values.astype(dtype))


_HALVES = ("u16", "i16", "f16")


def c_type(kind: str) -> str:
    return "u64" if kind in ("u64", "i64", "f64", "um", "pf", "acc64") else "u32"


def statement(arch: str, i: int, case: Case) -> str:
    """The asm statement of case ``i``: sources s<i>_<j>, result d<i>."""
    name = OLD.get(case.name, case.name) if arch.startswith("gfx9") else case.name
    if case.name.startswith(("v_mad_u64_u32", "v_mad_i64_i32")):
        name += " %0, vcc" + ("" if arch.startswith("gfx9") else "_lo") + ", %1, %2, %3 //"
    wave_mask = "u64" if arch.startswith("gfx9") else "u32"
    true16 = arch.startswith("gfx11")
    names, binds, before = [], [], ""
    outputs = 2 if case.result == "um" else 1
    for j, kind in enumerate(case.sources):
        half = (
            ".l"
            if true16 and kind in (*_HALVES, "bf1", "half turns", "small16") and "mix" not in name
            else ""
        )
        if kind == "carry":
            before += f"{wave_mask} c{i} = __builtin_amdgcn_ballot_w{64 if wave_mask == 'u64' else 32}(s{i}_{j} & 1);"
            binds.append(f'"s"(c{i})')
        elif kind not in _ACCUMULATORS:
            binds.append(f'"v"(s{i}_{j})')
        if kind not in _ACCUMULATORS:
            names.append(f"%{j + outputs}{half}")
    half = ".l" if true16 and case.result in _HALVES and "mix" not in name else ""
    inputs, operands = ", ".join(binds), ", ".join(names) + case.operands
    low = f" d{i} &= 0xffff;" if case.result in _HALVES else ""  # the upper half may be what it was
    if case.result == "m":
        text = f'{wave_mask} m{i}; asm volatile("{name} %0, {operands}" : "=s"(m{i}) : {inputs});'
        return f"{text} u32 d{i} = (u32)(m{i} >> (t & (sizeof(m{i}) * 8 - 1))) & 1;"
    if case.result == "um":
        text = f'u32 r{i}; {wave_mask} m{i}; asm volatile("{name} %0, %1, {operands}" : "=&v"(r{i}), "=&s"(m{i}) : {inputs});'
        return f"{before} {text} u64 d{i} = r{i} | (u64)(m{i} >> (t & (sizeof(m{i}) * 8 - 1)) & 1) << 32;"
    if case.sources[-1] in _ACCUMULATORS or case.result == "hi16":
        old = f"s{i}_{len(case.sources) - 1}"
        after = f" d{i} >>= 16;" if case.result == "hi16" else low
        return f'{c_type(case.result)} d{i} = {old}; asm volatile("{name} %0{half}, {operands}" : "+v"(d{i}) : {inputs});{after}'
    if "//" in name:
        return f'u64 d{i}; asm volatile("{name.removesuffix(" //").replace(" %0", " %0", 1)}" : "=&v"(d{i}) : {inputs} : "vcc");'
    return f'{before} {c_type(case.result)} d{i}; asm volatile("{name} %0{half}, {operands}" : "=&v"(d{i}) : {inputs});{low}'


def kernel_text(arch: str, cases: list[Case]) -> str:
    """One kernel: every case an asm statement on the inputs it loads, results stored one array after another."""
    lines = [f"KERNEL BLOCK({N}) void cases(const char* in, char* out) {{ u32 t = lane_id();"]
    for i, case in enumerate(cases):
        for j, kind in enumerate(case.sources):
            type_ = c_type(kind)
            at = f"in + {(4 * i + j) * N * 8}u + t * {8 if type_ == 'u64' else 4}u"
            lines.append(f"{type_} s{i}_{j} = *(const {type_}*)({at});")
        lines.append(statement(arch, i, case))
        result = c_type(case.result)
        lines.append(f"*({result}*)(out + {i * N * 8}u + t * {8 if result == 'u64' else 4}u) = d{i};")
    return "\n".join([*lines, "}"])


def run_cases(
    arch: str, cases: list[Case], rng: np.random.Generator
) -> tuple[list[list[Array]], list[Array]]:
    """(inputs, outputs) of one launch over all cases."""
    code, listing = build(kernel_text(arch, cases), arch)
    device = Device(arch, threads=2)
    inputs = [[operand(rng, k) for k in case.sources] for case in cases]
    buffer = np.zeros((len(cases), 4, N * 8), np.uint8)
    for i, arrays in enumerate(inputs):
        for j, a in enumerate(arrays):
            raw = (
                (
                    a.astype(np.uint32)
                    if a.dtype == np.uint16
                    else a.view(np.uint16).astype(np.uint32)
                    if a.dtype.itemsize == 2
                    else a
                )
                .view(np.uint8)
                .reshape(-1)
            )
            buffer[i, j, : raw.size] = raw
    pointer, out = device.upload(buffer), device.upload(np.zeros((len(cases), N * 8), np.uint8))
    device.launch(device.load(code, listing), "cases", 1, N, struct.pack("<QQ", pointer, out))
    raw_out = device.read(out, np.uint8, len(cases) * N * 8).reshape(len(cases), -1)
    results = []
    for i, case in enumerate(cases):
        dtype = np.dtype(
            {"ph": np.uint32, "m": np.uint32, "um": np.uint64, "pf": np.uint64, "hi16": np.float16}.get(
                case.result
            )
            or TYPES[case.result]
        )
        stored = max(dtype.itemsize, 4)
        words = np.ascontiguousarray(raw_out[i, : N * stored]).view(f"u{stored}")
        results.append((words.astype(f"u{dtype.itemsize}")).view(dtype))
    device.close()
    return inputs, results


def ulp_distance(a: Array, b: Array) -> Array:
    """Distance in representable values; 0 for two NaNs; infinities are one step from the largest number."""
    kind: Any = {2: np.int16, 4: np.int32, 8: np.int64}[a.dtype.itemsize]

    def order(x: Array) -> Array:
        bits = np.ascontiguousarray(x).view(kind).astype(object)
        top = 1 << (8 * x.dtype.itemsize - 1)
        return np.array([v if v >= 0 else -top - v for v in bits.tolist()], object)

    distance = np.abs(order(a) - order(b))
    return np.where(np.isnan(a) & np.isnan(b), 0, distance).astype(np.float64)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("group", ["arithmetic", "compares", "more"])
def test_every_vector_instruction(arch: str, group: str) -> None:
    check({"arithmetic": CASES, "compares": COMPARES, "more": MORE}[group], arch)


@pytest.mark.parametrize("arch", LATER)
def test_later_instructions(arch: str) -> None:
    check(MORE, arch)


def check(group: list[Case], arch: str) -> None:
    """Run the cases that ``arch`` has, and compare."""
    rng = np.random.default_rng()
    cases = [c for c in group if applies(c, arch)]
    assert cases
    failures = []
    for start in range(0, len(cases), 45):
        chunk = cases[start : start + 45]
        inputs, outputs = run_cases(arch, chunk, rng)
        for case, arrays, found in zip(chunk, inputs, outputs, strict=True):
            with np.errstate(all="ignore"):
                expected = np.ascontiguousarray(case.function(*arrays))
            bad = mismatches(case, expected, found)
            if bad.any():
                k = int(np.argmax(bad))
                shown = [f"{a[k]!r} ({a[k : k + 1].tobytes()[::-1].hex()})" for a in arrays]
                failures.append(
                    f"{case.name}{case.operands}({', '.join(shown)}) = {found[k]!r}, expected {expected[k]!r}; {int(bad.sum())} of {N}"
                )
    assert not failures, "\n".join(failures)


def mismatches(case: Case, expected: Array, found: Array) -> Array:
    if case.result == "m":
        return expected.astype(np.uint32) != found
    if case.result == "ph":
        wide_e, wide_f = expected.view(np.float16), found.view(np.float16)
        return (ulp_distance(wide_e, wide_f) > case.ulps).reshape(-1, 2).any(-1)
    if case.result == "pf":
        distance = ulp_distance(expected.view(np.float32), found.view(np.float32))
        return (distance > case.ulps).reshape(-1, 2).any(-1)
    if expected.dtype.kind == "f":
        return ulp_distance(expected, found) > case.ulps
    if case.result == "u32" and case.name.startswith(("v_cvt_pk_rtz", "v_pack", "v_cvt_pk_f16")):
        return (ulp_distance(expected.view(np.float16), found.view(np.float16)) > 0).reshape(-1, 2).any(-1)
    assert expected.dtype == found.dtype, f"{case.name}: the reference gives {expected.dtype}"
    return expected != found


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_division_is_correctly_rounded(arch: str, dtype: Any) -> None:
    """v_div_scale, v_rcp, v_div_fmas and v_div_fixup together are IEEE division, denormals and special values included."""
    name = "float" if dtype is np.float32 else "double"
    text = f"KERNEL BLOCK(256) void divide(const {name}* a, const {name}* b, {name}* q) {{ q[lane_id()] = a[lane_id()] / b[lane_id()]; }}"
    code, listing = build(text, arch)
    assert "v_div_fmas" in listing
    rng = np.random.default_rng()
    a, b = (operand(rng, "f32" if dtype is np.float32 else "f64") for _ in range(2))
    device = Device(arch)
    pointers = [device.upload(a), device.upload(b), device.malloc(a.nbytes)]
    device.launch(device.load(code, listing), "divide", 1, N, struct.pack("<QQQ", *pointers))
    with np.errstate(all="ignore"):
        distance = ulp_distance((a / b).astype(dtype), device.read(pointers[2], dtype, N))
    assert not distance.any(), f"{a[distance > 0]} / {b[distance > 0]}"


# Rows without a case: what tests them instead, or why none of the chips here can run them.
ELSEWHERE = {
    "v_div_scale_": "test_division_is_correctly_rounded",
    "v_div_fmas_": "test_division_is_correctly_rounded",
    "v_div_fixup_": "test_division_is_correctly_rounded",
    "v_mbcnt_": "test_lanes.py",
    "v_madmk_": "test_programs.py on gfx90a",
    "v_mac_f32": "gfx906 and older",
    "v_mad_f32": "gfx906 and older",
    "v_add_nc_u64": "gfx1250",
    "v_sub_nc_u64": "gfx1250",
    "v_mul_u64": "gfx1250",
}


def test_every_row_has_a_case() -> None:
    """A row of the tables is one with others of the same text: families rename instructions."""
    tested = set()
    for case in [*CASES, *COMPARES, *MORE]:
        clamped = ":clamp" if "clamp" in case.operands else ""
        tested |= {f"{n}{clamped}" for n in (case.name, OLD.get(case.name, case.name))}
    meanings: dict[tuple[object, ...], list[str]] = {}
    for name, row in ROWS.items():
        meanings.setdefault((row.text, row.results, row.sources, "clamp" in name), []).append(name)
    missing = [
        names
        for names in meanings.values()
        if not any(n in tested or n.replace("v_cmpx", "v_cmp") in tested for n in names)
        and not names[0].startswith(tuple(ELSEWHERE))
        and not re.match(r"v_cmpx?_(t|tru|f)_", names[0])
    ]
    assert not missing


def test_every_row_cites_a_section() -> None:
    for name, row in ROWS.items():
        assert re.match(r"RDNA3 16\.\d+, CDNA3 12\.\d+, RDNA4 16\.\d+, V_", row.citation), name
