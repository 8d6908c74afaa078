# ruff: noqa: E501 (C text is not broken)
"""Cross-lane instructions: DPP controls with masks, permlane, readlane, LDS-crossbar permutes, under partial EXEC."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from forgec.emulator import Device
from tests.emulator.build import build

Array = np.ndarray[Any, Any]
WAVE = {"gfx1100": 32, "gfx942": 64}


def run_all(arch: str, bodies: list[str], x: Array, y: Array) -> Array:
    """One wave runs every body: ``x`` and ``y`` are loaded, ``d`` starts as ``y`` and is stored from every lane."""
    wave = WAVE[arch]
    parts = "".join(
        f'{{ u32 d = y; asm volatile("" : "+v"(d)); {body} out[{i * wave} + t] = d; }}\n'
        for i, body in enumerate(bodies)
    )
    text = f"""KERNEL BLOCK({wave}) void lanes(const u32* in, u32* out) {{
      u32 t = lane_id(); u32 x = in[t], y = in[{wave} + t];
      asm volatile("" : "+v"(x), "+v"(y));
      {parts}
    }}"""
    code, listing = build(text, arch)
    device = Device(arch)
    source = device.upload(np.concatenate([x, y]).astype(np.uint32))
    out = device.malloc(wave * 4 * len(bodies))
    device.launch(device.load(code, listing), "lanes", 1, wave, struct.pack("<QQ", source, out))
    return device.read(out, np.uint32, wave * len(bodies)).reshape(-1, wave)


def run(arch: str, body: str, x: Array, y: Array) -> Array:
    return run_all(arch, [body], x, y)[0]


def inputs(arch: str) -> tuple[Array, Array]:
    rng = np.random.default_rng()
    return rng.integers(0, 1 << 32, WAVE[arch], dtype=np.uint64).astype(np.uint32), rng.integers(
        0, 1 << 32, WAVE[arch], dtype=np.uint64
    ).astype(np.uint32)


Control = Callable[[int, int], int | None]


def row(move: Callable[[int], int]) -> Control:
    return lambda lane, wave: (lane & ~15) + move(lane & 15) if 0 <= move(lane & 15) < 16 else None


CONTROLS: dict[str, tuple[Control, str]] = {
    "quad_perm:[1,0,3,2]": (lambda lane, w: lane ^ 1, "gfx"),
    "quad_perm:[2,2,0,1]": (lambda lane, w: (lane & ~3) + (2, 2, 0, 1)[lane & 3], "gfx"),
    "row_shl:3": (row(lambda i: i + 3), "gfx"),
    "row_shr:1": (row(lambda i: i - 1), "gfx"),
    "row_shr:15": (row(lambda i: i - 15), "gfx"),
    "row_ror:5": (row(lambda i: (i - 5) % 16), "gfx"),
    "row_mirror": (row(lambda i: 15 - i), "gfx"),
    "row_half_mirror": (row(lambda i: (i & 8) + 7 - (i & 7)), "gfx"),
    "row_share:6": (row(lambda i: 6), "gfx11"),
    "row_xmask:9": (row(lambda i: i ^ 9), "gfx11"),
    "row_bcast:15": (lambda lane, w: (lane & ~15) - 1 if lane >= 16 else None, "gfx9"),
    "row_bcast:31": (lambda lane, w: 31 if lane >= 32 else None, "gfx9"),
    "wave_shr:1": (lambda lane, w: lane - 1 if lane else None, "gfx9"),
    "wave_rol:1": (lambda lane, w: (lane + 1) % w, "gfx9"),
    "row_newbcast:4": (row(lambda i: 4), "gfx9"),
}


@pytest.mark.parametrize("arch", WAVE)
@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("partial", [False, True])
def test_dpp(arch: str, bound: bool, partial: bool) -> None:
    """Lanes without a source keep the destination, or read zero with bound_ctrl; masks disable rows and banks."""
    wave, failures = WAVE[arch], []
    x, y = inputs(arch)
    names = [name for name, (_, families) in CONTROLS.items() if arch.startswith(families)]
    rows, banks = (0xF, 0xF) if not partial else (0x5, 0xB)
    flags = f"row_mask:{rows:#x} bank_mask:{banks:#x}" + (" bound_ctrl:1" if bound else "")
    guard = "if (t % 3 != 1)" if partial else ""
    bodies = [
        f'{guard} asm volatile("v_mov_b32_dpp %0, %1 {name} {flags}" : "+v"(d) : "v"(x));' for name in names
    ]
    for name, got in zip(names, run_all(arch, bodies, x, y), strict=True):
        control = CONTROLS[name][0]
        expected = y.copy()
        for lane in range(wave):
            active = not partial or lane % 3 != 1
            source = control(lane, wave)
            readable = source is not None and (not partial or source % 3 != 1)
            if not active or not (rows >> lane // 16 & 1) or not (banks >> lane % 16 // 4 & 1):
                continue
            if readable and source is not None:
                expected[lane] = x[source]
            elif bound:
                expected[lane] = 0
        if not np.array_equal(got, expected):
            failures.append(f"{name} {flags}: lane {int(np.argmax(got != expected))}")
    assert not failures, failures


def test_dpp8() -> None:
    x, y = inputs("gfx1100")
    got = run(
        "gfx1100", 'asm volatile("v_mov_b32_dpp %0, %1 dpp8:[7,6,5,4,0,1,2,3]" : "+v"(d) : "v"(x));', x, y
    )
    assert np.array_equal(got, x.reshape(4, 8)[:, [7, 6, 5, 4, 0, 1, 2, 3]].reshape(-1))


def test_dpp_on_an_addition() -> None:
    x, y = inputs("gfx1100")
    got = run(
        "gfx1100",
        'asm volatile("v_add_nc_u32_dpp %0, %1, %2 row_ror:8 row_mask:0xf bank_mask:0xf" : "+v"(d) : "v"(x), "v"(y));',
        x,
        y,
    )
    assert np.array_equal(got, np.roll(x.reshape(2, 16), 8, 1).reshape(-1) + y)


@pytest.mark.parametrize("exchange", [False, True])
def test_permlane16(exchange: bool) -> None:
    """RDNA3 16.12: each lane of a row picks by its 4-bit selector, out of its own or the other row."""
    x, y = inputs("gfx1100")
    picks = np.random.default_rng().permutation(16)
    lo, hi = (int(sum(int(p) << 4 * i for i, p in enumerate(picks[k : k + 8]))) for k in (0, 8))
    name = "permlanex16" if exchange else "permlane16"
    got = run("gfx1100", f"d = __builtin_amdgcn_{name}(y, x, {lo}u, {hi}u, false, false);", x, y)
    source = x.reshape(2, 16)[::-1] if exchange else x.reshape(2, 16)
    assert np.array_equal(got, source[:, picks].reshape(-1))


@pytest.mark.parametrize("arch", WAVE)
def test_readlane_writelane_and_ballot(arch: str) -> None:
    wave = WAVE[arch]
    x, y = inputs(arch)
    assert (run(arch, "d = __builtin_amdgcn_readlane(x, 17);", x, y) == x[17]).all()
    got = run(arch, "if (t > 4) d = __builtin_amdgcn_readfirstlane(x);", x, y)
    assert (got[5:] == x[5]).all() and np.array_equal(got[:5], y[:5])
    got = run(arch, 'd = x; asm volatile("v_writelane_b32 %0, 33, 9" : "+v"(d));', x, y)
    assert got[9] == 33 and np.array_equal(np.delete(got, 9), np.delete(x, 9))
    got = run(
        arch,
        f"d = (u32)__builtin_popcountl(__builtin_amdgcn_ballot_w{wave}(x > y) & ((1ul << t) - 1));",
        x,
        y,
    )
    assert np.array_equal(got, np.cumsum(x > y) - (x > y))
    mbcnt = (
        "__builtin_amdgcn_mbcnt_lo(~0u, 0)"
        if wave == 32
        else "__builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0))"
    )
    assert np.array_equal(run(arch, f"d = {mbcnt};", x, y), np.arange(wave))


@pytest.mark.parametrize("arch", WAVE)
def test_lds_crossbar(arch: str) -> None:
    wave = WAVE[arch]
    x, _ = inputs(arch)
    picks = np.random.default_rng().permutation(wave).astype(np.uint32)
    assert np.array_equal(run(arch, "d = __builtin_amdgcn_ds_bpermute(y * 4, x);", x, picks), x[picks])
    scattered = np.zeros_like(x)
    scattered[picks] = x
    assert np.array_equal(run(arch, "d = __builtin_amdgcn_ds_permute(y * 4, x);", x, picks), scattered)
    lanes = np.arange(wave)
    for pattern, source in (
        (0x041F, lanes ^ 1),
        (0x7C1F, lanes ^ 31),
        (0x8000 | 0b00011011, (lanes & ~3) + 3 - (lanes & 3)),
        (0x00E0, np.full(wave, 7) + (lanes & 32)),
    ):
        got = run(arch, f"d = __builtin_amdgcn_ds_swizzle(x, {pattern});", x, x)
        assert np.array_equal(got, x[source]), hex(pattern)
    # a lane that EXEC excludes is read as zero
    got = run(arch, "if (t & 1) d = __builtin_amdgcn_ds_bpermute((t - 1) * 4, x);", x, x)
    assert (got[1::2] == 0).all()


SUM = """
KERNEL BLOCK(32) void total(const float* in, float* out) {
  float x = in[lane_id()];
  for (int i = 0; i < 4; ++i) {
    u32 from = 1u << i;
    x += __builtin_bit_cast(float, __builtin_amdgcn_ds_bpermute((lane_id() ^ from) * 4, __builtin_bit_cast(int, x)));
  }
  float other = __builtin_bit_cast(float, __builtin_amdgcn_permlanex16(0u, __builtin_bit_cast(u32, x), 0x76543210u, 0xfedcba98u, false, false));
  PIN
  x += other;
  if (lane_id() == 0) out[0] = x;
}
"""


def sunk_under_the_branch(listing: str) -> bool:
    """Whether the compiler moved the permlane behind the branch that leaves lane 0 alone."""
    lines = listing.splitlines()
    branch = next((i for i, line in enumerate(lines) if "s_cbranch_execz" in line), len(lines))
    permute = next(i for i, line in enumerate(lines) if "v_permlanex16_b32" in line)
    return permute > branch


def test_permlanex16_sunk_under_a_branch() -> None:
    """LLVM up to 20 (and the DPP forms later) sinks the permute to where only lane 0 is active and reads a dead lane.

    The emulator shows what the machine code does: the pinned kernel is right, and the unpinned one is right exactly
    when the compiler left the permute where it was written.
    """
    x = np.arange(1, 33, dtype=np.float32)

    def total(pin: str, move: bool = False) -> tuple[float, bool]:
        code, listing = build(SUM.replace("PIN", pin), "gfx1100")
        device = Device("gfx1100")
        source, out = device.upload(x), device.upload(np.zeros(1, np.float32))
        device.launch(device.load(code, listing), "total", 1, 32, struct.pack("<QQ", source, out))
        return float(device.read(out, np.float32, 1)[0]), sunk_under_the_branch(listing)

    pinned, sunk = total('asm volatile("" : "+v"(other));')
    assert pinned == x.sum() and not sunk
    plain, sunk = total("")
    assert (plain == x.sum()) != sunk
    # the same code with the permute under lane 0 by hand, as those compilers emit it
    under, sunk = total(
        'if (lane_id() == 0) { other = __builtin_bit_cast(float, __builtin_amdgcn_permlanex16(0u, __builtin_bit_cast(u32, x), 0x76543210u, 0xfedcba98u, false, false)); asm volatile("" : "+v"(other)); }'
    )
    assert sunk and under == x[:16].sum()


def selected(x: Array, selection: str, sign: bool = False) -> Array:
    """What an SDWA source selection reads, zero- or sign-extended to 32 bits (CDNA3 6.5)."""
    if selection == "DWORD":
        return x
    kind, index = selection.split("_")
    bits = 8 if kind == "BYTE" else 16
    value = (x >> np.uint32(bits * int(index)) & np.uint32((1 << bits) - 1)).astype(np.int64)
    return (
        (np.where(value >> (bits - 1), value - (1 << bits), value) if sign else value)
        .astype(np.uint64)
        .astype(np.uint32)
    )


def placed(value: Array, old: Array, selection: str, unused: str) -> Array:
    """What an SDWA destination holds afterwards."""
    if selection == "DWORD":
        return value
    kind, index = selection.split("_")
    bits = 8 if kind == "BYTE" else 16
    shift, field = bits * int(index), (1 << bits) - 1
    moved = (value & np.uint32(field)) << np.uint32(shift)
    if unused == "UNUSED_PRESERVE":
        return (old & np.uint32(0xFFFFFFFF ^ field << shift)) | moved
    if unused == "UNUSED_SEXT":
        top = 32 - bits - shift
        return ((moved << np.uint32(top)).view(np.int32) >> np.int32(top)).view(np.uint32)
    return moved


def test_sdwa() -> None:
    """Sub-dword addressing of gfx9: every source and destination selection, padding, sign extension, preservation."""
    x, y = inputs("gfx942")
    rows: list[tuple[str, Array]] = []
    selections = ["BYTE_0", "BYTE_1", "BYTE_2", "BYTE_3", "WORD_0", "WORD_1", "DWORD"]
    tail = "dst_sel:{} dst_unused:{} src0_sel:{} src1_sel:{}"
    for i, destination in enumerate(selections):
        for unused in ("UNUSED_PAD", "UNUSED_SEXT", "UNUSED_PRESERVE"):
            a, b = selections[(i + 1) % 7], selections[(i + 3) % 7]
            text = f'asm volatile("v_add_u32_sdwa %0, %1, %2 {tail.format(destination, unused, a, b)}" : "+v"(d) : "v"(x), "v"(y));'
            rows.append((text, placed(selected(x, a) + selected(y, b), y, destination, unused)))
    for a in selections[:6]:
        text = f'asm volatile("v_add_u32_sdwa %0, sext(%1), sext(%2) {tail.format("DWORD", "UNUSED_PAD", a, "WORD_1")}" : "+v"(d) : "v"(x), "v"(y));'
        rows.append((text, selected(x, a, True) + selected(y, "WORD_1", True)))
        text = f'd = 0; {{ u64 m; asm volatile("v_cmp_lt_u32_sdwa %0, %1, %2 src0_sel:{a} src1_sel:BYTE_2" : "=s"(m) : "v"(x), "v"(y)); d = (u32)(m >> t) & 1; }}'
        rows.append((text, (selected(x, a) < selected(y, "BYTE_2")).astype(np.uint32)))
    got = run_all("gfx942", [text for text, _ in rows], x, y)
    failures = [
        text for (text, expected), found in zip(rows, got, strict=True) if not np.array_equal(found, expected)
    ]
    assert not failures, failures
