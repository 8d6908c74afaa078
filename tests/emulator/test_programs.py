"""Ordinary programs: the same C compiled for the host and for every chip, at every optimisation level."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgec.emulator import Device
from forgec.emulator.native import clang_command, lld_command, run_tool
from tests.emulator.build import build

PROGRAMS = (Path(__file__).parent / "kernels" / "programs.h").read_text(encoding="utf-8")
THREADS, WORDS = 96, 64
HOST = """
typedef unsigned u32; typedef unsigned long u64; typedef long i64;
#define DEVICE static
#define NOINLINE static __attribute__((noinline))
"""
GPU = """
typedef long i64;
#define NOINLINE static __attribute__((device, noinline))
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The programs as a function of the host."""
    folder = tmp_path_factory.mktemp("programs")
    source, obj, shared = folder / "p.c", folder / "p.o", folder / "p.so"
    source.write_text(HOST + PROGRAMS + "void run(const u32* in, u32* out) { program(in, out); }\n")
    flags = ["-target", "x86_64-linux-gnu", "-O1", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing"]
    run_tool([*clang_command(), *flags, "-c", str(source), "-o", str(obj)], "compile the programs")
    run_tool([*lld_command(), "-shared", str(obj), "-o", str(shared)], "link the programs")
    return ctypes.CDLL(str(shared)).run


@pytest.mark.parametrize(
    ("arch", "level"),
    [
        *((arch, level) for arch in ("gfx1100", "gfx942") for level in ("-O0", "-O1", "-O3", "-Os")),
        *((arch, level) for arch in ("gfx90a", "gfx1201", "gfx1030") for level in ("-O1", "-O3")),
    ],
)
def test_the_host_and_the_gpu_agree(host: Any, arch: str, level: str) -> None:
    text = f"""{GPU}{PROGRAMS}
    KERNEL BLOCK({THREADS}) void run(const u32* in, u32* out) {{
      program(in + {WORDS} * lane_id(), out + 16 * lane_id());
    }}"""
    code, listing = build(text, arch, "-ffp-contract=off", "-fno-strict-aliasing", level)
    data = np.random.default_rng().integers(0, 1 << 32, (THREADS, WORDS), dtype=np.uint64).astype(np.uint32)
    data[0], data[1] = 0, 0xFFFFFFFF
    expected = np.zeros((THREADS, 16), np.uint32)
    for row, out in zip(data, expected, strict=True):
        host(ctypes.c_void_p(row.ctypes.data), ctypes.c_void_p(out.ctypes.data))
    device = Device(arch, threads=1)
    source, result = device.upload(data), device.upload(np.zeros((THREADS, 16), np.uint32))
    device.launch(device.load(code, listing), "run", 1, THREADS, struct.pack("<QQ", source, result))
    got = device.read(result, np.uint32, THREADS * 16).reshape(THREADS, 16)
    names = [
        "sha_like",
        "sorted",
        "wide",
        "wide",
        "narrow",
        "invert",
        "invert",
        "floats",
        "fibonacci",
        "text",
        "graph",
        "bits",
    ]
    wrong = sorted({names[column] for column in np.nonzero((got != expected).any(0))[0].tolist()})
    assert not wrong, f"differ: {wrong}"
