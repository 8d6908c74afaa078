"""RDNA3 and RDNA3.5 chips (gfx1100, gfx1101, gfx1102, gfx1151), one frozen ``Target`` each.

Numbers only: nothing here is computed from a device. Where several cards share a code object (gfx1100 is also
the RX 7900 XT: 84 CUs, 800 GB/s, 20 GB, 80 MiB), the numbers are those of the card in the title.
"""

from __future__ import annotations

from forgec.targets.base import Target

__all__ = ["TARGETS"]

_ISA = "wave, simds_per_cu, lds_bytes, max_threads: AMD RDNA3 ISA guide (2023), sections 2 and 3.3"
_VGPRS_FULL = "vgprs: LLVM AMDGPU.td Feature1_5xVGPRs, 1536 registers per lane of a wave32 SIMD"
_VGPRS_SMALL = (
    "vgprs: LLVM AMDGPU.td, gfx1102 lacks Feature1_5xVGPRs: 1024 registers per lane of a wave32 SIMD"
)
_BLOCK = "block_size: 8 waves of 32, this project's default for wave32"
_NODE = "launch_seconds: about 3.9 us per HIP graph node, reported for gfx1100, not measured by this project"
_NODE_ASSUMED = "launch_seconds: assumed equal to gfx1100, unmeasured"
_GIB = 1 << 30
_MIB = 1 << 20

GFX1100 = Target(
    name="gfx1100",
    family="gfx11",
    title="Radeon RX 7900 XTX (RDNA3; the RX 7900 XT runs the same code)",
    wave=32,
    compute_units=96,
    simds_per_cu=2,
    clock_hz=2.5e9,
    lds_bytes=65536,
    vgprs=1536,
    max_threads=1024,
    block_size=256,
    dot="sudot4",
    matrix="wmma",
    bandwidth=960e9,
    memory_bytes=24 * _GIB,
    l2_bytes=96 * _MIB,
    launch_seconds=3.9e-6,
    sources=(
        _ISA,
        _VGPRS_FULL,
        _BLOCK,
        _NODE,
        "compute_units, clock_hz, bandwidth, memory_bytes: AMD product page, RX 7900 XTX (boost clock)",
        "l2_bytes: AMD product page, Radeon RX 7900 XTX, Infinity Cache (behind 6 MiB of L2)",
    ),
    code_suffix=".hsaco",
)

GFX1101 = Target(
    name="gfx1101",
    family="gfx11",
    title="Radeon RX 7800 XT (RDNA3)",
    wave=32,
    compute_units=60,
    simds_per_cu=2,
    clock_hz=2.43e9,
    lds_bytes=65536,
    vgprs=1536,
    max_threads=1024,
    block_size=256,
    dot="sudot4",
    matrix="wmma",
    bandwidth=624e9,
    memory_bytes=16 * _GIB,
    l2_bytes=64 * _MIB,
    launch_seconds=3.9e-6,
    sources=(
        _ISA,
        _VGPRS_FULL,
        _BLOCK,
        _NODE_ASSUMED,
        "compute_units, clock_hz, bandwidth, memory_bytes: AMD product page, Radeon RX 7800 XT (boost clock)",
        "l2_bytes: AMD product page, Radeon RX 7800 XT, Infinity Cache",
    ),
    code_suffix=".hsaco",
)

GFX1102 = Target(
    name="gfx1102",
    family="gfx11",
    title="Radeon RX 7600 (RDNA3)",
    wave=32,
    compute_units=32,
    simds_per_cu=2,
    clock_hz=2.655e9,
    lds_bytes=65536,
    vgprs=1024,
    max_threads=1024,
    block_size=256,
    dot="sudot4",
    matrix="wmma",
    bandwidth=288e9,
    memory_bytes=8 * _GIB,
    l2_bytes=32 * _MIB,
    launch_seconds=3.9e-6,
    sources=(
        _ISA,
        _VGPRS_SMALL,
        _BLOCK,
        _NODE_ASSUMED,
        "compute_units, clock_hz, bandwidth, memory_bytes: AMD product page, Radeon RX 7600 (boost clock)",
        "l2_bytes: AMD product page, Radeon RX 7600, Infinity Cache",
    ),
    code_suffix=".hsaco",
)

GFX1151 = Target(
    name="gfx1151",
    family="gfx11",
    title="Radeon 8060S of Ryzen AI Max+ 395 (RDNA3.5)",
    wave=32,
    compute_units=40,
    simds_per_cu=2,
    clock_hz=2.9e9,
    lds_bytes=65536,
    vgprs=1536,
    max_threads=1024,
    block_size=256,
    dot="sudot4",
    matrix="wmma",
    bandwidth=256e9,
    memory_bytes=96 * _GIB,
    l2_bytes=32 * _MIB,
    launch_seconds=3.9e-6,
    sources=(
        "wave, simds_per_cu, lds_bytes, max_threads: AMD RDNA3.5 ISA guide (2024), sections 2 and 3.3",
        _VGPRS_FULL,
        _BLOCK,
        _NODE_ASSUMED,
        "compute_units, clock_hz: AMD product page, Ryzen AI Max+ 395 (graphics core count and frequency)",
        "bandwidth: 256-bit LPDDR5X-8000, AMD product page, Ryzen AI Max+ 395",
        "memory_bytes: the most of 128 GB that AMD lets firmware give to the GPU",
        "l2_bytes: AMD Strix Halo presentation (CES 2025), 32 MB memory-attached last-level cache",
    ),
    code_suffix=".hsaco",
)

TARGETS = (GFX1100, GFX1101, GFX1102, GFX1151)
