# ruff: noqa: E501 (C text and rows of cases are not broken)
"""Every covered vector instruction against its meaning in NumPy: random operands and all special values."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from forgec.emulator import Device
from tests.emulator.build import build
from tests.emulator.valu_cases import CASES, COMPARES, OLD, TYPES, Array, Case

ARCHES = ["gfx1100", "gfx942"]
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
    return case.families == "all" or arch.startswith(case.families)


def operand(rng: np.random.Generator, kind: str) -> Array:
    """N values of a source type: uniform bits, ordinary magnitudes, and special values, shuffled
    independently."""
    if kind == "turns":
        return rng.uniform(-8, 8, N).astype(np.float32)
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


def c_type(kind: str) -> str:
    return "u64" if kind in ("u64", "i64", "f64", "um") else "u32"


def statement(arch: str, i: int, case: Case) -> str:
    """The asm statement of case ``i``: sources s<i>_<j>, result d<i>."""
    name = OLD.get(case.name, case.name) if arch.startswith("gfx9") else case.name
    wave_mask = "u64" if arch.startswith("gfx9") else "u32"
    true16 = arch.startswith("gfx11")
    names, binds, before = [], [], ""
    outputs = 2 if case.result == "um" else 1
    for j, kind in enumerate(case.sources):
        half = ".l" if true16 and kind in ("u16", "i16", "f16") and "mix" not in name else ""
        if kind == "carry":
            before += f"{wave_mask} c{i} = __builtin_amdgcn_ballot_w{64 if wave_mask == 'u64' else 32}(s{i}_{j} & 1);"
            binds.append(f'"s"(c{i})')
        elif kind != "acc":
            binds.append(f'"v"(s{i}_{j})')
        if kind != "acc":
            names.append(f"%{j + outputs}{half}")
    half = ".l" if true16 and case.result in ("u16", "i16", "f16") else ""
    inputs, operands = ", ".join(binds), ", ".join(names) + case.operands
    if case.result == "m":
        text = f'{wave_mask} m{i}; asm volatile("{name} %0, {operands}" : "=s"(m{i}) : {inputs});'
        return f"{text} u32 d{i} = (u32)(m{i} >> (t & (sizeof(m{i}) * 8 - 1))) & 1;"
    if case.result == "um":
        text = f'u32 r{i}; {wave_mask} m{i}; asm volatile("{name} %0, %1, {operands}" : "=&v"(r{i}), "=&s"(m{i}) : {inputs});'
        return f"{before} {text} u64 d{i} = r{i} | (u64)(m{i} >> (t & (sizeof(m{i}) * 8 - 1)) & 1) << 32;"
    if "acc" in case.sources:
        old = f"s{i}_{len(case.sources) - 1}"
        return f'{c_type(case.result)} d{i} = {old}; asm volatile("{name} %0, {operands}" : "+v"(d{i}) : {inputs});'
    return f'{before} {c_type(case.result)} d{i}; asm volatile("{name} %0{half}, {operands}" : "=&v"(d{i}) : {inputs});'


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
    inputs = [
        [operand(rng, {"acc": "f32", "carry": "u32"}.get(k, k)) for k in case.sources] for case in cases
    ]
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
            {"ph": np.uint32, "m": np.uint32, "um": np.uint64}.get(case.result) or TYPES[case.result]
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
@pytest.mark.parametrize("group", ["arithmetic", "compares"])
def test_every_vector_instruction(arch: str, group: str) -> None:
    rng = np.random.default_rng()
    cases = [c for c in (CASES if group == "arithmetic" else COMPARES) if applies(c, arch)]
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
    if expected.dtype.kind == "f":
        return ulp_distance(expected, found) > case.ulps
    if case.result == "u32" and case.name.startswith(("v_cvt_pk_rtz", "v_pack")):
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
